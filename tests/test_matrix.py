"""Every lens on every network of ``other_networks``, as ``matrix.csv`` says: each cell works, with the right values, or
is refused with a reason.

Right values are computed anew from NumPy's forward passes: by counting, finite differences, edited weights, and loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import other_networks
import pandas as pd
import pytest
import scipy.signal
import torch
import xarray as xr
from other_networks import CLASSES, LENGTH, N_AXES, NAMES, Case, case, made_windows
from sklearn.manifold import TSNE
from sklearn.metrics import f1_score

from harvis_utils.lenses import (
    ablation,
    architecture,
    cards,
    deconvnet,
    dissection,
    dreams,
    evolution,
    locating,
    occlusion,
    slopes,
)
from harvis_utils.maximization import objectives, paper_methods, unit_statistics, visualization
from harvis_utils.metrics import embedding, similarity
from harvis_utils.networks import taps
from harvis_utils.settings import MaximizationSettings, SimilaritySettings, Step

MATRIX = pd.read_csv(Path(__file__).with_name("matrix.csv"), index_col="network")
#: lenses that must work on every network; the others may refuse some, with a reason
EVERYWHERE = ("maps", "found", "statistics", "eight methods", "Ssim", "card", "occlusion", "ablation", "dissection")

SPLIT = made_windows().train
X = SPLIT.x
OCCLUDER = occlusion.Occluder(3, "mean")
SIMILARITY = SimilaritySettings(piece=10, n_similar=5)
SEED, LAYER = 0, "place"
rng = np.random.default_rng


# ------------------------------------------------------------------------------------------------- numbers by hand


@dataclass(frozen=True)
class ByHand:
    """Maps (window, unit, axis, time) and scores of all windows, and what follows of them by counting."""

    maps: np.ndarray
    scores: np.ndarray

    @property
    def alive(self) -> list[int]:
        """Units that ever give out something."""
        return [u for u in range(self.maps.shape[1]) if (self.maps[:, u] != 0).any()]

    @property
    def th_eap(self) -> np.ndarray:
        """Mean and two standard deviations of the outputs that are not zero; NaN for a dead unit."""
        own = [self.maps[:, u][self.maps[:, u] != 0] for u in range(self.maps.shape[1])]
        return np.array([of.mean() + 2 * of.std() if len(of) else np.nan for of in own])


@cache
def by_hand(name: str) -> ByHand:
    return ByHand(*case(name).by_hand(X.astype(np.float64)))


def in_time(of: Case, maps: np.ndarray) -> np.ndarray:
    """Maps put where their samples look: straight lines between, zero where the place looks at nothing."""
    at = (np.arange(LENGTH) - of.first) / of.stride
    n = maps.shape[-1]
    left = np.clip(np.floor(at).astype(int), 0, n - 1)
    share = at - left
    value = maps[..., left] * (1 - share) + maps[..., np.minimum(left + 1, n - 1)] * share
    return np.where((at >= 0) & (at <= n - 1), value, 0)


def own_maps(of: Case, x: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """The map of each row's unit, (row, axis, time), for signals (row, axis, time), or (row, time) of one axis."""
    if x.ndim == 3:
        return of.by_hand(x)[0][np.arange(len(x)), unit]
    return of.by_hand(np.repeat(x[:, None], N_AXES, axis=1))[0][np.arange(len(x)), unit, 0][:, None]


def slope(function, x: np.ndarray, eps: float = 1e-7) -> np.ndarray:
    """Gradient of ``function`` (row, ...) -> (row,) at ``x`` by central differences, close enough to meet no kink."""
    n = x[0].size
    each = eps * np.eye(n).reshape(n, 1, *x.shape[1:])
    both = np.concatenate([x + each, x - each])
    rows = np.tile(np.arange(len(x)), 2 * n)
    value = function(both.reshape(-1, *x.shape[1:]), rows).reshape(2, n, len(x))
    return ((value[0] - value[1]) / (2 * eps)).T.reshape(x.shape)


def starts(of: Case, n: int, size: float = 0.5) -> np.ndarray:
    """Signals to begin with, (n, axis, time), or (n, time) where units see one axis: real windows with some noise."""
    x = X[5 : 5 + n] + size * rng(1).normal(size=(n, N_AXES, LENGTH))
    return (x[:, 1] if of.by_axis else x).astype(np.float32)


# ------------------------------------------------------------------------- one call and one comparison for each lens


def check_maps(of: Case) -> None:
    maps = by_hand(of.name).maps
    found = taps.outputs(of.network, of.tap, X).numpy()
    assert found.shape == maps.shape and found == pytest.approx(maps, rel=1e-3, abs=1e-4)


def check_found(of: Case) -> None:
    """The layer by its name alone: what is declared here is found there, by probing."""
    tap = taps.located(of.network, taps.Tap(of.module, of.module, of.rectified), torch.tensor(X[:4]))
    found, maps = taps.outputs(of.network, tap, X).numpy(), by_hand(of.name).maps
    assert tap.layout == of.layout and found.shape == maps.shape and found == pytest.approx(maps, rel=1e-3, abs=1e-4)
    positions = taps.positions(of.network, tap, torch.tensor(X[:4]))
    assert np.asarray(positions) == pytest.approx(of.first + of.stride * np.arange(maps.shape[3]))


def check_statistics(of: Case) -> None:
    hand = by_hand(of.name)
    if of.trunk:
        found = unit_statistics.collect(of.trunk, SPLIT.segments).sel(layer="conv2")
    else:
        found = unit_statistics.collect(of.network, X, place=of.tap)
    for u in range(hand.maps.shape[1]):
        every, own = hand.maps[:, u].reshape(-1), found.isel(unit=u)
        some = every[every != 0]
        assert bool(own["dead"]) == (not len(some))
        assert float(own["nonzero"]) == pytest.approx(len(some) / len(every), abs=2e-3)
        assert float(own["p95"]) == pytest.approx(np.quantile(every, 0.95), rel=1e-3, abs=1e-4)
        assert float(own["maximum"]) == pytest.approx(every.max(), rel=1e-3, abs=1e-4)
        if len(some):
            assert float(own["mean"]) == pytest.approx(some.mean(), rel=2e-3, abs=1e-4)
            assert float(own["th_eap"]) == pytest.approx(some.mean() + 2 * some.std(), rel=2e-3, abs=1e-4)
        means = hand.maps[:, u].mean(-1) if of.by_axis else hand.maps[:, u].mean((1, 2))
        top = np.sort(means.reshape(-1))[::-1][: unit_statistics.N_TOP]
        assert own["top_output"].values == pytest.approx(top, rel=1e-3, abs=1e-4)
        where = found["top_segment" if of.by_axis else "top_window"].isel(unit=u).values
        assert means.reshape(-1)[where] == pytest.approx(top, rel=1e-3, abs=1e-4)


def objective(of: Case, method: paper_methods.Method, unit: int, th: float):
    """The paper's f - w R of rows of signals; penalties on the signal are sums over its axes."""
    settings = MaximizationSettings()

    def mean_excess(values: np.ndarray, limit: float) -> np.ndarray:
        excess = np.maximum(values - limit, 0)
        return excess.sum(-1) / np.maximum((excess > 0).sum(-1), 1)

    def value(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        maps, each = own_maps(of, x, np.full(len(x), unit)), x.reshape(len(x), -1, LENGTH)
        penalty = method.l2 * np.sqrt((each**2).sum(2)) + method.tv * np.abs(np.diff(each, axis=2)).sum(2)
        penalty = (penalty + method.aap * mean_excess(np.abs(each), settings.th_aap_g)).sum(1)
        penalty = penalty + method.eap * mean_excess(maps.reshape(len(x), -1), th)
        return (np.minimum(maps, th) if method.clip else maps).mean((1, 2)) - settings.weight * penalty

    return value


def check_methods(of: Case) -> None:
    hand, n_steps, step = by_hand(of.name), 2, Step("ascent", 0.3, 0.9)
    units, methods = hand.alive[:2], paper_methods.METHODS
    th = hand.th_eap / 2  # so that ascents from here meet it
    start = np.stack([starts(of, 2)] * len(methods))
    settings = MaximizationSettings(n_steps=n_steps)
    about = {"units": units, "preset": step, "settings": settings, "start": start, "length": LENGTH}
    if of.trunk:
        made = paper_methods.maximize(of.trunk, "conv2", th, **about)
    else:
        made = paper_methods.maximize(of.network, of.tap, th, n_axes=N_AXES, **about)
    sections = scipy.signal.butter(settings.lowpass_order, settings.lowpass_hz, fs=30, output="sos")

    def after(x: np.ndarray, method: paper_methods.Method) -> np.ndarray:
        if method.after == "lowpass":
            return scipy.signal.sosfiltfilt(sections, x, axis=-1, padtype="odd")
        # the root mean square of one axis of norm 1
        return x / np.sqrt((x**2).mean() * LENGTH) if method.after == "unit-norm" else x

    for (name, method), (k, unit) in product(methods.items(), enumerate(units)):
        x = after(start[0, k].astype(np.float64), method)
        for number in range(n_steps):
            g = slope(objective(of, method, unit, th[unit]), x[None])[0]
            x = after(x + step.step_size * step.decay**number * g, method)
        own = made.sel(technique=name, unit=unit)
        assert own["signal"].values == pytest.approx(x, abs=2e-3), (name, unit)
        seen = own_maps(of, x[None], np.array([unit]))[0]
        assert own["map"].values.reshape(seen.shape) == pytest.approx(seen, abs=5e-3), (name, unit)


@dataclass(frozen=True)
class Made:
    """Made-up signals of a place, their own maps, and their scores by loops, as the stages would store them."""

    signals: xr.Dataset
    statistics: xr.Dataset
    start: np.ndarray
    scores: xr.Dataset


@cache
def made(name: str) -> Made:
    of, hand = case(name), by_hand(name)
    n = hand.maps.shape[1]
    size = np.array([0.5, *np.linspace(0.6, 2, n - 2), 100])  # the last one fails
    x = (starts(of, n, 0.2).T * size).T.astype(np.float32)
    maps = own_maps(of, x.astype(np.float64), np.arange(n))
    placed = in_time(of, maps).sum(1)
    begin = np.lib.stride_tricks.sliding_window_view(placed, SIMILARITY.piece, axis=1).sum(-1).argmax(1)
    pieces = [x[u, ..., b : b + SIMILARITY.piece] for u, b in enumerate(begin)]
    # every piece of every window: (segment, offset, sample) for one axis, (window, offset, axis, sample) for all
    real = np.lib.stride_tricks.sliding_window_view(X.astype(np.float64), SIMILARITY.piece, axis=2)
    real = real.reshape(-1, *real.shape[2:]) if of.by_axis else real.transpose(0, 2, 1, 3)
    distance = np.stack([((real - piece) ** 2).mean(tuple(range(2, real.ndim))) for piece in pieces])
    segment = np.argsort(distance.min(2), axis=1, kind="stable")[:, : SIMILARITY.n_similar]
    start = starts(of, 1)[0]
    dims = ("layer", "unit", *(() if of.by_axis else ("axis",)), "time")
    time = "time" if maps.shape[2] == LENGTH else "map_time"
    at = {"layer": [LAYER], "unit": np.arange(n), time: of.first + of.stride * np.arange(maps.shape[2])}
    stored_map = (("layer", "unit", time), maps[None, :, 0].astype(np.float32))
    signals = xr.Dataset({"signal": (dims, x[None]), "map": stored_map}, at)
    signals["start_map"] = xr.zeros_like(signals["map"])
    del at[time]
    dead = np.isnan(hand.th_eap)
    columns = {"th_eap": hand.th_eap, "p95": np.quantile(hand.maps, 0.95, axis=(0, 2, 3)), "dead": dead}
    statistics = xr.Dataset({key: (("layer", "unit"), value[None]) for key, value in columns.items()}, at)
    amplitude = np.abs(x).reshape(n, -1).max(1)
    searched = ~dead & (amplitude <= SIMILARITY.fail_amplitude_g)
    near = np.take_along_axis(distance.min(2), segment, 1)
    per_unit = {
        "failed": amplitude > SIMILARITY.fail_amplitude_g,
        "dead": dead,
        "peak_amplitude_g": amplitude,
        "range_g": np.ptp(x, axis=-1).reshape(n, -1).max(1),
        "displacement_g": np.sqrt(((x - start) ** 2).reshape(n, -1).mean(1)),
        "max_output": maps.reshape(n, -1).max(1),
        "s_u": np.where(searched, near.mean(1), np.nan),
        "piece_start": begin,
        "total_variation_g": np.abs(np.diff(x, axis=-1)).reshape(n, -1).sum(1),
    }
    scores = xr.Dataset({key: (("layer", "unit"), value[None]) for key, value in per_unit.items()}, at)
    dims = ("layer", "unit", "neighbour")
    scores["distance"] = (dims, np.where(searched[:, None], near, np.nan)[None])
    scores["segment"] = (dims, np.where(searched[:, None], segment, -1)[None])
    offset = np.take_along_axis(distance.argmin(2), segment, 1)
    scores["offset"] = (dims, np.where(searched[:, None], offset, -1)[None])
    return Made(signals, statistics, start, scores)


def check_similarity(of: Case) -> None:
    known = made(of.name)
    found = similarity.score(known.signals, known.statistics, known.start, made_windows(), SIMILARITY)
    for name, expected in known.scores.items():
        got = found[name].transpose(*expected.dims)
        assert got.values == pytest.approx(expected.values, rel=1e-4, abs=1e-5, nan_ok=True), name
    assert found["failed"].any() and not found["failed"].all()


def stored(known: Made) -> tuple[xr.Dataset, xr.Dataset]:
    """Signals and scores with the dimensions of a run's results."""
    more = {"seed": [SEED], "preset": [embedding.PRESET], "technique": [embedding.METHOD]}
    return known.signals.expand_dims(more), known.scores.expand_dims(more)


def check_atlas(of: Case) -> None:
    known = made(of.name)
    (signals, scores), x = stored(known), known.signals["signal"].values[0].astype(np.float64)
    kept = ~(known.scores["failed"] | known.scores["dead"]).values[0]
    flat = np.where(kept[:, None], x.reshape(len(x), -1), np.nan)
    positions = np.full((len(x), 2), np.nan)
    perplexity = (kept.sum() - 1) / 3
    positions[kept] = TSNE(perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(flat[kept])
    drawn = np.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan)
    assert embedding.embed(drawn) == pytest.approx(positions, rel=1e-3, abs=1e-3, nan_ok=True)
    places = xr.DataArray(
        positions[None, None], dims=("seed", "layer", "unit", "coordinate"), coords={"seed": [SEED], "layer": [LAYER]}
    )
    view = embedding.view(signals, scores, places, SPLIT, SEED, LAYER)
    assert view.signals == pytest.approx(drawn, nan_ok=True)
    nearest = known.scores["segment"].values[0, :, 0]
    for u in np.flatnonzero(kept):
        real = SPLIT.segments[nearest[u]] if of.by_axis else X[nearest[u]]
        assert view.windows[u] == pytest.approx(real)
        window = nearest[u] // N_AXES if of.by_axis else nearest[u]
        assert view.activities[u] == SPLIT.activity[window]
        piece = slice(view.starts[u], view.starts[u] + 10), slice(view.offsets[u], view.offsets[u] + 10)
        difference = view.signals[u][..., piece[0]] - view.windows[u][..., piece[1]]
        assert (difference**2).mean() == pytest.approx(view.distances[u], rel=1e-4)


def check_card(of: Case) -> None:
    known = made(of.name)
    signals, scores = (one.isel(preset=0, technique=0, drop=True) for one in stored(known))
    dissected = dissected_place(of)
    lost = ablation.drops(of.network, [of.tap], SPLIT, len(CLASSES))
    top = deconvnet.top_of_layers(of.network, [of.tap], SPLIT, 3)[of.tap.name]
    rule = "gradient" if MATRIX.loc[of.name, "deconvnet"].startswith("refused") else "deconvnet"
    projected = deconvnet.project_top(of.network, of.tap, SPLIT, top, (rule,)).expand_dims(layer=[LAYER])
    n = known.signals.sizes["unit"]
    views = {
        LAYER: embedding.AtlasLayer(
            name=LAYER,
            positions=rng(0).normal(size=(n, 2)),
            signals=known.signals["signal"].values[0],
            activities=np.arange(n) % 3,
            windows=np.zeros((n, LENGTH)),
            starts=np.zeros(n, int),
            offsets=np.zeros(n, int),
            distances=np.zeros(n),
        )
    }
    measured = xr.Dataset(
        {name: (("seed", "layer", "unit"), rng(1).random((1, 1, n))) for name in ("activation", "nearness")},
        {"seed": [SEED], "layer": [LAYER], "unit": np.arange(n)},
    )
    lenses = cards.Lenses(
        signals=signals.assign(dead=scores["dead"]),
        measured=measured,
        dissected=dissected.expand_dims(seed=[SEED], layer=[LAYER]),
        ablated=lost.assign_coords(layer=[LAYER]).expand_dims(seed=[SEED]),
        projected=projected,
        searched=SPLIT,
        views=views,
    )
    deck = cards.collect(lenses, SEED, list(CLASSES), made_windows().axes, SIMILARITY)
    assert [card.unit for card in deck] == list(range(n))
    for u, card in enumerate(deck):
        failed, dead = bool(scores["failed"][0, 0, u]), bool(scores["dead"][0, 0, u])
        assert card.status == ("dead" if dead else "failed" if failed else card.status)
        assert card.signal == pytest.approx(known.signals["signal"].values[0, u])
        assert card.activation == float(measured["activation"][0, 0, u])
        assert card.iou == {str(c): float(dissected["iou"].sel(concept=c)[u]) for c in card.iou}
        assert card.cost == {a: float(lost["f1"][0, u, CLASSES.index(a)]) for a in card.cost}
        assert set(card.iou) == set(CONCEPTS) and set(card.cost) == set(CLASSES)
        shown = [int(w) for w, value in zip(top["window"].values[u], top["value"].values[u], strict=True) if value > 0]
        for window, seen in zip(shown, card.windows, strict=True):
            mixed = by_hand(of.name).maps.shape[2] == 1
            axis = slice(None) if mixed else int(top["axis"].values[u][shown.index(window)])
            assert np.asarray(seen.signal) == pytest.approx(X[window][axis])
            assert seen.activity == CLASSES[SPLIT.activity[window]]


def check_visualize(of: Case) -> None:
    units = by_hand(of.name).alive[:2]
    start = (X[5:7] + 0.3 * rng(2).normal(size=(2, N_AXES, LENGTH))).astype(np.float32)

    def f(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return of.by_hand(x)[0][np.arange(len(x)), np.array(units)[rows]].mean((1, 2))

    every = np.arange(2)
    found = visualization.visualize(
        of.network, objectives.channel(of.tap, units), start, n_steps=1, step_size=0.05, waking_steps=0
    )
    assert found.signal.shape == start.shape
    assert found.history[:, 0] == pytest.approx(f(start.astype(np.float64), every), rel=1e-3, abs=1e-5)
    assert found.score == pytest.approx(f(found.signal.astype(np.float64), every), rel=1e-3, abs=1e-5)
    g = slope(f, start.astype(np.float64))
    steep = np.abs(g) > 1e-3 * np.abs(g).max()
    # Adam's first step is as long everywhere, but for its epsilon
    assert (found.signal - start)[steep] == pytest.approx(0.05 * g[steep] / (np.abs(g[steep]) + 1e-8), abs=3e-4)
    assert steep.mean() > 0.1


def covered_by_hand(x: np.ndarray, axes: tuple[int, ...], centre: int) -> np.ndarray:
    changed = x.copy()
    for window, axis in product(range(len(x)), axes):
        changed[window, axis, max(0, centre - 1) : centre + 2] = x[window, axis].mean()
    return changed


def occluded_by_hand(of: Case, x: np.ndarray, y: np.ndarray, groups: dict) -> tuple[np.ndarray, ...]:
    """Log odds lost (window, group, time), the strongest unit, and the share of its activity that is lost."""
    batch = [x, *(covered_by_hand(x, axes, t) for axes in groups.values() for t in range(LENGTH))]
    maps, scores = of.by_hand(np.concatenate(batch).astype(np.float64))
    own = np.tile(y, len(batch))
    p = np.exp(scores - scores.max(1, keepdims=True))
    each = np.arange(len(own))
    odds = np.log(p[each, own] / (p.sum(1) - p[each, own])).reshape(len(batch), len(x))
    sums = maps.sum((2, 3)).reshape(len(batch), len(x), -1)
    unit = sums[0].argmax(1)
    activity = sums[:, np.arange(len(x)), unit]
    shape = (len(groups), LENGTH, len(x))
    lost = (odds[0] - odds[1:]).reshape(shape).transpose(2, 0, 1)
    share = ((activity[0] - activity[1:]) / activity[0]).reshape(shape).transpose(2, 0, 1)
    return lost, unit, np.where(activity[0][:, None, None] > 0, share, np.nan)


def check_occlusion(of: Case) -> None:
    x, y = X[5::13], SPLIT.activity[5::13]
    groups = occlusion.by_axis(N_AXES) | occlusion.by_sensor(made_windows().axes)
    found = occlusion.drops(of.network, x, y, groups, OCCLUDER, of.tap)
    lost, unit, share = occluded_by_hand(of, x, y, groups)
    assert found["log_odds"].values == pytest.approx(lost, rel=2e-3, abs=2e-3)
    assert (found["unit"].values == unit).all()
    assert found["activity"].values == pytest.approx(share, rel=2e-3, abs=2e-3, nan_ok=True)


def check_ablation(of: Case) -> None:
    found = ablation.drops(of.network, [of.tap], SPLIT, len(CLASSES))
    y = torch.as_tensor(SPLIT.activity)

    def measured(network: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            p = network(torch.tensor(X)).softmax(1)
        f1 = f1_score(y, p.argmax(1), average=None, labels=range(len(CLASSES)), zero_division=0)
        return f1, np.array([float(p[y == c, c].mean()) for c in range(len(CLASSES))])

    f1, probability = measured(of.network)
    assert found["f1"].shape == (1, by_hand(of.name).maps.shape[1], len(CLASSES))
    effects = []
    for unit in found["unit"].values:
        f1_without, without = measured(of.edited(int(unit)))
        assert found["probability"].values[0, unit] == pytest.approx(probability - without, abs=1e-5)
        assert found["f1"].values[0, unit] == pytest.approx(f1 - f1_without, abs=1e-6)
        effects.append(np.abs(probability - without).max())
    assert max(effects) > 1e-3


CONCEPTS = ("high", "low")


def dissected_place(of: Case) -> xr.Dataset:
    masks = np.stack([X > 0.7, X < -0.2])
    maps, about = taps.outputs(of.network, of.tap, X), {"share": 0.05}
    if maps.shape[3] != LENGTH:
        about["positions"] = taps.positions(of.network, of.tap, X)
    return dissection.dissect(maps, masks, CONCEPTS, 19, SPLIT.activity, SPLIT.recording, **about)


def check_dissection(of: Case) -> None:
    found, maps = dissected_place(of), by_hand(of.name).maps
    masks = np.stack([X > 0.7, X < -0.2])
    if maps.shape[2] == 1:
        masks = masks.any(2, keepdims=True)
    seen = in_time(of, np.ones_like(maps)) > 0
    placed = in_time(of, maps)
    assert found.sizes["unit"] == maps.shape[1]
    for u in range(maps.shape[1]):
        every = np.sort(maps[:, u].reshape(-1))[::-1]
        t_k, rest = every[int(0.05 * len(every))], every[-1]
        assert float(found["t_k"][u]) == pytest.approx(t_k, rel=1e-3, abs=1e-5)
        on = seen[:, u] & ((placed[:, u] >= t_k - 1e-9) if t_k > rest else (placed[:, u] > rest))
        for k, mask in enumerate(masks):
            union = (on | mask).sum()
            assert float(found["iou"][u, k]) == pytest.approx((on & mask).sum() / union, abs=6e-3), (u, k)


def check_slopes(of: Case) -> None:
    units, step = by_hand(of.name).alive[:2], Step("ascent", 0.5, 1.0)
    start = torch.tensor((X[7:8] + 0.3 * rng(3).normal(size=(1, N_AXES, LENGTH))).astype(np.float32))

    def f(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return of.by_hand(x)[0][np.arange(len(x)), np.array(units)[rows]].mean((1, 2))

    plain = slopes.ascend_units(of.network, of.tap, units, start, step, 1, slope=None)
    x = np.repeat(start.double().numpy(), 2, axis=0)
    assert plain.curve[:, 0].numpy() == pytest.approx(f(x, np.arange(2)), rel=1e-3, abs=1e-5)
    moved = 0.5 * slope(f, x)
    assert (plain.last - start).numpy() == pytest.approx(moved, rel=1e-2, abs=1e-3 * np.abs(moved).max() + 1e-6)
    try:
        other = slopes.ascend_units(of.network, of.tap, units, start, step, 1, slope=0.3)
    except ValueError as refused:  # a rule that finds nothing to act on must not look like an answer
        assert of.smooth and "rectifier" in str(refused)
        return
    assert other.curve[:, 0].numpy() == pytest.approx(plain.curve[:, 0].numpy())
    assert not torch.allclose(other.last, plain.last)
    if not of.smooth:
        back = backwards(of, torch.cat([start, start]), lambda maps: _mean_of(maps, units), _sloped)
        assert (other.last - start).numpy() == pytest.approx(0.5 * back.numpy(), rel=1e-3, abs=1e-6)


def _mean_of(maps: torch.Tensor, units: list[int]) -> torch.Tensor:
    each = torch.arange(len(units))
    kept = torch.zeros_like(maps)
    kept[each, torch.tensor(units)] = 1 / maps[0, 0].numel()
    return kept


def _sloped(h: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return torch.where(h > 0, g, 0.3 * g)


def _rectified(h: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return g.clamp(min=0)


def backwards(of: Case, x: torch.Tensor, keep, rule) -> torch.Tensor:
    """What comes back to the input by going through the stages one by one, with ``rule`` at every rectifier."""
    if of.name == "ResNet with pooling":
        return _through_resnet(of.network, x, keep, rule)
    inputs, before = [x], []
    for stage in of.stages:
        before.append(stage(inputs[-1]).detach())
        inputs.append(before[-1].clamp(min=0))
    g = keep(inputs[-1])
    for stage, h, raw in zip(reversed(of.stages), reversed(inputs[:-1]), reversed(before), strict=True):
        g = torch.autograd.functional.vjp(stage, h, rule(raw, g))[1]
    return g


def _through_resnet(net: other_networks.ResNet, x: torch.Tensor, keep, rule) -> torch.Tensor:
    block, vjp = net.block1, torch.autograd.functional.vjp
    steps = (lambda h: net.norm(net.conv(h)), net.pool)
    inner = (lambda h: block.norm1(block.conv1(h)), lambda h: block.norm2(block.conv2(h)))
    with torch.no_grad():
        stem = steps[0](x)
        pooled = net.pool(stem.clamp(min=0))
        middle = inner[0](pooled)
        out = inner[1](middle.clamp(min=0)) + pooled
    g = rule(out, keep(out.clamp(min=0)))
    branch = vjp(inner[0], pooled, rule(middle, vjp(inner[1], middle.clamp(min=0), g)[1]))[1]
    g = vjp(steps[1], stem.clamp(min=0), g + branch)[1]
    return vjp(steps[0], x, rule(stem, g))[1]


def check_deconvnet(of: Case) -> None:
    x = torch.tensor(X[5::13])
    found = deconvnet.project(of.network, of.tap, x, deconvnet.strongest())

    def strongest(maps: torch.Tensor) -> torch.Tensor:
        flat = maps.flatten(1)
        return torch.where(flat == flat.amax(1, keepdim=True), flat, 0.0).view_as(maps)

    expected = backwards(of, x, strongest, _rectified)
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4 * float(expected.abs().max()))
    assert (expected.abs().amax((1, 2)) > 0).all()


def check_dreams(of: Case) -> None:
    x = X[[0, 5, 9, 17]]
    found = dreams.smallest_change(of.network, x, n_steps=20, n_along=2)
    before = of.by_hand(x.astype(np.float64))[1].argmax(1)
    scores = of.by_hand(found.signal.astype(np.float64))[1]
    change = found.signal.astype(np.float64) - x
    assert (found.before == before).all() and (found.after != before).all()
    each = np.arange(len(x))
    # just beyond the border: the new class leads, mostly by next to nothing
    lead = scores[each, found.after] - scores[each, before]
    assert (lead > -1e-4).all() and np.median(lead) < 0.05 * np.ptp(by_hand(of.name).scores)
    assert found.rms_g == pytest.approx(np.sqrt((change**2).mean((1, 2))), rel=1e-4)


def check_locating(of: Case) -> None:
    x, y = X[5::13], SPLIT.activity[5::13]
    axis, time = locating.pointed(of.network, x, y, OCCLUDER)
    lost, *_ = occluded_by_hand(of, x, y, occlusion.by_axis(N_AXES))
    assert lost[np.arange(len(x)), axis, time] == pytest.approx(lost.max((1, 2)), rel=1e-3, abs=1e-3)


def check_evolution(of: Case) -> None:
    first = case(of.name, seed=1)
    moments = [evolution.Moment(1, first.network, "first"), evolution.Moment(2, of.network, "last")]
    if of.trunk:
        parts = [evolution.features_of(moment, made_windows()).sel(layer=["conv2"]) for moment in moments]
    else:
        parts = [evolution.features_of(moment, made_windows(), layers=[of.tap]) for moment in moments]
    found = evolution.likeness(xr.concat(parts, pd.Index([1, 2], name="epoch")))
    fixed = X[np.linspace(0, len(X) - 1, min(evolution.N_FIXED, len(X))).astype(int)].astype(np.float64)
    both = [one.by_hand(fixed)[0].transpose(1, 0, 2, 3) for one in (first, of)]
    for u, (early, late) in enumerate(zip(*(maps.reshape(len(maps), -1) for maps in both), strict=True)):
        early, late = early[:: evolution.PLACES], late[:: evolution.PLACES]
        if np.ptp(early) > 1e-6 and np.ptp(late) > 1e-6:
            assert float(found["maps"][0, 0, u]) == pytest.approx(np.corrcoef(early, late)[0, 1], abs=1e-3)
    assert float(found["maps"][1].max()) == pytest.approx(1)


def check_architecture(of: Case) -> None:
    found = architecture.last_inputs(of.network, X, of.tap)
    maps = by_hand(of.name).maps
    assert found.numpy() == pytest.approx(maps.reshape(len(maps), -1), rel=1e-3, abs=1e-4)


CHECKS = {
    "maps": check_maps,
    "found": check_found,
    "statistics": check_statistics,
    "eight methods": check_methods,
    "Ssim": check_similarity,
    "card": check_card,
    "visualize": check_visualize,
    "occlusion": check_occlusion,
    "ablation": check_ablation,
    "dissection": check_dissection,
    "slopes": check_slopes,
    "dreams": check_dreams,
    "locating": check_locating,
    "evolution": check_evolution,
    "architecture": check_architecture,
    "atlas": check_atlas,
    "deconvnet": check_deconvnet,
}

# ---------------------------------------------------------------------------------------------------------- tests


def test_the_table_covers_every_lens_and_network_and_refuses_little():
    assert list(MATRIX.columns) == list(CHECKS) and list(MATRIX.index) == list(NAMES)
    refused = MATRIX.map(lambda cell: cell.startswith("refused: "))
    assert (refused | (MATRIX == "works")).all(axis=None)
    assert not refused[list(EVERYWHERE)].any(axis=None) and refused.sum(axis=None) <= 15
    assert set(MATRIX.columns[refused.any()]) <= {"deconvnet", "atlas"}


@pytest.mark.parametrize("name", NAMES)
def test_numpy_says_what_the_network_says(name):
    of = case(name)
    with torch.no_grad():
        said = of.network(torch.tensor(X)).numpy()
    assert by_hand(name).scores == pytest.approx(said, rel=1e-4, abs=1e-4)
    assert (said.argmax(1) == SPLIT.activity).mean() > 0.8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lens", CHECKS)
def test_cell(lens, name):
    said, of = MATRIX.loc[name, lens], case(name)
    before = {key: value.clone() for key, value in of.network.state_dict().items()}
    if said == "works":
        CHECKS[lens](of)
    else:
        with pytest.raises(ValueError, match="rectifier"):
            CHECKS[lens](of)
    assert all(torch.equal(before[key], value) for key, value in of.network.state_dict().items())
    for module in of.network.modules():
        assert not (module.training or module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    assert all(weights.requires_grad and weights.grad is None for weights in of.network.parameters())
