"""What verdicts are read from, as it is or drawn anew, and the numbers that are taken of it as a whole.

Values are (..., seed, unit): in front of networks and units stand readings and draws, where there are any. A statistic
reduces the last two axes, so that one call gives the number itself, or all its bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from harvis_utils.maximization.paper_methods import BASELINE, PROPOSED
from harvis_utils.metrics.intervals import ENOUGH_SEEDS, N_DRAWS
from harvis_utils.metrics.signal_measures import FLAT_G

LAYERS = ("conv1", "conv2", "conv3")
AAP, EAP = "L2+TV+AAP", "L2+TV+EAP"
#: Choice: an output this many times its threshold has exploded
EXPLODED = 1.5
#: Choice: values that differ by less than this share are equal
TIE = 1e-3

#: values over (..., seed, unit), and what is read from the scores for them
Values = np.ndarray
Quantity = str | Callable[[xr.Dataset], xr.DataArray]


@dataclass(frozen=True)
class Evidence:
    """What the verdicts are read from, as it is or drawn anew.

    ``scores`` has dims ([reading,] seed, technique, layer, unit) and ``controls`` (seed, control, layer, unit), both as
    :mod:`harvis_utils.metrics.similarity` makes them; ``scores`` may also hold ``nonlinearity`` (seed, layer, unit).
    ``atlas`` maps a layer to the measures of notebook 05, one value per network each. Where these were run,
    ``widths`` has ``near_duplicates`` and ``near_duplicates_null`` (seed, layer), ``f1_change`` (seed,), half the width
    minus the full one, and ``merging`` (seed, layer), what merging near-duplicates costs less than merging others;
    ``people`` is a table with a row per person left out and layer.
    """

    dataset: str
    epochs: int
    macro_f1: np.ndarray  # (seed,)
    amplitude_threshold_g: float
    scores: xr.Dataset
    controls: xr.Dataset
    atlas: Mapping[str, Mapping[str, Sequence]]
    widths: Mapping[str, np.ndarray] | None = None
    people: pd.DataFrame | None = None
    network: np.ndarray | None = None  # (draw, seed) indices of networks
    unit: np.ndarray | None = None  # (draw, seed, layer, unit) indices of units

    def of(self, method: str, variable: Quantity, layer: str | None = None) -> Values:
        """Values of a method or control, ([reading,] [draw,] seed, unit), of one layer or of all side by side.

        ``variable`` is a name, or a function of the scores. Dead units are NaN. Failed ones have an infinite ``s_u``:
        the worst (the paper leaves them out of Ssim, see :func:`finite`).
        """
        known = method in self.scores["technique"].values
        chosen = self.scores.sel(technique=method) if known else self.controls.sel(control=method)
        values = chosen[variable] if isinstance(variable, str) else variable(chosen)
        values = values.where(~chosen["dead"])
        if variable == "s_u":
            values = values.where(~chosen["failed"], np.inf).where(~chosen["dead"])
        names = list(map(str, chosen["layer"].values))
        array = values.transpose(..., "seed", "layer", "unit").values.astype(float)
        parts = [
            self._drawn(array[..., k, :], k) for k in (range(len(names)) if layer is None else [names.index(layer)])
        ]
        return np.concatenate(parts, axis=-1)

    def moves(self, method: str, layer: str | None = None) -> Values:
        """Whether the method's signals are not flat, as in :meth:`of`; False for dead units."""
        return self.of(method, "range_g", layer) >= FLAT_G

    def once(self, values: Sequence | np.ndarray) -> Values:
        """What every network, or person, has once, (seed[, k]), as values ([draw,] seed, k).

        As many as there are networks are drawn with these, others by themselves; fewer than five are not drawn: NaN.
        """
        array = np.asarray(values, dtype=float)
        array = array.reshape(len(array), -1)
        if self.network is None:
            return array
        shape = (len(self.network), len(array))
        if shape[1] < ENOUGH_SEEDS:
            return np.full((*shape, array.shape[1]), np.nan)
        same = shape == self.network.shape
        return array[self.network if same else np.random.default_rng(0).integers(shape[1], size=shape)]

    def of_people(self, name: str) -> Values:
        """A column of ``people``, by person and layer, as :meth:`once` gives it."""
        return self.once(self.people.pivot(index="person", columns="layer", values=name))

    def _drawn(self, values: np.ndarray, layer: int) -> Values:
        if self.network is None:
            return values
        return values[..., self.network[..., None], self.unit[:, :, layer]]

    def drawn(self, network: np.ndarray, unit: np.ndarray) -> Evidence:
        """The same evidence of other networks (draw, seed) and units (draw, seed, layer, unit), all draws at once."""
        return replace(self, network=network, unit=unit)

    def resampled(self, n: int = N_DRAWS, seed: int = 0) -> Evidence:
        """``n`` bootstrap draws: networks (from five on), then units within each of their layers."""
        sizes, rng = self.scores.sizes, np.random.default_rng(seed)
        shape = (n, sizes["seed"], sizes["layer"], sizes["unit"])
        network = np.broadcast_to(np.arange(sizes["seed"]), shape[:2])
        if sizes["seed"] >= ENOUGH_SEEDS:
            network = rng.integers(sizes["seed"], size=shape[:2])
        return self.drawn(network, rng.integers(sizes["unit"], size=shape))

    @property
    def base(self) -> str:
        """The data set's name without "-approximate"."""
        return self.dataset.removesuffix("-approximate")


# --------------------------------------------------------------------------------------------- numbers of the evidence


def _over_last(values: Values) -> np.ndarray:
    known = ~np.isnan(values)
    n = known.sum(-1)
    return np.divide(np.where(known, values, 0).sum(-1), n, out=np.full(n.shape, np.nan), where=n > 0)


def mean(values: Values, among: Values | None = None) -> np.ndarray:
    """Mean over units, then over networks, (..., seed, unit) -> (...,), NaN and units not ``among`` left out."""
    return _over_last(_over_last(np.where(True if among is None else among, values, np.nan)))


def median(values: Values, among: Values | None = None) -> np.ndarray:
    """Median over the units of all networks, (..., seed, unit) -> (...,), NaN and units not ``among`` left out."""
    values = np.where(True if among is None else among, values, np.nan)
    ordered = np.sort(values.reshape(*values.shape[:-2], -1), axis=-1)  # NaN come last
    n = (~np.isnan(ordered)).sum(-1)[..., None]
    ends = [np.take_along_axis(ordered, np.maximum(at, 0) // 2, -1)[..., 0] for at in (n - 1, n)]
    return np.where(n[..., 0] > 0, (ends[0] + ends[1]) / 2, np.nan)


def finite(values: Values) -> Values:
    """The values with NaN for what is infinite: failed units, which the paper leaves out of Ssim."""
    return np.where(np.isinf(values), np.nan, values)


def above(values: Values, level: float) -> Values:
    """1 where a value is above the level, else 0; NaN stays."""
    return np.where(np.isnan(values), np.nan, values > level)


def ratio(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """First over second; NaN unless the second is above 0."""
    return np.divide(first, second, out=np.full(np.broadcast(first, second).shape, np.nan), where=second > 0)


def lower(e: Evidence, first: str, second: str, variable: str, layer: str | None = None) -> np.ndarray:
    """Share of units with a lower value by the first method; ties, and what both leave flat, count half."""
    a, b = e.of(first, variable, layer), e.of(second, variable, layer)
    tie = np.isclose(a, b, rtol=TIE, atol=0) | ~(e.moves(first, layer) | e.moves(second, layer))
    return mean(np.where(np.isnan(a) | np.isnan(b), np.nan, np.where(tie, 0.5, a < b)))


def ssim_ratio(e: Evidence, layer: str, moving: bool = False) -> np.ndarray:
    """Ssim of the proposed method over that of L2+TV, as in Fig. 3; or of the units that both leave ``moving``."""
    among = e.moves(PROPOSED, layer) & e.moves(BASELINE, layer) if moving else None
    return ratio(*(mean(finite(e.of(method, "s_u", layer)), among) for method in (PROPOSED, BASELINE)))


def ssim_ratio_to_conv1(e: Evidence, layer: str) -> np.ndarray:
    """How much Ssim falls at a layer over how much it falls at Conv1; below 1 it falls more."""
    return ratio(ssim_ratio(e, layer), ssim_ratio(e, "conv1"))


def ssim_ratio_moving(e: Evidence) -> np.ndarray:
    """The same of units that both methods leave moving, mean over the layers that have any."""
    return _over_last(np.stack([ssim_ratio(e, layer, moving=True) for layer in LAYERS], -1))


def near_threshold(e: Evidence, method: str) -> np.ndarray:
    """Share of units whose largest output is within 20 % of the threshold; flat ones count."""
    reached = e.of(method, "activation_ratio")
    return mean(np.where(np.isnan(reached), np.nan, np.abs(reached - 1) <= 0.2))


def exploded(e: Evidence) -> Values:
    """Per unit whether it peaks far above its threshold under EAP without clipping; NaN for dead units."""
    return above(e.of(EAP, "activation_ratio"), EXPLODED)


def still_moving(e: Evidence) -> np.ndarray:
    """Share of the units that explode without clipping whose signals move with it."""
    return mean(e.moves(PROPOSED), exploded(e) == 1)


def smoother(e: Evidence) -> np.ndarray:
    """Total variation with clipping over that without, median of the units that explode without."""
    with_clip, without = (e.of(method, "total_variation_g") for method in (PROPOSED, EAP))
    return median(ratio(with_clip, without), exploded(e) == 1)


def layer_ratios(e: Evidence, method: str = PROPOSED) -> np.ndarray:
    """Mean of largest output / th of each layer, as in Fig. 4: (layer, ...)."""
    return np.stack([mean(e.of(method, "activation_ratio", layer)) for layer in LAYERS])


def layers_near(e: Evidence) -> np.ndarray:
    """Share of layers whose mean is within 20 % of the threshold."""
    return np.mean(np.abs(layer_ratios(e) - 1) <= 0.2, axis=0)


def lift(e: Evidence, shape: str, words: str, same: bool = True) -> np.ndarray:
    """How much more often than among all windows an activity is among those nearest to moving signals of a shape.

    ``words`` are part of the activity's name; signals of all other shapes where not ``same``.
    """
    index = [i for i, name in enumerate(e.scores["activity"].values) if words in str(name)]
    among = e.of(PROPOSED, lambda s: (s["shape"] == shape) == same) == 1
    found = e.of(PROPOSED, lambda s: s["nearest_share"].isel(activity=index).sum("activity"))
    searched = np.isfinite(e.of(PROPOSED, "s_u"))
    return mean(found, among & searched & e.moves(PROPOSED)) / float(e.scores["activity_share"][index].sum())


def matched(e: Evidence, method: str) -> np.ndarray:
    """Correlation of a piece with its nearest real piece, median of the signals that move."""
    return median(e.of(method, "shape_match"), e.moves(method))


def beyond_real(e: Evidence) -> np.ndarray:
    """How much better a moving proposed piece fits its nearest window than a real piece of the same shape does."""
    own = e.of(PROPOSED, "shape_match")
    gained = np.full(own.shape, np.nan)
    for shape in ("rising edge", "falling edge", "peak", "valley", "other"):

        def named(s: xr.Dataset, shape: str = shape) -> xr.DataArray:
            return s["shape"] == shape

        real = median(e.of("held-out-windows", "shape_match"), e.of("held-out-windows", named) == 1)
        gained = np.where(e.of(PROPOSED, named) == 1, own - real[..., None, None], gained)
    return median(gained, e.moves(PROPOSED))


def deeper_unexplained(e: Evidence) -> np.ndarray:
    """Share of outputs of units with a moving signal that no linear filter explains, Conv3 minus Conv1."""
    first, _, last = (mean(e.of(PROPOSED, "nonlinearity", la), e.moves(PROPOSED, la)) for la in LAYERS)
    return last - first


def deeper(e: Evidence, name: str, null: str = "") -> np.ndarray:
    """A measure of the atlas in Conv3 minus in Conv1, less its null where one is named; mean over networks."""
    each = [e.once(e.atlas[layer][name]) - (e.once(e.atlas[layer][null]) if null else 0) for layer in LAYERS[::2]]
    return mean(each[1] - each[0])


def hopkins_above_noise(e: Evidence, which: str = "") -> np.ndarray:
    """Conv1's Hopkins statistic less that of noise with the same covariance, mean over networks."""
    return mean(e.once(e.atlas["conv1"][f"hopkins{which}"]) - e.once(e.atlas["conv1"][f"hopkins{which}_null"]))


def clusters_p(e: Evidence) -> np.ndarray:
    """Fisher's combined p of all networks that clusters and activities are unrelated: (conv1, conv3)."""
    each = [np.asarray(e.atlas[layer]["clusters_p"], dtype=float) for layer in LAYERS[::2]]
    known = [p[~np.isnan(p)] for p in each]
    return np.array([stats.combine_pvalues(p).pvalue if len(p) else np.nan for p in known])


def smaller_p(e: Evidence) -> np.ndarray:
    """The smaller of the two, doubled, because two were tried."""
    return np.minimum(1, 2 * np.fmin.reduce(clusters_p(e)))


def all_different(e: Evidence) -> np.ndarray:
    """Share of networks whose clusters have activities of their own, less chance, in the layer of the smaller p."""
    layer = LAYERS[::2][int(np.nan_to_num(clusters_p(e), nan=1.0).argmin())]
    own, chance = (e.once(e.atlas[layer][f"clusters_all_different{end}"]) for end in ("", "_chance"))
    return mean(own - chance)
