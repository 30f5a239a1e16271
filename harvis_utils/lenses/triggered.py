"""Windows turned into what they say of a unit: the activation-triggered average, and references beside any signal.

The average (reverse correlation, as for neurons; de Boer & Kuyper 1968) is the mean of the receptive-field pieces of
real windows, weighted by the unit's output at each, minus the mean of all pieces: what a window has more of where the
unit is active. The least-squares filter of the same pieces is the best linear prediction of that output. The average is
a pattern and the filter an extractor (Haufe et al. 2014): where neighbouring samples are alike they differ, and only
the first looks like what the unit is after. Both work for any place of any network, without a gradient.
"""

import numpy as np
import torch
import xarray as xr

from harvis_utils.data.windowing import Split
from harvis_utils.maximization.paper_methods import Target
from harvis_utils.maximization.starting import spectrum_noise
from harvis_utils.metrics.explanation import SEED, Seen
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.settings import ExplanationSettings

#: segments pushed through a network at once, and numbers of their pieces; both bound the memory
CHUNK, MOST_NUMBERS = 1024, 10_000_000
#: Choice: of more numbers than this, axes times samples, no filter is computed: its equations would fill the memory
MOST_INPUTS = 3000
#: strongest windows of a unit. Choice: as in Borowski et al.
N_STRONGEST = 9
#: share of the pieces' mean power that is added to every direction's, without which a filter needs no limit
RIDGE = 1e-4

#: what stands beside methods, made of training windows alone; the nine strongest windows are there too
REFERENCES = {
    "strongest real window": "the training window with the unit's largest output",
    "triggered average": "the activation-triggered average",
    "linear filter": "the least-squares filter: the ceiling of what one template can predict",
    "starting sine": "the untouched start",
    "spectrum noise": "noise with the mean power spectrum of the training windows",
}
STRONGEST = "nine strongest real windows"


def triggered(
    place: Trunk | Target,
    layer: str,
    split: Split,
    settings: ExplanationSettings | None = None,
    width: int | None = None,
) -> xr.Dataset:
    """What real windows say of every unit of a place, in s (G, where windows are in G).

    ``place``, ``layer`` and ``width`` are as in :func:`harvis_utils.metrics.explanation.explained`. Returns ``average``
    and ``filter`` over (unit[, axis], lag), zeros for a unit that is always silent, and ``strongest`` over (unit,
    example, [axis,] time): the windows with the unit's largest outputs, no two of one recording, because neighbours
    are alike. Outputs below zero count as none. ``n_train`` segments of ``split`` are looked at, drawn at random;
    every map sample counts that sees nothing beyond the window; where each sees all of it, their mean does. What a
    unit sees in more than ``MOST_INPUTS`` numbers has no ``filter``.
    """
    settings = settings or ExplanationSettings()
    seen = Seen.by(place, layer, split.length, width)
    target, at = seen.target, torch.as_tensor(seen.inside)
    segments = split.of_units(target.axes > 1)
    some = np.sort(np.random.default_rng(SEED).permutation(len(segments))[: settings.n_train])
    n_inputs = target.axes * seen.width
    whole, filtered = seen.width == split.length, n_inputs <= MOST_INPUTS
    starts = seen.begin[:1] if whole else seen.begin
    count, sum_x = 0, np.zeros(n_inputs)
    sum_xx = np.zeros((n_inputs, n_inputs)) if filtered else None
    sum_a, sum_ax = np.zeros(target.n_units), np.zeros((target.n_units, n_inputs))
    largest = np.empty((target.n_units, len(some)))
    chunk = max(1, min(CHUNK, MOST_NUMBERS // (n_inputs * len(starts))))
    for begin in range(0, len(some), chunk):
        windows = segments[some[begin : begin + chunk]].reshape(-1, target.axes, split.length)
        maps = target.seen(windows, lambda of, _: of[..., at].amax(2)).clip(min=0).astype(np.float64)
        largest[:, begin : begin + len(windows)] = maps.max(2).T
        maps = maps.mean(2, keepdims=True) if whole else maps
        in_s = target.scale.signals(windows.astype(np.float64)).numpy()
        pieces = np.lib.stride_tricks.sliding_window_view(in_s, seen.width, axis=2)[:, :, starts]
        x = pieces.swapaxes(1, 2).reshape(-1, n_inputs)
        a = maps.swapaxes(1, 2).reshape(-1, target.n_units)
        count, sum_x = count + len(x), sum_x + x.sum(0)
        if filtered:
            sum_xx += x.T @ x
        sum_a, sum_ax = sum_a + a.sum(0), sum_ax + a.T @ x
    mean = sum_x / count
    average = sum_ax / np.where(sum_a > 0, sum_a, 1)[:, None] - np.where(sum_a > 0, 1, 0)[:, None] * mean
    shapes = {"average": average}
    if filtered:
        covariance = sum_xx / count - np.outer(mean, mean)
        covariance += RIDGE * np.trace(covariance) / n_inputs * np.eye(n_inputs)
        shapes["filter"] = np.linalg.solve(covariance, (sum_ax / count - np.outer(sum_a / count, mean)).T).T
    recording = split.recording[some // (len(segments) // len(split))]
    inside = [np.flatnonzero(recording == r) for r in np.unique(recording)]
    best = np.stack([own[largest[:, own].argmax(1)] for own in inside])
    order = np.argsort(-np.take_along_axis(largest, best.T, 1), axis=1, kind="stable")[:, :N_STRONGEST]
    windows = segments[some[np.take_along_axis(best.T, order, 1)]]
    axis = ("axis",) if target.axes > 1 else ()
    windows = windows.reshape(*order.shape, target.axes, split.length)
    strongest = target.scale.signals(windows.astype(np.float64)).numpy()
    found = {name: of.reshape(-1, target.axes, seen.width) for name, of in shapes.items()} | {"strongest": strongest}
    dims = dict.fromkeys(shapes, ("unit", *axis, "lag")) | {"strongest": ("unit", "example", *axis, "time")}
    shaped = {name: (dims[name], of if axis else of[..., 0, :]) for name, of in found.items()}
    return xr.Dataset(shaped, {"unit": np.arange(target.n_units)})


def references(
    place: Trunk | Target,
    layer: str,
    split: Split,
    start: np.ndarray,
    settings: ExplanationSettings | None = None,
    width: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Signals of :data:`REFERENCES`, ``signal`` (reference, unit[, axis], time), and ``strongest``, in the data's unit.

    ``split`` are training windows, ``start`` ([axis,] time) in s; the rest is as for :func:`triggered`. Average and
    filter have no amplitude of their own: their largest sample is 1, in the middle of zeros; where there is no filter,
    that reference is missing. ``seed`` draws the noise.
    """
    settings = settings or ExplanationSettings()
    target = Seen.by(place, layer, split.length, width).target
    found = triggered(place, layer, split, settings, width)
    shape = (target.n_units, target.axes, split.length)
    real = target.scale.signals(split.of_units(target.axes > 1)[:: max(1, len(split) // 4000)].reshape(-1, *shape[1:]))
    rng = np.random.default_rng((SEED, seed))
    noise = [spectrum_noise(real.numpy()[:, axis], target.n_units, rng) for axis in range(target.axes)]
    made = {
        "strongest real window": found["strongest"].values[:, 0],
        "triggered average": _in_window(found["average"].values.reshape(*shape[:2], -1), split.length),
        "starting sine": np.broadcast_to(start, shape),
        "spectrum noise": np.stack(noise, 1),
    }
    if "filter" in found:
        made["linear filter"] = _in_window(found["filter"].values.reshape(*shape[:2], -1), split.length)
    names = [name for name in REFERENCES if name in made]
    signals = np.stack([made[name].reshape(shape) for name in names])
    strongest = found["strongest"].values.reshape(target.n_units, -1, *shape[1:])

    def shaped(dims: tuple[str, ...], values: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        values = target.scale.windows(torch.as_tensor(values)).numpy().astype(np.float32)
        return ((*dims, "axis", "time"), values) if target.axes > 1 else ((*dims, "time"), values[..., 0, :])

    both = {"signal": shaped(("reference", "unit"), signals), "strongest": shaped(("unit", "example"), strongest)}
    return xr.Dataset(both, {"reference": names, "unit": found["unit"]})


def _in_window(pieces: np.ndarray, length: int) -> np.ndarray:
    peak = np.abs(pieces).max((1, 2), keepdims=True)
    before = (length - pieces.shape[2]) // 2
    padding = [(0, 0), (0, 0), (before, length - pieces.shape[2] - before)]
    return np.pad(pieces / np.where(peak > 0, peak, 1), padding)
