"""Windows turned into concepts: boolean masks that say at which samples of which axis something holds.

What the pixel labels of Broden are to images (Bau, Zhou et al. 2017, section 2.1), written down for acceleration:
*activities*, which hold in whole windows, and *waveforms*, each a rule about a window's own samples, which can be read,
doubted and changed. Made-up data add the places of their motifs.

Every rule maps windows (..., time) in G to booleans of the same shape and looks at single windows only: near a
window's ends, where a rule cannot see what it needs, it does not hold.

Choice: all thresholds, set by how often the rules hold in recordings, before any network was looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from harvis_utils.data.kinds import sensors_of
from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Split, Windows

#: an edge: the samples this far before and after differ by so much
EDGE_REACH, EDGE_G = 2, 0.5
#: a peak: highest within this reach, so much above the lowest sample on either side; it lasts one sample more each way
PEAK_REACH, PEAK_G, PEAK_HALF = 3, 0.4, 1
#: a plateau: all samples within this reach lie in a range so narrow
PLATEAU_REACH, PLATEAU_G = 3, 0.1
#: an impact: two consecutive samples differ by so much
IMPACT_G = 1.0
#: oscillation: the envelope in a band is so high, and higher than in the others (steps and swings, their harmonics,
#: shaking, the ringing after impacts). A window of one second resolves 1 Hz
BANDS_HZ = {"1-2 Hz": (0.5, 2.5), "3-5 Hz": (2.5, 5.5), "6-9 Hz": (5.5, 9.5), "10-14 Hz": (9.5, 14.5)}
OSCILLATION_G = 0.3
#: gravity along an axis: the mean over this reach, less at a window's ends, is so large (0.9 G is a tilt of 26 degrees)
GRAVITY_REACH, GRAVITY_G = 7, 0.9
#: near free fall: what a sensor's three axes measure together is so small
FREE_FALL_G = 0.4
#: axes of a sensor whose magnitude means something
AXES_PER_SENSOR = 3

ACTIVITY, WAVEFORM, MOTIF = "activity", "waveform", "motif"


@dataclass(frozen=True)
class Concepts:
    """Concepts over the same windows: ``masks`` is bool (concept, window, axis, time).

    ``kinds`` are activity, waveform or motif; ``left_out`` maps concepts that these windows cannot have to the reason.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    masks: np.ndarray
    left_out: dict[str, str]

    @property
    def share(self) -> np.ndarray:
        """Share of all samples at which each concept holds, (concept,)."""
        return self.masks.mean(axis=(1, 2, 3))

    def only(self, kind: str) -> Concepts:
        """The concepts of one kind."""
        which = [k for k, of in enumerate(self.kinds) if of == kind]
        return Concepts(tuple(self.names[k] for k in which), (kind,) * len(which), self.masks[which], self.left_out)


def rising_edge(x: np.ndarray) -> np.ndarray:
    """The sample ``EDGE_REACH`` later is at least ``EDGE_G`` above the one ``EDGE_REACH`` earlier."""
    span = 2 * EDGE_REACH
    return _ends_added(x[..., span:] - x[..., :-span] >= EDGE_G, EDGE_REACH)


def peak(x: np.ndarray) -> np.ndarray:
    """Within ``PEAK_HALF`` samples of the highest of the ``PEAK_REACH`` samples on either side.

    On each side one must lie ``PEAK_G`` or more below it.
    """
    around = sliding_window_view(x, 2 * PEAK_REACH + 1, axis=-1)
    middle = around[..., PEAK_REACH]
    lowest = np.maximum(around[..., :PEAK_REACH].min(-1), around[..., PEAK_REACH + 1 :].min(-1))
    top = (middle >= around.max(-1)) & (middle - lowest >= PEAK_G)
    return widened(_ends_added(top, PEAK_REACH), PEAK_HALF)


def widened(mask: np.ndarray, reach: int) -> np.ndarray:
    """Whatever lies within ``reach`` samples of a true one, (..., time); nothing goes round a window's ends."""
    return ndimage.maximum_filter1d(mask, 2 * reach + 1, mode="constant")


def plateau(x: np.ndarray) -> np.ndarray:
    """All samples within ``PLATEAU_REACH`` lie in a range of ``PLATEAU_G``."""
    around = sliding_window_view(x, 2 * PLATEAU_REACH + 1, axis=-1)
    return _ends_added(np.ptp(around, -1) <= PLATEAU_G, PLATEAU_REACH)


def impact(x: np.ndarray) -> np.ndarray:
    """Either of two consecutive samples that differ by ``IMPACT_G`` or more."""
    jumps = _ends_added(np.abs(np.diff(x, axis=-1)) >= IMPACT_G, 1)
    return jumps[..., 1:] | jumps[..., :-1]


def gravity_up(x: np.ndarray) -> np.ndarray:
    """The mean over the samples within ``GRAVITY_REACH`` is ``GRAVITY_G`` or more: the axis points upwards."""
    sums = np.pad(np.cumsum(x, axis=-1, dtype=np.float64), [(0, 0)] * (x.ndim - 1) + [(1, 0)])
    time = np.arange(x.shape[-1])
    first, last = np.maximum(time - GRAVITY_REACH, 0), np.minimum(time + GRAVITY_REACH + 1, len(time))
    return (sums[..., last] - sums[..., first]) / (last - first) >= GRAVITY_G


def _ends_added(mask: np.ndarray, reach: int) -> np.ndarray:
    """False for the ``reach`` samples at either end where a rule does not see what it needs."""
    return np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(reach, reach)])


#: rules that look at one axis by itself; three of them are others of the signal turned over
RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rising edge": rising_edge,
    "falling edge": lambda x: rising_edge(-x),
    "peak": peak,
    "valley": lambda x: peak(-x),
    "plateau": plateau,
    "impact": impact,
    "gravity +": gravity_up,
    "gravity -": lambda x: gravity_up(-x),
}


def band_envelopes(x: np.ndarray, rate_hz: float) -> np.ndarray:
    """Envelope of each band of ``BANDS_HZ`` in G, (band, ..., time): what a window's Fourier series says of it.

    It is the magnitude of the analytic signal, twice the sum of the band's terms at positive frequencies; the constant
    and the Nyquist frequency belong to no band. A step from the window's end to its beginning is part of the series.
    """
    hertz = np.fft.fftfreq(x.shape[-1], 1 / rate_hz)
    waves = np.fft.fft(np.asarray(x, dtype=np.float64), axis=-1)
    inside = [(hertz >= low) & (hertz < high) & (hertz < rate_hz / 2) for low, high in BANDS_HZ.values()]
    return np.stack([np.abs(np.fft.ifft(2 * waves * band, axis=-1)) for band in inside])


def whole_sensors(axes: Sequence[str]) -> list[list[int]]:
    """Indices of the axes of each sensor that has ``AXES_PER_SENSOR``; what others measure has no magnitude."""
    return [list(of) for of in sensors_of(axes).values() if len(of) == AXES_PER_SENSOR]


def free_fall(x: np.ndarray, sensors: Sequence[Sequence[int]]) -> np.ndarray:
    """The magnitude over the axes of one of the ``sensors`` is ``FREE_FALL_G`` or less; it holds on all of them."""
    found = np.zeros(x.shape, bool)
    for axes in sensors:
        small = np.sqrt((x[..., axes, :].astype(np.float64) ** 2).sum(-2)) <= FREE_FALL_G
        found[..., axes, :] = small[..., None, :]
    return found


def waveforms(x: np.ndarray, rate_hz: float, axes: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All waveform concepts of windows (window, axis, time) in G, and those left out with the reason.

    ``axes`` are named "<sensor> <component>". A band oscillates where its envelope is ``OSCILLATION_G`` or more and
    higher than that of every other band. Raises ``ValueError`` for windows of another shape, with values that are not
    finite, or too short for the rules.
    """
    least = 2 * max(EDGE_REACH, PEAK_REACH, PLATEAU_REACH) + 1
    if x.ndim != 3 or x.shape[1] != len(axes) or x.shape[2] < least:
        wanted = f"(window, {len(axes)}, time) with {least} samples or more"
        raise ValueError(f"windows should be (window, axis, time), {wanted}, not {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("windows hold NaN or infinity: concepts are not defined there; leave those windows out")
    envelopes = band_envelopes(x, rate_hz)
    strongest = np.where(envelopes.max(0) >= OSCILLATION_G, envelopes.argmax(0), -1)
    found = {name: rule(x) for name, rule in RULES.items()}
    found |= {f"oscillation {name}": strongest == k for k, name in enumerate(BANDS_HZ)}
    if not (sensors := whole_sensors(axes)):
        why = f"no sensor has {AXES_PER_SENSOR} axes, over which the magnitude would be taken: {', '.join(axes)}"
        return found, {"near free fall": why}
    return found | {"near free fall": free_fall(x, sensors)}, {}


def of_windows(windows: Windows, split: Split) -> Concepts:
    """Activities and waveforms of the windows of ``split``, one of the splits of ``windows`` or a thinned one.

    An activity that occurs holds at every sample of its windows.
    """
    shapes, left_out = waveforms(split.x, windows.rate_hz, windows.axes)
    there = [k for k in range(len(windows.activities)) if k in split.activity]
    whole = [np.broadcast_to((split.activity == k)[:, None, None], split.x.shape) for k in there]
    names = (*(windows.activities[k] for k in there), *shapes)
    kinds = (ACTIVITY,) * len(there) + (WAVEFORM,) * len(shapes)
    return Concepts(names, kinds, np.stack([*whole, *shapes.values()]), left_out)


def of_motifs(truth: PlantedMotifs, split: Split) -> Concepts:
    """The planted motifs as concepts of the windows of ``split``, which must be cut at the rate of the recordings.

    A motif that begins before a window or ends after it holds at the samples that are inside.
    """
    masks = np.zeros((len(truth.names), len(split), split.series.shape[1], split.length), bool)
    for (subject, activity), places in truth.occurrences.groupby(["subject", "activity"]):
        windows = np.flatnonzero((split.subject == subject) & (split.activity == activity))
        for name, axis, start in places[["motif", "axis", "start"]].itertuples(index=False):
            motif = truth.names.index(name)
            since = np.arange(split.length) + split.offset[windows, None] - start
            masks[motif, windows, axis] |= (since >= 0) & (since < len(truth.shapes[motif]))
    return Concepts(truth.names, (MOTIF,) * len(truth.names), masks, {})
