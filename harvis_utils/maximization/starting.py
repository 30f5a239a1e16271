"""Signals to start from: the paper's sine, other waves, and noise that has the spectrum of real windows."""

import numpy as np

from harvis_utils.data.windowing import Split
from harvis_utils.settings import MaximizationSettings


def starting_signal(settings: MaximizationSettings, length: int) -> np.ndarray:
    """The sine every signal starts from, (time,) in G."""
    time = np.arange(length) / length
    sine = np.sin(2 * np.pi * settings.start_periods * time)
    sine[np.abs(sine) < 1e-12] = 0  # its nodes: Adam would make a step of a rounding error, in whatever direction
    return (settings.start_amplitude_g * sine).astype(np.float32)


def spectrum_noise(segments: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise whose expected power spectrum is the mean one of ``segments``: (n, time) float32 in G."""
    length = segments.shape[1]
    power = (np.abs(np.fft.rfft(segments.astype(np.float64), axis=1)) ** 2).mean(0)
    real, imaginary = rng.standard_normal((2, n, len(power)))
    waves = (real + 1j * imaginary) / np.sqrt(2)
    waves[:, 0] = real[:, 0]  # the mean and the Nyquist frequency have no phase
    if length % 2 == 0:
        waves[:, -1] = real[:, -1]
    return np.fft.irfft(waves * np.sqrt(power), n=length, axis=1).astype(np.float32)


def starting_points(settings: MaximizationSettings, split: Split, n: int) -> np.ndarray:
    """The first ``n`` of five starts, (start, time) in G: the paper's sine, turned over, of 2 and of 3 periods, noise.

    The noise has the training windows' spectrum and the sine's root mean square, and is the same for all units.
    """
    sine = starting_signal(settings, split.length)
    time = 2 * np.pi * np.arange(split.length) / split.length
    noise = spectrum_noise(split.segments, 1, np.random.default_rng(0))[0]
    noise = noise * np.sqrt((sine**2).mean() / (noise**2).mean())
    waves = [settings.start_amplitude_g * np.sin(k * time) for k in (2, 3)]
    found = np.stack([sine, -sine, *waves, noise])
    if not 1 <= n <= len(found):
        raise ValueError(f"there are 1 to {len(found)} starting points, not {n}")
    return found[:n].astype(np.float32)


def chosen_units(n_units: int, n: int) -> list[int]:
    """``n`` units spread evenly over a layer; all where it has no more."""
    return np.unique(np.linspace(0, n_units - 1, min(n, n_units)).round().astype(int)).tolist()
