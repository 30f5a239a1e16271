"""Recordings turned into 30 Hz windows, split by subject (paper section 4.2).

Windows never cross the border of a (subject, activity) recording, nor that of the windows of which it consists where
somebody's own data came as windows (``Dataset.pieces``). The resampled recordings are kept end to end
as one series per split; a window is a position in it, so overlapping windows share their samples.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
import pandas as pd

from harvis_utils.data.kinds import DataError, Recordings
from harvis_utils.settings import WindowSettings
from harvis_utils.store.results import described

SPLITS = ("train", "val", "test")
#: Choice: a sensor that reads exactly zero for so many samples, a third of a second, was lost
SHORTEST_DROPOUT = 10
#: Choice: of the power of movement; linear interpolation leaves it at wrong frequencies
MOST_FOLDED = 0.02
#: Choice: times its own rate; beyond it most samples are made up by interpolation
MOST_UPSAMPLED = 2.0
#: Choice: of all samples, in recordings that are too short for one window
MOST_LOST = 0.05


@dataclass(frozen=True)
class Split:
    """The windows of one group of subjects.

    ``series`` is (sample, axis) in G, the resampled recordings end to end; window ``i`` is
    ``series[start[i] : start[i] + length]``. ``activity`` and ``subject`` are (window,).
    """

    series: np.ndarray
    start: np.ndarray
    activity: np.ndarray
    subject: np.ndarray
    recording: np.ndarray  # (window,) index into Recordings.items
    offset: np.ndarray  # (window,) first sample of the window inside its resampled recording
    length: int

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def x(self) -> np.ndarray:
        """(window, axis, time) float32 in G."""
        views = np.lib.stride_tricks.sliding_window_view(self.series, self.length, axis=0)
        return views[self.start]

    @property
    def segments(self) -> np.ndarray:
        """(window * axis, time): every axis of every window as one single-axis segment; window-major."""
        return self.x.reshape(-1, self.length)

    def of_units(self, mixed: bool) -> np.ndarray:
        """What units see that mix the axes: ``x``; and others: ``segments``."""
        return self.x if mixed else self.segments

    def every(self, n: int) -> Split:
        """Every ``n``-th window, from the first; the series stays whole."""
        return self.chosen(slice(None, None, n))

    def chosen(self, which: np.ndarray | slice) -> Split:
        """The windows that ``which`` selects, as an index into them; the series stays whole."""
        columns = ("start", "activity", "subject", "recording", "offset")
        return replace(self, **{c: getattr(self, c)[which] for c in columns})


@dataclass(frozen=True)
class Windows:
    """Training, validation and test windows of one data set, with what their pages must say about them."""

    train: Split
    val: Split
    test: Split
    activities: tuple[str, ...]
    axes: tuple[str, ...]
    rate_hz: float
    caveat: str
    units: Mapping[str, str] = field(default_factory=dict)  # sensor -> unit, of those that are not in G

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the windows are: all arrays of all splits, the names and the rate; what they are called, the
        caveat and the units, does not count.

        Results are addressed by it, so other windows, thinned or changed ones too, have other results.
        """
        said = ("caveat", "units")
        content = {f.name: described(getattr(self, f.name)) for f in fields(self) if f.name not in said}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def every(self, n: int) -> Windows:
        """Every ``n``-th window of all splits, from the first."""
        return replace(self, **{name: getattr(self, name).every(n) for name in SPLITS})

    def thinned(self, n_windows: int) -> Windows:
        """Every n-th window of all splits, so that about ``n_windows`` remain for training."""
        return self.every(max(1, round(len(self.train) / n_windows)))

    def labels(self) -> pd.DataFrame:
        """One row per window: split, window (its index there), subject, person (with the split), activity, recording,
        offset; activities are categories in their order.
        """
        columns = ("subject", "activity", "recording", "offset")
        of = {name: pd.DataFrame({c: getattr(getattr(self, name), c) for c in columns}) for name in SPLITS}
        table = pd.concat(of, names=["split", "window"]).reset_index()
        table["person"] = table["subject"].astype(str) + " (" + table["split"] + ")"
        return table.assign(activity=pd.Categorical.from_codes(table["activity"], self.activities))

    def counts(self) -> dict[str, int]:
        """Number of windows per split."""
        return {name: len(getattr(self, name)) for name in SPLITS}


def resample(signal: np.ndarray, rate_hz: float, to_hz: float) -> np.ndarray:
    """Linear interpolation of (time, axis) samples to another rate, from the first sample to the last.

    Choice: linear. It gives the paper's 2-sigma threshold of 1.37 G for DSADS; polyphase resampling does not.
    """
    if rate_hz == to_hz:
        return np.ascontiguousarray(signal, dtype=np.float32)
    last = (len(signal) - 1) / rate_hz
    at = np.arange(int(np.floor(last * to_hz + 1e-9)) + 1) / to_hz
    seen = np.arange(len(signal)) / rate_hz
    return np.stack([np.interp(at, seen, axis) for axis in signal.T], axis=1).astype(np.float32)


def checked(settings: WindowSettings | None, name: str) -> WindowSettings:
    """The same settings, or the usual ones; :class:`DataError` about data set ``name`` for such that cut nothing."""
    settings = WindowSettings() if settings is None else settings
    if not isinstance(settings, WindowSettings):
        what = f"not {type(settings).__name__}"
        raise DataError(f"{name}: windows should be WindowSettings(rate_hz, length, step), {what}")
    for of, kind in {"rate_hz": int | float | np.number, "length": int | np.integer, "step": int | np.integer}.items():
        if not isinstance(value := getattr(settings, of), kind) or not 0 < value < np.inf:
            what = "a number" if of == "rate_hz" else "a whole number"
            raise DataError(f"{name}: {of} of windows should be {what} above 0, not {value!r}")
    return settings


def cut(recordings: Recordings, settings: WindowSettings | None = None) -> Windows:
    """Resample every recording and cut it into windows, subjects split as the data set says.

    Raises :class:`DataError` when a subject stands in two splits or a split has no window. Of somebody's own data it
    warns where a split lacks an activity, samples are lost or made up, or resampling folds frequencies.
    """
    settings = checked(settings, recordings.name)
    dataset = recordings.dataset
    subjects = [s for name in SPLITS for s in dataset.split[name]]
    if len(set(subjects)) != len(subjects):
        raise DataError(f"{recordings.name}: a subject stands in two splits: {dict(dataset.split)}")
    splits = [_cut_split(recordings, dataset.split[name], settings) for name in SPLITS]
    for name, split in zip(SPLITS, splits, strict=True):
        if not len(split):
            longest = max((dataset.pieces or len(item.signal) for item in recordings.items), default=0)
            raise DataError(
                f"{recordings.name}: no window for the {name} subjects {dataset.split[name]}; a window lasts "
                f"{settings.length / settings.rate_hz:.3g} s, the longest piece {longest / dataset.rate_hz:.3g} s"
            )
    if not (dataset.made_up or dataset.archive):
        _warn(recordings, splits, settings)
    about = (dataset.activities, dataset.axes, settings.rate_hz, recordings.caveat, dataset.units)
    return Windows(*splits, *about)


def _warn(recordings: Recordings, splits: Sequence[Split], settings: WindowSettings) -> None:
    """Say of somebody's own data where a split lacks an activity, where samples are lost or made up by interpolation,
    and where resampling folds frequencies.
    """
    dataset, found = recordings.dataset, []
    for name, split in zip(SPLITS, splits, strict=True):
        if lacking := [of for k, of in enumerate(dataset.activities) if k not in split.activity]:
            found.append(f"no {name} window of {', '.join(map(repr, lacking))}, on which nothing is measured there")
    kept = set(np.concatenate([split.recording for split in splits]))
    short = [item for k, item in enumerate(recordings.items) if k not in kept]
    lost = sum(len(item.signal) for item in short) / sum(len(item.signal) for item in recordings.items)
    gone = sorted({item.subject for item in short} - set(np.concatenate([split.subject for split in splits])))
    if lost > MOST_LOST or gone:
        of = f", all of people {', '.join(map(str, gone))}" if gone else ""
        what = f"{len(short)} of {len(recordings.items)} recordings are too short for one window"
        found.append(f"{what}; with them {lost:.0%} of all samples are lost{of}")
    if settings.rate_hz > MOST_UPSAMPLED * dataset.rate_hz:
        found.append(f"from {dataset.rate_hz:g} to {settings.rate_hz:g} Hz, most samples are made up by interpolation")
    if (share := folded(recordings, settings.rate_hz)) > MOST_FOLDED:
        found.append(f"{share:.0%} of the power lies above {settings.rate_hz / 2:g} Hz and folds; low-pass it before")
    if found:
        warnings.warn(f"{recordings.name}: {'; '.join(found)}", stacklevel=3)


def folded(recordings: Recordings, to_hz: float) -> float:
    """The largest share, over axes, of the power of all movement that lies above half of ``to_hz``."""
    above, whole = 0.0, np.finfo(float).tiny
    for item in recordings.items:
        for signal in _pieces(item.signal, recordings.dataset.pieces):
            power = np.abs(np.fft.rfft(signal - signal.mean(0), axis=0)) ** 2
            high = np.fft.rfftfreq(len(signal), 1 / recordings.dataset.rate_hz) > to_hz / 2
            above, whole = above + power[high].sum(0), whole + power.sum(0)
    return float(np.max(above / whole))


def _pieces(signal: np.ndarray, length: int | None) -> list[np.ndarray]:
    """A recording, or the windows of so many samples of which it consists."""
    return [signal[k : k + length] for k in range(0, len(signal), length)] if length else [signal]


def _cut_split(recordings: Recordings, subjects: tuple[int, ...], settings: WindowSettings) -> Split:
    pieces, table, begun = [], [], 0
    for index, item in enumerate(recordings.items):
        if item.subject not in subjects:
            continue
        within = 0
        for piece in _pieces(item.signal, recordings.dataset.pieces):
            signal = resample(piece, recordings.dataset.rate_hz, settings.rate_hz)
            offset = np.arange(0, len(signal) - settings.length + 1, settings.step)
            table += [(begun + o, item.activity, item.subject, index, within + o) for o in offset]
            pieces.append(signal)
            begun, within = begun + len(signal), within + len(signal)
    series = np.concatenate(pieces) if pieces else np.zeros((0, len(recordings.dataset.axes)), np.float32)
    return Split(series, *np.array(table, dtype=np.int64).reshape(-1, 5).T, length=settings.length)


#: what is taken of a window's Fourier series (window, axis, frequency)
SPECTRA: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log magnitude": lambda waves: np.log1p(np.abs(waves)),
    "magnitude": np.abs,
    "real and imaginary": lambda waves: np.concatenate([waves.real, waves.imag], 1),
}


@dataclass(frozen=True)
class Spectra:
    """Windows turned into their spectra, each axis standardized with ``mean`` and ``std`` (axis, 1) of training."""

    form: str
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, train: Split, form: str = "log magnitude") -> Spectra:
        """Those whose training spectra have mean 0 and standard deviation 1 on each axis."""
        found = SPECTRA[form](np.fft.rfft(train.x))
        return cls(form, *(of((0, 2))[:, None] for of in (found.mean, found.std)))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(window, axis, time) in G -> (window, axis, frequency) float32, from frequency 0 on."""
        return ((SPECTRA[self.form](np.fft.rfft(x)) - self.mean) / self.std).astype(np.float32)

    def split(self, split: Split) -> Split:
        """The same windows as spectra, laid end to end; they know recordings and offsets of the windows."""
        found = self(split.x)
        n, n_axes, length = found.shape
        series = found.transpose(0, 2, 1).reshape(-1, n_axes)
        return replace(split, series=series, start=np.arange(n) * length, length=length)

    def windows(self, windows: Windows) -> Windows:
        """All splits as spectra; of several parts of each axis the axes are named in turn."""
        splits = {name: self.split(getattr(windows, name)) for name in SPLITS}
        return replace(windows, **splits, axes=windows.axes * (len(self.mean) // len(windows.axes)))


def amplitude_threshold(split: Split) -> float:
    """Mean + 2 standard deviations of ``|x|`` over all samples and axes, in G (paper section 4.4)."""
    amplitude = np.abs(split.series.astype(np.float64))
    return float(amplitude.mean() + 2 * amplitude.std())


def dropouts(split: Split, axes: Sequence[str], shortest: int = SHORTEST_DROPOUT) -> np.ndarray:
    """Windows in which all axes of a sensor read exactly zero for ``shortest`` samples in a row: bool (window,).

    ``axes`` names the axes of the windows, "<sensor> <axis>" each. No sensor that works says so: gravity is on one of
    its axes, and noise on all. Choice: all axes of a sensor, because one alone reads zero where a copy is coarse.
    """
    sensors = [name.rpartition(" ")[0] for name in axes]
    begun = np.zeros(len(split.series) + 1, int)  # runs of such samples that begin before each sample
    for sensor in dict.fromkeys(sensors):
        lost = (split.series[:, [of == sensor for of in sensors]] == 0).all(1)
        runs = np.lib.stride_tricks.sliding_window_view(lost, shortest).all(-1)
        begun[1 : len(runs) + 1] += np.cumsum(runs)
    return begun[split.start + split.length - shortest + 1] > begun[split.start]


def without_dropouts(windows: Windows, shortest: int = SHORTEST_DROPOUT) -> Windows:
    """The same windows without those of :func:`dropouts`, in all splits: those in which to search for nearest ones."""
    splits = {name: getattr(windows, name) for name in SPLITS}
    chosen = {name: of.chosen(~dropouts(of, windows.axes, shortest)) for name, of in splits.items()}
    return replace(windows, **chosen)
