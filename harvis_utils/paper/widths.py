"""Networks of several widths, and networks of which similar units are merged: would a smaller one do (claim C12)?

Units are alike where their signals by the proposed method are, under the best time shift
(:func:`clustering.near_duplicates`); units whose signal is flat say nothing and are left out. Were similar units
superfluous, merging them would cost less than merging as many others: that is tested here, beside training networks of
other widths.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from harvis_utils.data.windowing import Windows
from harvis_utils.lenses.dissection import over_networks
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.paper_methods import PROPOSED
from harvis_utils.metrics import clustering
from harvis_utils.metrics.signal_measures import FLAT_G
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.paper.stages import Stages
from harvis_utils.parallel import progress
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network, macro_f1, predict


def of_width(run: Stages, n_units: int) -> Stages:
    """The same run with networks of this width: the run itself at its own width, else ``cfg.widths.n_networks``."""
    cfg = run.cfg
    if n_units == cfg.model.n_units:
        return run
    training = replace(cfg.training, seeds=cfg.training.seeds[: cfg.widths.n_networks])
    other = Stages(replace(cfg, model=replace(cfg.model, n_units=n_units), training=training, weights="trained"))
    other.recordings, other.data = run.recordings, run.data
    return other


def signals(of: Stages) -> xr.DataArray:
    """Signals of the proposed method, (seed, layer, unit, time); NaN where they are flat (less than 0.05 G)."""
    made = paper_methods.signals(of.cfg, of.networks, of.statistics, (PROPOSED,), ("calibrated",))
    signal = made["signal"].isel(preset=0, technique=0, drop=True)
    return signal.where(signal.max("time") - signal.min("time") >= FLAT_G)


def measured(run: Stages) -> pd.DataFrame:
    """One row per width, network (``seed``) and layer: is what many units say alike, and is F1 lower with fewer?

    ``F1`` is the macro F1 on the test people, ``moving`` the share of units whose signal is not flat, ``duplicates``
    the share of these with a near-duplicate, ``duplicates, noise`` its mean over draws of noise with the signals'
    covariance, ``groups`` how many different ones there are; NaN for fewer than two moving units.
    """
    rows = []
    for n_units in (*run.cfg.widths.n_units, run.cfg.model.n_units):
        of = of_width(run, n_units)
        signal = signals(of)
        for network in progress(of.networks, desc=f"networks of {n_units} units", leave=False):
            f1 = macro_f1(of.data.test, network.predicted["test"])
            for layer in network.trunk.layers:
                own = signal.sel(seed=network.seed, layer=layer).values
                row = {"units": n_units, "seed": network.seed, "layer": layer, "F1": f1}
                rows.append(row | {"moving": float(clustering.usable(own).mean())} | alike(own))
    return pd.DataFrame(rows)


def alike(signal: np.ndarray) -> dict[str, float]:
    """``duplicates``, ``duplicates, noise`` and ``groups`` of :func:`measured` for one layer's (unit, time) signals."""
    if clustering.usable(signal).sum() < 2:
        return dict.fromkeys(("duplicates", "duplicates, noise", "groups"), np.nan)
    found = clustering.near_duplicates(signal)
    noise = float(np.mean(found["near_duplicates_null"]))
    return {"duplicates": found["near_duplicates"], "duplicates, noise": noise, "groups": found["n_groups"]}


def by_width(table: pd.DataFrame) -> pd.DataFrame:
    """Means of :func:`measured` with their intervals over networks, one row per width and layer."""
    rows = {}
    for place, own in table.groupby(["units", "layer"], sort=False):
        rows[place] = {"networks": len(own)}
        for name in ("F1", "moving", "duplicates", "duplicates, noise", "groups"):
            rows[place] |= over_networks(name, own[name])
    return pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=["units", "layer"]))


# ------------------------------------------------------------------------------------------------- units merged


def outgoing(model: SFHF, layer: str) -> Tensor:
    """The weights that read a layer's units, a view (reader, unit, rest) into the model's own."""
    following = model.layers[model.layers.index(layer) + 1 :]
    if following:
        return getattr(model, following[0]).weight.flatten(2)
    if model.settings.mixing == "conv":
        return model.mix.weight.flatten(2)
    weight = (model.dense if model.settings.n_dense else model.classes).weight
    return weight.view(len(weight), model.settings.n_units, -1)


@torch.no_grad()
def merged(model: SFHF, layer: str, groups: Sequence[Sequence[int]], scale: np.ndarray) -> SFHF:
    """A copy in which each of ``groups`` of a layer's units is its first unit alone.

    That one's outgoing weights get those of the others, which get zero. Choice: as an output of 2 of a unit with a
    ``scale`` (unit,) of 2 means what an output of 1 of its twin with a scale of 1 does, weights are scaled alike.
    """
    smaller = copy.deepcopy(model)
    weights = outgoing(smaller, layer)
    for first, *others in groups:
        for other in others:
            weights[:, first] += weights[:, other] * float(scale[other] / scale[first])
            weights[:, other] = 0
    return smaller


def same_sizes(groups: Sequence[Sequence[int]], units: Sequence[int], rng: np.random.Generator) -> list[np.ndarray]:
    """Random groups of the same sizes, drawn from ``units`` without replacement."""
    sizes = [len(group) for group in groups]
    return np.split(rng.permutation(units)[: sum(sizes)], np.cumsum(sizes)[:-1])


@kept("merging")
def merging(
    network: Network, signal: xr.DataArray, th_eap: xr.DataArray, windows: Windows, thinning: int, n_draws: int
) -> pd.DataFrame:
    """One row per layer of one network: what merging its near-duplicates costs, and what merging others would.

    ``signal`` is :func:`signals`' (layer, unit, time), ``th_eap`` (layer, unit), in proportion to which units are
    scaled. ``merged`` is the share of units that are gone; ``change`` the macro F1 on every ``thinning``-th test window
    minus that of the whole network, when near-duplicates are merged, ``change, random`` its mean over ``n_draws`` draws
    of groups of the same sizes from the same moving units, ``worse`` the share of these draws that lose more. NaN where
    a layer has no near-duplicates.
    """
    test, rng, rows = windows.test.every(thinning), np.random.default_rng(network.seed), []
    whole = macro_f1(test, predict(network.model, test))
    for layer in network.trunk.layers:
        own, scale = signal.sel(layer=layer).values, th_eap.sel(layer=layer).values
        moving = np.flatnonzero(clustering.usable(own))
        labels = clustering.near_duplicates(own)["groups"] if len(moving) > 1 else np.full(len(own), -1)
        groups = [np.flatnonzero(labels == k) for k in range(labels.max() + 1)]
        groups = [group for group in groups if len(group) > 1]
        row = dict.fromkeys(("change", "change, random", "worse"), np.nan)
        row = {"layer": layer, "merged": sum(len(group) - 1 for group in groups) / len(own)} | row
        if groups:
            tried = [groups, *(same_sizes(groups, moving, rng) for _ in range(n_draws))]
            found = [macro_f1(test, predict(merged(network.model, layer, of, scale), test)) for of in tried]
            change, *others = np.array(found) - whole
            row |= {"change": change, "change, random": np.mean(others), "worse": np.mean(np.array(others) < change)}
        rows.append(row)
    return pd.DataFrame(rows)


def merging_table(run: Stages) -> pd.DataFrame:
    """:func:`merging` of the judging networks of which all weights are there, one row per ``seed`` and layer."""
    signal, of = signals(run), run.cfg.widths
    parts = {
        network.seed: merging(
            network,
            signal.sel(seed=network.seed, drop=True),
            run.statistics["th_eap"].sel(seed=network.seed, drop=True),
            run.data,
            of.thinning,
            of.n_draws,
        )
        for network in progress(run.whole, desc="units merged", leave=False)
    }
    return pd.concat(parts, names=["seed", None]).reset_index("seed").reset_index(drop=True)


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Means of :func:`merging_table` with their intervals over networks, and ``gain``: what merging near-duplicates
    costs less than merging others, network by network. One row per layer.
    """
    table, rows = table.assign(gain=table["change"] - table["change, random"]), {}
    for layer, own in table.groupby("layer", sort=False):
        rows[layer] = {"networks": int(own["change"].notna().sum())}
        for name in ("merged", "change", "change, random", "gain", "worse"):
            rows[layer] |= over_networks(name, own[name])
    return pd.DataFrame.from_dict(rows, "index").rename_axis("layer")


def evidence(table: pd.DataFrame, merging: pd.DataFrame) -> dict[str, np.ndarray]:
    """What claim C12 is judged by (:class:`harvis_utils.paper.evidence.Evidence`); NaN for what had no measure.

    From :func:`measured`, of the full width: ``near_duplicates`` and ``near_duplicates_null`` (seed, layer), shares of
    the moving units, and ``f1_change`` (seed,), half the width minus the full one, for the seeds that both have. From
    :func:`merging_table`: ``merging`` (seed, layer), the macro F1 with near-duplicates merged minus with random groups.
    Raises ``KeyError`` where half the width was not tried.
    """
    width = table["units"].max()
    full = table[table["units"] == width].pivot(index="seed", columns="layer")
    f1 = table.drop_duplicates(["units", "seed"]).pivot(index="seed", columns="units", values="F1")
    gain = merging.assign(gain=merging["change"] - merging["change, random"])
    return {
        "near_duplicates": full["duplicates"].to_numpy(),
        "near_duplicates_null": full["duplicates, noise"].to_numpy(),
        "f1_change": (f1[width // 2] - f1[width]).dropna().to_numpy(),
        "merging": gain.pivot(index="seed", columns="layer", values="gain").to_numpy(),
    }
