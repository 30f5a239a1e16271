"""What pooling adds to a deconvnet, and to a network: the switches of the window that is projected.

Zeiler and Fergus (2014, section 2.1) say that switches keep a stimulus' structure, that a projection resembles a piece
of its window, and (Fig. 2) exaggerates its discriminative parts. Here every such number stands beside the same network
with switches drawn at random and with those of another window, beside pooling by the mean, which has none, beside no
pooling and beside random weights.

Discriminative parts are planted motifs. Where none were planted, they are the samples whose cover costs the class most:
what one lens says by another, not what is true. Tables have one row per network ("seed").
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Windows
from harvis_utils.lenses import deconvnet, dreams, locating, occlusion
from harvis_utils.lenses.deconvnet import SWITCHED
from harvis_utils.lenses.locating import NO_NETWORK
from harvis_utils.lenses.occlusion import Occluder
from harvis_utils.settings import PooledSettings, Settings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network

#: Choice: networks of each kind, as many as an interval wants
N_NETWORKS = 3
NO_POOLING, MAX, MEAN, RANDOM = "no pooling", "max pooling", "mean pooling", "random weights"
#: what is compared: a kind of network, and how it is projected; random weights are those of max pooling
WAYS = {rule.replace(SWITCHED[0], kind): (kind, rule) for kind in (MAX, RANDOM) for rule in SWITCHED}
WAYS |= {kind: (kind, SWITCHED[0]) for kind in (MEAN, NO_POOLING)}
RANDOM_SWITCHES, LENT_SWITCHES = (f"{MAX}, {name}" for name in deconvnet.SWITCHES)
#: Choice: without planted motifs, the share of a window's samples that is called discriminative, or moving
SHARE = 0.1
STRONGEST, CLASS = "strongest of the last layer", "class score"
#: the deviation squared: as near to the window's movements as :data:`locating.NO_NETWORK`, and more peaked
SQUARED = "no network: deviation squared"

#: for each kind the judge, whose correctly classified windows are looked at, and the network that is looked at
Kinds = Mapping[str, list[tuple[Network, Network]]]


def kinds(cfg: Settings, windows: Windows) -> Kinds:
    """SF-HF without and with pooling, and with random weights: ``N_NETWORKS`` each, trained where missing.

    All learn from the same windows, every n-th of the run's where these are more than ``cfg.evolution.n_trained``.
    """
    most = cfg.evolution.n_trained or len(windows.train)
    few, found = replace(windows, train=deconvnet.searched(windows.train, most)), {}
    training = replace(cfg.training, seeds=cfg.training.seeds[:N_NETWORKS])
    for kind, pooling in ((NO_POOLING, None), (MAX, "max"), (MEAN, "mean")):
        model = PooledSettings(**vars(cfg.model), pooling=pooling) if pooling else cfg.model
        found[kind] = [(net, net) for net in supervised.networks(cfg, few, model, training)]
        if kind == MAX:
            blank = supervised.untrained(cfg, few, model, training)
            found[RANDOM] = [(net, other) for (net, _), other in zip(found[MAX], blank, strict=True)]
    return found


def structure(windows: Windows, networks: Kinds) -> pd.DataFrame:
    """How a unit's projections are alike, and like their windows: one row per ``WAYS``, layer and network.

    ``likeness`` of a unit's strongest activations' projections, and of their ``windows`` without their means
    (:func:`deconvnet.likeness`, on the activation's axis); ``resemblance``: Pearson correlation of a projection with
    its own window, where the projection is not 0. Means over units.
    """
    rows = []
    for way, (kind, rule) in WAYS.items():
        rules = SWITCHED if kind in (MAX, RANDOM) else SWITCHED[:1]
        for _, net in networks[kind]:
            found = deconvnet.projections(net, windows, rules)
            own = found.sel(rule=rule).isel(input_axis=found["axis"].astype(int)).transpose(..., "sample")
            # a mean, which is gravity, would be a step beside the zeros beyond the window's edges
            alike = {"likeness": own["projection"], "windows": own["signal"] - own["signal"].mean("sample")}
            each = {
                name: np.nanmean(deconvnet.likeness(deconvnet.around(of.values[..., None, :], found)), 1)
                for name, of in alike.items()
            }
            there = own["projection"].where(own["projection"] != 0)
            each["resemblance"] = xr.corr(there, own["signal"], "sample").mean(["unit", "rank"]).values
            rows.append(pd.DataFrame(each | {"way": way, "layer": found["layer"].values, "seed": net.seed}))
    return pd.concat(rows, ignore_index=True)


# ------------------------------------------------------------------------------------------ discriminative parts


def auc(maps: np.ndarray, parts: np.ndarray, among: np.ndarray) -> np.ndarray:
    """How often a sample in a part has more of the map than one outside, (window,): 0.5 says nothing, less points away.

    All are (window, axis, time); only samples ``among`` count, ties half. NaN where there is nothing to compare.
    """
    maps, parts, among = (of.reshape(len(of), -1) for of in (maps, parts & among, among))
    ranks = rankdata(np.where(among, maps, np.nan), axis=1, nan_policy="omit")
    n, others = parts.sum(1), (among & ~parts).sum(1)
    above = np.nansum(ranks * parts, 1) - n * (n + 1) / 2
    return np.divide(above, n * others, out=np.full(len(maps), np.nan), where=n * others > 0)


def recall(maps: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Share of the parts' samples among as many largest ones of a map, (window,); what is 0 is not among them."""
    maps, parts = (of.reshape(len(of), -1) for of in (maps, parts))
    largest = (rankdata(-maps, axis=1, method="ordinal") <= parts.sum(1, keepdims=True)) & (maps > 0)
    return (largest & parts).sum(1) / np.maximum(parts.sum(1), 1)


def on_parts(maps: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Share of a map (window, axis, time) that lies on the parts, (window,); NaN for a map of zeros."""
    total = maps.sum((1, 2))
    return np.divide((maps * parts).sum((1, 2)), total, out=np.full(len(maps), np.nan), where=total > 0)


@kept("parts_found", apart=("truth",))
def parts_found(
    judge: Network, network: Network, windows: Windows, truth: PlantedMotifs | None, n: int, rule: str
) -> pd.DataFrame:
    """How well projections find the discriminative parts of ``n`` test windows: means over windows, one row per lens.

    ``hits`` (the peak is in a part), ``AUC``, ``recall``, ``exaggeration``: the mean share of the map on parts over the
    mean share there of the window's deviation from its means, because a ratio by window hangs on those that have next
    to nothing there. With planted motifs also ``AUC against decoys``, of motifs' samples among both, where the judge
    still sees the class. ``chance`` is what parts cover, that of hits and recall. Lenses: the strongest activation of
    the last layer, the class score, and the deviation itself and its square, without a network.
    """
    chosen, split = occlusion.classified(judge, windows, "test", n)
    few = split.chosen(chosen)
    x, y = few.x, few.activity
    if truth:
        parts, (decoyed, decoys) = locating.spans(few, truth), locating.with_decoys(split, chosen, truth)
        right = dreams.predicted(judge.model, decoyed) == y
    else:
        cost = locating.maps_of(judge.model, x, y, Occluder())
        parts = cost >= np.quantile(cost, 1 - SHARE, axis=(1, 2), keepdims=True)

    def look(name: str, at: np.ndarray) -> np.ndarray:
        far = np.abs(at - at.mean(2, keepdims=True))
        if name in (NO_NETWORK, SQUARED):
            return far if name == NO_NETWORK else far**2
        lens = (network.model.layers[-1], 1, rule) if name == STRONGEST else ("classes", 0, rule)
        return locating.maps_of(network.model, at, y, lens)

    rows, own = {}, on_parts(look(NO_NETWORK, x), parts).mean()
    for name in (STRONGEST, CLASS, NO_NETWORK, SQUARED):
        maps = look(name, x)
        one = {
            "hits": parts[(np.arange(len(x)), *occlusion.peaks(maps))],
            "AUC": auc(maps, parts, np.ones_like(parts)),
            "recall": recall(maps, parts),
            "exaggeration": on_parts(maps, parts) / own,
            "chance": parts.mean((1, 2)),
        }
        if truth:
            one["AUC against decoys"] = np.where(right, auc(look(name, decoyed), parts, parts | decoys), np.nan)
        rows[name] = pd.DataFrame(one).mean()
    return pd.DataFrame(rows).T.rename_axis("lens").reset_index()


def parts_table(windows: Windows, truth: PlantedMotifs | None, networks: Kinds, n: int) -> pd.DataFrame:
    """:func:`parts_found` of ``WAYS``, of random weights by their own switches alone: a row per way, lens, network."""
    rows = [
        parts_found(judge, net, windows, truth, n, rule).assign(way=way, seed=net.seed)
        for way, (kind, rule) in WAYS.items()
        if kind != RANDOM or rule == SWITCHED[0]
        for judge, net in networks[kind]
    ]
    return pd.concat(rows, ignore_index=True)


# ------------------------------------------------------------------------------------------------- the moving cover


@kept("labels_changed", apart=("truth",))
def labels_changed(
    judge: Network, network: Network, windows: Windows, truth: PlantedMotifs | None, n: int, occluder: Occluder
) -> pd.DataFrame:
    """Share of cover positions at which the most probable class changes, one row, by where the cover is.

    Of ``n`` test windows, sensor by sensor: ``everywhere``; in windows with decoys, of those in which the judge still
    sees the class, centred where an axis has a motif, where one has a decoy, or elsewhere; without planted motifs:
    where most moves (the ``SHARE`` of the window's samples farthest from the axis' mean), or elsewhere.
    """
    chosen, split = occlusion.classified(judge, windows, "test", n)
    few, sensors = split.chosen(chosen), occlusion.by_sensor(windows.axes)
    x, right = few.x, np.ones(len(few), bool)
    if truth:
        x, decoys = locating.with_decoys(split, chosen, truth)
        marks = {"in motifs": locating.spans(few, truth), "in decoys": decoys}
        # where the decoys mislead, covering them gives the class back
        right = dreams.predicted(judge.model, x) == few.activity
    else:
        far = np.abs(x - x.mean(2, keepdims=True))
        marks = {"where most moves": far >= np.quantile(far, 1 - SHARE, axis=(1, 2), keepdims=True)}
    found = occlusion.labels(network.model, x, sensors, occluder)
    changed = (found["label"] != found["before"]).transpose("window", "group", "time").values.astype(float)
    left, places = np.ones(changed.shape, bool), {}
    for name, mark in marks.items():
        of_sensors = np.stack([mark[:, list(axes)].any(1) for axes in sensors.values()], 1)
        places[name], left = of_sensors & left, left & ~of_sensors
    places |= {"elsewhere": left, "everywhere": np.ones_like(left)}
    shares = {name: on_parts(of.astype(float), changed)[right] for name, of in places.items()}
    return pd.DataFrame(shares).mean().rename_axis("place").rename("changed").reset_index()


def labels_table(
    windows: Windows, truth: PlantedMotifs | None, networks: Kinds, n: int, occluder: Occluder
) -> pd.DataFrame:
    """:func:`labels_changed` of all kinds of networks: one row per kind, place and network."""
    rows = [
        labels_changed(judge, net, windows, truth, n, occluder).assign(network=kind, seed=net.seed)
        for kind, pairs in networks.items()
        for judge, net in pairs
    ]
    return pd.concat(rows, ignore_index=True)
