"""Numbers that are optimized turned into windows in G, and windows into such numbers.

The gradient points elsewhere in other coordinates. In time every sample is as easily changed as any other, which gives
noise; with 1/f scaling a step changes most where natural signals have most power (Olah et al. 2017, "preconditioning").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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
