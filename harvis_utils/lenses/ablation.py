"""Units silenced one by one: what each class loses, and whether a unit's concept tells which class that is.

After Zhou, Sun, Bau and Torralba (2018): silencing a unit changes the accuracy of few classes by much and of most by
little. Any network whose outputs are class scores will do.
"""

import copy
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import rankdata
from torch import nn

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.metrics.intervals import bounds, listed
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

    By default every unit of the layers.

    ``f1`` is the drop of the class's F1 (positive: the unit helped), ``probability`` that of the mean probability of
    its own windows; NaN for a class without windows. ``f1_whole`` (class,) is the F1 of the network as it is. Layers
    need equally many units. Raises ``ValueError`` as :func:`networks.taps.scores_of` does, and for scores of more
    classes, or of fewer than there are windows of.
    """
    places, lost = [taps.find(network, layer) for layer in layers], []
    units = units if units is None else taps.unit_numbers(units)
    with taps.evaluating(network), torch.no_grad():
        whole = _measured(network, split, n_classes)
        for place in progress(places, desc="ablation", leave=False):
            lost.append([])
            for unit in range(taps.outputs(network, place, split.x[:2]).shape[1]) if units is None else units:
                with taps.silenced(network, place, [unit]):
                    lost[-1].append(whole - _measured(network, split, n_classes))
    values = np.array(lost)  # (layer, unit, measure, class)
    dims = ("layer", "unit", "class")
    return xr.Dataset(
        {"f1": (dims, values[:, :, 0]), "probability": (dims, values[:, :, 1]), "f1_whole": ("class", whole[0])},
        coords={
            "layer": [p.name for p in places],
            "unit": np.arange(values.shape[1]) if units is None else list(units),
            "class": np.arange(n_classes),
        },
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


def explained(iou: np.ndarray, drop: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Do the units whose masks overlap a class most cost that class most? Both (unit, class).

    Spearman's correlation over units, averaged over the classes in which neither is constant, and the same in each draw
    of a null: (1 + draw,), NaN where there is no such class. In a draw units trade their effects, all classes together.
    Choice: units, not recordings, because the null hypothesis is about the units of one network on given windows: whose
    overlap goes with whose effect. Raises ``ValueError`` for arrays of different shapes.
    """
    both = [np.asarray(iou, float), np.asarray(drop, float)]
    if both[0].shape != both[1].shape or both[0].ndim != 2:
        raise ValueError(f"overlap and effect should be (unit, class) alike, not {both[0].shape} and {both[1].shape}")
    known = np.all([np.ptp(of, axis=0) > 0 for of in both], axis=0)
    if not known.any():
        return np.full(1 + n_draws, np.nan)
    ranks = [rankdata(of[:, known], axis=0) for of in both]
    centred = [of - of.mean(0) for of in ranks]
    first, second = (of / np.linalg.norm(of, axis=0) for of in centred)
    orders = [slice(None), *(rng.permutation(len(second)) for _ in range(n_draws))]
    return np.array([(first * second[order]).sum(0).mean() for order in orders])


def p_value(found: np.ndarray) -> float:
    """Share of the draws of :func:`explained` that reach the value before them, itself among them; NaN where it is."""
    return np.nan if np.isnan(found[0]) else float((found >= found[0] - 1e-12).mean())


def _of_activities(found: xr.Dataset, lost: xr.Dataset, activities: Sequence[str]) -> tuple[xr.DataArray, xr.Dataset]:
    """Overlap of units with the activities that are concepts, and what silencing them costs these: (..., concept)."""
    known = [a for a in activities if a in found["concept"]]
    lost = lost.assign_coords({"class": list(activities)}).rename({"class": "concept"})
    return found["iou"].sel(concept=known), lost.sel(concept=known, seed=found["seed"])


def costs(found: xr.Dataset, lost: xr.Dataset, activities: Sequence[str]) -> pd.DataFrame:
    """Overlap of units with activities beside what silencing them costs these: a row per unit and activity, and means.

    Means are of fifths of a layer's rows, fewer where many are equal, by overlap; "dot", in the index, tells them from
    the rows. ``found`` are :func:`dissection.dissect_networks`' results, ``lost`` those of :func:`ablate`.
    """
    x, y = "IoU of unit and activity", "drop in the activity's probability"
    iou, cost = _of_activities(found, lost, activities)
    every = xr.Dataset({x: iou, y: cost["probability"]}).to_dataframe().reset_index()
    fifth = every.groupby("layer")[x].transform(pd.qcut, 5, labels=False, duplicates="drop").rename("fifth")
    means = every.groupby(["layer", fifth])[[x, y]].mean().reset_index("layer")
    return pd.concat({"a unit and an activity": every, "mean of a fifth of them": means}, names=["dot"])


def beyond_chance(explained: pd.DataFrame) -> tuple[str, str]:
    """Of :func:`explanations`: where units that overlap more cost more than by chance, and where they cost less."""
    rows = explained.reset_index()
    where = rows["question"] + " in " + rows["layer"]
    more, less = rows["correlation"] > rows["chance high"], rows["correlation"] < rows["chance low"]
    return listed(where[more], "; "), listed(where[less], "; ")


def explanations(found: xr.Dataset, lost: xr.Dataset, activities: Sequence[str], n_draws: int) -> pd.DataFrame:
    """Do concepts explain effects? One row per layer and question, averaged over networks, draw by draw.

    Arguments are as for :func:`costs`. "own activity": do units that overlap an activity cost that activity's
    F1, or the probability its windows get? "any concept": do units with a large best IoU cost macro F1?
    """
    (own, cost), rows = _of_activities(found, lost, activities), {}
    best, macro = found["iou"].max("concept"), lost["f1"].sel(seed=found["seed"]).mean("class")
    questions = {
        "own activity, F1": (own, cost["f1"]),
        "own activity, probability": (own, cost["probability"]),
        "any concept, macro F1": (best.expand_dims("concept"), macro.expand_dims("concept")),
    }
    for layer in map(str, found["layer"].values):
        rngs = [np.random.default_rng(0) for _ in found["seed"]]
        for question, pair in questions.items():
            both = (of.sel(layer=layer).transpose("seed", "unit", "concept").values for of in pair)
            parts = [explained(*of, n_draws, rng) for *of, rng in zip(*both, rngs, strict=True)]
            whole = pd.DataFrame(parts).mean().to_numpy()  # without networks that have no such class
            values, (low, high) = [part[0] for part in parts], bounds(whole[1:])
            row = {"correlation": whole[0], "p": p_value(whole), "chance low": low, "chance high": high}
            row |= {"networks": len(parts), "smallest": min(values), "largest": max(values)}
            rows[layer, question] = row
    return pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=["layer", "question"]))
