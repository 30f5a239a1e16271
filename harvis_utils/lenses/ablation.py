"""Units silenced one by one: what each class loses, and whether a unit's concept tells which class that is.

After Zhou, Sun, Bau and Torralba (2018): silencing a unit changes the accuracy of few classes by much and of most by
little. Any network whose outputs are class scores will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from scipy.stats import rankdata
from torch import nn

from harvis_utils.data.windowing import Split
from harvis_utils.networks import taps
from harvis_utils.networks.taps import CHUNK, Tap
from harvis_utils.parallel import progress
from harvis_utils.training.supervised import class_f1


def drops(
    network: nn.Module,
    layers: Sequence[str | Tap],
    split: Split,
    n_classes: int,
    units: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> xr.Dataset:
    """What every class loses when one unit is silent: ``f1`` and ``probability``, (layer, unit, class).

    ``f1`` is the drop of the class's F1 (positive: the unit helped), ``probability`` that of the mean probability the
    class's own windows get, which moves before any decision does; NaN for a class without windows. ``f1_whole``
    (class,) is the F1 of the network as it is. ``units`` are all of a layer's where not given; layers then need equally
    many.
    """
    places = [taps.find(network, layer) for layer in layers]
    with taps.evaluating(network), torch.no_grad():
        whole = _measured(network, split, n_classes, device)
        tables = []
        for place in progress(places, desc="ablation", leave=False):
            width = taps.maps_of(network, place, torch.as_tensor(split.x[:1], device=device)).shape[1]
            rows = []
            for unit in range(width) if units is None else units:
                with taps.silenced(network, place, [unit]):
                    rows.append(whole - _measured(network, split, n_classes, device))
            tables.append(rows)
    values = np.array(tables)  # (layer, unit, measure, class)
    chosen = list(range(values.shape[1]) if units is None else units)
    dims = ("layer", "unit", "class")
    return xr.Dataset(
        {"f1": (dims, values[:, :, 0]), "probability": (dims, values[:, :, 1]), "f1_whole": ("class", whole[0])},
        coords={"layer": [place.name for place in places], "unit": chosen, "class": np.arange(n_classes)},
    )


def _measured(network: nn.Module, split: Split, n_classes: int, device) -> np.ndarray:
    """F1 and mean probability of the own windows, (measure, class)."""
    batches = torch.as_tensor(split.x).split(CHUNK)
    scores = torch.cat([network(batch.to(device)).cpu() for batch in batches])
    own = scores.softmax(1).numpy()[np.arange(len(split)), split.activity]
    f1 = class_f1(split, scores.argmax(1).numpy(), n_classes)
    there = np.bincount(split.activity, minlength=n_classes)
    f1 = np.where(there > 0, f1, np.nan)
    total = np.bincount(split.activity, own, n_classes)
    return np.stack([f1, np.where(there > 0, total / np.maximum(there, 1), np.nan)])


# --------------------------------------------------------------------------------------------------- explained?


@dataclass(frozen=True)
class Explained:
    """Rank correlation of concept and effect over units: ``value``, its permutation ``null`` (draw,), and ``p``.

    ``p`` is the share of draws that reach the value, the value itself among them: small where concepts explain effects.
    """

    value: float
    null: np.ndarray
    p: float


def explained(iou: np.ndarray, drop: np.ndarray, n_draws: int, rng: np.random.Generator) -> Explained:
    """Do the units whose masks overlap a class most cost that class most? Both (unit, class).

    Spearman's correlation over units, class by class, averaged over the classes in which neither is constant. In a draw
    of the null units trade their effects, all classes together. Raises ``ValueError`` for arrays of different shapes;
    ``value`` and ``p`` are NaN where nothing varies.
    """
    iou, drop = np.asarray(iou, float), np.asarray(drop, float)
    if iou.shape != drop.shape or iou.ndim != 2:
        raise ValueError(f"overlap and effect should be (unit, class) alike, not {iou.shape} and {drop.shape}")
    known = [c for c in range(iou.shape[1]) if np.ptp(iou[:, c]) > 0 and np.ptp(drop[:, c]) > 0]
    if not known:
        return Explained(np.nan, np.full(n_draws, np.nan), np.nan)
    first, second = _standard_ranks(iou[:, known]), _standard_ranks(drop[:, known])
    value = float((first * second).sum(0).mean())
    null = np.array([(first * second[rng.permutation(len(second))]).sum(0).mean() for _ in range(n_draws)])
    return Explained(value, null, float((1 + (null >= value - 1e-12).sum()) / (1 + n_draws)))


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks down each column, centred and of norm 1."""
    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(0)
    return ranks / np.linalg.norm(ranks, axis=0)


def pooled(parts: Sequence[Explained]) -> Explained:
    """Several networks' correlations as one: means of the values and, draw by draw, of the nulls."""
    known = [part for part in parts if not np.isnan(part.value)]
    if not known:
        return parts[0]
    value, null = float(np.mean([p.value for p in known])), np.mean([p.null for p in known], axis=0)
    return Explained(value, null, float((1 + (null >= value - 1e-12).sum()) / (1 + len(null))))
