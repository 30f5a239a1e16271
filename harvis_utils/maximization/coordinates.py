"""Numbers that are optimized turned into windows in G, and windows into such numbers.

The gradient points elsewhere in other coordinates. In time every sample is as easily changed as any other, which gives
noise; with 1/f scaling a step changes most where natural signals have most power (Olah et al. 2017, "preconditioning"),
and so it does along real windows' own principal directions. Phases alone leave every window a real one's spectrum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from harvis_utils.data.windowing import Split

#: windows are taken to reach this share of the bound at most: at the bound itself the inverse is infinite
REACH = 0.999


@dataclass(frozen=True)
class Parametrization:
    """``signal`` turns parameters into windows (window, axis, time) in G, ``parameters`` is its inverse."""

    parameters: Callable[[Tensor], Tensor]
    signal: Callable[[Tensor], Tensor]


def in_time(bound_g: float | None = None) -> Parametrization:
    """The samples themselves; with a bound, no sample can leave +-``bound_g`` (see :func:`bounded`)."""
    return bounded(Parametrization(Tensor.clone, lambda p: p), bound_g)


def in_frequency(length: int, bound_g: float | None = None) -> Parametrization:
    """Fourier coefficients over 1/f, real and imaginary part: (window, axis, frequency, 2).

    A step changes a wave's amplitude in proportion to 1 / max(f, one period per window); the scale has a root mean
    square of 1, so that step sizes mean about the same as in time.
    """
    periods = torch.arange(length // 2 + 1).clamp(min=1)
    weight = 1 / periods.double()
    weight = (weight / weight.square().mean().sqrt()).float()

    def parameters(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.rfft(x, norm="ortho") / weight.to(x))

    def signal(p: Tensor) -> Tensor:
        return torch.fft.irfft(torch.view_as_complex(p.contiguous()) * weight.to(p), n=length, norm="ortho")

    return bounded(Parametrization(parameters, signal), bound_g)


def in_principal(moment: np.ndarray, bound_g: float | None = None, floor: float = 1e-3) -> Parametrization:
    """Amplitudes along the principal directions of real windows over their size there: (window, axis, direction).

    ``moment`` (time, time) is real windows' second moment, the same for each axis. A step from zero along a linear
    unit's gradient leads to its pattern, not its filter (see :func:`objectives.mahalanobis`). Directions count as
    holding at least ``floor`` of the strongest one's power; sizes have a root mean square of 1.
    """
    power, directions = np.linalg.eigh(np.asarray(moment, np.float64))
    power = np.maximum(power, floor * power[-1])
    size = np.sqrt(power / power.mean())
    to, back = (torch.tensor(m) for m in (directions / size, (directions * size).T))
    return bounded(Parametrization(lambda x: x @ to.to(x), lambda p: p @ back.to(p)), bound_g)


def in_phase(magnitude: Tensor, length: int) -> Parametrization:
    """Phases alone, (window, axis, frequency): every window has the ``magnitude`` of real ones.

    MACO (Fel et al. 2023), "Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained
    Optimization". ``magnitude`` is (frequency,) or (axis, frequency), see :func:`mean_magnitude`. Waves that have no
    phase, the mean and the highest one of an even length, keep the sign that they have in the start.
    """
    real = torch.zeros(length // 2 + 1, dtype=torch.bool)
    real[[0] + [-1] * (length % 2 == 0)] = True

    def signal(p: Tensor) -> Tensor:
        sign = torch.where(p.detach().cos() < 0, -1.0, 1.0).to(p)
        along = torch.where(real.to(p.device), sign, p.cos()), torch.where(real.to(p.device), 0.0, p.sin())
        return torch.fft.irfft(torch.complex(*along) * magnitude.to(p), n=length, norm="ortho")

    return Parametrization(lambda x: torch.fft.rfft(x, norm="ortho").angle(), signal)


def mean_magnitude(windows: Tensor) -> Tensor:
    """Mean magnitude of windows (window, axis, time) per axis and frequency, (axis, frequency), in G."""
    return torch.fft.rfft(windows.double(), norm="ortho").abs().mean(0).float()


def bounded(inner: Parametrization, bound_g: float | None) -> Parametrization:
    """The same through ``bound * tanh(. / bound)``: what an image's range of colours is, the reach of movement is here.

    Windows are cut at ``REACH`` of the bound. Raises ``ValueError`` for a bound that is not positive.
    """
    if bound_g is None:
        return inner
    if not bound_g > 0:
        raise ValueError(f"the bound should be a positive amplitude in G, not {bound_g}")
    return Parametrization(
        lambda x: inner.parameters(bound_g * torch.atanh((x / bound_g).clamp(-REACH, REACH))),
        lambda p: bound_g * torch.tanh(inner.signal(p) / bound_g),
    )


@dataclass(frozen=True)
class Scale:
    """What stands for 0 G and 1 G on each axis where windows are in another unit: both (axis, 1), by default G itself.

    Choice: 1 G becomes s = 2 sigma of the training data, 0 G their mean, axis by axis (:meth:`of`). The paper's 0.3,
    1.5 and 10 G (start, AAP, failure) and our 0.05 G (flat) are then 0.3, 1.5, 10 and 0.05 s, and steps and penalties
    are those of signals in s. So a network gets the same signals whether its inputs were standardized or not. Where
    windows are in G, nothing is scaled: the paper's numbers hold as they are. ``unit`` is the windows', for figures.
    """

    zero: Tensor = torch.zeros(1, 1, dtype=torch.float64)
    one: Tensor = torch.ones(1, 1, dtype=torch.float64)
    unit: str = "G"

    @classmethod
    def of(cls, series: np.ndarray, unit: str = "unit of the data", names: Sequence[str] = ()) -> Scale:
        """The scale of training data (sample, axis). Raises ``ValueError`` for an axis that is constant, by name."""
        data = torch.as_tensor(np.asarray(series, np.float64))
        sigma = data.std(0, correction=0)
        if data.ndim != 2 or not len(data):
            raise ValueError(f"a scale needs data (sample, axis), not of shape {tuple(data.shape)}")
        if constant := [names[i] if len(names) else f"axis {i}" for i in np.flatnonzero(~(sigma > 0))]:
            raise ValueError(f"no scale without movement: {', '.join(constant)} constant or NaN; leave that out")
        return cls(data.mean(0)[:, None], 2 * sigma[:, None], unit)

    def windows(self, signals: Tensor) -> Tensor:
        """Signals in s as windows in the data's unit: (..., axis, time)."""
        return self.zero.to(signals) + self.one.to(signals) * signals

    def signals(self, windows: np.ndarray | Tensor) -> Tensor:
        """Windows in the data's unit as signals in s: (..., axis, time)."""
        windows = torch.as_tensor(windows)
        return (windows - self.zero.to(windows)) / self.one.to(windows)

    def split(self, split: Split) -> Split:
        """The same windows in s; themselves where s is 1 G."""
        if bool((self.zero == 0).all() and (self.one == 1).all()):
            return split
        return replace(split, series=np.ascontiguousarray(self.signals(split.series.T).numpy().T))

    def shared(self) -> Scale:
        """The one scale of all axes, (1, 1), for what treats them alike. Raises ``ValueError`` where they differ."""
        if not (torch.allclose(self.zero, self.zero[:1]) and torch.allclose(self.one, self.one[:1])):
            raise ValueError(
                "this place treats all axes alike, but their scales differ; "
                "give one scale for all, as Scale.of(series.reshape(-1, 1))"
            )
        return Scale(self.zero[:1], self.one[:1], self.unit)
