"""Measures of signals turned into tables with intervals: what each method or variant reaches, and what it gains.

The two axes are those of notebook 08: *activation*, the share of its threshold that a signal brings its unit to, and
*nearness*, how near the exciting piece is to real ones, relative to how near these are to one another. Either alone is
easily won, by amplitude or by doing nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Windows
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.paper_methods import METHODS, PROPOSED
from harvis_utils.maximization.starting import starting_points
from harvis_utils.metrics import motifs, realism, signal_measures, similarity
from harvis_utils.metrics.intervals import paired, with_interval
from harvis_utils.paper.climbing import noise_starts
from harvis_utils.paper.variants import OURS, PAPERS
from harvis_utils.parallel import torch_device
from harvis_utils.settings import Settings
from harvis_utils.training.supervised import Network, of_networks

#: column -> how it is read from the measures; every one is (..., layer, unit)
MEASURES: dict[str, Callable[[xr.Dataset], xr.DataArray]] = {
    "activation": realism.activation,
    "nearness": realism.nearness,
    "realism p": lambda m: m["realism_p"],
    "spectral distance": lambda m: m["spectral_distance"],
    "matched Ssim, log10 G²": lambda m: np.log10(m["matched_ssim"].where(m["matched_ssim"] > 0)),
    "moved by [G]": lambda m: m["displacement_g"].where(~m["failed"]),
}

#: measures of which more is better; of the others less is, and moving is neither
MORE_IS_BETTER = ("activation", "nearness", "realism p")
#: a variant has to be good on both axes, each alone is easily won; and what stands at them
LABELS = {
    "activation": "activation: share of th reached (at most 1)",
    "nearness": "nearness to real strong windows (0.5: real ones)",
}


def by_network(values: xr.DataArray) -> np.ndarray:
    """(seed, unit) values of all layers side by side."""
    return values.stack(each=("layer", "unit")).transpose("seed", ...).values.astype(float)


def table(measured: xr.Dataset, dimension: str) -> pd.DataFrame:
    """Mean and interval of every measure for each method or control and layer, one row each.

    ``dimension`` is "technique" or "control". "networks" counts them, "failed" is the share of signals beyond 10 G;
    means leave out what a measure does not exist for.
    """
    rows = []
    for name, layer in product(*(measured[d].values.tolist() for d in (dimension, "layer"))):
        some = measured.sel({dimension: name, "layer": [layer]})
        row = {"name": name, "layer": layer, "networks": measured.sizes["seed"], "failed": _failed(some)}
        for column, of in MEASURES.items():
            row |= with_interval(column, by_network(of(some)))
        rows.append(row)
    return pd.DataFrame(rows).set_index(["name", "layer"])


def _failed(measured: xr.Dataset) -> float:
    return float(measured["failed"].where(~measured["dead"]).mean())


def differences(measured: xr.Dataset, dimension: str, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Paired differences, unit by unit, of each pair of methods (first minus second) for every measure and layer.

    With the interval, the effect size (dominance: share of units in which the first is larger minus the share in
    which it is smaller) and the number of networks and units. ``better`` is the first, the second, or empty where
    the interval reaches zero or the measure has no better side.
    """
    rows = []
    for (first, second), layer, (column, of) in product(pairs, measured["layer"].values.tolist(), MEASURES.items()):
        found = paired(*(by_network(of(measured.sel({dimension: n, "layer": [layer]}))) for n in (first, second)))
        low, high = found.interval or (np.nan, np.nan)
        up = column in MORE_IS_BETTER
        better = "" if not found.clear or column.startswith("moved") else (first, second)[(low > 0) != up]
        row = (first, second, layer, column, found.mean, low, high, found.dominance, better)
        rows.append((*row, found.n_networks, found.n_pairs))
    names = ["first", "second", "layer", "measure", "difference", "low", "high", "dominance", "better"]
    return pd.DataFrame(rows, columns=[*names, "networks", "units"])


def against(measured: xr.Dataset, controls: xr.Dataset) -> pd.DataFrame:
    """:func:`differences` of the proposed method and the paper's others, ours and it, and it and the ``controls``.

    ``measured`` has the dimension "technique", ``controls`` "control"; its "random-weights" are left out.
    """
    beside = controls.drop_sel(control="random-weights").rename(control="technique")
    pairs = [(PROPOSED, name) for name in METHODS if name != PROPOSED] + [(OURS, PROPOSED)]
    pairs += [(PROPOSED, name) for name in beside["technique"].values.tolist()]
    return differences(joined(measured, beside, "technique"), "technique", pairs)


def joined(first: xr.Dataset, second: xr.Dataset, dimension: str) -> xr.Dataset:
    """Signals, or measures of them, of two groups under one dimension, so that they can be paired: what both have."""
    names = [name for name in first.data_vars if name in second and dimension in first[name].dims]
    both = xr.concat([first[names], second[names]], dimension, coords="minimal", compat="override")
    return both.assign(dead=first["dead"]) if "dead" in first else both


def by_factor(depends: pd.DataFrame) -> pd.DataFrame:
    """:func:`recovery.dependence` in words, one row per "factor", "level", "seed" and what it is a share "of"."""
    factors = {"noise_g": "noise added [G]", "prevalence": "share of motifs planted", "n_units": "units per layer"}
    named = depends.rename(columns={"random_recall": "random weights", "macro_f1": "macro F1"})
    named = named.replace({"factor": factors})
    return named.melt(["factor", "level", "seed"], ["recall", "random weights", "macro F1"], "of", "recall, macro F1")


def gains(measured: xr.Dataset) -> pd.DataFrame:
    """Every variant beside the paper's method on the two axes: means, and paired differences with effect sizes.

    ``measured`` has dims (seed, recipe, layer, unit). Also the mean realism p and spectral distance and the share of
    failed signals. ``beats`` says that both differences' intervals lie above zero; ``surety`` is the smaller of the
    two differences in units of half its interval's width.
    """
    axes = {axis: MEASURES[axis](measured) for axis in LABELS}
    rows = []
    for name in measured["recipe"].values.tolist():
        row, some, sure = {"recipe": name}, measured.sel(recipe=name), []
        for axis, values in axes.items():
            ours, theirs = (by_network(values.sel(recipe=n)) for n in (name, PAPERS))
            found = paired(ours, theirs)
            row |= with_interval(axis, ours) | found.row(f"{axis} difference") | {f"{axis} dominance": found.dominance}
            low, high = found.interval or (0.0, 0.0)
            sure.append(found.mean / ((high - low) / 2) if high > low else 0.0)
        row |= {n: float(some[n.replace(" ", "_")].mean()) for n in ("realism p", "spectral distance")}
        row |= {"failed": _failed(some), "networks": found.n_networks, "pairs": found.n_pairs, "surety": min(sure)}
        row["beats"] = all(row[f"{axis} difference low"] > 0 for axis in axes)
        rows.append(row)
    return pd.DataFrame(rows).set_index("recipe")


def above_random(measured: xr.Dataset) -> pd.DataFrame:
    """What each variant's signals owe to training: paired differences to the same variant on random weights, both axes.

    ``measured`` is as for :func:`gains`; one row per variant that was run on networks with random weights too.
    """
    axes = {axis: MEASURES[axis](measured) for axis in LABELS}
    rows = []
    for random in [n for n in measured["recipe"].values.tolist() if n.startswith(RANDOM_PREFIX)]:
        row = {"recipe": random.removeprefix(RANDOM_PREFIX)}
        for axis, values in axes.items():
            found = paired(*(by_network(values.sel(recipe=n)) for n in (row["recipe"], random)))
            row |= found.row(axis) | {f"{axis} dominance": found.dominance}
        rows.append(row | {"networks": found.n_networks, "pairs": found.n_pairs})
    return pd.DataFrame(rows).set_index("recipe")


#: what stands beside visual variants, judged as they are
CONTROLS = {
    "untouched start": "the noise that every variant starts from",
    "real window": "a held-out window that reaches the unit's threshold, drawn at random",
}
#: before the name of a variant whose signals were made on a network with random weights
RANDOM_PREFIX = "random weights: "


def beside(
    made: xr.Dataset, random: xr.Dataset, windows: Windows, networks: Sequence[Network], statistics: xr.Dataset
) -> xr.Dataset:
    """Variants, :data:`CONTROLS` and what variants made of networks with random weights, judged by trained networks.

    ``made`` and ``random`` are as :func:`harvis_utils.paper.climbing.signals` returns them, one entry of seed per
    network; the maps of all are those of the trained networks' units.
    """
    dims, units = ("seed", "recipe", "layer", "unit", "time"), made["unit"].values.tolist()
    others = random["signal"].transpose(*dims)
    others = others.assign_coords(recipe=[f"{RANDOM_PREFIX}{name}" for name in others["recipe"].values])
    shape = (made.sizes["layer"], len(units), made.sizes["time"])

    def one(net: Network, th_eap: xr.DataArray, other: xr.DataArray) -> xr.Dataset:
        start = noise_starts(windows, shape[0] * shape[1], 1, net.seed).reshape(shape)
        real = realism.held_out_strong(net.trunk, th_eap, windows.test, net.seed)
        signals = np.stack([start, real[:, units], *other.values]).astype(np.float32)
        maps = np.stack([similarity.own_maps(net.trunk, x, units) for x in signals])
        return xr.Dataset({"signal": (dims[1:], signals), "map": (dims[1:], maps)})

    found = of_networks(networks, one, statistics["th_eap"], others)
    names = {"recipe": [*CONTROLS, *others["recipe"].values], "layer": made["layer"], "unit": units}
    return xr.concat([made[["signal", "map"]], found.assign_coords(names)], "recipe")


def motif_table(truth: PlantedMotifs, trained: xr.DataArray, random: xr.DataArray) -> pd.DataFrame:
    """Matches of planted motifs per variant: trained, random weights, their difference, and that minus the paper's.

    ``trained`` and ``random`` are signals (seed, recipe, layer, unit, time) of the same variants, networks paired in
    their order. A match is the best one among the units of the layers that can hold the motif; differences are paired
    by network and motif and have intervals. Raises ``ValueError`` where the variants differ.
    """
    names = trained["recipe"].values.tolist()
    if names != random["recipe"].values.tolist():
        raise ValueError("the random networks' signals are of other variants than the trained networks'")
    found = (motifs.matches(truth, some)["best"].sel(layer=motifs.ANY) for some in (trained, random))
    ours, theirs = (best.transpose("recipe", "seed", "motif").values for best in found)
    gain, rows = ours - theirs, []
    for k, name in enumerate(names):
        row = {"recipe": name, "trained": ours[k].mean(), "random weights": theirs[k].mean()}
        row |= paired(ours[k], theirs[k]).row("above random")
        rows.append(row | paired(gain[k], gain[names.index(PAPERS)]).row("more than the paper's"))
    return pd.DataFrame(rows).set_index("recipe")


def spreads(
    cfg: Settings,
    windows: Windows,
    network: Network,
    th_eap: xr.DataArray,
    methods: Sequence[str],
    units: Sequence[int],
) -> pd.DataFrame:
    """How far apart a method's signals end that began at five points (:func:`signal_measures.spread`), over ``units``.

    One row per layer and method: median, smallest and largest. ``th_eap`` is (layer, unit) over all units.
    """
    starts = starting_points(cfg.maximization, windows.train, 5)
    begin = np.broadcast_to(starts[:, None, None], (5, len(methods), len(units), windows.train.length))
    how = {"length": windows.train.length, "rate_hz": windows.rate_hz, "device": torch_device(cfg.device)}
    how |= {"methods": methods, "units": units, "settings": cfg.maximization, "start": begin}
    parts = {}
    for layer in network.trunk.layers:
        made = paper_methods.maximize(network.trunk, layer, th_eap.sel(layer=layer).values, **how)["signal"].values
        parts[layer] = pd.DataFrame(signal_measures.spread(made, starts), methods).agg(["median", "min", "max"], axis=1)
    return pd.concat(parts, names=["layer", "technique"]).set_axis(["median spread", "smallest", "largest"], axis=1)
