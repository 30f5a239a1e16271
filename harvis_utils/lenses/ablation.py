"""Units silenced one by one: what each class loses, and whether a unit's concept tells which class that is.

After Zhou, Sun, Bau and Torralba (2018): silencing a unit changes the accuracy of few classes by much and of most by
little. Any network whose outputs are class scores will do.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import rankdata
from torch import nn

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.metrics.intervals import bounds
from harvis_utils.networks import taps
from harvis_utils.networks.taps import CHUNK, Tap
from harvis_utils.parallel import progress, torch_device
from harvis_utils.settings import Settings
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network, class_f1, of_networks


def drops(
    network: nn.Module, layers: Sequence[str | Tap], split: Split, n_classes: int, units: Sequence[int] | None = None
) -> xr.Dataset:
    """What every class loses when one unit is silent: ``f1`` and ``probability``, (layer, unit, class).

    ``f1`` is the drop of the class's F1 (positive: the unit helped), ``probability`` that of the mean probability of
    its own windows; NaN for a class without windows. ``f1_whole`` (class,) is the F1 of the network as it is. Without
    ``units`` all of each layer are taken; layers then need equally many. Raises ``ValueError`` as
    :func:`networks.taps.scores_of` does, and for scores of more classes, or of fewer than there are windows of.
    """
    places, tables = [taps.find(network, layer) for layer in layers], []
    with taps.evaluating(network), torch.no_grad():
        whole = _measured(network, split, n_classes)
        for place in progress(places, desc="ablation", leave=False):
            chosen = range(taps.outputs(network, place, split.x[:2]).shape[1]) if units is None else units
            rows = []
            for unit in chosen:
                with taps.silenced(network, place, [unit]):
                    rows.append(whole - _measured(network, split, n_classes))
            tables.append(rows)
    values = np.array(tables)  # (layer, unit, measure, class)
    dims = ("layer", "unit", "class")
    return xr.Dataset(
        {"f1": (dims, values[:, :, 0]), "probability": (dims, values[:, :, 1]), "f1_whole": ("class", whole[0])},
        coords={"layer": [place.name for place in places], "unit": list(chosen), "class": np.arange(n_classes)},
    )


def _measured(network: nn.Module, split: Split, n_classes: int) -> np.ndarray:
    """F1 and mean probability of the own windows, (measure, class)."""
    batches = torch.as_tensor(split.x).split(CHUNK)
    scores = torch.cat([taps.scores_of(network, batch).cpu() for batch in batches])
    if not split.activity.max() < scores.shape[1] <= n_classes:
        raise ValueError(f"the network's first output has scores of {scores.shape[1]} classes, not of {n_classes}")
    own = scores.softmax(1).numpy()[np.arange(len(split)), split.activity]
    there = np.bincount(split.activity, minlength=n_classes)
    f1 = class_f1(split, scores.argmax(1).numpy(), n_classes)
    measured = np.stack([f1, np.bincount(split.activity, own, n_classes) / np.maximum(there, 1)])
    return np.where(there > 0, measured, np.nan)


@kept("ablation", apart=("device",))
def ablate_network(network: Network, windows: Windows, thinning: int, *, device: str | None = None) -> xr.Dataset:
    """Every unit of every layer silenced, on every ``thinning``-th test window: :func:`drops`."""
    model = copy.deepcopy(network.model).to(torch_device(device))
    return drops(model, model.layers, windows.test.every(thinning), len(windows.activities))


def ablate(cfg: Settings, windows: Windows, networks: Sequence[Network]) -> xr.Dataset:
    """:func:`ablate_network` of all networks, dims (seed, layer, unit, class)."""
    thinning = cfg.dissection.ablation_thinning
    return of_networks(networks, lambda net: ablate_network(net, windows, thinning, device=cfg.device), cfg=cfg)


@dataclass(frozen=True)
class Explained:
    """Rank correlation of concept and effect over units: ``value``, and its permutation ``null`` (draw,)."""

    value: float
    null: np.ndarray

    @property
    def p(self) -> float:
        """Share of draws that reach the value, itself among them: small where concepts explain effects; or NaN."""
        if np.isnan(self.value):
            return np.nan
        return float((1 + (self.null >= self.value - 1e-12).sum()) / (1 + len(self.null)))


def explained(iou: np.ndarray, drop: np.ndarray, n_draws: int, rng: np.random.Generator) -> Explained:
    """Do the units whose masks overlap a class most cost that class most? Both (unit, class).

    Spearman's correlation over units, averaged over the classes in which neither is constant (NaN where there is none).
    In a draw of the null units trade their effects, all classes together. Choice: units, not recordings, because the
    null hypothesis is about the units of one network on given windows: whose overlap goes with whose effect. Raises
    ``ValueError`` for arrays of different shapes.
    """
    iou, drop = np.asarray(iou, float), np.asarray(drop, float)
    if iou.shape != drop.shape or iou.ndim != 2:
        raise ValueError(f"overlap and effect should be (unit, class) alike, not {iou.shape} and {drop.shape}")
    known = (np.ptp(iou, axis=0) > 0) & (np.ptp(drop, axis=0) > 0)
    if not known.any():
        return Explained(np.nan, np.full(n_draws, np.nan))
    first, second = _standard_ranks(iou[:, known]), _standard_ranks(drop[:, known])
    value = float((first * second).sum(0).mean())
    null = np.array([(first * second[rng.permutation(len(second))]).sum(0).mean() for _ in range(n_draws)])
    return Explained(value, null)


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks down each column, centred and of norm 1."""
    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(0)
    return ranks / np.linalg.norm(ranks, axis=0)


def pooled(parts: Sequence[Explained]) -> Explained:
    """Several networks' correlations as one: means of the values and, draw by draw, of the nulls."""
    known = [part for part in parts if not np.isnan(part.value)] or parts[:1]
    return Explained(float(np.mean([p.value for p in known])), np.mean([p.null for p in known], axis=0))


def explanations(found: xr.Dataset, lost: xr.Dataset, activities: Sequence[str], n_draws: int) -> pd.DataFrame:
    """Do concepts explain effects? One row per layer and question, averaged over networks.

    ``found`` are :func:`dissection.dissect_networks`' results, ``lost`` those of :func:`ablate`. "own activity": do
    units that overlap an activity cost that activity's F1, or the probability its windows get? "any concept": do units
    with a large best IoU cost macro F1?
    """
    known = [a for a in activities if a in found["concept"]]
    lost = lost.assign_coords({"class": list(activities)})
    parts: dict[tuple[str, str], list[Explained]] = {}
    for layer, seed in product(found["layer"].values, found["seed"].values):
        at = {"seed": seed, "layer": layer}
        own, cost = found["iou"].sel(at | {"concept": known}).values, lost.sel(at | {"class": known})
        best = found["iou"].sel(at).max("concept").values[:, None]
        rng = np.random.default_rng(0)
        pairs = {
            "own activity, F1": (own, cost["f1"].values),
            "own activity, probability": (own, cost["probability"].values),
            "any concept, macro F1": (best, lost["f1"].sel(at).mean("class").values[:, None]),
        }
        for question, pair in pairs.items():
            parts.setdefault((str(layer), question), []).append(explained(*pair, n_draws, rng))
    rows = []
    for of in parts.values():
        whole, values = pooled(of), [part.value for part in of]
        low, high = bounds(whole.null)
        row = {"correlation": whole.value, "p": whole.p, "chance low": low, "chance high": high, "networks": len(of)}
        rows.append(row | {"smallest": min(values), "largest": max(values)})
    return pd.DataFrame(rows, index=pd.MultiIndex.from_tuples(parts, names=["layer", "question"]))
