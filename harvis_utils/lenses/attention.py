"""Attention maps as a lens: what a network says that it looks at, edited, and compared with what is known.

That scores fall when a map is turned over says little: 1 - M is not only M turned over, it has another scale too. So
every inversion stands beside a constant of its scale. Where a map points is compared with occlusion, gradients, planted
motifs, and with maps that know nothing: those of another window, of a branch without training, of no network.

Spatial maps are (window, axis, time), temporal ones (window, 1, time), here as everywhere else below.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import uniform_filter1d
from scipy.stats import rankdata
from torch import nn

from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses import deconvnet, locating, occlusion, pooling
from harvis_utils.lenses.locating import NO_NETWORK
from harvis_utils.lenses.occlusion import Occluder
from harvis_utils.metrics.similarity import correlation
from harvis_utils.networks import taps
from harvis_utils.networks.attention_branch import SPATIAL, TEMPORAL, AttentionBranch
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import EVALUATION_BATCH, Network, macro_f1, new_model

#: how a map is changed: itself (window, axis or 1, time), a window of another recording for each, random numbers
Edit = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
ITSELF, INVERTED, MEAN, SCALED = "as it is", "inverted", "constant at its mean", "constant at 1 - mean"
SHUFFLED, OTHER = "shuffled in time", "of another window"
INVERTED_SHUFFLED, INVERTED_OTHER = f"{INVERTED}, {SHUFFLED}", f"{INVERTED}, {OTHER}"


def shuffled(maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Maps whose samples are in another order in every window, the same for all its axes."""
    return np.take_along_axis(maps, rng.random((len(maps), 1, maps.shape[2])).argsort(2), 2)


EDITS: dict[str, Edit] = {
    ITSELF: lambda of, other, rng: of,
    INVERTED: lambda of, other, rng: 1 - of,
    SCALED: lambda of, other, rng: np.broadcast_to(1 - of.mean((1, 2), keepdims=True), of.shape),
    # a constant has the scale of the inverted map but not its spread; these have both
    INVERTED_SHUFFLED: lambda of, other, rng: 1 - shuffled(of, rng),
    INVERTED_OTHER: lambda of, other, rng: 1 - of[other],
    MEAN: lambda of, other, rng: np.broadcast_to(of.mean((1, 2), keepdims=True), of.shape),
    SHUFFLED: lambda of, other, rng: shuffled(of, rng),
    OTHER: lambda of, other, rng: of[other],
}
#: Choice: edits with the scale of the inverted map that know nothing of the window; one that is shuffled in time still
#: has what the window's own map says of its axes
SAME_SCALE = (SCALED, INVERTED_OTHER)
BOTH = "both"
#: Choice: samples over which local energy is averaged, what occlusion covers, and how far windows are moved
ENERGY_SAMPLES, OCCLUDER, MOVED = 5, Occluder(7, "mean"), 8


@torch.no_grad()
def maps_of(network: AttentionBranch, x: np.ndarray) -> dict[str, np.ndarray]:
    """Attention maps of windows (window, axis, time), by name."""
    with taps.evaluating(network):
        parts = [network.attend(batch) for batch in torch.as_tensor(x).split(EVALUATION_BATCH)]
    return {name: torch.cat([part[name][:, 0] for part in parts]).numpy() for name in parts[0]}


@torch.no_grad()
def scores_of(network: nn.Module, x: np.ndarray, maps: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """Class scores (window, class), of an attention branch network under given ``maps`` instead of its own."""
    found, given = [], {name: torch.tensor(of)[:, None] for name, of in (maps or {}).items()}
    with taps.evaluating(network):
        for begin in range(0, len(x), EVALUATION_BATCH):
            own = slice(begin, begin + EVALUATION_BATCH)
            changed = {name: of[own] for name, of in given.items()}
            more = {"change": lambda maps, changed=changed: dict(maps) | changed} if given else {}
            found.append(network(torch.as_tensor(x[own]), **more))
    return torch.cat(found).numpy()


@kept("attention")
def edits(network: Network, windows: Windows, seed: int = 0) -> pd.DataFrame:
    """Macro F1 on the test windows under every edit (``edit``) of one map or of both (``edited``)."""
    split, rows = windows.test, []
    maps, other = maps_of(network.model, split.x), occlusion.elsewhere(split.recording)
    for which in (*maps, BOTH) if len(maps) > 1 else maps:
        for name, edit in EDITS.items():
            rng = np.random.default_rng(seed)
            changed = {of: edit(maps[of], other, rng) for of in (maps if which == BOTH else [which])}
            predicted = scores_of(network.model, split.x, changed).argmax(1)
            rows.append({"edited": which, "edit": name, "macro F1": macro_f1(split, predicted)})
    return pd.DataFrame(rows)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman correlation over axes and time, window by window, (window,); NaN where one of them is constant."""
    return correlation(*(rankdata(of.reshape(len(of), -1), axis=1) for of in (first, second)))


def local_energy(x: np.ndarray) -> np.ndarray:
    """Mean square of what windows (window, axis, time) are without each axis' mean, around every sample, in G^2."""
    return uniform_filter1d((x - x.mean(2, keepdims=True)) ** 2, ENERGY_SAMPLES, axis=2, mode="nearest")


def without_training(network: Network, windows: Windows) -> AttentionBranch:
    """A copy of a trained network whose branch is as it was before training."""
    found, fresh = copy.deepcopy(network.model), new_model(windows, network.model.settings, network.seed)
    found.branch.load_state_dict(fresh.branch.state_dict())
    return found


def beside(network: Network, windows: Windows, x: np.ndarray, classes: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """What looks at windows, by kind of attention and name, (window, axis or 1, time) each, all signs positive."""
    model, strongest = network.model, deconvnet.strongest(deconvnet.N_TOP)
    second = taps.find(model, "norm_conv2", rectified=True)
    found = {
        "gradient of the class score": np.abs(
            deconvnet.project(model, "classes", x, deconvnet.classes(classes), "gradient").numpy()
        ),
        "deconvnet from conv2": np.abs(deconvnet.project(model, second, x, strongest).numpy()),
        "local energy": local_energy(x),
        NO_NETWORK: np.abs(x - x.mean(2, keepdims=True)),
    }
    kinds = {SPATIAL: found, TEMPORAL: {name: of.sum(1, keepdims=True) for name, of in found.items()}}
    own, fresh = maps_of(model, x), maps_of(without_training(network, windows), x)
    return {kind: {"attention": of, "untrained branch": fresh[kind]} | kinds[kind] for kind, of in own.items()}


@kept("attention")
def agreement(network: Network, windows: Windows, n: int) -> pd.DataFrame:
    """Rank correlation of every lens with the others, over axes and time of a window, mean over ``n`` windows.

    They are test windows that the network classifies correctly. Columns ``attention`` (kind of map), ``lens``,
    ``beside``, ``own`` and, with the lens' map of a window of another recording, ``other``.
    """
    chosen, split = occlusion.classified(network, windows, "test", n)
    x, y, rows = split.x[chosen], split.activity[chosen], []
    looked, other = beside(network, windows, x, y), occlusion.elsewhere(split.recording[chosen])
    groups = {SPATIAL: occlusion.by_axis(x.shape[1]), TEMPORAL: {"all axes": tuple(range(x.shape[1]))}}
    for kind, lenses in looked.items():
        lenses["occlusion"] = occlusion.drops(network.model, x, y, groups[kind], OCCLUDER)["log_odds"].values
        for name, of in lenses.items():
            for against in [lens for lens in lenses if lens != name]:
                values = rank_correlation(of, lenses[against]), rank_correlation(of[other], lenses[against])
                row = {"attention": kind, "lens": name, "beside": against}
                rows.append(row | dict(zip(("own", "other"), np.nanmean(values, 1), strict=True)))
    return pd.DataFrame(rows)


@kept("attention", apart=("truth",))
def located(network: Network, windows: Windows, truth: PlantedMotifs, n: int) -> pd.DataFrame:
    """Where lenses point in windows whose motifs are known, means over ``n`` test windows that are classified rightly.

    By kind of attention and lens: ``AUC`` of its map for being in a motif, ``AUC of another window``'s map; the mean
    ``inside`` and ``outside`` motifs; ``hit``, the share of peaks in motifs, and what ``chance`` gives; ``recall``, the
    share of motifs' samples among as many highest ones; and in windows with decoys (:func:`locating.with_decoys`) the
    shares of peaks in a ``motif`` and in a ``decoy``. For temporal maps a sample is in a motif that is so on any axis.
    ``truth`` belongs to the windows.
    """
    chosen, split = occlusion.classified(network, windows, "test", n)
    x, y, rows = split.x[chosen], split.activity[chosen], []
    there, other = locating.spans(split, truth)[chosen], occlusion.elsewhere(split.recording[chosen])
    decoyed, decoy = locating.with_decoys(split, chosen, truth)
    plain, fooled = beside(network, windows, x, y), beside(network, windows, decoyed, y)
    for kind, lenses in plain.items():
        motif, false = (of if kind == SPATIAL else of.any(1, keepdims=True) for of in (there, decoy))
        everywhere = np.ones_like(motif)
        for name, of in lenses.items():
            peaks = [(np.arange(len(at[0])), *at) for at in map(occlusion.peaks, (of, fooled[kind][name]))]
            measured = {
                "AUC": pooling.auc(of, motif, everywhere),
                "AUC of another window": pooling.auc(of[other], motif, everywhere),
                "inside": of[motif],
                "outside": of[~motif],
                "hit": motif[peaks[0]],
                "recall": pooling.recall(of, motif),
                "chance": motif,
                "motif": motif[peaks[1]],
                "decoy": false[peaks[1]] & ~motif[peaks[1]],
            }
            means = {what: float(np.nanmean(values)) for what, values in measured.items()}
            rows.append({"attention": kind, "lens": name} | means)
    return pd.DataFrame(rows)


def moved(split: Split, by: int = MOVED) -> tuple[Split, Split]:
    """Windows of a split, and the same ones that begin ``by`` samples later in the same recording.

    Left out are those in whose recording no later window tells that so many samples follow.
    """
    reach = np.r_[np.where(np.diff(split.recording) == 0, np.diff(split.start), 0), 0]
    here = split.chosen(reach >= by)
    return here, replace(here, start=here.start + by, offset=here.offset + by)


@kept("attention")
def shifts(network: Network, windows: Windows) -> pd.DataFrame:
    """Do maps go along when windows are moved by ``MOVED`` samples? Correlations, mean over the test windows.

    ``goes along``: of what a map says of the same movement; ``stays``: of what it says at the same sample of the
    window; ``another window``: the same with a window of another recording. Maps that are the same curve in all windows
    stay and are like those of other windows.
    """
    here, later = moved(windows.test)
    before, after = maps_of(network.model, here.x), maps_of(network.model, later.x)
    other, rows = occlusion.elsewhere(here.recording), []
    for kind, of in before.items():
        pairs = {
            "goes along": (of[..., MOVED:], after[kind][..., :-MOVED]),
            "stays": (of, after[kind]),
            "another window": (of, of[other]),
        }
        means = {name: np.nanmean(correlation(*(v.reshape(len(v), -1) for v in pair))) for name, pair in pairs.items()}
        rows.append({"attention": kind} | means)
    return pd.DataFrame(rows)
