"""Ascent under a backward slope: what comes back through a rectifier that is closed is damped, not cut off.

In plain ascent a closed ReLU passes nothing back: where all are closed the signal cannot move, and where the wrong ones
are open it climbs to a local maximum. Linse, Barth and Martinetz (2024, "Leaky ReLUs That Differ in Forward and
Backward Pass Facilitate Activation Maximization in Deep Neural Networks") let the gradient leak. There are two ways;
values are those of the network itself in both:

* ``straight-through``: closed rectifiers of the network itself pass ``slope`` times the gradient back. Which ones are
  closed is seen in the network's own forward pass.
* ``leaky copy`` (ProxyGrad): the gradient is that of a copy whose rectifiers have that slope in both passes. Layers of
  the copy get what leaked through those below, so that other rectifiers are closed in it.

In a first layer both are the same, and at a slope of 1, where all is linear. A slope of None is plain ascent; 0 is the
same for a network of ReLUs.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from harvis_utils.maximization.ascent import path
from harvis_utils.networks import backward, taps
from harvis_utils.networks.sfhf import known
from harvis_utils.networks.taps import Tap
from harvis_utils.settings import Step

#: plain ascent first; then what is compared with it
SLOPES = (0.0, 0.01, 0.1, 0.3, 0.5, 1.0)
#: whose rectifiers leak: the network's own on the way back, or those of a copy in both directions
THROUGH, COPY = WAYS = ("straight-through", "leaky copy")

#: signals (row, ...) -> value of each row's objective, (row,), and the direction to climb in, like the signals
Field = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Ascent:
    """Per row: ``curve`` (row, n_steps + 1), the highest value up to each step, the start's first; ``best`` (row, ...),
    the signal that gave the highest; ``last``, where the ascent ended.
    """

    curve: Tensor
    best: Tensor
    last: Tensor

    @property
    def maximum(self) -> Tensor:
        """The highest value of the ascent, (row,)."""
        return self.curve[:, -1]


def ascend(field: Field, start: Tensor, step: Step, n_steps: int, bound: float | None = None) -> Ascent:
    """Climb from ``start`` (row, ...) for ``n_steps``; with ``bound`` every entry, the start's too, is within ±bound.

    Raises ``ValueError`` for an unknown optimizer, a negative number of steps and bounds that are not positive.
    """
    if n_steps < 0 or (bound is not None and not bound > 0):
        raise ValueError(f"an ascent needs 0 or more steps and a positive bound, not {n_steps} steps and bound {bound}")
    x = start.detach() if bound is None else start.detach().clamp(-bound, bound)
    curve, best = [], x.clone()

    def noted(x: Tensor, *_) -> Tensor:
        nonlocal best
        value, direction = field(x)
        value = value.detach()
        higher = value > curve[-1] if curve else torch.ones_like(value, dtype=torch.bool)
        curve.append(torch.where(higher, value, curve[-1]) if curve else value)
        best = torch.where(higher.view(-1, *[1] * (x.ndim - 1)), x, best)
        return direction

    after = None if bound is None else lambda x, rows: x.clamp(-bound, bound)
    ((_, _, last),) = deque(path(noted, x, step, n_steps, after=after), maxlen=1)
    noted(last)
    return Ascent(torch.stack(curve, 1), best, last)


def sloped(slope: float | None) -> AbstractContextManager:
    """While the block runs, every rectifier that is called passes ``slope`` times the gradient back where it is closed.

    Nothing changes for None. Raises ``ValueError`` for a slope that is no finite number.
    """
    if slope is None:
        return nullcontext()
    if not np.isfinite(slope):
        raise ValueError(f"a backward slope is a finite number, not {slope}")
    return backward.rectifiers(backward.sloped(float(slope)))


def unit_field(network: nn.Module, tap: str | Tap, unit: Tensor, slope: float | None, way: str = THROUGH) -> Field:
    """Mean of each row's unit's map (the paper's f) and its gradient under ``slope``, by autograd.

    ``unit`` (row,) are units of the layer ``tap``. The network must treat rows apart: evaluation mode.
    """
    place, copied = taps.find(network, tap), known("way", way, WAYS) == COPY and slope is not None

    def mean(x: Tensor) -> Tensor:
        maps = taps.maps_of(network, place, x)
        if slope is not None and not copied:
            backward.refuse_others(maps, place.name)
        return maps[torch.arange(len(x)), unit].mean((1, 2))

    def field(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_(True)
        with torch.enable_grad(), backward.leaking(slope) if copied else sloped(slope):
            value = mean(x)
        direction = backward.gradient_of(value.sum(), x)
        return mean(x.detach()) if copied else value, direction

    return field


def ascend_units(
    network: nn.Module,
    tap: str | Tap,
    units: Sequence[int],
    start: np.ndarray | Tensor,
    step: Step,
    n_steps: int,
    slope: float | None = None,
    bound: float | None = None,
    way: str = THROUGH,
) -> Ascent:
    """All ``units`` of a layer of any network from all starting points in one batch; rows are (unit, start).

    ``start`` is (start, ...): windows as the network takes them; it climbs in evaluation mode and is as it was
    afterwards. Raises ``ValueError`` for an unknown layer or way, for units that it does not have, and for a slope
    straight through where more than rectifiers and linear layers lies between the layer and the input; a leaky copy is
    a network like any other.
    """
    place = taps.find(network, tap)
    start = torch.as_tensor(start).to(taps.device_of(network))
    start = start if start.dtype in (torch.float32, torch.float64) else start.float()
    with taps.evaluating(network):
        with torch.no_grad():
            n_units = taps.maps_of(network, place, start[:1]).shape[1]
        unit = torch.tensor(taps.unit_numbers(units, n_units, place.name))
        rows = unit.repeat_interleave(len(start))
        x = start.repeat(len(unit), *[1] * (start.ndim - 1))
        return ascend(unit_field(network, place, rows, slope, way), x, step, n_steps, bound)
