"""Signals turned into a 2-D map (paper section 6, Fig. 8) and into numbers about its structure.

A picture can be read in many ways, so the claims about it (C10 to C12) are answered by numbers: is there more
clustering than in noise with the same covariance, how far apart do units lie, how complex is a signal, how many
units say the same. Everywhere ``signals`` is (unit, time) in G. A unit whose signal is not finite or constant has
no shape; it is left out, and results say how many were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.metrics import similarity
from harvis_utils.settings import Settings
from harvis_utils.store import stages
from harvis_utils.store.files import read_dataset, read_json, write_dataset, write_json
from harvis_utils.training.supervised import Network

STAGE = stages.Stage("atlas", notebook="05_atlas", modules=("metrics.embedding", "metrics.similarity"))

#: Paper: the atlas shows the proposed method's signals
PRESET, METHOD = "calibrated", "L2+TV+EAP+clip"
#: Choice: a signal that ranges over less than this, in G, says nothing that a sensor could tell from rest
FLAT_G = 0.05
#: a signal that moves less than this, in G, counts as constant
CONSTANT_G = 1e-6
#: fewer units than this have no map
FEWEST_UNITS = 5


class AtlasError(ValueError):
    """Too few units, or arrays that do not belong together; the message says which and what to do."""


def usable(signals: np.ndarray) -> np.ndarray:
    """Which units have a shape: finite and not constant; bool (unit,)."""
    signals = _two_dimensional(signals)
    finite = np.isfinite(signals).all(1)
    moves = np.zeros(len(signals), bool)
    moves[finite] = np.ptp(signals[finite], axis=1) > CONSTANT_G
    return moves


def _two_dimensional(signals: np.ndarray) -> np.ndarray:
    signals = np.asarray(signals, dtype=np.float64)
    if signals.ndim != 2 or signals.shape[1] < 2:
        raise AtlasError(f"signals should be (unit, time) with at least two samples, not of shape {signals.shape}")
    return signals


def _used(signals: np.ndarray, fewest: int = FEWEST_UNITS) -> np.ndarray:
    """The usable signals as float64; too few raise :class:`AtlasError`."""
    keep = usable(signals)
    if keep.sum() < fewest:
        raise AtlasError(
            f"{keep.sum()} of {len(keep)} units have a signal that is finite and not constant; at least {fewest} are "
            f"needed; take a layer, method or preset with more of them"
        )
    return _two_dimensional(signals)[keep]


# ------------------------------------------------------------------------------------------------ the map


def effective_perplexity(perplexity: float, n_units: int) -> float:
    """The perplexity used for ``n_units``: the one asked for, at most a third of the other units.

    t-SNE is undefined from n_units on and says nothing long before: each unit's neighbourhood would be all others.
    """
    return float(min(perplexity, (n_units - 1) / 3))  # Choice: the usual bound, three perplexities of neighbours


def embed(signals: np.ndarray, perplexity: float = 15.0, seed: int = 0, init: str = "pca") -> np.ndarray:
    """t-SNE map of the units (paper section 6): (unit, time) in G to (unit, 2), NaN for units without a shape.

    Choice: distances are Euclidean between the signals as they are, in G, neither shifted nor scaled, because the
    paper embeds the generated signals themselves. Choice: ``init="pca"`` makes the map a function of the signals
    alone, whatever the seed; ``init="random"`` shows what another seed would have drawn. ``perplexity`` is limited
    by :func:`effective_perplexity`. Raises :class:`AtlasError` for fewer than five usable or for identical signals.
    """
    from sklearn.manifold import TSNE

    used = _used(signals)
    if np.ptp(used, axis=0).max() <= CONSTANT_G:
        raise AtlasError(f"all {len(used)} signals are the same; a map needs at least two different ones")
    positions = np.full((len(signals), 2), np.nan)
    tsne = TSNE(perplexity=effective_perplexity(perplexity, len(used)), init=init, random_state=seed, n_jobs=1)
    positions[usable(signals)] = tsne.fit_transform(used)
    return positions


def neighbours(points: np.ndarray, k: int) -> np.ndarray:
    """Indices of each point's ``k`` nearest other points, nearest first: (point, dimension) to (point, k)."""
    from scipy.spatial.distance import cdist

    if not 1 <= k < len(points):
        raise AtlasError(f"k = {k} neighbours need more than k points; there are {len(points)}")
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


def common_neighbours(a: np.ndarray, b: np.ndarray, k: int = 10) -> float:
    """Mean share of ``k`` nearest neighbours that units have in common in two maps (unit, 2), from 0 to 1.

    Two unrelated maps of n units share k / (n - 1) by chance. Units that are NaN in either are left out.
    """
    keep = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    k = min(k, int(keep.sum()) - 1)
    near_a, near_b = neighbours(a[keep], k), neighbours(b[keep], k)
    return float((near_a[:, :, None] == near_b[:, None, :]).any(2).mean())


def trustworthiness(signals: np.ndarray, positions: np.ndarray, k: int = 5) -> float:
    """How far neighbours on the map are neighbours among the signals (Venna and Kaski 2001), from 0 to 1."""
    from sklearn import manifold

    keep = usable(signals)
    if keep.sum() < FEWEST_UNITS:
        raise AtlasError(f"only {keep.sum()} units have a shape; at least {FEWEST_UNITS} are needed")
    k = min(k, max(1, int(keep.sum()) // 2 - 1))  # the measure is defined below half of the units
    return float(manifold.trustworthiness(np.asarray(signals, float)[keep], positions[keep], n_neighbors=k))


def sensitivity(
    signals: np.ndarray, perplexities: Sequence[float], seeds: Sequence[int], reference: np.ndarray, k: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Maps with other perplexities and random starts, and how much of ``reference`` (unit, 2) each keeps.

    Returns maps (perplexity, seed, unit, 2) and the shares of common neighbours (perplexity, seed).
    """
    maps = np.stack([[embed(signals, p, s, init="random") for s in seeds] for p in perplexities])
    shares = np.array([[common_neighbours(reference, one, k) for one in row] for row in maps])
    return maps, shares


# ------------------------------------------------------------------------------- clusters and scatter (C10)


def gaussian_null(points: np.ndarray, seed: int) -> np.ndarray:
    """As many points from a Gaussian with the mean and covariance of ``points`` (unit, time): no clusters in it."""
    points = np.asarray(points, np.float64)
    mean = points.mean(0)
    weights = np.random.default_rng(seed).standard_normal((len(points), len(points))) / np.sqrt(len(points) - 1)
    return mean + weights @ (points - mean)  # covariance in expectation that of the points, whatever their rank


def hopkins(points: np.ndarray, seed: int = 0, repeats: int = 20) -> float:
    """Hopkins statistic: distance from random places to the nearest point, against that between points.

    About 0.5 for points spread evenly over their bounding box, towards 1 for clusters; correlated samples alone
    raise it too, so read it beside :func:`gaussian_null`. Choice: all points, first power of the distances.
    """
    from scipy.spatial import cKDTree

    points = np.asarray(points, np.float64)
    tree = cKDTree(points)
    between = tree.query(points, k=2)[0][:, 1].sum()
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(repeats):
        places = generator.uniform(points.min(0), points.max(0), points.shape)
        outside = tree.query(places)[0].sum()
        values.append(outside / (outside + between) if outside + between > 0 else 0.5)
    return float(np.mean(values))


def clusters(points: np.ndarray, k: int) -> np.ndarray:
    """Ward clusters 0 .. k-1 of ``points`` (unit, dimension), the largest first; fewer where points coincide."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if not 1 <= k <= len(points):
        raise AtlasError(f"{k} clusters of {len(points)} units cannot be made")
    return _by_size(fcluster(linkage(np.asarray(points, np.float64), "ward"), k, "maxclust"))


def _by_size(labels: np.ndarray) -> np.ndarray:
    """Labels renamed 0, 1, ... from the largest group to the smallest."""
    _, labels, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return rank[labels]


def best_silhouette(points: np.ndarray, ks: Sequence[int] = tuple(range(2, 11))) -> tuple[int, float]:
    """Number of Ward clusters with the largest mean silhouette, and that silhouette (-1 to 1)."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist, squareform
    from sklearn.metrics import silhouette_score

    points = np.asarray(points, np.float64)
    tree, distances = linkage(points, "ward"), squareform(pdist(points))
    best = (1, -1.0)
    for k in ks:
        labels = fcluster(tree, k, "maxclust")
        if 2 <= len(np.unique(labels)) < len(points):
            best = max(best, (k, float(silhouette_score(distances, labels, metric="precomputed"))), key=lambda b: b[1])
    return best


@dataclass(frozen=True)
class Tendency:
    """How clustered the signals are, beside the same numbers of Gaussian noise with their covariance."""

    hopkins: float
    hopkins_null: tuple[float, float, float]  # mean, smallest, largest over the noise draws
    best_k: int
    silhouette: float
    silhouette_null: tuple[float, float, float]
    spread: float
    spread_null: tuple[float, float, float]
    n_units: int
    n_excluded: int


def cluster_tendency(signals: np.ndarray, seed: int = 0, n_null: int = 20) -> Tendency:
    """Hopkins statistic, best silhouette and spread of (unit, time) signals and of ``n_null`` noise draws (C10)."""
    used = _used(signals)
    k, silhouette = best_silhouette(used)
    draws = [gaussian_null(used, seed + i) for i in range(n_null)]
    return Tendency(
        hopkins=hopkins(used, seed),
        hopkins_null=_summary(hopkins(draw, seed) for draw in draws),
        best_k=k,
        silhouette=silhouette,
        silhouette_null=_summary(best_silhouette(draw)[1] for draw in draws),
        spread=spread(used),
        spread_null=_summary(spread(draw) for draw in draws),
        n_units=len(used),
        n_excluded=len(signals) - len(used),
    )


def spread(signals: np.ndarray) -> float:
    """Mean distance to the nearest other unit over the mean distance between units: small when units bunch."""
    from scipy.spatial.distance import pdist, squareform

    used = _used(signals, fewest=2)
    between = pdist(used)
    if between.max() <= CONSTANT_G:
        return 0.0  # all the same: nothing is scattered
    distances = squareform(between)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min(1).mean() / between.mean())


@dataclass(frozen=True)
class ClusterActivities:
    """Clusters against the activities of the units' nearest real windows."""

    labels: np.ndarray  # (unit,) cluster, -1 for a unit left out
    contingency: np.ndarray  # (cluster, activity) numbers of units
    majority: tuple[int, ...]  # activity that most units of each cluster have
    all_different: bool
    purity: float  # share of units that have their cluster's majority activity
    purity_chance: float  # mean over shuffled activities
    p_value: float  # share of shuffles at least as pure


def clusters_and_activities(
    points: np.ndarray, activities: np.ndarray, n_clusters: int = 3, seed: int = 0, n_permutations: int = 2000
) -> ClusterActivities:
    """Do clusters belong to different activities (C10)? Ward clusters of ``points``, signals or map positions.

    ``points`` is (unit, dimension), ``activities`` (unit,) indices, negative for none. Units without finite points
    or without an activity are left out. The p-value shuffles the activities over the units.
    """
    points, activities = np.asarray(points, np.float64), np.asarray(activities)
    if activities.shape != points.shape[:1]:
        raise AtlasError(f"{activities.shape} activities do not belong to points of shape {points.shape}")
    keep = np.isfinite(points).all(1) & (activities >= 0)
    if keep.sum() < max(n_clusters, FEWEST_UNITS):
        raise AtlasError(f"only {keep.sum()} units have a place and an activity; {n_clusters} clusters need more")
    inside = clusters(points[keep], n_clusters)
    one_hot_cluster = np.eye(inside.max() + 1)[inside]
    one_hot_activity = np.eye(activities[keep].max() + 1)[activities[keep]]
    contingency = one_hot_cluster.T @ one_hot_activity

    generator = np.random.default_rng(seed)
    shuffles = (one_hot_activity[generator.permutation(len(inside))] for _ in range(n_permutations))
    chance = np.array([(one_hot_cluster.T @ shuffled).max(1).sum() for shuffled in shuffles])
    observed = contingency.max(1).sum()
    labels = np.full(len(points), -1)
    labels[keep] = inside
    majority = tuple(int(a) for a in contingency.argmax(1))
    return ClusterActivities(
        labels=labels,
        contingency=contingency.astype(int),
        majority=majority,
        all_different=len(set(majority)) == len(majority),
        purity=float(observed / len(inside)),
        purity_chance=float(chance.mean() / len(inside)),
        p_value=float((1 + (chance >= observed).sum()) / (1 + n_permutations)),
    )


# ---------------------------------------------------------------------------------------- rank and comparison


def _effective_number(weights: np.ndarray) -> np.ndarray:
    """exp of the entropy of ``weights`` (..., item) >= 0 made to sum to 1: how many items carry them."""
    share = weights / weights.sum(-1, keepdims=True)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.exp(-(share * logs).sum(-1))


def effective_rank(signals: np.ndarray) -> float:
    """exp of the entropy of the normalized singular values of the signals less their mean over units.

    1 when all units are multiples of one shape, at most min(units - 1, time); 0 when all units are the same.
    """
    used = _used(signals, fewest=2)
    values = np.linalg.svd(used - used.mean(0), compute_uv=False)
    return float(_effective_number(values)) if values.max() > CONSTANT_G else 0.0


def superiority(shallow: np.ndarray, deep: np.ndarray, seed: int = 0, n: int = 2000) -> tuple[float, float, float]:
    """Chance that a unit of ``deep`` exceeds one of ``shallow`` (ties half), with a 95 % bootstrap interval over units.

    0.5 means no difference between two layers' values, (unit,) each; NaN are left out.
    """
    shallow, deep = (np.asarray(v, float)[np.isfinite(v)] for v in (shallow, deep))
    if not len(shallow) or not len(deep):
        raise AtlasError("a layer has no finite value to compare")
    wins = (deep[:, None] > shallow).astype(float) + 0.5 * (deep[:, None] == shallow)
    generator = np.random.default_rng(seed)
    draws = [
        wins[generator.integers(len(deep), size=len(deep))][
            :, generator.integers(len(shallow), size=len(shallow))
        ].mean()
        for _ in range(n)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(wins.mean()), float(low), float(high)


# ------------------------------------------------------------------------------------ near-duplicates (C12)


def best_correlation(signals: np.ndarray, max_shift: int = 10) -> np.ndarray:
    """Largest correlation of every two signals under a time shift of up to ``max_shift`` samples: (unit, unit).

    Correlation (-1 to 1, mean and size removed) over the samples that overlap; 0 where an overlapping piece is
    constant. Units without a shape have NaN.
    """
    signals = _two_dimensional(signals)
    length = signals.shape[1]
    if not 0 <= max_shift <= length - 2:
        raise AtlasError(f"max_shift = {max_shift} leaves fewer than two samples of {length} to compare")
    keep = usable(signals)
    used = signals[keep]
    best = np.full((len(used), len(used)), -1.0)
    for shift in range(max_shift + 1):
        correlation = _standardized(used[:, shift:]) @ _standardized(used[:, : length - shift]).T
        best = np.maximum(best, np.maximum(correlation, correlation.T))  # the transpose is the shift the other way
    everything = np.full((len(signals), len(signals)), np.nan)
    everything[np.ix_(keep, keep)] = best.clip(-1, 1)
    return everything


def _standardized(pieces: np.ndarray) -> np.ndarray:
    """Rows without their mean and with norm 1; zeros where a row is constant."""
    centred = pieces - pieces.mean(1, keepdims=True)
    constant = np.ptp(pieces, axis=1) <= CONSTANT_G
    norms = np.linalg.norm(centred, axis=1)
    return np.where(constant[:, None], 0.0, centred / np.where(constant, 1.0, norms)[:, None])


@dataclass(frozen=True)
class Duplicates:
    """Units that say the same up to a time shift and a scale."""

    share: float  # of the units with a shape: how many have a near-duplicate
    share_null: tuple[float, float, float]  # the same of Gaussian noise with their covariance: mean, smallest, largest
    n_groups: int  # distinct shapes: near-duplicates linked into groups, single units counted
    groups: np.ndarray  # (unit,) group, largest first; -1 for a unit left out
    best: np.ndarray  # (unit,) largest correlation with another unit, NaN for a unit left out
    n_units: int
    n_excluded: int


def near_duplicates(
    signals: np.ndarray, threshold: float = 0.95, max_shift: int = 10, seed: int = 0, n_null: int = 20
) -> Duplicates:
    """Share of units with a near-duplicate under the best time shift, and the number of distinct groups (C12).

    Two units are near-duplicates when :func:`best_correlation` exceeds ``threshold``; groups are the connected
    sets of these, so a chain of small differences is one group. Smooth signals resemble each other anyhow, hence the
    share among ``n_null`` draws of noise with the same covariance beside it.
    """
    from scipy.sparse.csgraph import connected_components

    keep = usable(signals)
    used = _used(signals, fewest=2)
    correlation = _with_others(used, max_shift)
    linked = correlation > threshold
    n_groups, labels = connected_components(linked, directed=False)
    groups, best = np.full(len(keep), -1), np.full(len(keep), np.nan)
    groups[keep] = _by_size(labels)
    best[keep] = correlation.max(1)
    draws = (gaussian_null(used, seed + i) for i in range(n_null))
    return Duplicates(
        share=float(linked.any(1).mean()),
        share_null=_summary((_with_others(draw, max_shift) > threshold).any(1).mean() for draw in draws),
        n_groups=int(n_groups),
        groups=groups,
        best=best,
        n_units=len(used),
        n_excluded=int((~keep).sum()),
    )


def _with_others(signals: np.ndarray, max_shift: int) -> np.ndarray:
    """Best correlation with the other units; -1 with itself and where there is none."""
    correlation = np.nan_to_num(best_correlation(signals, max_shift), nan=-1.0)
    np.fill_diagonal(correlation, -1.0)
    return correlation


def _summary(values: Iterable[float]) -> tuple[float, float, float]:
    """Mean, smallest and largest."""
    values = list(values)
    return float(np.mean(values)), float(min(values)), float(max(values))


# ------------------------------------------------------------------------------------------- stored measures


def kept_signals(signals: xr.Dataset, scores: xr.Dataset, seed: int, layer: str) -> np.ndarray:
    """The proposed method's signals of one network's layer, (unit, time) in G; failed and dead units are NaN."""
    which = {"preset": PRESET, "technique": METHOD, "seed": seed, "layer": layer}
    chosen, judged = signals["signal"].sel(which), scores.sel(which)
    return chosen.where(~judged["failed"] & ~judged["dead"]).transpose("unit", "time").values.astype(np.float64)


def view(
    signals: xr.Dataset, scores: xr.Dataset, positions: xr.DataArray, train: Split, seed: int, layer: str
) -> AtlasLayer:
    """One layer of one network with its nearest real windows, for figures and for the page.

    ``positions`` is what :func:`load_positions` returns; the activity is that of the single nearest training
    window, as in the paper's Fig. 8, and -1 for a unit that was not searched.
    """
    chosen = scores.sel(preset=PRESET, technique=METHOD, seed=seed, layer=layer)
    nearest = chosen[["segment", "offset", "distance"]].isel(neighbour=0)
    segment = nearest["segment"].values
    n_axes = train.series.shape[1]
    real = train.x[segment // n_axes, segment % n_axes].astype(np.float64)
    real[segment < 0] = np.nan
    return AtlasLayer(
        name=layer,
        positions=positions.sel(seed=seed, layer=layer).transpose("unit", "coordinate").values,
        signals=kept_signals(signals, scores, seed, layer),
        activities=np.where(segment < 0, -1, train.activity[segment // n_axes]),
        windows=real,
        starts=chosen["piece_start"].values,
        offsets=nearest["offset"].values,
        distances=nearest["distance"].values,
    )


def measure(signals: np.ndarray, activities: np.ndarray, n_frequencies: np.ndarray) -> dict[str, float | str | None]:
    """Every number about one layer's (unit, time) signals, NaN for units left out; null and a reason where none.

    ``activities`` (unit,) are those of the nearest real windows, ``n_frequencies`` (unit,) effective numbers of
    frequencies. What ends in ``_moving`` leaves out units that are all but flat (less than 0.05 G), which lie
    together whatever the others do.
    """
    shaped = usable(signals)
    moving = shaped.copy()
    moving[shaped] = np.ptp(signals[shaped], axis=1) >= FLAT_G
    only_moving = np.where(moving[:, None], signals, np.nan)
    reasons: list[str] = []

    def attempt(call: Callable, *arguments):
        try:
            return call(*arguments)
        except AtlasError as error:
            reasons.append(str(error))
            return None

    def of(result, name: str, item: int | None = None):
        value = None if result is None else getattr(result, name)
        return value if value is None or item is None else value[item]

    tendency, tendency_moving = attempt(cluster_tendency, signals), attempt(cluster_tendency, only_moving)
    duplicates, duplicates_moving = attempt(near_duplicates, signals), attempt(near_duplicates, only_moving)
    found = attempt(clusters_and_activities, np.where(shaped[:, None], signals, np.nan), activities)
    several = None if found is None else int(found.all_different)
    return {
        "hopkins": of(tendency, "hopkins"),
        "hopkins_null": of(tendency, "hopkins_null", 0),
        "hopkins_moving": of(tendency_moving, "hopkins"),
        "hopkins_moving_null": of(tendency_moving, "hopkins_null", 0),
        "silhouette": of(tendency, "silhouette"),
        "silhouette_null": of(tendency, "silhouette_null", 0),
        "best_k": of(tendency, "best_k"),
        "spread": of(tendency, "spread"),
        "spread_null": of(tendency, "spread_null", 0),
        "spread_moving": of(tendency_moving, "spread"),
        "spread_moving_null": of(tendency_moving, "spread_null", 0),
        "clusters_p": of(found, "p_value"),
        "purity": of(found, "purity"),
        "purity_chance": of(found, "purity_chance"),
        "clusters_all_different": several,
        "effective_rank": attempt(effective_rank, signals),
        "n_frequencies": float(np.mean(n_frequencies[shaped])) if shaped.any() else None,
        "near_duplicates": of(duplicates, "share"),
        "near_duplicates_null": of(duplicates, "share_null", 0),
        "near_duplicates_moving": of(duplicates_moving, "share"),
        "near_duplicates_moving_null": of(duplicates_moving, "share_null", 0),
        "n_groups": of(duplicates, "n_groups"),
        "n_units": int(shaped.sum()),
        "n_flat": int((shaped & ~moving).sum()),
        "n_excluded": int((~shaped).sum()),
        "reason": "; ".join(dict.fromkeys(reasons)) or None,
    }


def measures(
    cfg: Settings, windows: Windows, networks: list[Network], scores: xr.Dataset, signals: xr.Dataset
) -> dict[str, dict[str, list]]:
    """Measures of every layer, each a list with one value per seed (null where there is none, ``reason`` says why).

    Made where they are not there yet, with the maps that :func:`load_positions` returns.
    """

    def build(part: Path) -> None:
        layers = [str(layer) for layer in signals["layer"].values]
        empty = xr.DataArray(
            np.full((len(networks), len(layers), signals.sizes["unit"], 2), np.nan),
            dims=("seed", "layer", "unit", "coordinate"),
            coords={"seed": [n.seed for n in networks], "layer": layers},
        )
        positions, found = empty.copy(), {layer: [] for layer in layers}
        for layer in layers:
            for net in networks:
                seen = view(signals, scores, empty, windows.train, net.seed, layer)
                which = {"preset": PRESET, "technique": METHOD, "seed": net.seed, "layer": layer}
                values = measure(seen.signals, seen.activities, scores["n_frequencies"].sel(which).values)
                found[layer].append(values)
                if values["n_units"] >= FEWEST_UNITS and not _all_same(seen.signals):
                    placed = embed(seen.signals, cfg.atlas.perplexity, cfg.atlas.seed)
                    positions.loc[{"seed": net.seed, "layer": layer}] = placed
        table = {layer: {name: [one[name] for one in rows] for name in rows[0]} for layer, rows in found.items()}
        write_json(part / "measures.json", table)
        write_dataset(part / "positions.nc", positions.to_dataset(name="positions"))

    about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=[n.seed for n in networks])
    return read_json(STAGE.obtain(key(cfg, windows, networks), build, about) / "measures.json")


def _all_same(signals: np.ndarray) -> bool:
    used = signals[usable(signals)]
    return bool(np.ptp(used, axis=0).max() <= CONSTANT_G)


def load_measures(cfg: Settings, windows: Windows, networks: list[Network]) -> dict[str, dict[str, list]]:
    """The measures that notebook 05 made; missing ones raise :class:`store.files.ArtifactError`."""
    return read_json(STAGE.require(key(cfg, windows, networks)) / "measures.json")


def load_positions(cfg: Settings, windows: Windows, networks: list[Network]) -> xr.DataArray:
    """The t-SNE maps, (seed, layer, unit, coordinate); NaN for units without a place."""
    return read_dataset(STAGE.require(key(cfg, windows, networks)) / "positions.nc")["positions"]


def key(cfg: Settings, windows: Windows, networks: list[Network]) -> str:
    """Address of the measures and maps of a run."""
    return STAGE.key([cfg.atlas], *(similarity.key(cfg, windows, net, "methods") for net in networks))


@dataclass(frozen=True)
class AtlasLayer:
    """What the page shows of one layer; all arrays share the unit axis, times are samples."""

    name: str
    positions: np.ndarray  # (unit, 2), NaN for a unit left out
    signals: np.ndarray  # (unit, time), G
    activities: np.ndarray  # (unit,) activity of the nearest real window, negative for none
    windows: np.ndarray  # (unit, time), G: the nearest real window
    starts: np.ndarray  # (unit,) where the compared piece begins in the signal
    offsets: np.ndarray  # (unit,) where it begins in the window
    distances: np.ndarray  # (unit,) d(u, i) of that window, G^2
