"""Signals turned into how well they explain their unit: does the picture tell what excites it in windows not seen?

*Machine interpretability* (Borowski et al., ICLR 2021; Zimmermann et al., NeurIPS 2024, with a distance in place of
people): of two held-out windows, matched in energy and level, which excites the unit more? It is answered from the
signal alone, and the share of right answers is the score. *Template fidelity*: does the signal, slid along held-out
windows as a matched filter, rise and fall with the unit, beyond what energy, level and amplitude explain? Any lively
signal does to some degree, so that what counts is its *specificity*, the fidelity above that of other units' signals,
and *identification*, whether no other unit's signal of the same method fits the unit better.

The unit says which piece of its signal counts, as in the paper's similarity, and at which amplitude; nothing else of
the network is used. The best piece of the untouched start therefore tells more than nothing: it is to be read beside.
Units are taken where their receptive field lies inside the window, so that zeros beyond its ends count nowhere. All
of it is a Choice; the paper measures none of this. What flat signals get is chance: they show nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from scipy.stats import rankdata

from harvis_utils.data.windowing import Split
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.paper_methods import Target
from harvis_utils.metrics import similarity
from harvis_utils.metrics.signal_measures import FLAT_G, flat
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.settings import ExplanationSettings, SimilaritySettings

#: amplitudes at which it is tried whether a signal brings its unit to the threshold: half octaves up to failure
AMPLITUDES_G = SimilaritySettings().fail_amplitude_g * 2.0 ** np.arange(-10, 0.5, 0.5)
#: halvings of the half octave in which the threshold is reached: the amplitude is then within 0.3 %
N_HALVINGS = 7
#: decides which segments and pairs are drawn
SEED = 0
#: a unit with fewer pairs has no accuracy
FEWEST_PAIRS = 20
#: signals slid along all segments at once, which bounds the memory
CHUNK = 32

#: measures of :func:`explained` with what another unit's signal gets, the null
MEASURES = {
    "accuracy": "accuracy of others",
    "accuracy by error": "accuracy by error of others",
    "accuracy by shape": "accuracy by shape of others",
    "fidelity": "fidelity of others",
    "specificity": None,
    "identified": "chance",
}


@dataclass(frozen=True)
class Seen:
    """Where the samples of a place's maps look: ``width`` samples from ``begin`` (map sample) on.

    Only map samples ``inside`` (indices) see nothing beyond the window.
    """

    target: Target
    width: int
    inside: np.ndarray
    begin: np.ndarray

    @classmethod
    def by(cls, place: Trunk | Target, layer: str, length: int, width: int | None = None) -> Seen:
        """Of a layer of a trunk, or of any place (:func:`paper_methods.target_of`) for windows of ``length`` samples.

        ``width`` is by default a trunk's receptive field, and whole windows of other places. Raises ``ValueError``
        where the place's maps do not say which sample of the window they are about.
        """
        target = place if isinstance(place, Target) else paper_methods.target_of(place, layer, 1, length)
        if width is None and isinstance(target.network, Trunk):
            width = target.network.receptive_field(str(target.place))
        width = min(width or length, length)
        blank = np.zeros((1, target.axes, length), np.float32)
        n_map = target.seen(blank, lambda maps, _: maps).shape[-1]
        if width == length:
            return cls(target, width, np.arange(n_map), np.zeros(n_map, int))
        if target.at is None and n_map != length:
            raise ValueError(f"{target.place}: {n_map} samples of its maps do not say where in {length} they look")
        centre = np.arange(n_map) if target.at is None else target.at
        begin = np.round(centre - (width - 1) / 2).astype(int)
        inside = np.flatnonzero((begin >= 0) & (begin + width <= length))
        if not len(inside):
            raise ValueError(f"{target.place}: no sample of its maps sees {width} samples inside windows of {length}")
        return cls(target, width, inside, begin[inside])

    def outputs(self, segments: np.ndarray) -> np.ndarray:
        """Largest output of every unit for every segment (segment, axis, time) in s: (unit, segment) float64."""
        at = torch.as_tensor(self.inside)
        return self._of(segments, lambda maps, _: maps[..., at].amax((2, 3))).T.astype(np.float64)

    def own(self, unit: np.ndarray, signals: np.ndarray) -> np.ndarray:
        """Outputs of each signal's own unit (row,) to it, the largest of the map's axes: (row, map sample inside).

        ``signals`` are (row, axis, time) in s.
        """
        units, at = torch.as_tensor(unit), torch.as_tensor(self.inside)
        return self._of(signals, lambda of, rows: of[torch.arange(len(of)), units[rows]].amax(1)[:, at])

    def _of(self, signals: np.ndarray, keep: Callable[[torch.Tensor, slice], torch.Tensor]) -> np.ndarray:
        windows = self.target.scale.windows(torch.as_tensor(signals))
        return self.target.seen(windows.float().numpy(), keep)

    def pieces(self, unit: np.ndarray, signals: np.ndarray) -> np.ndarray:
        """What each signal (row, axis, time) excites its unit most with, the earliest of equals: (row, axis, width)."""
        return similarity.cut(signals, self.begin[self.own(unit, signals).argmax(1)], self.width)


def to_threshold(seen: Seen, unit: np.ndarray, signals: np.ndarray, th_eap: np.ndarray) -> np.ndarray:
    """By what each signal (row, axis, time) is multiplied to bring its unit just to its threshold (row,): (row,).

    Signals are in s. It is the smallest amplitude of :data:`AMPLITUDES_G` that does so, then bisection of the half
    octave below it. NaN for signals that cannot, up to the amplitude at which they have failed, and for units without
    a threshold.
    """
    peak = np.abs(signals).max((1, 2))

    def reaches(factor: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return seen.own(unit[rows], signals[rows] * factor[:, None, None]).max(1) >= th_eap[rows]

    below, above = np.zeros(len(signals)), np.full(len(signals), np.nan)
    below_it = np.flatnonzero((peak > 0) & np.isfinite(th_eap))
    for amplitude in AMPLITUDES_G:  # what has reached it is not asked again
        if not len(below_it):
            break
        factor = amplitude / peak[below_it]
        there = reaches(factor, below_it)
        above[below_it[there]], below[below_it[~there]] = factor[there], factor[~there]
        below_it = below_it[~there]
    rows = np.flatnonzero(np.isfinite(above))
    for _ in range(N_HALVINGS if len(rows) else 0):
        middle = (below[rows] + above[rows]) / 2
        there = reaches(middle, rows)
        above[rows[there]], below[rows[~there]] = middle[there], middle[~there]
    return above


def drawn_pairs(
    outputs: np.ndarray, energy: np.ndarray, level: np.ndarray, settings: ExplanationSettings
) -> np.ndarray:
    """Pairs of segments for every unit, the more exciting one first: (2, unit, pair) indices, -1 where there is none.

    The rule: segments, in the order of their ``level`` (segment,), are cut into equal groups, and each of these, in the
    order of their ``energy``, into groups again (``n_groups``). In each and for each unit, one of the ``share`` of
    segments with the largest ``outputs`` (unit, segment) meets one of the ``share`` with the smallest, ``n_pairs`` in
    all, drawn at random. Segments between which the unit does not tell, as where it is silent in both, are no pair.

    Choice: the level too, because with the energy alone it decides: on a network that judges nothing (DSADS, Conv1),
    the untouched sine then gives 84 % right answers, and flat signals of the paper's method as many.
    """
    rng, (n_levels, n_energies) = np.random.default_rng(SEED), settings.n_groups
    each, found = max(1, settings.n_pairs // (n_levels * n_energies)), []
    for alike in np.array_split(np.argsort(level, kind="stable"), n_levels):
        for group in np.array_split(alike[np.argsort(energy[alike], kind="stable")], n_energies):
            n = max(1, round(settings.share * len(group)))
            order = group[np.argsort(outputs[:, group], axis=1, kind="stable")]
            low, high = rng.integers(n, size=each), len(group) - 1 - rng.integers(n, size=each)
            pair = np.stack([order[:, high], order[:, low]])
            strong, weak = np.take_along_axis(outputs, pair[0], 1), np.take_along_axis(outputs, pair[1], 1)
            found.append(np.where(strong > weak, pair, -1))
    return np.concatenate(found, axis=2)


def accuracies(closeness: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Share of each unit's pairs that each signal gets right, a tie counting half: (signal, unit).

    ``closeness`` (signal, segment) says how near segments are to the signal. NaN for units with too few pairs.
    """
    found = np.full((len(closeness), pairs.shape[1]), np.nan)
    for unit, (strong, weak) in enumerate(pairs.swapaxes(0, 1)):
        there = strong >= 0
        if there.sum() >= FEWEST_PAIRS:
            difference = closeness[:, strong[there]] - closeness[:, weak[there]]
            found[:, unit] = ((np.sign(difference) + 1) / 2).mean(1)
    return found


def partial_spearman(first: np.ndarray, second: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Spearman correlation of each of ``first`` with each of ``second`` without what ``known`` explains of both.

    All are (row, segment); returns (first, second). From the ranks of both what is linear in the ranks of ``known`` is
    taken away. 0 where a row of ``first`` is constant, NaN where one of ``second`` is.
    """
    basis, _ = np.linalg.qr(np.vstack([np.ones(known.shape[1]), rankdata(known, axis=1)]).T)

    def rest(values: np.ndarray, constant: float) -> np.ndarray:
        ranks = rankdata(values, axis=1)
        moving = np.ptp(ranks, axis=1) > 0
        ranks -= (ranks @ basis) @ basis.T
        norm = np.linalg.norm(ranks, axis=1, keepdims=True)
        return np.where(moving[:, None], ranks / np.where(moving[:, None], norm, 1), constant)

    return rest(first, 0.0) @ rest(second, np.nan).T


def identified(fits: np.ndarray) -> np.ndarray:
    """Whether no other signal fits a unit better than its own, of (signal, unit): (unit,); k equals count 1/k each.

    NaN for a unit that nothing can be compared with.
    """
    best = fits >= fits.max(0) - 1e-9
    return np.where(np.isnan(fits).any(0), np.nan, np.diag(best) / np.maximum(best.sum(0), 1))


def explained(
    place: Trunk | Target,
    layer: str,
    signals: xr.DataArray,
    held_out: Split,
    th_eap: xr.DataArray,
    settings: ExplanationSettings | None = None,
    width: int | None = None,
) -> xr.Dataset:
    """How well any signals of one layer explain their units, dims (..., unit): the whole of this module in one call.

    ``place`` is a trunk, or one place of any network (:func:`paper_methods.target_of`; ``width`` is then how many
    samples its units see, by default whole windows). ``signals`` is (..., unit[, example][, axis], time) in the
    windows' unit, with unit numbers as coordinate: methods, variants or references under any other dimension, each
    compared with its own units only. Of several ``example`` of a unit the nearest to a window counts, and the mean of
    their cross-correlations. Signals shorter than windows stand in the middle of zeros. ``th_eap`` is (unit,) over all
    units of the layer; ``held_out`` are windows of which neither signals nor references were made; ``n_segments`` of
    their segments (one axis of one window, whole windows where units mix axes) are drawn.

    From each signal, scaled to the amplitude at which it brings its unit to its threshold (:func:`to_threshold`; what
    cannot, or is flat, is left as it is), comes its strongest receptive-field piece. Returns

    * ``accuracy by error`` and ``accuracy by shape``: share of pairs (:func:`drawn_pairs`) in which the more exciting
      window is the one with the smaller mean squared error at the best offset, or with the higher normalized
      correlation; and ``accuracy``, their mean. Chance is 0.5. NaN for units with fewer than 20 pairs;
    * ``fidelity``: Spearman correlation of the largest cross-correlation with the piece and the unit's largest output
      over windows, without what energy, level and largest amplitude explain; 0 for flat signals;
    * ``specificity``: that minus the mean of the other units' signals; ``identified``: 1 where none of them has more,
      else 0, equals sharing; chance is 1 / number of units, which is also what flat signals get;
    * "... of others": what the other units' signals get on this unit, on average;
    * ``factor`` by which the signal was scaled, ``reaches`` the threshold, ``flat``, and ``chance``.

    Units that are silent in all those windows have NaN. Raises ``ValueError`` for fewer than two units and for signals
    longer than windows.
    """
    settings = settings or ExplanationSettings()
    seen = Seen.by(place, layer, held_out.length, width)
    units = signals["unit"].values
    if len(units) < 2:
        raise ValueError("explanations are compared between units, but signals are of one unit only")
    names = [d for d in signals.dims if d not in ("unit", "example", "axis", "time")]
    x = in_windows(signals, names, seen.target, held_out.length)
    segments = drawn_segments(held_out, seen.target, settings)
    outputs, about = seen.outputs(segments)[units], described(segments)
    pairs = drawn_pairs(outputs, *about[:2], settings)
    windows, th = Pieces.of(segments, seen.width), th_eap.sel(unit=units).values
    pieces, factor, still = strongest_pieces(seen, units, x, th)
    rows = [_explained(*of, windows, outputs, pairs, about) for of in zip(pieces, still, strict=True)]
    tables = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    tables |= {"factor": np.nan_to_num(factor[..., 0], nan=1.0), "reaches": np.isfinite(factor).any(-1)}
    shape, dims = [signals.sizes[d] for d in names], (*names, "unit")
    found = {name: (dims, of.reshape(*shape, len(units))) for name, of in (tables | {"flat": still.all(-1)}).items()}
    return xr.Dataset(found, {d: signals[d] for d in dims if d in signals.coords})


def in_windows(signals: xr.DataArray, names: Sequence[str], target: Target, length: int) -> np.ndarray:
    """Signals in s, zeros before and behind shorter ones: (name, unit, example, axis, time) float64.

    What is not finite becomes zeros, which show nothing. Raises ``ValueError`` for signals longer than windows.
    """
    if (missing := length - signals.sizes["time"]) < 0:
        raise ValueError(f"signals of {signals.sizes['time']} samples are longer than windows of {length}")
    inner = [d for d in ("example", "axis", "time") if d in signals.dims]
    x = signals.transpose(*names, "unit", *inner).values.astype(np.float64)
    shape = (-1, signals.sizes["unit"], signals.sizes.get("example", 1), target.axes, x.shape[-1])
    x = target.scale.signals(x.reshape(shape)).numpy()
    x = np.where(np.isfinite(x).all((-2, -1), keepdims=True), x, 0)
    return np.pad(x, [(0, 0)] * 4 + [(missing // 2, missing - missing // 2)])


def drawn_segments(split: Split, target: Target, settings: ExplanationSettings) -> np.ndarray:
    """``n_segments`` of what the units see of a split's windows, drawn at random: (segment, axis, time) in s."""
    segments = split.of_units(target.axes > 1)
    some = np.sort(np.random.default_rng(SEED).permutation(len(segments))[: settings.n_segments])
    segments = segments[some].reshape(len(some), target.axes, split.length)
    return target.scale.signals(segments.astype(np.float64)).numpy()


def described(segments: np.ndarray) -> np.ndarray:
    """Energy about the mean, level and largest amplitude of segments (segment, axis, time): (3, segment)."""
    energy = segments.var(-1).sum(-1)
    return np.stack([energy, segments.mean((-2, -1)), np.abs(segments).max((-2, -1))])


@dataclass(frozen=True)
class Pieces:
    """All pieces of segments, one below the other: as they are, their squares, and of mean 0 and norm 1.

    ``values`` and ``shapes`` are (segment * offset, axis * width), ``squares`` is (segment * offset,). Pieces that are
    flat have no shape: zeros.
    """

    values: np.ndarray
    squares: np.ndarray
    shapes: np.ndarray
    n_segments: int

    @classmethod
    def of(cls, segments: np.ndarray, width: int) -> Pieces:
        """The pieces of ``width`` samples of segments (segment, axis, time)."""
        every = np.lib.stride_tricks.sliding_window_view(segments, width, axis=2).swapaxes(1, 2)
        shapes = similarity.unit_norm(every, FLAT_G, mixed=True)
        values, shapes = (of.reshape(-1, of.shape[2] * width) for of in (every, shapes))
        return cls(values, (values**2).sum(1), shapes, len(segments))

    def _best(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(len(values), self.n_segments, -1).max(2)

    def near(self, piece: np.ndarray) -> np.ndarray:
        """How near each segment is to each piece (row, axis, width), at the best offset: (3, row, segment).

        By the mean squared error, turned over, by the normalized correlation, and by the cross-correlation with the
        piece of norm 1.
        """
        flattened = piece.reshape(len(piece), -1)
        shapes = similarity.unit_norm(piece, mixed=True).reshape(flattened.shape)
        norm = np.linalg.norm(flattened, axis=1, keepdims=True)
        unit = flattened / np.where(norm > 0, norm, 1)
        found = np.empty((3, len(piece), self.n_segments))
        for begin in range(0, len(piece), CHUNK):
            some = slice(begin, begin + CHUNK)
            cross = unit[some] @ self.values.T
            error = norm[some] ** 2 - 2 * norm[some] * cross + self.squares
            found[:, some] = [self._best(of) for of in (-error / piece[0].size, shapes[some] @ self.shapes.T, cross)]
        return found


def strongest_pieces(
    seen: Seen, units: np.ndarray, signals: np.ndarray, th_eap: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each signal (name, unit, example, axis, time) excites its unit most with, once it is scaled.

    Returns pieces (name, unit, example, axis, width) in s, the factors of :func:`to_threshold`, NaN where the signal is
    left as it is, and whether it is flat, both (name, unit, example). ``units`` and ``th_eap`` are (unit,).
    """
    shape = signals.shape[:3]
    rows = signals.reshape(-1, *signals.shape[3:])
    unit, th = (np.broadcast_to(of[:, None], shape).flatten() for of in (units, th_eap))
    still = flat(rows)
    factor = to_threshold(seen, unit, rows, np.where(still, np.nan, th))
    pieces = seen.pieces(unit, rows * np.nan_to_num(factor, nan=1.0)[:, None, None])
    return pieces.reshape(*shape, *pieces.shape[1:]), factor.reshape(shape), still.reshape(shape)


def _explained(pieces, still, windows: Pieces, outputs, pairs, about) -> dict[str, np.ndarray]:
    """The measures of one set of pieces (unit, example, axis, width), each (unit,); see :func:`explained`."""
    n, n_examples = still.shape
    near = windows.near(pieces.reshape(n * n_examples, *pieces.shape[2:]))
    near[1:, still.ravel()] = 0
    near = near.reshape(3, n, n_examples, -1)
    # the largest of templates would follow whichever level one of them has
    near = np.stack([near[0].max(1), near[1].max(1), near[2].mean(1)])
    by_error, by_shape = (accuracies(of, pairs) for of in near[:2])
    fits = partial_spearman(near[2], outputs, about)
    tables = {"accuracy": (by_error + by_shape) / 2, "accuracy by error": by_error, "accuracy by shape": by_shape}
    found, silent = {}, np.ptp(outputs, axis=1) == 0
    for name, values in (tables | {"fidelity": fits}).items():
        own = np.diag(values)
        found |= {name: own, f"{name} of others": (values.sum(0) - own) / (n - 1)}
    found["specificity"] = found["fidelity"] - found["fidelity of others"]
    found["identified"] = np.where(still.all(1) & ~silent, 1 / n, identified(fits))
    return found | {"chance": np.where(silent, np.nan, 1 / n)}
