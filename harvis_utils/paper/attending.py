"""Whether networks know the direction of time, and where the attention of 1D-SAN lies (notebook 15)."""

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.special import xlogy

from harvis_utils.data.windowing import Split
from harvis_utils.lenses import attention, locating, occlusion, pooling
from harvis_utils.metrics.intervals import with_interval
from harvis_utils.networks.self_attention import attended, received
from harvis_utils.paper.self_attention import AS_TRAINED, CNN, CNN355, DILATED, EDITS, RAW, SAN, SPECTRA, Study, wide
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network

AS_RECORDED = "as recorded"
#: two answers to a window and to it backwards that differ by no more, in log odds, are the same
SAME = 1e-3
#: Choice: what attention is compared with, three samples covered by their axis' mean
OCCLUDER = occlusion.Occluder(3, "mean")


def spread(split: Split, n: int) -> np.ndarray:
    """About ``n`` windows of a split, evenly spread, as indices."""
    return np.unique(np.linspace(0, len(split) - 1, min(n, len(split))).astype(int))


def turned(study: Study) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Classes of some test windows, and these windows as they are, backwards, and with their motifs backwards."""
    test = study.data.test
    chosen = spread(test, study.own.n_windows)
    found = {AS_RECORDED: test.x[chosen], "windows backwards": np.ascontiguousarray(test.x[chosen][..., ::-1])}
    if study.truth:
        found["motifs backwards"] = locating.motifs_backwards(test, study.truth).x[chosen]
    return test.activity[chosen], found


@kept("directions")
def odds(network: Network, x: dict[str, np.ndarray], classes: np.ndarray) -> xr.Dataset:
    """Log odds of a window's own class, ``log_odds`` (turned, window), for windows of each kind."""
    scores = [torch.as_tensor(attention.scores_of(network.model, of)) for of in x.values()]
    found = np.stack([occlusion.log_odds(of, torch.as_tensor(classes)).numpy() for of in scores])
    return xr.Dataset({"log_odds": (("turned", "window"), found)}, {"turned": list(x)})


def directions(study: Study) -> pd.DataFrame:
    """Does a network tell windows from the same ones turned? One row per network, input and way of turning.

    "forwards preferred" is the share of windows whose own class has the larger odds as recorded; windows to which both
    answers are the same count half, so that 0.5 is blind. "log odds lost" is the mean of the difference, and "largest
    difference" its largest size over windows and networks.
    """
    classes, x = turned(study)
    given = {RAW: x, SPECTRA: {name: study.spectra(of) for name, of in x.items()}}
    asked = [(name, RAW, study.trained(name)) for name in study.changes]
    asked += [(name, SPECTRA, study.trained(name, SPECTRA)) for name in (SAN, CNN355, CNN)]
    rows = []
    for name, of, networks in [*asked, (f"{SAN}, random weights", RAW, study.fresh(SAN))]:
        found = np.stack([odds(network, given[of], classes)["log_odds"].values for network in networks])
        for i, way in enumerate(list(x)[1:], 1):
            lost = found[:, 0] - found[:, i]
            preferred = np.where(abs(lost) <= SAME, 0.5, lost > 0)
            row = {"network": name, "input": of, "turned": way, "largest difference": float(abs(lost).max())}
            # the windows are the same for all: networks are what varies
            row |= with_interval("forwards preferred", preferred.mean(1)) | with_interval("log odds lost", lost.mean(1))
            rows.append(row)
    return pd.DataFrame(rows)


@kept("attention")
def looks(network: Network, x: np.ndarray, edit: str) -> xr.Dataset:
    """Where the attention of a network lies in windows ``x``, under an ``edit`` of :data:`EDITS`.

    ``weight`` (block, offset) is the mean weight of each instant of the footprint, in times an equal one, by its
    distance in samples from the one that looks; ``entropy`` (block,) that of the weights over that of equal ones;
    ``map`` (window, time) the mean over blocks of :func:`received`.
    """
    model, found = network.model, []
    weights = attended(model, torch.as_tensor(x), EDITS[edit])
    for (name, of), dilation in zip(weights.items(), model.settings.dilations, strict=True):
        k, each = of.shape[2], of.numpy()
        entropy = float(-xlogy(each, each).sum(2).mean() / np.log(k))
        offsets = (np.arange(k) - k // 2) * dilation
        weight = "offset", k * of.mean((0, 1, 3)).numpy()
        one = xr.Dataset({"weight": weight, "entropy": entropy}, {"offset": offsets})
        one["map"] = ("window", "time"), received(of, dilation).numpy()
        found.append(one.expand_dims(block=[name]))
    every = xr.concat(found, "block", join="outer")
    return every.assign(map=every["map"].mean("block"))


def attention_table(study: Study) -> pd.DataFrame:
    """Mean "weight", in times an equal one, and "entropy" by block and offset, of all footprints and random weights."""
    _, x = turned(study)
    rows = []
    asked = {name: study.trained(name) for name in (SAN, DILATED, *(wide(SAN, k) for k in study.own.footprints))}
    for who, networks in (asked | {"SAN, random weights": study.fresh(SAN)}).items():
        found = [looks(network, x[AS_RECORDED], AS_TRAINED) for network in networks]
        for block in found[0]["block"].values:
            each = xr.concat([of.sel(block=block) for of in found], "seed")
            for offset in each["offset"].values:
                row = {"network": who, "block": block, "offset [samples]": int(offset)}
                row |= with_interval("weight", each["weight"].sel(offset=offset))
                rows.append(row | with_interval("entropy", each["entropy"]))
    return pd.DataFrame(rows).dropna(subset=["weight"])


@kept("covered")
def covered(network: Network, x: np.ndarray, classes: np.ndarray) -> xr.Dataset:
    """What covering all axes about each sample costs the own class, ``map`` (window, time) in log odds."""
    lost = occlusion.drops(network.model, x, classes, {"all axes": range(x.shape[1])}, OCCLUDER)["log_odds"]
    return xr.Dataset({"map": (("window", "time"), lost.values[:, 0])})


def pointing(study: Study) -> pd.DataFrame:
    """Does attention lie on planted motifs? One row per kind of map, in windows with decoys (:mod:`locating`).

    A map has no axis: a sample is inside where any axis has a motif. "AUC" compares samples inside with those outside
    of motifs and decoys, "AUC, motif against decoy" the two; "hits" is the share of windows whose highest sample is
    inside, "recall" that of the samples inside among as many highest ones, "chance" the share of samples that are.
    """
    test = study.data.test
    chosen = spread(test, study.own.n_windows)
    x, decoy = locating.with_decoys(test, chosen, study.truth)
    motif, decoy = (of.any(1, keepdims=True) for of in (locating.spans(test, study.truth)[chosen], decoy))
    networks, other = study.trained(SAN), occlusion.elsewhere(test.recording[chosen])
    asked = {AS_TRAINED: (networks, AS_TRAINED), "shuffled": (networks, "shuffled")}
    asked["random weights"] = study.fresh(SAN), AS_TRAINED
    maps = {who: [looks(one, x, edit)["map"].values for one in of] for who, (of, edit) in asked.items()}
    maps["another window's"] = [of[other] for of in maps[AS_TRAINED]]
    maps["occlusion of all axes"] = [covered(one, x, test.activity[chosen])["map"].values for one in networks]
    maps[locating.NO_NETWORK] = [abs(x - x.mean(2, keepdims=True)).mean(1)]
    rows = []
    for who, found in maps.items():
        found = [of[:, None] for of in found]
        measured = {
            "AUC": [pooling.auc(of, motif, motif | ~decoy) for of in found],
            "AUC, motif against decoy": [pooling.auc(of, motif & ~decoy, motif ^ decoy) for of in found],
            "hits": [motif[(np.arange(len(x)), *occlusion.peaks(of))] for of in found],
            "recall": [pooling.recall(of, motif) for of in found],
        }
        row: dict = {"map": who, "networks": len(found), "chance": float(motif.mean())}
        # windows are all the same ones: networks are what varies
        means = {name: np.nanmean(np.asarray(of, float), 1) for name, of in measured.items()}
        rows.append(row | {k: v for name, of in means.items() for k, v in with_interval(name, of).items()})
    return pd.DataFrame(rows)
