"""Planted motifs and peaks turned into rates: does a lens point at what is known to be there?

A window of the made-up data holds motifs on most of its axes, all of its class. A peak *hits* where it lies on the axis
and inside the samples of one of them, edge to edge; any tolerance is a parameter and is shown.

Motifs are also a window's largest movements, so that whoever points at these hits too, without any network. The sharper
question has *decoys*: each axis' own motif planted once more where it was still, but backwards, with the same energy
and spectrum. No activity has those. A lens that points at what moves cannot tell the two apart.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import xarray as xr
from torch import nn

from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses import concepts, deconvnet, dreams, occlusion
from harvis_utils.lenses.occlusion import Occluder
from harvis_utils.metrics.intervals import tabulated
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network

#: an occluder, or (layer, kept activations, rule) of a projection
Lens = Occluder | tuple[str, int, str]

#: a lens that looks at no network: where the window is farthest from its axis' mean
NO_NETWORK = "no network: largest deviation"
PLANTINGS = ("motifs", "motifs and decoys")

#: Choice: settings of occlusion to choose from
OCCLUDERS = tuple(Occluder(width, fill) for fill in ("mean", "line") for width in (1, 3, 7))
#: Choice: how many of a layer's strongest activations are projected together; 1 and the nine of the paper's figures
KEPT = (1, deconvnet.N_TOP)


def spans(split: Split, truth: PlantedMotifs) -> np.ndarray:
    """Where any motif is in each window, bool (window, axis, time); see :func:`concepts.of_motifs`."""
    here = truth.occurrences[truth.occurrences["subject"].isin(split.subject)]
    return concepts.of_motifs(replace(truth, occurrences=here), split).masks.any(0)


def with_decoys(split: Split, chosen: np.ndarray, truth: PlantedMotifs) -> tuple[np.ndarray, np.ndarray]:
    """The ``chosen`` windows with decoys, (window, axis, time) in G float32, and where these are, bool.

    Each axis gets its own motif backwards, of strength 1, in the middle of its longest stretch without motif, where
    that holds the whole decoy.
    """
    x = split.x[chosen].copy()
    planted = np.zeros(x.shape, bool)
    shape = dict(zip(truth.names, truth.shapes, strict=True))
    on = truth.occurrences.groupby(["activity", "axis"])["motif"].first()
    there = spans(split.chosen(chosen), truth)
    for i, activity in enumerate(split.activity[chosen]):
        for axis in range(x.shape[1]):
            decoy = shape[on[activity, axis]][::-1]
            begin, length = longest_run(~there[i, axis])
            if length >= len(decoy):
                at = slice(start := begin + (length - len(decoy)) // 2, start + len(decoy))
                x[i, axis, at] += decoy.astype(np.float32)
                planted[i, axis, at] = True
    return x, planted


def motifs_backwards(split: Split, truth: PlantedMotifs) -> Split:
    """The same windows with every motif backwards in its place, the background as it was.

    ``split`` must be cut at the rate of the recordings.
    """
    series, shape = split.series.copy(), dict(zip(truth.names, truth.shapes, strict=True))
    begins = {
        (s, a): b - o for s, a, b, o in zip(split.subject, split.activity, split.start, split.offset, strict=True)
    }
    for of in truth.occurrences.itertuples():
        if (begin := begins.get((of.subject, of.activity))) is not None:
            own = shape[of.motif]
            series[begin + of.start :][: len(own), of.axis] += (of.scale * (own[::-1] - own)).astype(np.float32)
    return replace(split, series=series)


def longest_run(flags: np.ndarray) -> tuple[int, int]:
    """First index and length of the longest run of true values, the earliest of equals; (0, 0) without any."""
    ends = np.flatnonzero(~np.concatenate([[False], np.asarray(flags, bool), [False]]))
    lengths = np.diff(ends) - 1
    best = lengths.argmax()
    return int(ends[best]), int(lengths[best])


def projecting(network: Network, rules: Sequence[str] = tuple(deconvnet.RULES)) -> dict[str, Lens]:
    """Projections of the ``KEPT`` strongest activations of each layer, by each rule."""
    return {
        f"{rule}, {layer}, {'strongest' if n == 1 else f'{n} strongest'}": (layer, n, rule)
        for rule, layer, n in product(rules, network.model.layers, KEPT)
    }


def candidates(network: Network) -> dict[str, Lens]:
    """Lenses to choose from, by name."""
    return {f"occlusion, {o.name}": o for o in OCCLUDERS} | projecting(network, ("deconvnet",))


def class_scores() -> dict[str, Lens]:
    """Projections of the class score itself, by each rule."""
    return {f"{rule}, class score": ("classes", 0, rule) for rule in deconvnet.RULES}


def maps_of(network: nn.Module, x: np.ndarray, classes: np.ndarray, lens: Lens) -> np.ndarray:
    """What a lens says of every sample, (window, axis, time), the larger the more.

    Occlusion: what a cover centred there costs the class. Projections: their size, whatever the sign.
    """
    if isinstance(lens, Occluder):
        return occlusion.drops(network, x, classes, occlusion.by_axis(x.shape[1]), lens)["log_odds"].values
    layer, n, rule = lens
    keep = deconvnet.strongest(n) if n else deconvnet.classes(classes)
    return deconvnet.project(network, layer, x, keep, rule).abs().numpy()


def pointed(network: nn.Module, x: np.ndarray, classes: np.ndarray, lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Axis and time step, (window,) each, that a lens points at: the peak of its map over (axis, time)."""
    return occlusion.peaks(maps_of(network, x, classes, lens))


@kept("locating", apart=("truth",))
def pointings(
    judge: Network, network: Network, windows: Windows, truth: PlantedMotifs, name: str, n: int, lenses: dict[str, Lens]
) -> xr.Dataset:
    """Where each lens points in ``n`` windows of the split ``name``: ``axis``, ``time`` over (lens, planting, window).

    Windows, called by their index in the split, are those of :func:`occlusion.classified`; ``right`` (planting, window)
    says whether ``judge`` still classifies them correctly. Lenses look at ``network``: the judge itself, or one with
    random weights. ``motif`` and ``decoy`` (planting, window, input_axis, sample) say what is where; ``truth`` belongs
    to the windows and is stored under their digest.
    """
    chosen, split = occlusion.classified(judge, windows, name, n)
    decoyed, decoy = with_decoys(split, chosen, truth)
    both, y = (split.x[chosen], decoyed), split.activity[chosen]
    named = {lens: [pointed(network.model, x, y, of) for x in both] for lens, of in lenses.items()}
    named[NO_NETWORK] = [occlusion.peaks(np.abs(x - x.mean(2, keepdims=True))) for x in both]
    places = np.array(list(named.values()))  # (lens, planting, axis and time, window)
    motif = spans(split, truth)[chosen]
    at, plane = ("lens", "planting", "window"), ("planting", "window", "input_axis", "sample")
    return xr.Dataset(
        {
            "axis": (at, places[:, :, 0]),
            "time": (at, places[:, :, 1]),
            "right": (at[1:], np.stack([dreams.predicted(judge.model, x) == y for x in both]).astype(np.int8)),
            "motif": (plane, np.stack([motif, motif]).astype(np.int8)),
            "decoy": (plane, np.stack([np.zeros_like(decoy), decoy]).astype(np.int8)),
        },
        coords={"lens": list(named), "planting": list(PLANTINGS), "window": chosen},
    )


def hits(found: xr.Dataset, what: str = "motif", tolerance: int = 0) -> xr.DataArray:
    """Whether each lens points into a motif (or ``what="decoy"``): (lens, planting, window), NaN where misclassified.

    ``tolerance`` widens every span by so many samples on both sides.
    """
    wide = concepts.widened(found[what].values.astype(bool), tolerance)
    planting, window = np.ogrid[: wide.shape[0], : wide.shape[1]]
    inside = wide[planting, window, found["axis"].values, found["time"].values].astype(float)
    return found["axis"].copy(data=np.where(found["right"].values.astype(bool), inside, np.nan))


def rates(
    trained: Sequence[xr.Dataset],
    random: Sequence[xr.Dataset] = (),
    tolerance: int = 0,
    lenses: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Share of windows in which each lens points into a motif, one row per lens, all with 95 % intervals.

    From :func:`pointings` of the trained networks and, where given, of as many with random weights. ``trained`` and
    ``random`` are shares of plain windows, ``gain`` their difference, window by window; ``trained motif`` and ``trained
    decoy`` are shares of the windows with decoys, ``trained preference`` their difference; the same for ``random``.
    ``lowest network`` is the share of the worst trained one, ``chance`` that of the plane that motifs cover.
    ``tolerance`` as in :func:`hits`; ``lenses`` are those wanted, by default all.
    """
    wanted, values = list(trained[0]["lens"].values if lenses is None else lenses), {}
    for who, of in {"trained": trained, "random": random}.items():
        if of:
            found = [[hits(one.sel(lens=wanted), what, tolerance) for one in of] for what in ("motif", "decoy")]
            # a network's windows are its own: where it has none there is NaN
            motif, decoy = (xr.concat(each, "seed", join="outer") for each in found)
            values[who] = motif.sel(planting=PLANTINGS[0])
            both = motif.sel(planting=PLANTINGS[1]), decoy.sel(planting=PLANTINGS[1])
            values |= {f"{who} motif": both[0], f"{who} decoy": both[1], f"{who} preference": both[0] - both[1]}
    if random:
        values["gain"] = values["trained"] - values["random"]
    table = tabulated(values, "lens")
    table["lowest network"] = values["trained"].mean("window").min("seed").values
    table["chance"] = float(np.mean([found["motif"].isel(planting=0).mean() for found in trained]))
    table["networks"] = len(trained)
    return table


def by_weights(judged: pd.DataFrame, first: Sequence[str]) -> pd.DataFrame:
    """:func:`rates` of trained networks and of random weights below each other, by ``weights`` and ``lens``.

    ``hits`` are the shares of plain windows, with intervals; ``motif``, ``decoy`` and ``elsewhere`` say where peaks lie
    in windows with decoys. Some lenses come ``first``; of conv1, below which there is no rectifier, one rule stands for
    all.
    """
    rest = [n for n in judged.index.drop(first) if not n.startswith(("guided, conv1", "gradient, conv1"))]
    names = {"": "hits", " low": "hits low", " high": "hits high", " motif": "motif", " decoy": "decoy"}
    own = {who: judged.loc[[*first, *rest], [f"{who}{end}" for end in names]] for who in ("trained", "random")}
    parts = {who: of.set_axis(list(names.values()), axis=1) for who, of in own.items()}
    table = pd.concat(parts, names=["weights"]).rename(index={"random": "random weights"}, level="weights")
    return table.assign(elsewhere=1 - table["motif"] - table["decoy"])


def choose(table: pd.DataFrame, family: str, equal: float = 0.02) -> str:
    """The lens of a family ("occlusion", "deconvnet") to use, from :func:`rates` of validation people.

    Of those within ``equal`` of the best rate on plain windows, the one that most prefers motifs to decoys; class
    scores are no candidates. Raises ``ValueError`` where the table holds none of the family.
    """
    names = [name for name in table.index if name.startswith(f"{family},") and not name.endswith("class score")]
    if not names:
        raise ValueError(f"no lens of the family {family!r} among {', '.join(table.index)}")
    own = table.loc[names]
    near = own[own["trained"] >= own["trained"].max() - equal]
    return str(near["trained preference"].idxmax())
