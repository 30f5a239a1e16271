"""Signals turned into a 2-D map (paper section 6, Fig. 8), and the map's units beside their nearest real windows.

What a picture seems to show is asked in numbers by :mod:`harvis_utils.metrics.clustering`. Everywhere ``signals`` is
(unit, time) in G, or (unit, axis, time) where units mix axes. A unit whose signal is not finite or constant (on every
axis) has no place on the map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.metrics import intervals
from harvis_utils.metrics.clustering import CONSTANT_G, AtlasError, measure, shaped, usable
from harvis_utils.metrics.signal_measures import FLAT_G, flat, in_rows, ranges
from harvis_utils.settings import AtlasSettings, Settings
from harvis_utils.store.results import kept

#: Paper: the atlas shows the proposed method's signals
PRESET, METHOD = "calibrated", "L2+TV+EAP+clip"


def effective_perplexity(perplexity: float, n_units: int) -> float:
    """The perplexity used for ``n_units``: the one asked for, at most a third of the other units.

    t-SNE is undefined from n_units on and says nothing long before: each unit's neighbourhood would be all others.
    """
    return float(min(perplexity, (n_units - 1) / 3))  # Choice: the usual bound, three perplexities of neighbours


def embed(signals: np.ndarray, perplexity: float = 15.0, seed: int = 0, init: str = "pca") -> np.ndarray:
    """t-SNE map of the units (paper section 6): signals in G to (unit, 2), NaN for units without a shape.

    Choice: distances are Euclidean between the signals as they are, in G, neither shifted nor scaled, because the
    paper embeds the generated signals themselves; where units mix axes, over all of them. Choice: ``init="pca"`` makes
    the map a function of the signals alone, whatever the seed; ``init="random"`` shows what another seed would have
    drawn. ``perplexity`` is limited by :func:`effective_perplexity`. Raises :class:`AtlasError` for fewer than five
    usable or for identical signals.
    """
    from sklearn.manifold import TSNE

    used = shaped(signals)
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


def sensitivity(
    signals: np.ndarray, perplexities: Sequence[float], seeds: Sequence[int], reference: np.ndarray
) -> xr.Dataset:
    """Maps with other perplexities and random starts, and how much of ``reference`` (unit, 2) each keeps.

    Returns ``positions`` (perplexity, seed, unit, coordinate), of each effective perplexity once, and the shares of
    common neighbours ``kept`` (perplexity, seed): of the ten nearest, or of a quarter of the units where these are few.
    The attribute ``chance`` is the share that unrelated maps have in common.
    """
    n_units = int(usable(signals).sum())
    k = max(1, min(10, n_units // 4))
    effective = sorted({effective_perplexity(p, n_units) for p in perplexities})
    maps = np.stack([[embed(signals, p, s, init="random") for s in seeds] for p in effective])
    shares = [[common_neighbours(reference, one, k) for one in row] for row in maps]
    found = {
        "positions": (("perplexity", "seed", "unit", "coordinate"), maps),
        "kept": (("perplexity", "seed"), shares),
    }
    coords = {"perplexity": effective, "seed": list(seeds)}
    return xr.Dataset(found, coords, {"chance": k / (n_units - 1)})


def _of(made: xr.Dataset | xr.DataArray, seed: int, layer: str) -> xr.Dataset | xr.DataArray:
    return made.sel(preset=PRESET, technique=METHOD, seed=seed, layer=layer)


def kept_signals(signals: xr.Dataset, scores: xr.Dataset, seed: int, layer: str) -> np.ndarray:
    """The proposed method's signals of one network's layer; failed and dead units are NaN."""
    chosen, judged = _of(signals["signal"], seed, layer), _of(scores, seed, layer)
    return in_rows(chosen.where(~judged["failed"] & ~judged["dead"]), ["unit"]).astype(np.float64)


def activities_of(scores: xr.Dataset, train: Split, seed: int, layer: str, mixed: bool = False) -> np.ndarray:
    """Activity of each unit's nearest training window, as in the paper's Fig. 8; (unit,), -1 for none.

    ``mixed`` says that units mix axes, so that the nearest are whole windows.
    """
    segment = _of(scores["segment"], seed, layer).isel(neighbour=0).values
    return np.where(segment < 0, -1, train.activity[segment // (1 if mixed else train.series.shape[1])])


@dataclass(frozen=True)
class AtlasLayer:
    """What the page shows of one layer; all arrays share the unit axis, times are samples."""

    name: str
    positions: np.ndarray  # (unit, 2), NaN for a unit left out
    signals: np.ndarray  # (unit[, axis], time), G
    activities: np.ndarray  # (unit,) activity of the nearest real window, negative for none
    windows: np.ndarray  # (unit[, axis], time), G: the nearest real window
    starts: np.ndarray  # (unit,) where the compared piece begins in the signal
    offsets: np.ndarray  # (unit,) where it begins in the window
    distances: np.ndarray  # (unit,) d(u, i) of that window, G^2
    units: np.ndarray | None = None  # (unit,) their numbers, where they are not all of the layer's


def view(
    signals: xr.Dataset, scores: xr.Dataset, places: xr.DataArray, train: Split, seed: int, layer: str
) -> AtlasLayer:
    """One layer of one network with its nearest real windows, for figures and for the page.

    ``places`` are what :func:`positions` returns.
    """
    nearest = _of(scores, seed, layer).isel(neighbour=0)
    segment, mixed = nearest["segment"].values, "axis" in signals["signal"].dims
    n_axes = train.series.shape[1]
    real = (train.x[segment] if mixed else train.x[segment // n_axes, segment % n_axes]).astype(np.float64)
    real[segment < 0] = np.nan
    return AtlasLayer(
        name=layer,
        positions=places.sel(seed=seed, layer=layer).transpose("unit", "coordinate").values,
        signals=kept_signals(signals, scores, seed, layer),
        activities=activities_of(scores, train, seed, layer, mixed),
        windows=real,
        starts=nearest["piece_start"].values,
        offsets=nearest["offset"].values,
        distances=nearest["distance"].values,
        units=signals["unit"].values,
    )


def counted(views: Mapping[str, AtlasLayer]) -> pd.DataFrame:
    """Units of each layer by what becomes of them: how many are left out, and how many of the others are flat."""
    rows = {}
    for layer, one in views.items():
        still, shape = flat(one.signals), usable(one.signals)
        zero = still & (np.abs(one.signals).reshape(len(still), -1).max(1) < FLAT_G)
        groups = {"failed or dead": np.isnan(ranges(one.signals)), "flat": still, "of these at zero": zero}
        groups |= {"of these constant: left out": still & ~shape, "on the map": shape}
        groups |= {"of these flat": still & shape, "of these flat at zero": zero & shape}
        rows[layer] = {name: int(group.sum()) for name, group in groups.items()}
    return pd.DataFrame(rows).T


@kept("atlas")
def placed(signals: np.ndarray, settings: AtlasSettings) -> xr.Dataset:
    """The ``positions`` (unit, coordinate) of :func:`embed`; all NaN where too few units differ."""
    try:
        found = embed(signals, settings.perplexity, settings.seed)
    except AtlasError:
        found = np.full((len(signals), 2), np.nan)
    return xr.Dataset({"positions": (("unit", "coordinate"), found)})


def positions(cfg: Settings, scores: xr.Dataset, signals: xr.Dataset) -> xr.DataArray:
    """The t-SNE maps, (seed, layer, unit, coordinate), NaN for units without a place; missing ones are made."""
    coords = {"seed": signals["seed"].values, "layer": [str(layer) for layer in signals["layer"].values]}
    found = [
        [placed(kept_signals(signals, scores, seed, layer), cfg.atlas)["positions"].values for layer in coords["layer"]]
        for seed in coords["seed"]
    ]
    return xr.DataArray(np.stack(found), dims=("seed", "layer", "unit", "coordinate"), coords=coords)


def measures(windows: Windows, scores: xr.Dataset, signals: xr.Dataset) -> dict[str, dict[str, list]]:
    """:func:`clustering.measure` of every layer, each a list with one value per seed; missing ones are made."""
    found, seeds = {}, signals["seed"].values
    layers = [str(layer) for layer in signals["layer"].values]
    of = {(layer, seed): kept_signals(signals, scores, seed, layer) for layer in layers for seed in seeds}
    moving = {place: int((usable(own) & ~flat(own)).sum()) for place, own in of.items()}
    for layer in layers:
        rows = []
        for seed in seeds:
            activities = activities_of(scores, windows.train, seed, layer, "axis" in signals["signal"].dims)
            n_frequencies = _of(scores["n_frequencies"], seed, layer).values
            n_equal = min(moving[other, seed] for other in layers)
            rows.append(measure(of[layer, seed], activities, n_frequencies, n_equal))
        found[layer] = {name: [row[name] for row in rows] for name in rows[0]}
    return found


#: measures of bunching: the name in :func:`clustering.measure`, and the sign that makes more of it "more bunched"
BUNCHED = {"Hopkins statistic": ("hopkins_moving", 1), "spread": ("spread_moving", -1), "silhouette": ("silhouette", 1)}


def beyond_noise(numbers: pd.DataFrame, layer: str) -> pd.DataFrame:
    """How much more bunched the signals of a layer are than noise with their covariance; intervals over networks.

    ``numbers`` holds :func:`measures` in rows and a network of a layer in each column, (layer, seed). One row for each
    of :data:`BUNCHED`, with "beyond noise" and its ends: above 0 is more bunched than noise.
    """
    own = numbers[layer].astype(float)
    rows = [sign * (own.loc[of] - own.loc[f"{of}_null"]).values for of, sign in BUNCHED.values()]
    return pd.DataFrame([intervals.with_interval("beyond noise", row, least=2) for row in rows], pd.Index(BUNCHED))


def deeper(numbers: pd.DataFrame, unexplained: xr.DataArray, layers: Sequence[str]) -> pd.DataFrame:
    """The measures that decide whether the deeper of two ``layers`` is the more complex one (C11): means, difference.

    ``numbers`` as in :func:`beyond_noise`; ``unexplained`` (seed, layer, unit) is the share of a unit's output that no
    linear filter explains, NaN where its signal does not move. "deeper" is the difference of the two layers, with its
    interval over networks.
    """
    of = {name: numbers.loc[name].unstack("layer") for name in ("variety", "distinct")}
    of["unexplained"] = unexplained.mean("unit").to_series().unstack("layer")
    ends = {name: by[list(layers)].astype(float) for name, by in of.items()}
    rows = {name: dict(by.mean()) for name, by in ends.items()}
    for name, by in ends.items():
        rows[name] |= intervals.with_interval("deeper", (by[layers[1]] - by[layers[0]]).values, least=2)
    return pd.DataFrame(rows).T.rename_axis("measure")
