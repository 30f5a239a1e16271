"""What pooling adds to a deconvnet, and to a network: the switches of the window that is projected.

Zeiler and Fergus (2014, section 2.1) say that switches keep a stimulus' structure, that a projection resembles a piece
of its window, and (Fig. 2) exaggerates its discriminative parts. Here every such number stands beside the same network
with switches drawn at random and with those of another window, beside pooling by the mean, which has none, beside no
pooling and beside random weights.

Discriminative parts are planted motifs. Where none were planted, they are the samples whose cover costs the class most:
what one lens says by another, not what is true. Every network counts once: intervals are over networks.
"""

from __future__ import annotations

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
from harvis_utils.lenses.occlusion import Occluder
from harvis_utils.metrics.intervals import tabulated
from harvis_utils.metrics.similarity import correlation
from harvis_utils.settings import PooledSettings, Settings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network

#: Choice: networks of each kind, as many as an interval wants
N_NETWORKS = 3
NO_POOLING, MAX, MEAN, RANDOM = "no pooling", "max pooling", "mean pooling", "max pooling, random weights"
RANDOM_SWITCHES, LENT_SWITCHES = (f"{MAX}, {name}" for name in deconvnet.SWITCHES)
#: what is compared: a kind of network, and how it is projected
WAYS = {
    MAX: (MAX, SWITCHED[0]),
    RANDOM_SWITCHES: (MAX, SWITCHED[1]),
    LENT_SWITCHES: (MAX, SWITCHED[2]),
    MEAN: (MEAN, SWITCHED[0]),
    NO_POOLING: (NO_POOLING, SWITCHED[0]),
    RANDOM: (RANDOM, SWITCHED[0]),
}
#: Choice: without planted motifs, the share of a window's samples that is called discriminative, or moving
SHARE = 0.1

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
        own = replace(cfg, model=model, training=training)
        found[kind] = [(net, net) for net in supervised.networks(own, few)]
        if kind == MAX:
            blank = supervised.untrained(own, few)
            found[RANDOM] = [(net, other) for (net, _), other in zip(found[MAX], blank, strict=True)]
    return found


# ------------------------------------------------------------------------------------------------------- structure


def structure(windows: Windows, networks: Kinds) -> pd.DataFrame:
    """How a unit's projections are alike, and like their windows: one row per ``WAYS`` and layer, with intervals.

    ``likeness`` of a unit's strongest activations' projections, and of their ``windows`` (:func:`deconvnet.likeness`,
    on the activation's axis); ``resemblance``: Pearson correlation of a projection with its own window, where the
    projection is not 0.
    """
    tables = {}
    for way, (kind, rule) in WAYS.items():
        rules = SWITCHED if kind in (MAX, RANDOM) else SWITCHED[:1]
        found = xr.concat([deconvnet.projections(net, windows, rules) for _, net in networks[kind]], "seed")
        own = found.sel(rule=rule).isel(input_axis=found["axis"].astype(int))
        back, signal = (own[name].transpose(..., "sample").values for name in ("projection", "signal"))
        alike = {"likeness": back, "windows": signal}
        values = {name: deconvnet.likeness(deconvnet.around(of[..., None, :], found)) for name, of in alike.items()}
        values = {name: (("seed", "layer", "unit"), of) for name, of in values.items()}
        values["resemblance"] = (("seed", "layer", "unit", "rank"), correlation(*inside(back, signal)))
        each = xr.Dataset(values, {"layer": found["layer"]})
        tables[way] = tabulated(dict(each.mean(["unit", "rank"]).data_vars), "layer")
    return pd.concat(tables, names=["way"])


def inside(back: np.ndarray, signal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without their means over the samples (..., time) where ``back`` is not 0, and 0 elsewhere."""
    there = back != 0
    n = np.maximum(there.sum(-1, keepdims=True), 1)
    back, signal = (np.where(there, of - (of * there).sum(-1, keepdims=True) / n, 0) for of in (back, signal))
    return back, signal


# ------------------------------------------------------------------------------------------ discriminative parts


def auc(maps: np.ndarray, parts: np.ndarray, among: np.ndarray) -> np.ndarray:
    """How often a sample in a part has more of the map than one outside, (window,): 0.5 says nothing, less points away.

    All are (window, axis, time). Samples that are not ``among``, and axes that the map says nothing of, do not count;
    NaN where there is nothing to compare.
    """
    among = among & (maps != 0).any(2, keepdims=True)
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
) -> xr.Dataset:
    """How well projections find the discriminative parts of ``n`` test windows: measures over (lens, window).

    ``hits`` (the peak is in a part), ``auc``, ``recall``, ``exaggeration`` (the
    share of the map on parts over the share of the window's deviation from its means there). With planted motifs also
    ``auc against decoys``, of motifs' samples among both, where the judge still sees the class. ``chance`` is what
    parts cover, that of hits and recall. Lenses: the strongest activations of the last layer, the class score, and the
    deviation itself, without a network.
    """
    chosen, split = occlusion.classified(judge, windows, "test", n)
    few = split.chosen(chosen)
    x, y, layer = few.x, few.activity, network.model.layers[-1]
    if truth:
        parts, (decoyed, decoys) = locating.spans(few, truth), locating.with_decoys(split, chosen, truth)
        right = dreams.predicted(judge.model, decoyed) == y
    else:
        cost = locating.maps_of(judge.model, x, y, Occluder())
        parts = cost >= np.quantile(cost, 1 - SHARE, axis=(1, 2), keepdims=True)
    kept_of = {f"{layer}, strongest": 1, f"{layer}, {deconvnet.N_TOP} strongest": deconvnet.N_TOP}
    lenses = {name: (layer, k, rule) for name, k in kept_of.items()} | {"class score": ("classes", 0, rule)}
    found = {}
    for name in (*lenses, locating.NO_NETWORK):

        def look(at: np.ndarray, name=name) -> np.ndarray:
            lens = lenses.get(name)
            return locating.maps_of(network.model, at, y, lens) if lens else np.abs(at - at.mean(2, keepdims=True))

        maps, own = look(x), on_parts(np.abs(x - x.mean(2, keepdims=True)), parts)
        one = {
            "hits": parts[(np.arange(len(x)), *occlusion.peaks(maps))].astype(float),
            "auc": auc(maps, parts, np.ones_like(parts)),
            "recall": recall(maps, parts),
            "exaggeration": on_parts(maps, parts) / np.where(own > 0, own, np.nan),
        }
        if truth:
            one["auc against decoys"] = np.where(right, auc(look(decoyed), parts, parts | decoys), np.nan)
        one["chance"] = parts.mean((1, 2))
        found[name] = xr.Dataset({measure: ("window", of) for measure, of in one.items()}, {"window": chosen})
    return xr.concat(found.values(), pd.Index(found, name="lens"))


def parts_table(windows: Windows, truth: PlantedMotifs | None, networks: Kinds, n: int) -> pd.DataFrame:
    """:func:`parts_found` of all ``WAYS``, one row per way and lens, with intervals; no network has one row."""
    tables = {}
    for way, (kind, rule) in WAYS.items():
        found = [parts_found(*pair, windows, truth, n, rule) for pair in networks[kind]]
        found = xr.concat(found, "seed", join="outer")
        tables[way] = tabulated(dict(found.mean("window").data_vars), "lens")
    alone = {"no network": tables[MAX].loc[[locating.NO_NETWORK]]}
    return pd.concat({way: of.drop(locating.NO_NETWORK) for way, of in tables.items()} | alone, names=["way"])


# ------------------------------------------------------------------------------------------------- the moving cover


@kept("labels_changed", apart=("truth",))
def labels_changed(
    judge: Network, network: Network, windows: Windows, truth: PlantedMotifs | None, n: int, occluder: Occluder
) -> xr.Dataset:
    """Share of cover positions at which the most probable class changes, (place, window), by where the cover is.

    Of ``n`` test windows, sensor by sensor: ``everywhere``; in windows with decoys centred where an axis has a motif,
    where one has a decoy, or elsewhere; without planted motifs: where most moves (the ``SHARE`` of the window's samples
    farthest from the axis' mean), or elsewhere.
    """
    chosen, split = occlusion.classified(judge, windows, "test", n)
    x, sensors = split.x[chosen], occlusion.by_sensor(windows.axes)
    if truth:
        x, decoys = locating.with_decoys(split, chosen, truth)
        marks = {"in motifs": locating.spans(split.chosen(chosen), truth), "in decoys": decoys}
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
    shares = [on_parts(of.astype(float), changed) for of in places.values()]
    coords = {"place": list(places), "window": chosen}
    return xr.Dataset({"changed": (("place", "window"), np.stack(shares))}, coords)


def labels_table(
    windows: Windows, truth: PlantedMotifs | None, networks: Kinds, n: int, occluder: Occluder
) -> pd.DataFrame:
    """:func:`labels_changed` of all kinds of networks, one row per kind and place, with intervals."""
    tables = {}
    for kind, pairs in networks.items():
        found = [labels_changed(*pair, windows, truth, n, occluder)["changed"] for pair in pairs]
        tables[kind] = tabulated({"changed": xr.concat(found, "seed", join="outer").mean("window")}, "place")
    return pd.concat(tables, names=["network"])
