"""Signals turned into numbers about their structure, where a picture could be read in many ways (paper section 6).

The claims about the map (C10 to C12): is there more clustering than in noise with the same covariance, how far apart
do units lie, how many say the same. Everywhere ``signals`` is (unit, time) in G, or (unit, axis, time) where units mix
axes. A unit whose signal is not finite or constant (on every axis) has no shape; it is left out, and results say how
many were.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist, squareform

from harvis_utils.metrics import intervals
from harvis_utils.metrics.signal_measures import flat, ranges
from harvis_utils.metrics.similarity import CONSTANT_G, unit_norm
from harvis_utils.settings import HarvisError
from harvis_utils.store.results import kept

#: fewer units than this have no map
FEWEST_UNITS = 5


class AtlasError(HarvisError, ValueError):
    """Too few units, or arrays that do not belong together; the message says which and what to do."""


def usable(signals: np.ndarray) -> np.ndarray:
    """Which units have a shape: finite and not constant; bool (unit,)."""
    if np.ndim(signals) not in (2, 3) or np.shape(signals)[-1] < 2:
        raise AtlasError(
            f"signals should be (unit, time) or (unit, axis, time) with at least two samples, "
            f"not of shape {np.shape(signals)}"
        )
    return ranges(signals) > CONSTANT_G  # NaN is not


def shaped(signals: np.ndarray, fewest: int = FEWEST_UNITS) -> np.ndarray:
    """The :func:`usable` signals, (unit, all samples) as float64; fewer than ``fewest`` raise :class:`AtlasError`."""
    keep = usable(signals)
    if keep.sum() < fewest:
        raise AtlasError(
            f"{keep.sum()} of {len(keep)} units have a signal that is finite and not constant; at least {fewest} are "
            f"needed; take a layer, method or preset with more of them"
        )
    return np.asarray(signals, np.float64)[keep].reshape(keep.sum(), -1)


def gaussian_null(points: np.ndarray, seed: int) -> np.ndarray:
    """As many points from a Gaussian with the mean and covariance of ``points`` (unit, time): no clusters in it."""
    mean = points.mean(0)
    weights = np.random.default_rng(seed).standard_normal((len(points), len(points))) / np.sqrt(len(points) - 1)
    return mean + weights @ (points - mean)  # covariance in expectation that of the points, whatever their rank


def hopkins(points: np.ndarray, seed: int = 0, repeats: int = 20) -> float:
    """Hopkins statistic: distance from random places to the nearest point, against that between points.

    About 0.5 for points spread evenly over their bounding box, towards 1 for clusters; correlated samples alone
    raise it too, so read it beside :func:`gaussian_null`. Choice: all points, first power of the distances.
    """
    tree = cKDTree(points)
    between = tree.query(points, k=2)[0][:, 1].sum()
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(repeats):
        places = generator.uniform(points.min(0), points.max(0), points.shape)
        outside = tree.query(places)[0].sum()
        values.append(outside / (outside + between) if outside + between > 0 else 0.5)
    return float(np.mean(values))


def _by_size(labels: np.ndarray) -> np.ndarray:
    """Labels renamed 0, 1, ... from the largest group to the smallest."""
    _, labels, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return rank[labels]


def best_silhouette(points: np.ndarray) -> tuple[int, float]:
    """Number of Ward clusters, 2 to 10, with the largest mean silhouette, and that silhouette (-1 to 1)."""
    from sklearn.metrics import silhouette_score

    tree, distances = linkage(points, "ward"), squareform(pdist(points))
    best = (1, -1.0)
    for k in range(2, 11):
        labels = fcluster(tree, k, "maxclust")
        if 2 <= len(np.unique(labels)) < len(points):
            best = max(best, (k, float(silhouette_score(distances, labels, metric="precomputed"))), key=lambda b: b[1])
    return best


def cluster_tendency(signals: np.ndarray, seed: int = 0, n_null: int = 20) -> dict:
    """How clustered signals are: ``hopkins``, best ``silhouette`` (of ``best_k`` clusters) and ``spread`` (C10).

    With "_null" after the name, the list of the same of ``n_null`` draws of noise with the signals' covariance.
    """
    used = shaped(signals)
    draws = [gaussian_null(used, seed + i) for i in range(n_null)]
    k, silhouette = best_silhouette(used)
    return {
        "hopkins": hopkins(used, seed),
        "hopkins_null": [hopkins(draw, seed) for draw in draws],
        "silhouette": silhouette,
        "silhouette_null": [best_silhouette(draw)[1] for draw in draws],
        "best_k": k,
        "spread": spread(used),
        "spread_null": [spread(draw) for draw in draws],
    }


def spread(signals: np.ndarray) -> float:
    """Mean distance to the nearest other unit over the mean distance between units: small when units bunch."""
    used = shaped(signals, fewest=2)
    between = pdist(used)
    if between.max() <= CONSTANT_G:
        return 0.0  # all the same: nothing is scattered
    distances = squareform(between)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min(1).mean() / between.mean())


def clusters_and_activities(
    points: np.ndarray, activities: np.ndarray, n_clusters: int = 3, seed: int = 0, n_permutations: int = 2000
) -> dict:
    """Do clusters belong to different activities (C10)? Ward clusters of ``points``, signals or map positions.

    ``points`` is (unit, dimension), ``activities`` (unit,) indices, negative for none. Units without finite points
    or without an activity are left out. ``labels`` (unit,), -1 for a unit left out; ``contingency`` (cluster,
    activity) numbers of units; ``majority``, the commonest activity of each cluster, whether they are
    ``clusters_all_different``, and in which share of shuffles of the activities they are,
    ``clusters_all_different_chance``; ``purity``, the share of units that have their cluster's majority activity;
    ``purity_chance``, its mean over shuffles; ``clusters_p``, the share of shuffles at least as pure.
    Clusters are numbered from the largest, and fewer where points coincide. Choice: units trade their activities, one
    each, because the null hypothesis is about units: no window is drawn.
    """
    points, activities = np.asarray(points, np.float64), np.asarray(activities)
    if activities.shape != points.shape[:1]:
        raise AtlasError(f"{activities.shape} activities do not belong to points of shape {points.shape}")
    keep = np.isfinite(points).all(1) & (activities >= 0)
    if keep.sum() < max(n_clusters, FEWEST_UNITS):
        raise AtlasError(f"only {keep.sum()} units have a place and an activity; {n_clusters} clusters need more")
    inside = _by_size(fcluster(linkage(points[keep], "ward"), n_clusters, "maxclust"))
    one_hot_cluster = np.eye(inside.max() + 1)[inside]
    one_hot_activity = np.eye(activities[keep].max() + 1)[activities[keep]]
    contingency = one_hot_cluster.T @ one_hot_activity
    generator = np.random.default_rng(seed)
    shuffled = (one_hot_activity[generator.permutation(len(inside))] for _ in range(n_permutations))
    shuffles = np.stack([one_hot_cluster.T @ activity for activity in shuffled])
    chance = shuffles.max(2).sum(1)
    by_chance = np.sort(shuffles.argmax(2), axis=1)
    observed = contingency.max(1).sum()
    labels = np.full(len(points), -1)
    labels[keep] = inside
    majority = tuple(int(a) for a in contingency.argmax(1))
    return {
        "labels": labels,
        "contingency": contingency.astype(int),
        "majority": majority,
        "clusters_all_different": int(len(set(majority)) == len(majority)),
        "clusters_all_different_chance": float((np.diff(by_chance, axis=1) > 0).all(1).mean()),
        "purity": float(observed / len(inside)),
        "purity_chance": float(chance.mean() / len(inside)),
        "clusters_p": float((1 + (chance >= observed).sum()) / (1 + n_permutations)),
    }


def effective_rank(signals: np.ndarray) -> float:
    """exp of the entropy of the normalized singular values of the signals less their mean over units.

    1 when all units are multiples of one shape, at most min(units - 1, time); 0 when all units are the same.
    """
    used = shaped(signals, fewest=2)
    values = np.linalg.svd(used - used.mean(0), compute_uv=False)
    if values.max() <= CONSTANT_G:
        return 0.0
    share = values / values.sum()
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return float(np.exp(-(share * logs).sum()))


def variety(signals: np.ndarray, n: int, seed: int = 0, repeats: int = 20) -> dict[str, float]:
    """How much ``n`` units differ: their :func:`effective_rank`, and the share of distinct ones (C11).

    Means over random choices of ``n`` units, so that layers with unequal numbers of units can be compared; distinct are
    the groups of :func:`near_duplicates`, over ``n``.
    """
    keep, rng = np.flatnonzero(usable(signals)), np.random.default_rng(seed)
    shaped(signals, fewest=max(n, FEWEST_UNITS))
    chosen = [signals[rng.permutation(keep)[:n]] for _ in range(repeats)]
    groups = [near_duplicates(some, n_null=1)["n_groups"] for some in chosen]
    return {"variety": float(np.mean([effective_rank(some) for some in chosen])), "distinct": np.mean(groups) / n}


def superiority(shallow: np.ndarray, deep: np.ndarray, seed: int = 0, n: int = 2000) -> tuple[float, float, float]:
    """Chance that a unit of ``deep`` exceeds one of ``shallow`` (ties half), with a 95 % bootstrap interval over units.

    0.5 means no difference between two layers' values, (unit,) each; NaN are left out, and come out where a layer has
    nothing else.
    """
    shallow, deep = (np.asarray(v, float)[np.isfinite(v)] for v in (shallow, deep))
    if not len(shallow) or not len(deep):
        return (math.nan,) * 3
    wins = (deep[:, None] > shallow).astype(float) + 0.5 * (deep[:, None] == shallow)
    draws = [
        wins[of_deep][:, others].mean() for of_deep, others in intervals.resampled(*zip(wins.shape), n=n, seed=seed)
    ]
    return float(wins.mean()), *intervals.bounds(draws)


def best_correlation(signals: np.ndarray, max_shift: int = 10) -> np.ndarray:
    """Largest correlation of every two signals under a time shift of up to ``max_shift`` samples: (unit, unit).

    Correlation (-1 to 1, mean and size removed) over the samples that overlap; 0 where an overlapping piece is
    constant. Several axes shift together, and their products add up. Units without a shape have NaN.
    """
    keep, length = usable(signals), np.shape(signals)[-1]
    if not 0 <= max_shift <= length - 2:
        raise AtlasError(f"max_shift = {max_shift} leaves fewer than two samples of {length} to compare")
    used = np.asarray(signals, np.float64)[keep]
    best = np.full((len(used), len(used)), -1.0)

    def normed(pieces: np.ndarray) -> np.ndarray:
        return unit_norm(pieces, mixed=pieces.ndim == 3).reshape(len(pieces), math.prod(pieces.shape[1:]))

    for shift in range(max_shift + 1):
        correlation = normed(used[..., shift:]) @ normed(used[..., : length - shift]).T
        best = np.maximum(best, np.maximum(correlation, correlation.T))  # the transpose is the shift the other way
    everything = np.full((len(signals), len(signals)), np.nan)
    everything[np.ix_(keep, keep)] = best.clip(-1, 1)
    return everything


def near_duplicates(
    signals: np.ndarray, threshold: float = 0.95, max_shift: int = 10, seed: int = 0, n_null: int = 20
) -> dict:
    """Share of units with a near-duplicate under the best time shift, and the number of distinct groups (C12).

    Two units are near-duplicates when :func:`best_correlation` exceeds ``threshold``; groups are the connected
    sets of these, so a chain of small differences is one group. ``near_duplicates`` is the share,
    ``near_duplicates_null`` the list of those of ``n_null`` draws of noise with the same covariance, because smooth
    signals resemble each other anyhow; ``n_groups`` counts groups and single units; ``groups`` (unit,) are numbered
    from the largest, -1 for a unit left out.
    """
    keep = usable(signals)
    used = shaped(signals, fewest=2)

    def linked(flat: np.ndarray) -> np.ndarray:
        correlation = best_correlation(flat.reshape(-1, *np.shape(signals)[1:]), max_shift)
        return (correlation > threshold) & ~np.eye(len(correlation), dtype=bool)

    with_others = linked(used)
    n_groups, labels = connected_components(with_others, directed=False)
    groups = np.full(len(keep), -1)
    groups[keep] = _by_size(labels)
    return {
        "near_duplicates": float(with_others.any(1).mean()),
        "near_duplicates_null": [linked(gaussian_null(used, seed + i)).any(1).mean() for i in range(n_null)],
        "n_groups": int(n_groups),
        "groups": groups,
    }


#: names of what :func:`measure` returns
MEASURES = (
    *("hopkins", "hopkins_null", "hopkins_moving", "hopkins_moving_null", "silhouette", "silhouette_null", "best_k"),
    *("spread", "spread_null", "spread_moving", "spread_moving_null"),
    *("clusters_p", "purity", "purity_chance", "clusters_all_different", "clusters_all_different_chance"),
    *("effective_rank", "variety", "distinct", "n_frequencies"),
    *("near_duplicates", "near_duplicates_null", "near_duplicates_moving", "near_duplicates_moving_null", "n_groups"),
    *("n_units", "n_flat", "n_excluded", "reason"),
)


@kept("atlas")
def measure(
    signals: np.ndarray, activities: np.ndarray, n_frequencies: np.ndarray, n_equal: int
) -> dict[str, float | str | None]:
    """Every number about one layer's signals, NaN for units left out; null and a reason where there is none.

    ``activities`` (unit,) are those of the nearest real windows, ``n_frequencies`` (unit,) effective numbers of
    frequencies, ``n_equal`` how many moving units every layer of the network has. What ends in ``_moving``, and what
    :func:`variety` gives, leaves out units that are all but flat (less than 0.05 G), which lie together whatever the
    others do. Nulls are means over their draws.
    """
    has_shape = usable(signals)
    moving = has_shape & ~flat(signals)
    found, reasons, inner = {}, [], [1] * (np.ndim(signals) - 1)
    with_shape, in_motion = (np.where(of.reshape(-1, *inner), signals, np.nan) for of in (has_shape, moving))

    def attempt(call: Callable, *arguments):
        try:
            return call(*arguments)
        except AtlasError as error:
            reasons.append(str(error))
            return {}

    for call in (cluster_tendency, near_duplicates):
        for ending, of in (("", signals), ("_moving", in_motion)):
            for name, value in attempt(call, of).items():
                plain = name.removesuffix("_null")
                found[plain + ending + name[len(plain) :]] = float(np.mean(value)) if plain != name else value
    found |= attempt(clusters_and_activities, with_shape.reshape(len(signals), -1), activities)
    found |= attempt(lambda: {"effective_rank": effective_rank(signals)}) | attempt(variety, in_motion, n_equal)
    found["n_frequencies"] = float(np.mean(n_frequencies[has_shape])) if has_shape.any() else None
    found |= {"n_units": int(has_shape.sum()), "n_flat": int((has_shape & ~moving).sum())}
    found |= {"n_excluded": int((~has_shape).sum()), "reason": "; ".join(dict.fromkeys(reasons)) or None}
    return {name: found.get(name) for name in MEASURES}
