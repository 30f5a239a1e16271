"""Backward slopes on all units of SF-HF, and networks trained with them: gains over plain ascent and plain training.

Step sizes are chosen on networks of their own, then every unit of the others is climbed; a signal is one sensor axis.
The gradient is written out, because autograd takes several times as long; ``tests/test_lens_slopes.py`` compares them.

Networks are also trained with a backward slope, beside networks trained plainly. Everything but the slope is the same
for a seed: first weights, order of the windows, dropout, epochs. Networks and data are small, because each slope wants
several seeds and a learning rate of its own.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import rankdata
from torch import Tensor

from harvis_utils.data.windowing import Windows
from harvis_utils.fast import ascent, gradients
from harvis_utils.lenses import slopes
from harvis_utils.lenses.slopes import COPY, SLOPES, THROUGH, Ascent, Field
from harvis_utils.maximization import unit_statistics
from harvis_utils.maximization.paper_methods import recorded_steps
from harvis_utils.maximization.starting import chosen_units, starting_points
from harvis_utils.metrics.intervals import Difference, paired, tabulated, with_interval
from harvis_utils.metrics.similarity import correlation
from harvis_utils.networks import backward
from harvis_utils.networks.sfhf import Trunk, folded_trunk
from harvis_utils.parallel import side_by_side, threads_inside, torch_device
from harvis_utils.settings import ModelSettings, Settings, Step, TrainingSettings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network, of_networks

#: step sizes tried: from clearly too small to clearly too large in G
STEP_SIZES = {"ascent": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0), "adam": (0.01, 0.03, 0.1, 0.3, 1.0)}
DECAY = 0.99  # Choice: steps end at about a tenth of their size
#: Choice: without bounds one step for all slopes (not the calibrated preset's), because a larger one always gets higher
FREE = Step("adam", 0.1, 0.995)
#: a value counts as reached from this share of it on
REACHED = 0.95
#: a sample lies at its bound from this share of it on
AT_BOUND = 1 - 1e-5
#: Choice: a larger gain counts as this one, also where plain ascent does not leave zero; medians do not mind
HIGHEST_GAIN = 100.0
#: what networks are trained with: with batch norm a unit hardly dies; without, it may
KINDS = {"batch norm": True, "no batch norm": False}

# ------------------------------------------------------------------------------------------ all units and slopes


class Climb(NamedTuple):
    """``n_steps`` within ±``bound``, gradients leak in one ``way`` of ``WAYS``, the trunk's ``own`` forward slope."""

    n_steps: int
    bound: float | None
    way: str = THROUGH
    own: float = 0.0


def unit_field(trunk: Trunk, layer: str, unit: Tensor, slope: float, way: str = THROUGH, own: float = 0.0) -> Field:
    """:func:`slopes.unit_field` of a trunk, for signals (row, time) in G, written out; ``own`` is its forward slope."""
    maps = gradients.UnitMaps(trunk, layer, unit, slope)

    def outputs(x: Tensor, forward: float) -> Tensor:
        with backward.leaking(forward) if forward else nullcontext():
            return maps.forward(x)

    def field(x: Tensor) -> tuple[Tensor, Tensor]:
        value = outputs(x, own)
        out = outputs(x, slope) if way == COPY else value
        return value.mean(1), maps.backward(gradients.rectified(torch.full_like(out, 1 / out.shape[1]), out, slope))

    return field


@torch.inference_mode()
def climb(trunk: Trunk, layer: str, unit: Tensor, start: Tensor, slope: float, step: Step, how: Climb) -> Ascent:
    """Climb each row's ``unit`` (row,) of a layer from ``start`` (row, time) in G under one backward slope."""
    size = ascent.block_rows(trunk, layer, start.shape[1], start.dtype, ascent.CPU_BLOCK_BYTES)
    parts = []
    for some, x in zip(unit.split(size), start.split(size), strict=True):
        field = unit_field(trunk, layer, some, slope, how.way, how.own)
        parts.append(slopes.ascend(field, x, step, how.n_steps, how.bound))
    return Ascent(*(torch.cat([getattr(p, name) for p in parts]) for name in ("curve", "best", "last")))


def climb_all(
    trunk: Trunk, steps: Mapping[float, Step], starts: np.ndarray, units: Sequence[int], how: Climb
) -> xr.Dataset:
    """All layers, ``units`` and ``starts`` (start, time) under each slope of ``steps``, with its own step.

    Returns over (layer, slope, start, unit): ``maximum``; ``until``, the first step at 95 % of the highest value that
    any slope and start gave this unit (inf: never, NaN: it is dead); ``signal`` (also time) in G; ``curve`` (also
    step); with a bound ``at_bounds``, the share of samples at ±bound, and ``one_sided``, whether all of them are at the
    same one (the "white image" of one axis). ``at_start`` is (layer, start, unit).
    """
    x = torch.tensor(np.repeat(starts, len(units), axis=0))  # rows are (start, unit)
    unit = torch.tensor(list(units)).repeat(len(starts))
    cases = product(trunk.layers, steps.items())
    found = [climb(trunk, layer, unit, x, slope, step, how) for layer, (slope, step) in cases]
    shape = (len(trunk.layers), len(steps), len(starts), len(units), -1)
    curve, signal = (np.stack([getattr(a, name).numpy() for a in found]).reshape(shape) for name in ("curve", "best"))
    target = REACHED * curve[..., -1].max((1, 2))[:, None, None]
    there = curve >= target[..., None]
    until = np.where(there.any(-1), there.argmax(-1), np.inf)
    dims = ("layer", "slope", "start", "unit")
    arrays = {
        "maximum": (dims, curve[..., -1]),
        "until": (dims, np.where(target > 0, until, np.nan)),
        "signal": ((*dims, "time"), signal),
        "curve": ((*dims, "step"), curve),
        "at_start": (("layer", "start", "unit"), curve[:, 0, :, :, 0]),
    }
    if how.bound is not None:
        high, low = signal >= AT_BOUND * how.bound, signal <= -AT_BOUND * how.bound
        arrays["at_bounds"] = dims, (high | low).mean(-1)
        arrays["one_sided"] = dims, high.all(-1) | low.all(-1)
    return xr.Dataset(arrays, {"layer": list(trunk.layers), "slope": list(steps), "unit": list(units)})


@kept("slopes")
def climbs_of(network: Network, starts: np.ndarray, steps: Mapping[float, Step], how: Climb) -> xr.Dataset:
    """:func:`climb_all` of one network and all its units; of the curve only some steps."""
    few, trunk = recorded_steps(how.n_steps, 30), network.trunk
    every = range(min(map(len, trunk.biases)))
    return climb_all(trunk, steps, starts, every, how).isel(step=few).assign_coords(step=few)


def climbs(
    cfg: Settings,
    windows: Windows,
    networks: list[Network],
    steps: Mapping[float, Step],
    bound: float | None,
    way: str = THROUGH,
) -> xr.Dataset:
    """:func:`climbs_of` all networks, dims (seed, layer, slope, start, unit), on the CPU."""
    starts = starting_points(cfg.maximization, windows.train, cfg.slopes.n_starts)
    how, on_cpu = Climb(cfg.slopes.n_steps, bound, way), dataclasses.replace(cfg, device="cpu")
    return of_networks(networks, lambda net: climbs_of(net, starts, steps, how), cfg=on_cpu, title="slopes")


@kept("slope_steps")
def maxima_of(
    network: Network, starts: np.ndarray, tried: Sequence[Step], units: Sequence[int], how: Climb
) -> xr.Dataset:
    """``maximum`` of :func:`climb_all` with each step for all slopes, dims (tried, layer, slope, start, unit)."""
    made = [climb_all(network.trunk, dict.fromkeys(SLOPES, step), starts, units, how) for step in tried]
    return xr.concat([one[["maximum"]] for one in made], "tried")


def choose_steps(
    cfg: Settings, windows: Windows, networks: list[Network], bound: float, ways: Sequence[str] = (THROUGH,)
) -> tuple[dict[float, Step], pd.DataFrame]:
    """One step per slope, chosen on ``networks`` that are judged nowhere, and the scores it was chosen by.

    The table has a row per optimizer and step size and a column per slope: how high it comes, as a share of the highest
    that any setting under any slope reached for that unit, mean over starts, units and networks, and over ``ways``. The
    optimizer is the one under which plain ascent scores best, so that plain ascent is never handicapped; each slope
    then takes the step size that scores best for it.
    """
    starts = starting_points(cfg.maximization, windows.train, cfg.slopes.n_starts)
    units = chosen_units(cfg.model.n_units, cfg.readings.n_units)
    tried = [Step(optimizer, size, DECAY) for optimizer, sizes in STEP_SIZES.items() for size in sizes]

    def one(network: Network) -> xr.DataArray:
        hows = (Climb(cfg.slopes.n_steps, bound, way) for way in ways)
        return xr.concat([maxima_of(network, starts, tried, units, how)["maximum"] for how in hows], "way")

    maxima = side_by_side(dataclasses.replace(cfg, device="cpu"), one, networks, "step sizes")
    joined = xr.concat(maxima, "network")
    highest = joined.max(("way", "tried", "slope", "start"))
    share = (joined / highest.where(highest > 0)).mean(("network", "way", "layer", "start", "unit"))
    labels = pd.MultiIndex.from_tuples([(t.optimizer, t.step_size) for t in tried], names=["optimizer", "step size"])
    scores = pd.DataFrame(share.transpose("tried", "slope").values, labels, pd.Index(SLOPES, name="backward slope"))
    optimizer = str(scores[SLOPES[0]].idxmax()[0])
    best = scores.loc[optimizer].idxmax()
    return {slope: Step(optimizer, float(best[slope]), DECAY) for slope in SLOPES}, scores


def tried(steps: Mapping[float, Step], scores: pd.DataFrame) -> pd.DataFrame:
    """What :func:`choose_steps` returns with a row per optimizer, step size and slope: ``share``, and if ``taken``."""
    table = scores.stack().rename("share").reset_index()
    taken = {(step.optimizer, step.step_size, slope) for slope, step in steps.items()}
    each = table[["optimizer", "step size", "backward slope"]].itertuples(index=False, name=None)
    return table.assign(taken=[row in taken for row in each])


# -------------------------------------------------------------------------------------------------------- tables


def gains(maximum: xr.DataArray, plain: xr.DataArray | None = None) -> xr.DataArray:
    """What each slope reaches over ``plain`` (None: plain ascent in ``maximum``), minus 1: dimensions of ``maximum``.

    NaN where both reach nothing (a dead unit); at most ``HIGHEST_GAIN``.
    """
    plain = maximum.sel(slope=SLOPES[0], drop=True) if plain is None else plain
    gain = (maximum / plain.where(plain > 0) - 1).where(plain > 0, np.inf)
    return gain.clip(max=HIGHEST_GAIN).where((plain > 0) | (maximum > 0))


def _median(values: np.ndarray) -> float:
    """The upper median, inf of no values: the mean of a number and inf would say nothing."""
    return float(np.sort(values)[len(values) // 2]) if len(values) else np.inf


def table(found: xr.Dataset) -> pd.DataFrame:
    """One row per layer ("all" too) and slope, with intervals over networks and units.

    * ``gain``: median over units of the gain of the mean maximum over starts; ``gain, best start``: of the best start;
      ``gain over plain's best``: of the mean over the best start of plain ascent.
    * ``higher``: share of units that come higher than by plain ascent, by 0.1 % at least, minus the share lower.
    * ``reached``: share of ascents that come to 95 % of the highest value known for their unit; ``steps``: the median
      number they take, inf where most never do; ``steps if reached`` that of those that do.
    * ``spread``: standard deviation over starts by their mean; ``stuck``: share of ascents that never rise above their
      start; with bounds ``at_bounds`` and ``one_sided``.
    """
    layers = [str(layer) for layer in found["layer"].values]
    mean, best = found["maximum"].mean("start"), found["maximum"].max("start")
    alive = best.max("slope") > 0
    measures = {
        "gain": gains(mean),
        "gain, best start": gains(best),
        "gain over plain's best": gains(mean, best.sel(slope=SLOPES[0], drop=True)),
        "higher": np.sign(gains(mean)).where(abs(gains(mean)) > 1e-3, 0.0).where(alive),
        "reached": np.isfinite(found["until"]).where(found["until"].notnull()).mean("start"),
        "spread": found["maximum"].std("start") / mean.where(mean > 0),
        "stuck": (found["maximum"] <= found["at_start"]).where(alive).mean("start"),
    }
    for name in ("at_bounds", "one_sided"):
        if name in found:
            measures[name] = found[name].where(alive).astype(float).mean("start")
    medians, parts = [name for name in measures if name.startswith(("gain", "spread"))], {}
    for part, chosen in {"all": layers, **{layer: [layer] for layer in layers}}.items():
        own = {name: values.sel(layer=chosen) for name, values in measures.items()}
        until = found["until"].sel(layer=chosen).transpose("slope", ...).values
        parts[part] = tabulated(own, "slope", medians).assign(
            steps=[_median(u[~np.isnan(u)]) for u in until],
            **{"steps if reached": [_median(u[np.isfinite(u)]) for u in until]},
            networks=found.sizes["seed"],
            units=int(alive.sel(layer=chosen).sum()),
        )
    return pd.concat(parts, names=["layer"])


def progress(found: xr.Dataset) -> pd.DataFrame:
    """``share`` of a unit's highest known value that is reached so far, by layer, slope and step.

    Mean over networks, starts and living units.
    """
    highest = found["maximum"].max(("slope", "start"))
    share = (found["curve"] / highest.where(highest > 0)).mean(("seed", "start", "unit"))
    return share.rename("share").to_dataframe()


def best_in_box(weights: np.ndarray, biases: np.ndarray, bound: float, length: int) -> np.ndarray:
    """Exact maximum of each first-layer unit's mean output over all signals within ±bound, (unit,).

    ``weights`` are (unit, kernel), ``biases`` (unit,). A rectified weighted sum is convex, unlike deeper layers, so the
    maximum lies in a corner of the box, and along the signal only the last ``kernel - 1`` samples matter for the rest.
    """
    kernel = weights.shape[1]
    half = kernel // 2
    reached = {(0.0,) * (kernel - 1): np.zeros(len(weights))}  # zeros stand where the signal is padded
    for entering in range(length + half):
        further: dict[tuple[float, ...], np.ndarray] = {}
        for past, total in reached.items():
            for sample in (-bound, bound) if entering < length else (0.0,):
                seen = (*past, sample)
                output = np.maximum(weights @ np.array(seen) + biases, 0) if entering >= half else 0.0
                known = further.get(seen[1:], -np.inf)
                further[seen[1:]] = np.maximum(known, total + output)
        reached = further
    return np.max(list(reached.values()), axis=0) / length


def _optimum(network: Network, bound: float, length: int) -> np.ndarray:
    """Exact maximum of each first-layer unit in the box, (unit,)."""
    weights, biases = (a[0].double().numpy() for a in (network.trunk.weights, network.trunk.biases))
    return best_in_box(weights[:, 0], biases, bound, length)


def against_optimum(networks: list[Network], found: xr.Dataset, bound: float) -> pd.DataFrame:
    """First-layer units in a box, where the exact maximum is known: share of it that each slope reaches, per ascent.

    ``solved`` is the share of ascents within 1 % of it, ``solved, best start`` the share of units of which one was.
    """
    exact = np.stack([_optimum(net, bound, found.sizes["time"]) for net in networks])
    optimum = xr.DataArray(exact, {"seed": found["seed"]}, ("seed", "unit"))
    share = found["maximum"].isel(layer=0) / optimum.where(optimum > 0)
    solved = (share >= 0.99).where(share.notnull())
    measures = {"share": share.mean("start"), "solved": solved.mean("start"), "solved, best start": solved.max("start")}
    reached = tabulated(measures, "slope")
    reached.insert(0, "highest share", share.max(("seed", "start", "unit")).values)
    return reached


def white_optima(networks: list[Network], bound: float, length: int) -> np.ndarray:
    """Share of living first-layer units whose exact maximum in the box a constant at a bound reaches, (network,)."""
    shares = []
    for net in networks:
        exact = _optimum(net, bound, length)
        constant = torch.tensor([[bound], [-bound]]).expand(2, length)
        white = net.trunk.feature_map(constant, net.trunk.layers[0]).mean(2).amax(0).numpy()
        shares.append((white[exact > 0] >= 0.999 * exact[exact > 0]).mean())
    return np.array(shares)


def over_plain(found: xr.Dataset, name: str, slope: float) -> Difference:
    """What this slope's signals have more of a measure (``at_bounds``, ``one_sided``) than those of plain ascent.

    Unit by unit, mean over starts, living units only.
    """
    each = found[name].astype(float).mean("start").where(found["maximum"].max(("slope", "start")) > 0)
    both = each.sel(slope=[slope, SLOPES[0]]).transpose("slope", "seed", ...).values
    return paired(*both.reshape(*both.shape[:2], -1))


def bounds_and_height(found: xr.Dataset) -> pd.DataFrame:
    """Do higher ascents have more samples at the bounds? ``correlation`` per layer and over "all", with its interval.

    The mean over units of the rank correlation, over the ascents of one unit, of the maximum reached and the share of
    samples at the bounds; units for which either is the same in all ascents are left out.
    """
    stacked = found[["maximum", "at_bounds"]].stack(ascent=("slope", "start")).transpose(..., "ascent")
    ranks = [rankdata(stacked[name].values, axis=-1) for name in ("maximum", "at_bounds")]
    height = stacked["maximum"].isel(ascent=0, drop=True).copy(data=correlation(*ranks))
    every = height.rename(layer="layers").expand_dims(layer=["all"])
    return pd.concat([tabulated({"correlation": of}, "layer") for of in (height, every)])


# ----------------------------------------------------------------------------------------------- trained with slopes


@kept("slope_training", apart=("device",))
@threads_inside(1)
def outcome(
    few: Windows,
    model: ModelSettings,
    training: TrainingSettings,
    seed: int,
    slope: float,
    *,
    device: str | None = None,
) -> dict[str, float]:
    """F1 on both other splits, and the share ``dead`` of the trunk's units that answer no training window at all."""
    network = supervised.new_model(few, model, seed).to(torch_device(device))
    found = supervised.fit_best(network, few, training, seed, around=lambda: slopes.sloped(slope))
    best = int(np.nanargmax(found["val_f1"]))
    units = unit_statistics.collect(folded_trunk(network), few.train.segments, torch_device(device))
    return {name: found[name][best] for name in ("val_f1", "test_f1")} | {"dead": float(units["dead"].mean())}


def _outcomes(cfg: Settings, few: Windows, jobs: Iterable[tuple[str, float, float, int]]) -> pd.DataFrame:
    """Outcomes of (kind, slope, rate, seed); rectifiers are caught thread by thread."""

    def one(job: tuple[str, float, float, int]) -> dict[str, float]:
        kind, slope, rate, seed = job
        model = dataclasses.replace(cfg.slopes.model, batch_norm=KINDS[kind])
        training = TrainingSettings(seeds=(), epochs=cfg.slopes.epochs, learning_rate=rate)
        return outcome(few, model, training, seed, slope, device=cfg.device)

    jobs = list(jobs)
    found = side_by_side(cfg, one, jobs, "training with slopes")
    return pd.DataFrame(found, pd.MultiIndex.from_tuples(jobs, names=["kind", "slope", "rate", "seed"]))


def outcomes(cfg: Settings, few: Windows, choosing: Sequence[int]) -> pd.DataFrame:
    """F1 and dead units by kind, slope and seed, each at the learning ``rate`` of its kind and slope.

    That is the one with the best mean validation F1 on the seeds ``choosing``; a single one needs no choice.
    """
    cases, rates = list(product(KINDS, cfg.slopes.trained)), cfg.slopes.rates
    best = dict.fromkeys(cases, rates[0])
    if len(rates) > 1:
        tried = _outcomes(cfg, few, ((*case, rate, seed) for case in cases for rate in rates for seed in choosing))
        best = tried["val_f1"].groupby(level=["kind", "slope", "rate"]).mean().unstack("rate").idxmax(axis=1)
    jobs = ((*case, float(best[case]), seed) for case in cases for seed in cfg.slopes.seeds)
    return _outcomes(cfg, few, jobs).reset_index("rate")


def compare(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Each slope against plain training (the smallest slope), paired by seed, with intervals over the seeds."""
    measures = outcomes[["test_f1", "dead"]].sort_index()
    differences = measures - measures.groupby(["kind", "seed"]).transform("first")
    rows = {}
    for of, own in measures.groupby(["kind", "slope"]):
        rows[of] = {"rate": outcomes.loc[of, "rate"].iloc[0]}
        for name in measures:
            rows[of] |= {name: own[name].mean()} | with_interval(f"{name} difference", differences.loc[of, name])
        rows[of]["networks"] = len(own)
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["kind", "slope"])
