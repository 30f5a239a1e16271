"""One function for each measure of signals that doing nothing should not win, with what it can still be won by.

Before them stands how signals and maps of any place are put one below the other: signals are (row, time), or (row,
axis, time) of units that mix axes. Choice: a distance is a mean over axes and samples, a spectrum a sum over axes.
:mod:`harvis_utils.metrics.realism` chooses the real windows that they are compared with, and reads them together.
"""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy.special import rel_entr

#: nearest reference windows whose distances are averaged. Choice: few, because the windows are few too
N_NEAREST = 5
#: pieces that move less than this (standard deviation in G) count as moving this much. Choice: a sensor's noise
REST_G = 0.01
#: Choice: a signal that ranges over less than this, in G, says nothing that a sensor could tell from rest
FLAT_G = 0.05


def ranges(signals: np.ndarray) -> np.ndarray:
    """Range of the axis that moves most: (row[, axis], time) -> (row,); NaN where a signal is not finite."""
    with np.errstate(invalid="ignore"):
        found = np.ptp(np.asarray(signals, dtype=np.float64), axis=-1)
    found = found.max(1) if found.ndim == 2 else found
    return np.where(np.isfinite(found), found, np.nan)


def flat(signals: np.ndarray) -> np.ndarray:
    """Which signals range over less than ``FLAT_G``, bool: (row[, axis], time) -> (row,).

    Signals are in G, or in units of the data's scale (:class:`harvis_utils.maximization.coordinates.Scale`). There is
    no exemption; one that is not finite is not flat, it has failed.
    """
    return ranges(signals) < FLAT_G


def movement(signals: xr.DataArray) -> xr.Dataset:
    """ "range" and "peak" over time of single-axis signals in G, whether they are "flat", and flat "at zero".

    A flat one at another level shows no shape either, but may be what excites a unit that answers to gravity.
    """
    found = xr.Dataset({"range": signals.max("time") - signals.min("time"), "peak": np.abs(signals).max("time")})
    found["flat"] = found["range"] < FLAT_G
    return found.assign({"at zero": found["flat"] & (found["peak"] < FLAT_G)})


def in_rows(values: xr.DataArray, dims: Sequence[str]) -> np.ndarray:
    """Signals or maps one below the other: (row[, axis], time), a row for each place in ``dims``."""
    inner = [d for d in ("axis", "time") if d in values.dims]
    ordered = values.transpose(*dims, *inner)
    return ordered.values.reshape(-1, *ordered.shape[len(dims) :])


def in_time(maps: xr.DataArray, length: int) -> xr.DataArray:
    """Maps on the samples of windows of ``length``, (..., time): summed over ``map_axis`` where they have it.

    Where they have ``map_time``, its values say which sample of the window each sample of a map is about. Choice: a map
    is a straight line between these, and zero where it does not look. Raises ``ValueError`` for maps of another length
    that do not say where they look.
    """
    maps = maps.sum("map_axis") if "map_axis" in maps.dims else maps
    if "map_time" not in maps.dims and maps.sizes["time"] == length:
        return maps
    if "map_time" not in maps.coords:
        raise ValueError(
            f"maps with dims {dict(maps.sizes)} do not say which of a window's {length} samples they are about: "
            f"give them the coordinate map_time, the place of each of their samples in the window"
        )
    at = maps["map_time"].values

    def placed(own: np.ndarray) -> np.ndarray:
        known = ~np.isnan(own)  # layers that look elsewhere may stand beside this one
        return np.interp(np.arange(length), at[known], own[known], 0, 0) if known.any() else np.zeros(length)

    return xr.apply_ufunc(placed, maps, input_core_dims=[["map_time"]], output_core_dims=[["time"]], vectorize=True)


def largest(maps: xr.DataArray, dims: Sequence[str]) -> np.ndarray:
    """The largest output of each map, (row,)."""
    inner = [d for d in maps.dims if d not in dims]
    return maps.transpose(*dims, ...).max(inner, skipna="map_time" in maps.dims).values.reshape(-1)


def reached(top: np.ndarray, th_eap: np.ndarray) -> np.ndarray:
    """Largest output as a share of the unit's threshold; NaN where the unit is dead (paper section 5, Fig. 4).

    Cannot be won by doing nothing: a unit at rest stays far below 1. Can be won by sheer amplitude, so it is good
    news up to 1 only, and only beside a small distance.
    """
    return top / np.where(th_eap > 0, th_eap, np.nan)


def displacement(signals: np.ndarray, start: np.ndarray) -> np.ndarray:
    """RMS in G between (..., time) signals and their start, which is broadcast.

    0 unmasks a method that returns its start. It is no merit by itself: anything can move far.
    """
    return np.sqrt(((signals.astype(np.float64) - start) ** 2).mean(-1))


def spread(signals: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Mean pairwise RMS distance of results over that of their starts: (start, ..., time), (start, time) -> (...,).

    Below 1 a method finds the same signal wherever it starts; 1: it kept its starts apart, as one that does nothing
    does. Can be won by forgetting the start for anything else that is always the same, a flat line too. Raises
    ``ValueError`` without two different starts.
    """
    if len(signals) != len(starts):
        raise ValueError(f"{len(signals)} signals per unit do not match {len(starts)} starting points")
    if not np.ptp(starts, axis=0).any():
        raise ValueError("spread needs at least two different starting points")
    starts = np.expand_dims(starts, tuple(range(1, signals.ndim - 1)))
    a, b = np.triu_indices(len(starts), 1)
    after, before = (displacement(x[a], x[b]).mean(0) for x in (signals, np.broadcast_to(starts, signals.shape)))
    return after / before


def distances(pieces: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """d(u, i) of paper eq. 8, all pairs: (piece[, axis], w), (segment[, axis], time) in G -> (piece, segment) in G^2.

    The mean squared error at the best offset, in float64. Its mean over the nearest reference windows is
    ``matched_ssim``: Ssim at matched activation. Quiet windows are no reference, so noise or amplitude cannot win.
    Nevertheless it *can be won by doing nothing*: by a flat line beside a window's calm stretch, and by any blur,
    which is nearer to real signals than they are to one another.
    """
    pieces, segments = pieces.astype(np.float64), segments.astype(np.float64)
    width = pieces.shape[-1]
    pieces = pieces.reshape(len(pieces), math.prod(pieces.shape[1:]))
    best = np.full((len(pieces), len(segments)), np.inf)
    for offset in range(segments.shape[-1] - width + 1):
        view = segments[..., offset : offset + width].reshape(len(segments), pieces.shape[1])
        error = pieces @ (-2 * view.T)
        error += (view**2).sum(1)
        np.minimum(best, error, out=best)
    best += (pieces**2).sum(1)[:, None]
    return np.maximum(best, 0) / pieces.shape[1]  # rounding may leave equal pieces a little below 0


def scaled_distance(pieces: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Mean squared error over the mean variance of the two: (piece[, axis], w), (window[, axis], w) -> (piece, window).

    Between the piece of a signal and those of real windows, each the one that excites the unit most. 0 is equal,
    about 2 is unrelated, a constant is at 2 or more from all that moves; shape, amplitude and level count.

    Cannot be won by doing nothing: a flat line or a blur pays for the movement it lacks (unless the unit's real
    windows are at rest, where being at rest at the same level is right). Can be won by a piece that looks real while
    the unit hardly answers, so read it beside ``reached``, and by a signal that is real in these samples only.
    """
    pieces, real = pieces.astype(np.float64), real.astype(np.float64)
    # in time: that axes have different levels is no movement
    moving, moved = (of.var(-1).reshape(len(of), -1 if of.size else 1).mean(1) for of in (pieces, real))
    pieces, real = (of.reshape(len(of), math.prod(of.shape[1:])) for of in (pieces, real))
    error = (pieces**2).mean(1)[:, None] + (real**2).mean(1) - 2 * pieces @ real.T / pieces.shape[1]
    scale = (moving[:, None] + moved) / 2
    return np.maximum(error, 0) / np.maximum(scale, REST_G**2)


def mean_nearest(distance: np.ndarray) -> np.ndarray:
    """Mean of the smallest distances: (piece, window) -> (piece,)."""
    k = min(N_NEAREST, distance.shape[1])
    return np.sort(np.partition(distance, k - 1, axis=1)[:, :k], axis=1).mean(1)


def to_others(distance: np.ndarray, subject: np.ndarray) -> np.ndarray:
    """The same with the subject of window i left out in column i: (piece, window) -> (piece, window).

    So a piece and window i can be compared by what they get among the same windows.
    """
    found = np.empty_like(distance)
    for s in np.unique(subject):
        found[:, subject == s] = mean_nearest(distance[:, subject != s])[:, None]
    return found


def realism_p(of_others: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Share of real windows at least as far from the others as the signal: (signal, window), (window,) -> (signal,).

    ``of_others[n, i]`` is the signal's distance to the reference windows of other people than window i's, ``real[i]``
    that of window i itself. p = (1 + number at least as far) / (1 + number), so real signals have p about uniform and
    nonsense 1 / (1 + number). Ties, up to rounding, count as at least as far.

    Of the scaled distance it cannot be won by doing nothing or by amplitude. It is one-sided: the commonest shape gets
    p near 1, and 0.9 is no better than 0.5. It saturates at both ends; ``distance_ratio`` does not.
    """
    as_far = (real >= of_others) | np.isclose(real, of_others, rtol=1e-9, atol=1e-12)
    return (1 + as_far.sum(1)) / (1 + len(real))


def spectral_distance(share: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distance (base 2, 0 to 1) of power spectra without mean, (..., frequency), to one, (frequency,).

    A constant signal has no spectrum (NaN, see :func:`similarity.power_spectrum`) and counts as 1, the farthest; all
    are NaN where the reference has none.

    Cannot be won by doing nothing: a constant is farthest, the start has one frequency. Can be won by noise of the
    right colour, which has the *mean* spectrum as no single real window has it.
    """
    if np.isnan(reference).any():
        return np.full(share.shape[:-1], np.nan)
    middle = (share + reference) / 2
    divergence = (rel_entr(share, middle) + rel_entr(reference, middle)).sum(-1) / 2 / np.log(2)
    return np.where(np.isnan(divergence), 1.0, np.sqrt(np.clip(divergence, 0, 1)))


def mean_spectrum(share: np.ndarray) -> np.ndarray:
    """Mean over the windows that have a spectrum, each counting alike: (window, frequency) -> (frequency,)."""
    moving = share[~np.isnan(share[:, 0])]
    return moving.mean(0) if len(moving) else np.full(share.shape[1], np.nan)
