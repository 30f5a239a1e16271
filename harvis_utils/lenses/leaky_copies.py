"""Leaky copies beside the straight-through rule: gradients, ascents, and the paper's own method.

:mod:`harvis_utils.lenses.slopes` tells the two ways apart, and :mod:`harvis_utils.lenses.slopes_study` climbs all units
under either. Here they are compared: how far their gradients differ, what each reaches, in networks trained with Leaky
ReLUs too, and inside the paper's method, whose penalties flatten the signal of a unit that is silent.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import product

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from harvis_utils.data.windowing import Windows
from harvis_utils.lenses.slopes import COPY, SLOPES, THROUGH, WAYS, ascend_units
from harvis_utils.lenses.slopes_study import DECAY, REACHED, Climb, gains, maxima_of, unit_field
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.ascent import climb
from harvis_utils.maximization.starting import chosen_units, starting_points
from harvis_utils.metrics import similarity
from harvis_utils.metrics.intervals import tabulated
from harvis_utils.metrics.signal_measures import FLAT_G
from harvis_utils.networks import backward, taps
from harvis_utils.settings import PRESETS, LeakySettings, MaximizationSettings, Settings, Step, TrainingSettings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network, of_networks

#: held-out segments at which gradients are compared
N_SEGMENTS = 48
#: what is compared, as a share of the rule's gradient: the null is how far that goes from one window to another
COPY_RULE, PLAIN_RULE, OTHER_WINDOW = BETWEEN = ("copy and rule", "plain gradient and rule", "rule at two windows")
#: Choice: of two step sizes the one that a unit gets higher with, the same for all that is compared
LEAKY_STEPS = (Step("adam", 0.03, DECAY), Step("adam", 0.3, DECAY))
#: slopes inside the paper's method
INSIDE = (0.1, 0.3)
#: units of any other network's place, spread evenly
N_ANYWHERE = 8
#: Choice: a leak cures silence where so many more of the units come to their threshold, and so many fewer are flat
MARGIN = 0.05
#: Choice: the slope that is told in words where several are compared: the best of several would be chosen by its luck
TOLD = 0.3
#: the paper's method as it is; from another start, a second chance; and from where no unit is silent, the ceiling
PLAIN, NOISE, STRONGEST = "as it is", "as it is, from noise", "as it is, from the strongest window"


def _by_layer(measures: dict[str, xr.DataArray], by: str, medians: Sequence[str] = ()) -> pd.DataFrame:
    """:func:`tabulated` for all layers together, "all", and for each one."""
    layers = [str(layer) for layer in next(iter(measures.values()))["layer"].values]
    parts = {"all": layers} | {layer: [layer] for layer in layers}
    chosen = ({name: of.sel(layer=part) for name, of in measures.items()} for part in parts.values())
    return pd.concat([tabulated(own, by, medians) for own in chosen], keys=parts, names=["layer"])


# ----------------------------------------------------------------------------------------------------- gradients


@kept("slope_gradients")
@torch.inference_mode()
def gradients_of(network: Network, segments: np.ndarray) -> xr.Dataset:
    """How far gradients of every unit's mean map lie apart, over (layer, between, slope, unit).

    ``difference`` is the norm of the difference over the norm of the rule's gradient, over all ``segments`` (segment,
    time) at once; NaN where a unit has no gradient. ``between`` is :data:`BETWEEN`.
    """
    trunk, n = network.trunk, len(segments)
    n_units = min(map(len, trunk.biases))
    unit, x = torch.arange(n_units).repeat_interleave(n), torch.tensor(segments).repeat(n_units, 1)
    found = []
    for layer, slope in product(trunk.layers, SLOPES):
        ways = ((slope, COPY), (0.0, THROUGH), (slope, THROUGH))
        copied, plain, rule = (unit_field(trunk, layer, unit, *way)(x)[1].view(n_units, n, -1) for way in ways)
        for other in (copied, plain, rule.roll(n // 2, 1)):
            norms = [of.flatten(1).norm(dim=1).double() for of in (other - rule, rule)]
            found.append(norms[0] / norms[1])
    values = torch.stack(found).view(len(trunk.layers), len(SLOPES), len(BETWEEN), n_units).numpy()
    values = np.where(np.isfinite(values), values, np.nan)
    coords = {"layer": list(trunk.layers), "slope": list(SLOPES), "between": list(BETWEEN)}
    return xr.Dataset({"difference": (("layer", "slope", "between", "unit"), values)}, coords)


def gradients(windows: Windows, networks: Sequence[Network]) -> pd.DataFrame:
    """:func:`gradients_of` on segments of test people: a row per ``between``, layer ("all" too) and slope."""
    segments = windows.test.segments
    segments = segments[:: max(1, len(segments) // N_SEGMENTS)][:N_SEGMENTS]
    found = of_networks(networks, lambda net: gradients_of(net, segments))["difference"]
    own = {between: {"difference": found.sel(between=between)} for between in BETWEEN}
    return pd.concat({name: _by_layer(of, "slope") for name, of in own.items()}, names=["between"])


# ------------------------------------------------------------------------------------------------------- ascents


def over(first: xr.DataArray, second: xr.DataArray) -> pd.DataFrame:
    """What ``first`` reaches over ``second``, maxima over (seed, layer, slope, start, unit): by layer and slope.

    ``gain``: median over units of the gain of the mean over starts; ``higher``: share of units that come higher, by
    0.1 % at least, minus the share that come lower.
    """
    gain = gains(first.mean("start"), second.mean("start"))
    higher = np.sign(gain).where(abs(gain) > 1e-3, 0.0).where(gain.notnull())
    return _by_layer({"gain": gain, "higher": higher}, "slope", ["gain"])


@kept("slopes_anywhere")
def maxima_at(network: Network, place: str, starts: np.ndarray, n_steps: int, bound: float) -> xr.Dataset:
    """``maximum`` of units of any place of any network, climbed by its leaky copies: (layer, slope, start, unit).

    ``starts`` are windows (start, axis, time) in G; units are spread evenly. Slopes are 0, plain ascent, and ``TOLD``.
    """
    with taps.evaluating(network.model):
        n_units = taps.outputs(network.model, place, starts).shape[1]
    units, slopes, found = chosen_units(n_units, N_ANYWHERE), [0.0, TOLD], []
    for slope, step in product(slopes, LEAKY_STEPS):
        made = ascend_units(network.model, place, units, starts, step, n_steps, slope, bound, COPY)
        found.append(made.maximum.view(len(units), len(starts)).T.numpy())
    best = np.stack(found).reshape(len(slopes), len(LEAKY_STEPS), *found[0].shape).max(1)
    coords = {"layer": [place], "slope": slopes, "unit": units}
    return xr.Dataset({"maximum": (("layer", "slope", "start", "unit"), best[None])}, coords)


# ------------------------------------------------------------------------------------- trained with Leaky ReLUs


def leaky_networks(cfg: Settings, few: Windows) -> dict[float, list[Network]]:
    """Small networks by the slope of the Leaky ReLUs that they were trained with; 0 is ReLU."""
    shape, slopes = dataclasses.asdict(cfg.slopes.model), [s for s in cfg.slopes.trained if s < 1]  # 1 is linear
    return {s: supervised.networks(cfg, few, LeakySettings(**shape, slope=s), _training(cfg)) for s in slopes}


def _training(cfg: Settings) -> TrainingSettings:
    own = cfg.slopes
    return TrainingSettings(seeds=own.seeds, epochs=own.epochs, learning_rate=own.rates[-1])


def leaky_climbs(
    cfg: Settings, few: Windows, networks: list[Network], own: float, bound: float
) -> dict[str, xr.DataArray]:
    """``maximum`` by way over (seed, layer, slope, start, unit) of networks with the forward slope ``own``."""
    starts, units = starting_points(cfg.maximization, few.train, cfg.slopes.n_starts), range(cfg.slopes.model.n_units)

    def one(network: Network, way: str) -> xr.Dataset:
        return maxima_of(network, starts, LEAKY_STEPS, units, Climb(cfg.slopes.n_steps, bound, way, own)).max("tried")

    on_cpu = dataclasses.replace(cfg, device="cpu")
    return {way: of_networks(networks, lambda net, way=way: one(net, way), cfg=on_cpu)["maximum"] for way in WAYS}


def leaky_table(climbs: dict[float, dict[str, xr.DataArray]]) -> pd.DataFrame:
    """:func:`over` plain ascent, whose slope is the forward one: a row per ``forward`` slope, way, layer and slope."""
    parts = {}
    for own, by_way in climbs.items():
        plain = by_way[THROUGH].sel(slope=own, drop=True)
        parts |= {(f"{own:g}", way): over(maximum, plain) for way, maximum in by_way.items()}
    return pd.concat(parts, names=["forward", "way"])


def leaky_scores(few: Windows, networks: dict[float, list[Network]]) -> pd.DataFrame:
    """Test ``F1`` of every network, and what it has more than that with ReLUs: one row per ``forward`` slope, seed."""
    rows = {
        (f"{own:g}", net.seed): supervised.macro_f1(few.test, net.predicted["test"])
        for own, nets in networks.items()
        for net in nets
    }
    scores = pd.Series(rows, name="F1").rename_axis(["forward", "seed"]).to_frame()
    return scores.assign(more=scores["F1"] - scores["F1"].xs("0", level="forward").reindex(scores.index, level="seed"))


def copies_of_any(cfg: Settings, few: Windows, settings, place: str, bound: float) -> pd.DataFrame:
    """:func:`over` plain ascent at a ``place`` of small networks of any ``settings``, by their leaky copies.

    "F1" is the networks' own on test people: what climbs say of networks that learned nothing is another thing.
    """
    networks = supervised.networks(cfg, few, settings, _training(cfg))
    starts = starting_points(cfg.maximization, few.train, cfg.slopes.n_starts)
    starts = np.repeat(starts[:, None], len(few.axes), axis=1)
    on_cpu = dataclasses.replace(cfg, device="cpu")
    found = of_networks(networks, lambda net: maxima_at(net, place, starts, cfg.slopes.n_steps, bound), cfg=on_cpu)
    f1 = np.mean([supervised.macro_f1(few.test, net.predicted["test"]) for net in networks])
    return over(found["maximum"], found["maximum"].sel(slope=0.0, drop=True)).assign(F1=f1)


# ---------------------------------------------------------------------------------------- inside the paper's method


def of_copy(maps: Callable[[Tensor], Tensor], slope: float) -> Callable[[Tensor], Tensor]:
    """``maps``, but those of the leaky copy where a gradient is to be taken of them."""

    def seen(x: Tensor) -> Tensor:
        with backward.leaking(slope) if torch.is_grad_enabled() else nullcontext():
            return maps(x)

    return seen


@kept("slopes_inside")
def inside_of(
    network: Network, th_eap: xr.DataArray, starts: xr.DataArray, settings: MaximizationSettings
) -> xr.Dataset:
    """Signals of the paper's method under each way and slope, ``signal``, ``map`` and ``start_map``.

    ``th_eap`` is (layer, unit) of all units; ``starts`` (case, layer, unit, time) in G, of the units to be climbed.
    """
    trunk, units, length = network.trunk, starts["unit"].values.tolist(), starts.sizes["time"]
    recipe = [paper_methods.METHODS[paper_methods.PROPOSED]]
    weights = paper_methods.penalty_weights(settings.weight, settings.reduction, length)
    how = {"n_steps": settings.n_steps, "tolerance_g": settings.tolerance_g}

    def climbed(layer: str, way: str, slope: float) -> xr.Dataset:
        begin = (starts if slope == 0 else starts.sel(case=[PLAIN])).sel(layer=layer)
        cases = begin["case"].values.tolist() if slope == 0 else [f"{way}, {slope:g}"]
        rows = paper_methods.climbing_rows(recipe, units, th_eap.sel(layer=layer).values, weights, len(cases))
        own, x = paper_methods.target_of(trunk, layer, 1, length).maps, begin.values.reshape(-1, length)
        seen, rule = (of_copy(own, slope), None) if way == COPY else (own, backward.sloped(slope) if slope else None)
        found = climb(seen, rows, torch.tensor(x[:, None]), PRESETS["calibrated"], rule=rule, **how)
        at_start = paper_methods.own_maps(trunk, layer, rows.unit.numpy(), x).values
        arrays = {"signal": found.signal, "map": found.map, "start_map": at_start}
        shaped = {name: (("case", "unit", "time"), of.reshape(begin.shape)) for name, of in arrays.items()}
        return xr.Dataset(shaped, {"case": cases, "unit": units})

    ways = [(THROUGH, 0.0), *((way, slope) for slope, way in product(INSIDE, WAYS))]
    layers = [xr.concat([climbed(layer, *of) for of in ways], "case") for layer in trunk.layers]
    return xr.concat(layers, pd.Index(trunk.layers, name="layer"))


def inside(cfg: Settings, windows: Windows, networks: list[Network], statistics: xr.Dataset) -> xr.Dataset:
    """:func:`inside_of` all networks with what is measured of the signals (:func:`similarity.score`)."""
    units = chosen_units(min(statistics.sizes["unit"], cfg.model.n_units), cfg.slopes.n_inside)
    settings = dataclasses.replace(cfg.maximization, tolerance_g=cfg.readings.tolerance_g)
    (sine, *_, noise), segments = starting_points(settings, windows.train, 5), windows.train.segments

    def one(network: Network, own: xr.Dataset) -> xr.Dataset:
        strongest = segments[own["top_segment"].isel(rank=0).sel(unit=units).values]
        starts = np.stack([np.broadcast_to(of, strongest.shape) for of in (sine, noise, strongest)])
        coords = {"case": [PLAIN, NOISE, STRONGEST], "layer": own["layer"].values, "unit": units}
        starts = xr.DataArray(starts, coords, ("case", "layer", "unit", "time"))
        made = inside_of(network, own["th_eap"], starts, settings)
        told = own[["th_eap", "p95", "dead"]].sel(unit=units)
        return made.merge(similarity.scores_of(network, windows, made, told, sine, cfg.similarity))

    return of_networks(networks, one, statistics, cfg=dataclasses.replace(cfg, device="cpu"), title="inside")


def inside_table(found: xr.Dataset) -> pd.DataFrame:
    """A row per layer ("all" too) and case; of living units, with intervals.

    ``silent at start``; ``woken``: share of the units silent at the paper's start that answer their signal;
    ``reached``: share that come to their threshold (95 % of it); ``flat``: signals of less than 0.05 G; ``log10 Ssim``,
    lower where nearer to real windows; and what each has more than the method as it is.
    """
    alive = ~found["dead"].astype(bool)
    shares = {
        "silent at start": found["inactive_at_start"],
        "woken": (~found["silent"].astype(bool)).where(found["inactive_at_start"].sel(case=PLAIN, drop=True)),
        "reached": found["activation_ratio"] >= REACHED,
        "flat": found["range_g"] < FLAT_G,
        "log10 Ssim": np.log10(found["s_u"]),
    }
    shares = {name: of.astype(float).where(alive) for name, of in shares.items()}
    more = {f"{name}, more": of - of.sel(case=PLAIN, drop=True) for name, of in shares.items()}
    return _by_layer(shares | more, "case")


def best_leak(table: pd.DataFrame) -> str:
    """The case that leaks with most units at their threshold, of :func:`inside_table` of networks kept for choosing."""
    reached = table.loc["all", "reached"]
    return str(reached[reached.index.str.startswith(WAYS)].idxmax())


def cures(row: pd.Series) -> str:
    """Whether a row of :func:`inside_table` says that a leak cures silence: "yes", "no" or "undecided".

    Yes: more come to their threshold, and fewer signals are flat, both by ``MARGIN`` at least and with intervals off
    zero; a flat signal of a unit that is open at zero, and a penalty that gives way, can have one of them without the
    other. No: the interval of either lies on the wrong side of zero, or altogether within the margin.
    """
    more = [row[f"reached, more{end}"] for end in ("", " low", " high")]
    fewer = [-row[f"flat, more{end}"] for end in ("", " high", " low")]
    if all(value >= MARGIN and low > 0 for value, low, _ in (more, fewer)):
        return "yes"
    wrong = (high <= 0 or (low > -MARGIN and high < MARGIN) for _, low, high in (more, fewer))
    return "no" if any(wrong) else "undecided"


def woken(found: xr.Dataset, case: str) -> str:
    """How many of the living units that the paper's start leaves silent answer their signal of a case, "4 of 8"."""
    plain = found.sel(case=PLAIN, drop=True)  # "dead" is of each case as well, and would count units once for each
    left = plain["inactive_at_start"].astype(bool) & ~plain["dead"].astype(bool)
    answer = left & ~found["silent"].sel(case=case).astype(bool)
    return f"{int(answer.sum())} of {int(left.sum())}"
