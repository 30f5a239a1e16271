"""Recipes of visualization judged: the measures of notebook 08, planted motifs, and the controls beside both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.windowing import Windows
from harvis_utils.metrics import motifs, realism
from harvis_utils.metrics.intervals import interval, paired
from harvis_utils.paper import visual_recipes
from harvis_utils.paper.visual_recipes import PAPERS, maps
from harvis_utils.training.supervised import Network

#: what stands beside the recipes, judged as they are
CONTROLS = {
    "untouched start": "the noise that every recipe starts from",
    "real window": "a held-out window that reaches the unit's threshold, drawn at random",
}
#: before the name of a recipe whose signals were made on a network with random weights
RANDOM_PREFIX = "random weights: "


def controls(windows: Windows, networks: Sequence[Network], statistics: xr.Dataset, made: xr.Dataset) -> xr.Dataset:
    """Signals of :data:`CONTROLS` for the units of ``made``: dims (seed, recipe, layer, unit, time), maps included."""
    units, n_layers = made["unit"].values.tolist(), made.sizes["layer"]
    found = []
    for net in networks:
        start = visual_recipes.starts(windows, n_layers * len(units), 1, net.seed)[:, 0]
        real = realism.held_out_strong(net.trunk, statistics["th_eap"].sel(seed=net.seed), windows.test, net.seed)
        found.append([start.reshape(n_layers, len(units), -1), real[:, units]])
    dims = ("seed", "recipe", "layer", "unit", "time")
    coords = {"seed": made["seed"].values, "recipe": list(CONTROLS), "layer": made["layer"].values, "unit": units}
    return judged_by(networks, xr.Dataset({"signal": (dims, np.array(found))}, coords))


def judged_by(networks: Sequence[Network], made: xr.Dataset) -> xr.Dataset:
    """The same signals with the maps of these networks' units, whichever networks the signals were made on.

    ``made`` has dims (seed, recipe, layer, unit, time), one entry of seed per network.
    """
    ordered = made.transpose("seed", "recipe", "layer", "unit", "time")
    units = ordered["unit"].values.tolist()
    found = [
        [maps(net, x, units) for x in ordered["signal"].sel(seed=net.seed).values.astype(np.float32)]
        for net in networks
    ]
    return ordered.assign(map=(ordered["signal"].dims, np.array(found)))


def beside(made: xr.Dataset, control: xr.Dataset, random: xr.Dataset, networks: Sequence[Network]) -> xr.Dataset:
    """Recipes, controls and what recipes made of networks with random weights, all judged by the trained networks."""
    judged = judged_by(networks, random)
    judged = judged.assign_coords(recipe=[f"{RANDOM_PREFIX}{name}" for name in judged["recipe"].values])
    return xr.concat([part[["signal", "map"]] for part in (made, control, judged)], "recipe")


def compare(measured: xr.Dataset, against: str = PAPERS) -> pd.DataFrame:
    """Every recipe beside the paper's method on the two axes, with paired differences, intervals and effect sizes.

    ``measured`` has dims (seed, recipe, layer, unit). Also the mean realism p and spectral distance and the share of
    failed signals. ``beats`` says that both intervals lie above zero.
    """
    rows = []
    for name in measured["recipe"].values:
        row: dict = {"recipe": str(name)}
        for axis, of in realism.AXES.items():
            ours, theirs = (_by_network(of(measured), str(n)) for n in (name, against))
            found = paired(ours, theirs)
            low, high = found.interval or (np.nan, np.nan)
            point, bounds = interval(ours)
            row |= {axis: point, f"{axis} low": (bounds or [np.nan])[0], f"{axis} high": (bounds or [np.nan])[-1]}
            row[f"{axis} difference"] = found.mean
            row |= {f"{axis} difference low": low, f"{axis} difference high": high}
            row[f"{axis} dominance"] = found.dominance
        some = measured.sel(recipe=name)
        row |= {n: float(some[n.replace(" ", "_")].mean()) for n in ("realism p", "spectral distance")}
        row |= {"failed": float(some["failed"].where(~some["dead"]).mean())}
        row |= {"networks": found.n_networks, "pairs": found.n_pairs}
        row["beats"] = bool(row["activation difference low"] > 0 and row["nearness difference low"] > 0)
        rows.append(row)
    return pd.DataFrame(rows).set_index("recipe")


def above_random(measured: xr.Dataset) -> pd.DataFrame:
    """What each recipe's signals owe to training: paired differences to the same recipe on random weights, both axes.

    ``measured`` is as for :func:`compare`; one row per recipe that was run on networks with random weights too.
    """
    rows = []
    random = [str(name) for name in measured["recipe"].values if str(name).startswith(RANDOM_PREFIX)]
    for name in random:
        row: dict = {"recipe": name.removeprefix(RANDOM_PREFIX)}
        for axis, of in realism.AXES.items():
            first, second = (_by_network(of(measured), n) for n in (row["recipe"], name))
            found = paired(first, second)
            low, high = found.interval or (np.nan, np.nan)
            row |= {axis: found.mean, f"{axis} low": low, f"{axis} high": high, f"{axis} dominance": found.dominance}
        rows.append(row | {"networks": found.n_networks, "pairs": found.n_pairs})
    return pd.DataFrame(rows).set_index("recipe")


def _by_network(values: xr.DataArray, recipe: str) -> np.ndarray:
    """(seed, layer and unit) values of one recipe."""
    chosen = values.sel(recipe=recipe).transpose("seed", "layer", "unit").values
    return chosen.reshape(len(chosen), -1)


def motif_matches(truth, made: xr.DataArray) -> xr.DataArray:
    """Best match of every motif among the units of the layers that can hold it: dims (recipe, seed, motif).

    ``made`` are signals (seed, recipe, layer, unit, time); ``truth`` is a data set's planted motifs.
    """
    ordered = made.transpose("recipe", "seed", "layer", "unit", "time")
    layers = [str(la) for la in ordered["layer"].values]
    found = np.empty((*ordered.shape[:2], len(truth.names)))
    for k, (shape, first) in enumerate(zip(truth.shapes, truth.layers, strict=True)):
        held = ordered.values[:, :, layers.index(first) :]
        match = motifs.best_match([shape], held.reshape(-1, held.shape[-1]))[0]
        found[..., k] = match.reshape(*held.shape[:2], -1).max(-1)
    coords = {d: ordered[d].values for d in ("recipe", "seed")} | {"motif": list(truth.names)}
    return xr.DataArray(found, dims=("recipe", "seed", "motif"), coords=coords)


def motif_table(trained: xr.DataArray, random: xr.DataArray, against: str = PAPERS) -> pd.DataFrame:
    """Matches of planted motifs per recipe: trained, random weights, their difference, and that minus the paper's.

    Both are what :func:`motif_matches` returns, networks paired in their order; differences are paired by network and
    motif and have intervals.
    """
    if trained["recipe"].values.tolist() != random["recipe"].values.tolist():
        raise ValueError("the random networks' matches are of other recipes than the trained networks'")
    rows = []
    gain = trained.values - random.values  # (recipe, seed, motif)
    base = list(trained["recipe"].values).index(against)
    for k, name in enumerate(trained["recipe"].values):
        row = {"recipe": str(name), "trained": trained.values[k].mean(), "random weights": random.values[k].mean()}
        pairs = {
            "above random": (trained.values[k], random.values[k]),
            "more than the paper's": (gain[k], gain[base]),
        }
        for column, (first, second) in pairs.items():
            found = paired(first, second)
            low, high = found.interval or (np.nan, np.nan)
            row |= {column: found.mean, f"{column} low": low, f"{column} high": high}
        rows.append(row)
    return pd.DataFrame(rows).set_index("recipe")
