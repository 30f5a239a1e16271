"""Signals and training windows turned into distances d(u, i), Ssim, failures and controls (paper section 4.5).

For each unit the piece of its signal with the largest output is compared with every piece of every training
segment (one axis of one window). ``S_u`` is the mean of the 50 smallest distances; Ssim is its mean over a layer's
units that have not failed. Ssim can be won by doing nothing, so every score stands beside its controls.

Choice: where units mix the axes of a window, a signal is (axis, time), a piece has all its axes, and it is compared
with whole windows: a distance is the mean squared error over axes and samples, an amplitude the largest of any axis.
Power, variation and squares add up over axes. With one axis all this is what the paper says.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch
import xarray as xr

from harvis_utils.data.windowing import Windows
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.coordinates import Scale
from harvis_utils.maximization.paper_methods import Target
from harvis_utils.maximization.starting import spectrum_noise, starting_signal
from harvis_utils.metrics import nearest
from harvis_utils.metrics.signal_measures import FLAT_G, in_rows, in_time, largest, ranges
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.settings import Settings, SimilaritySettings
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network, of_networks

#: names of :func:`shape_names`
SHAPES = ("rising edge", "falling edge", "peak", "valley", "other")
#: what is measured with the same fields as the methods, so that a score can be read at all
CONTROLS = {
    "starting-sine": "the untouched start of every signal",
    "flat-zero": "a signal of zeros",
    "random-weights": "the proposed method on the network before training",
    "held-out-windows": "real single-axis windows of the test subjects, drawn at random",
    "held-out-strongest": "the real test window with the largest mean output of the unit",
    "spectrum-noise": "noise with the mean power spectrum of the training windows",
}


def cut(signals: np.ndarray, begin: np.ndarray, length: int) -> np.ndarray:
    """``length`` samples of each signal (signal[, axis], time) from its first one in ``begin`` (signal,) on."""
    at = begin[:, None] + np.arange(length)
    return np.take_along_axis(signals, np.expand_dims(at, tuple(range(1, signals.ndim - 1))), axis=-1)


def best_piece(signals: np.ndarray, maps: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The piece under which the unit's output sums highest, the earliest of equals.

    ``signals`` are (signal[, axis], time), ``maps`` (signal, time); returns first samples (signal,) and pieces
    (signal[, axis], length).
    """
    sums = np.lib.stride_tricks.sliding_window_view(maps.astype(np.float64), length, axis=1).sum(-1)
    start = sums.argmax(1)
    return start, cut(signals, start, length)


#: above this frequency human movement has little power; what an optimizer adds there is noise
HIGH_FREQUENCY_HZ = 5.0
#: values that range over no more than this (G) count as constant: they have no shape, only rounding errors
CONSTANT_G = 1e-6
#: a piece is called by the shape it correlates with at least this much
SHAPE_CORRELATION = 0.8


def power_spectrum(signals: np.ndarray, mixed: bool = False) -> np.ndarray:
    """Share of each frequency above zero in the power of (..., time) signals; all NaN for a constant one.

    ``mixed`` ones are (..., axis, time), and their axes' powers add up.
    """
    power = np.abs(np.fft.rfft(signals.astype(np.float64), axis=-1)[..., 1:]) ** 2
    power = power.sum(-2) if mixed else power
    total = power.sum(-1, keepdims=True)
    return np.where(total > 1e-18, power / np.where(total > 1e-18, total, 1), np.nan)


def effective_frequencies(signals: np.ndarray, mixed: bool = False) -> np.ndarray:
    """Effective number of frequencies: exponential of the entropy of the :func:`power_spectrum`, (...,)."""
    share = power_spectrum(signals, mixed)
    return np.exp(-(share * np.log(np.where(share > 0, share, 1))).sum(-1))


def high_frequency_share(signals: np.ndarray, rate_hz: float, mixed: bool = False) -> np.ndarray:
    """Share of power above 5 Hz in the :func:`power_spectrum`, (...,)."""
    frequency = np.fft.rfftfreq(signals.shape[-1], 1 / rate_hz)[1:]
    return power_spectrum(signals, mixed)[..., frequency > HIGH_FREQUENCY_HZ].sum(-1)


def correlation(a: np.ndarray, b: np.ndarray, mixed: bool = False) -> np.ndarray:
    """Pearson correlation along the last axis, NaN where either is constant; shapes broadcast.

    ``mixed`` ones are (..., axis, time): each axis is without its mean, and products add up over axes.
    """
    a, b = (v - v.mean(-1, keepdims=True) for v in (np.asarray(v, dtype=np.float64) for v in (a, b)))
    over = (-2, -1) if mixed else -1
    scale = np.sqrt((a**2).sum(over) * (b**2).sum(over))
    product = (a * b).sum(over)
    return np.divide(product, scale, out=np.full(product.shape, np.nan), where=scale > 1e-12)


def centred(values: np.ndarray, constant: float = CONSTANT_G) -> tuple[np.ndarray, np.ndarray]:
    """Values (..., time) without their mean, and their norms (...,).

    Where values range over no more than ``constant`` they have no shape: zeros, with a norm of 1.
    """
    values = np.asarray(values, dtype=np.float64)
    flat = values.max(-1) - values.min(-1) <= constant
    without = np.where(flat[..., None], 0.0, values - values.mean(-1, keepdims=True))
    return without, np.where(flat, 1.0, np.linalg.norm(without, axis=-1))


def unit_norm(values: np.ndarray, constant: float = CONSTANT_G, mixed: bool = False) -> np.ndarray:
    """:func:`centred` values of norm 1, so that products of two are Pearson correlations; zeros where constant.

    ``mixed`` ones are (..., axis, time), and all axes together have a norm of 1.
    """
    without, norm = centred(values, constant)
    if mixed:
        norm = np.linalg.norm(without, axis=(-2, -1), keepdims=True)[..., 0]
        norm = np.where(norm > 0, norm, 1.0)
    return without / norm[..., None]


def shape_names(pieces: np.ndarray) -> np.ndarray:
    """ "rising edge", "falling edge", "peak", "valley" or "other" for each of (piece[, axis], time).

    Choice: of several axes the one that moves most gives the name.
    """
    if pieces.ndim == 3:
        pieces = pieces[np.arange(len(pieces)), pieces.std(-1).argmax(1)]
    time = np.linspace(-1, 1, pieces.shape[-1])
    bump = np.cos(np.pi * time / 2) ** 2
    shapes = {"rising edge": time, "falling edge": -time, "peak": bump, "valley": -bump}
    match = np.stack([correlation(pieces, np.broadcast_to(s, pieces.shape)) for s in shapes.values()], -1)
    match = np.nan_to_num(match, nan=-1.0)
    names = np.array([*shapes, "other"])
    return names[np.where(match.max(-1) >= SHAPE_CORRELATION, match.argmax(-1), len(shapes))]


def score(
    signals: xr.Dataset,
    statistics: xr.Dataset,
    start: np.ndarray,
    windows: Windows,
    settings: SimilaritySettings,
    scale: Scale | None = None,
) -> xr.Dataset:
    """Everything that is measured of signals, dims (..., layer, unit[, neighbour | activity]).

    ``signals`` holds ``signal`` (..., layer, unit[, axis], time), ``map`` and ``start_map``, which may have
    ``map_axis`` and ``map_time`` (:func:`in_time`); ``statistics`` holds ``th_eap``, ``p95`` and ``dead`` over
    ([control,] layer, unit); ``start`` is ([axis,] time) in G. Amplitudes are in G, distances in G^2. Failed signals
    (amplitude above 10 G) and dead units are not searched and have NaN distances. ``segment`` is window * axes + axis,
    or the window where signals have axes. Where windows have another unit than G, ``scale`` says what s is, and
    everything is measured in s: 10 G are 10 s, distances are in s^2.
    """
    dims = [d for d in signals["signal"].dims if d not in ("axis", "time")]
    x, length = in_rows(signals["signal"], dims), signals.sizes["time"]
    n, mixed = len(x), x.ndim == 3
    if scale is not None:
        scale = scale if mixed else scale.shared()
        x, start = (scale.signals(of).numpy() for of in (x, start))
        windows = replace(windows, train=scale.split(windows.train))
    top, at_start = (largest(signals[name], dims) for name in ("map", "start_map"))
    each = signals["signal"].isel(axis=0, time=0, missing_dims="ignore").transpose(*dims)
    dead = statistics["dead"].broadcast_like(each).transpose(*dims).values.reshape(-1)
    amplitude = np.abs(x).reshape(n, -1).max(1)
    failed = ~(amplitude <= settings.fail_amplitude_g)  # so do signals of NaN
    begin, pieces = best_piece(x, in_rows(in_time(signals["map"], length), dims), settings.piece)
    flat = {
        "failed": failed,
        "dead": dead,
        "peak_amplitude_g": amplitude,
        "range_g": ranges(x),
        "displacement_g": np.sqrt(((x - start) ** 2).reshape(n, -1).mean(1)),
        "max_output": top,
        "inactive_at_start": at_start <= 0,
        "silent": top <= 0,
        "total_variation_g": np.abs(np.diff(x, axis=-1)).reshape(n, -1).sum(1),
        "high_frequency_share": high_frequency_share(x, windows.rate_hz, mixed),
        "n_frequencies": effective_frequencies(x, mixed),
        "piece_start": begin,
        "shape": shape_names(pieces),
        **_searched(pieces, ~failed & ~dead, windows, settings),
    }
    result = xr.Dataset(coords={d: signals[d] for d in dims})
    for name, values in flat.items():
        tail = () if values.ndim == 1 else ("activity",) if name == "nearest_share" else ("neighbour",)
        result[name] = ((*dims, *tail), values.reshape(*each.shape, *values.shape[1:]))
    for name, reference in (("activation_ratio", "th_eap"), ("activation_ratio_p95", "p95")):
        below = statistics[reference].where(statistics[reference] > 0)
        result[name] = (result["max_output"] / below).transpose(*dims)
    return result


def _searched(pieces: np.ndarray, searched: np.ndarray, windows: Windows, settings: SimilaritySettings) -> dict:
    """Distances and neighbours of the ``searched``, bool (signal,); NaN, -1 and 0 for the others."""
    train, n_classes, n, k = windows.train, len(windows.activities), len(searched), settings.n_similar
    distance, segment, offset = np.full((n, k), np.nan), np.full((n, k), -1), np.full((n, k), -1)
    match, share, mixed = np.full(n, np.nan), np.zeros((n, n_classes)), pieces.ndim == 3
    if len(pieces := pieces[searched]):
        index = nearest.piece_index(train, settings.piece, mixed)
        distance[searched], segment[searched], offset[searched] = index.nearest(pieces, k)
        real = train.of_units(mixed)[segment[searched, 0]]
        match[searched] = correlation(pieces, cut(real, offset[searched, 0], settings.piece), mixed)
        activity = train.activity[segment[searched] // index.n_axes]
        share[searched] = (activity[:, :, None] == np.arange(n_classes)).mean(1)
    return {
        "s_u": distance.mean(1),  # Paper: mean of the N_sim smallest d(u, i)
        "distance": distance.astype(np.float32),
        "segment": segment.astype(np.int32),
        "offset": offset.astype(np.int32),
        "shape_match": match,
        "nearest_share": share.astype(np.float32),
    }


@kept("scores")
def scores_of(
    network: Network,
    windows: Windows,
    signals: xr.Dataset,
    statistics: xr.Dataset,
    start: np.ndarray,
    settings: SimilaritySettings,
) -> xr.Dataset:
    """Scores of one network's signals, dims (..., layer, unit[, neighbour | activity]); see :func:`score`.

    Without a ``start_map`` the signals' own maps at ``start`` (time,), where all ascents began, are computed here.
    """
    chosen = signals.transpose(..., "layer", "unit", "time")
    if "start_map" not in chosen:
        start_map = _start_maps(network.trunk, start, chosen)
        chosen = chosen.assign(start_map=start_map.broadcast_like(chosen["map"]))
    return score(chosen, statistics, start, windows, settings)


def scores(
    cfg: Settings, windows: Windows, networks: list[Network], statistics: xr.Dataset, signals: xr.Dataset
) -> xr.Dataset:
    """Scores of all methods, dims (seed, preset, technique, layer, unit[, ...]); missing ones are made."""
    start = starting_signal(cfg.maximization, windows.train.length)
    about = signals[["signal", "map"]], statistics[["th_eap", "p95", "dead"]]
    found = of_networks(networks, lambda net, *own: scores_of(net, windows, *own, start, cfg.similarity), *about)
    return with_activities(found, windows)


def with_activities(scores: xr.Dataset, windows: Windows) -> xr.Dataset:
    """Scores with the names of the activities, and each one's share of the training windows: ``activity_share``."""
    every = np.bincount(windows.train.activity, minlength=len(windows.activities)) / len(windows.train)
    return scores.assign_coords(activity=list(windows.activities)).assign(activity_share=("activity", every))


def _start_maps(trunk: Trunk, start: np.ndarray, like: xr.Dataset) -> xr.DataArray:
    """Maps of every unit of the layers of ``like`` for one signal (time,): (layer, unit, time)."""
    x = torch.as_tensor(start)[None]
    with torch.no_grad():
        maps = [trunk.feature_map(x, str(layer))[0].numpy() for layer in like["layer"].values]
    return xr.DataArray(np.stack(maps), dims=("layer", "unit", "time"))


def own_maps(place: Trunk | Target, signals: np.ndarray, units: Sequence[int] | None = None) -> xr.DataArray:
    """Every unit's map for its own signal, (layer, unit, ...), of signals (layer, unit[, axis], time) in their unit.

    By default all units', of all layers of a trunk, or of one place (:func:`paper_methods.own_maps`).
    """
    unit = range(signals.shape[1]) if units is None else list(units)
    layers = place.layers if isinstance(place, Trunk) else [str(place.place)]
    maps = [paper_methods.own_maps(place, la, unit, one) for la, one in zip(layers, signals, strict=True)]
    return xr.concat(maps, "layer").rename(row="unit")


@kept("scores")
def control_signals(network: Network, windows: Windows, random_signals: xr.Dataset, start: np.ndarray) -> xr.Dataset:
    """One signal per control, layer and unit: ``signal``, ``map``, ``start_map`` over (control, layer, unit, time).

    ``random_signals`` are the proposed method's signals on the untrained network, (layer, unit, time).
    """
    return controls_at(network.trunk, windows, random_signals, start, network.seed)


def controls_at(
    place: Trunk | Target, windows: Windows, random_signals: xr.Dataset, start: np.ndarray, seed: int = 0
) -> xr.Dataset:
    """:func:`control_signals` of all layers of a trunk, or of one place of any network, drawn by ``seed``.

    ``random_signals`` are (layer, unit[, axis], time), and ``start`` is ([axis,] time), in the windows' unit.
    """
    rng, mixed = np.random.default_rng((0, seed)), "axis" in random_signals["signal"].dims
    random, random_maps = (random_signals[v].transpose("layer", "unit", ...) for v in ("signal", "map"))
    shape, held_out = random.shape, windows.test.of_units(mixed)
    if isinstance(place, Trunk):
        layers, scale = list(place.layers), Scale()
        strongest = unit_statistics.collect(place, held_out, n_top=1)["top_segment"].isel(rank=0).values
    else:
        layers, scale = random["layer"].values, place.scale
        top = unit_statistics.collect(place.network, windows.test.x, n_top=1, place=place.place)
        strongest = top["top_window" if mixed else "top_segment"].values[None, :, 0]
    drawn = held_out[rng.integers(len(held_out), size=shape[:2])]
    real = scale.split(windows.train).of_units(mixed)
    noise = [spectrum_noise(of, shape[0] * shape[1], rng) for of in (np.moveaxis(real, 1, 0) if mixed else [real])]
    x = {
        "starting-sine": np.broadcast_to(start, shape),
        "flat-zero": np.broadcast_to(scale.zero, shape),
        "random-weights": random.values,
        "held-out-windows": drawn,
        "held-out-strongest": held_out[strongest],
        "spectrum-noise": scale.windows(torch.as_tensor(np.stack(noise, 1).reshape(shape))).numpy(),
    }
    x = {name: of.astype(np.float32) for name, of in x.items()}
    maps = {name: own_maps(place, of) for name, of in x.items()}
    maps["random-weights"] = maps["random-weights"].copy(data=random_maps.values)  # its own network's
    found = xr.Dataset({"signal": (("control", *random.dims), np.stack(list(x.values())))})
    found["map"] = xr.concat(list(maps.values()), "control")
    found["start_map"] = xr.concat([maps["starting-sine"]] * len(x), "control")
    return found.assign_coords(control=list(x), layer=layers, unit=np.arange(shape[1]))


def controls(
    cfg: Settings,
    windows: Windows,
    networks: list[Network],
    statistics: xr.Dataset,
    random_networks: list[Network],
    random_statistics: xr.Dataset,
    random_signals: xr.Dataset,
) -> xr.Dataset:
    """Scores of all controls, dims (seed, control, layer, unit[, neighbour | activity]); missing ones are made.

    ``random_signals`` has dims (seed, layer, unit, time): the proposed method on the untrained networks, judged by
    their own thresholds.
    """
    others = {net.seed: net for net in random_networks}
    start = starting_signal(cfg.maximization, windows.train.length)

    def one(net: Network, random: xr.Dataset, own: xr.Dataset, of_random: xr.Dataset) -> xr.Dataset:
        made = control_signals(net, windows, random, start)
        untrained = _start_maps(others[net.seed].trunk, start, made)
        made["start_map"].loc[{"control": "random-weights"}] = untrained.values
        judged_by = [of_random if name == "random-weights" else own for name in CONTROLS]
        judged_by = xr.concat(judged_by, pd.Index(CONTROLS, name="control"))[["th_eap", "p95", "dead"]]
        return scores_of(net, windows, made, judged_by, start, cfg.similarity)

    found = of_networks(networks, one, random_signals[["signal", "map"]], statistics, random_statistics)
    return with_activities(found, windows)


#: what a SCORES entry of ``results.json`` averages over units: its variable, and which units are left out
AVERAGED = {
    "ssim": ("s_u", ("failed",)),  # Paper section 4.5: failed units are left out
    "ssim_without_inactive": ("s_u", ("failed", "inactive_at_start")),
    "activation_ratio": ("activation_ratio", ()),
    "activation_ratio_p95": ("activation_ratio_p95", ()),
    "peak_amplitude_g": ("peak_amplitude_g", ()),
    "displacement_g": ("displacement_g", ()),
}


def averaged(values: xr.Dataset, name: str) -> xr.DataArray:
    """What ``AVERAGED`` averages under that name, (seed, unit); NaN for what is left out, dead units always."""
    variable, without = AVERAGED[name]
    left_out = sum(values[reason] for reason in ("dead", *without))
    return values[variable].where(left_out == 0).transpose("seed", "unit")


def summarize(values: xr.Dataset) -> dict:
    """The SCORES entry of ``results.json`` for (seed, unit) scores of one layer and method or control.

    Means are of the seeds' means over units, ``min`` and ``max`` over the seeds' means, as the paper's error bars;
    counts are means over the seeds.
    """
    found, alive = {}, ~values["dead"]
    for name in AVERAGED:
        means = averaged(values, name).mean("unit").dropna("seed")
        found[name] = {end: float(getattr(means, end)()) if len(means) else None for end in ("mean", "min", "max")}
        if not len(means):
            found[name]["reason"] = "no unit is left: all failed, dead or silent"
    counted = {
        "failed_units": values["failed"] & alive,
        "dead_units": values["dead"],
        "inactive_at_start": values["inactive_at_start"] & alive,
        "silent_units": values["silent"] & alive,
    }
    return found | {name: float(units.sum("unit").mean()) for name, units in counted.items()}


def summaries(scores: xr.Dataset, controls: xr.Dataset) -> pd.DataFrame:
    """:func:`summarize` of every method (of one preset) and every control: one row per "method" and "layer".

    "x low" and "x high" are the smallest and the largest network.
    """
    rows = {}
    for dimension, of in (("technique", scores), ("control", controls)):
        for name, layer in product(of[dimension].values.tolist(), of["layer"].values.tolist()):
            row = rows[name, layer] = summarize(of.sel({dimension: name, "layer": layer}))
            for quantity in AVERAGED:
                ends = row[quantity]
                row |= {quantity: ends["mean"], f"{quantity} low": ends["min"], f"{quantity} high": ends["max"]}
    return pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows, names=["method", "layer"]))


def over_layers(table: pd.DataFrame) -> pd.DataFrame:
    """Means over layers of :func:`summaries`, a row per method; NaN where a layer has none: all units failed."""
    return table.groupby(level="method", sort=False).agg(lambda values: values.mean(skipna=False))


def near_activities(scores: xr.Dataset, activities: Sequence[str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """How often activities are near signals of a shape, times chance, (activity, shape), and how many such signals are.

    ``scores`` are those of one method. Flat signals are left out: their shape is that of what is left of rounding.
    """
    near, shape = scores["nearest_share"] / scores["activity_share"], scores["shape"].where(scores["range_g"] >= FLAT_G)
    found = {name: near.where(shape == name).mean(shape.dims).values for name in SHAPES}
    return pd.DataFrame(found, index=list(activities)), {name: int((shape == name).sum()) for name in SHAPES}


def best_examples(scores: xr.Dataset, shapes: tuple[str, ...]) -> list[tuple[str, int, str]]:
    """For each shape the (layer, unit, shape) whose piece correlates best with its nearest real piece (Fig. 5).

    ``scores`` has dims (layer, unit); shapes that no searched unit has are left out.
    """
    named = scores[["shape", "shape_match"]].to_dataframe().dropna(subset="shape_match")
    best = named.groupby("shape")["shape_match"].idxmax()
    return [(str(best[shape][0]), int(best[shape][1]), shape) for shape in shapes if shape in best]
