"""Objectives turned into signals by gradient ascent: parametrize, transform, score, step (Olah et al. 2017).

    parametrization = in_frequency(30, bound_g=2.0)
    made = visualize(network, channel("conv2", 5), start, parametrization, transforms=[shift(2), noise(0.05)])
    made.signal  # (window, axis, time) in G

All windows of a batch are optimized at once; each may have a unit of its own. Units of SF-HF's convolutions see one
sensor axis at a time: :class:`PerAxis` is the network up to them, so that a single axis can be optimized.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from harvis_utils.data.windowing import Split
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.ascent import path, uphill
from harvis_utils.maximization.coordinates import Parametrization
from harvis_utils.maximization.objectives import Objective
from harvis_utils.maximization.transforms import Transform
from harvis_utils.networks import backward, taps
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.networks.taps import Tap
from harvis_utils.settings import Step

#: share of the gradient that closed rectifiers let through while a silent unit is woken. Choice
WAKING_SLOPE = 0.1


class PerAxis(nn.Module):
    """SF-HF's convolutions up to ``layer``, as a network for windows of any number of axes, treated one by one.

    Places for objectives are those of :meth:`tap`.
    """

    def __init__(self, network: SFHF, layer: str):
        super().__init__()
        self.network, self.layer = network, layer
        self.tap(layer)

    def tap(self, layer: str, before_relu: bool = False) -> Tap:
        """The place of a layer's units, after or before the ReLU. Raises ``ValueError`` for other layers."""
        seen = self.network.layers[: (*self.network.layers, self.layer).index(self.layer) + 1]
        if layer not in seen:
            fault = f"only {', '.join(seen)} are seen axis by axis here, not {layer}; other layers need all axes"
            raise ValueError(fault)
        name = f"{layer} before ReLU" if before_relu else layer
        tap = taps.find(self.network, layer)
        return Tap(name, f"network.{tap.module}", not before_relu, tap.layout)

    def forward(self, x: Tensor) -> Tensor:
        """(window, axis, time) in G -> maps of the layer (window, unit, axis, time)."""
        return self.network.feature_maps(x, self.layer)[self.layer]


@dataclass(frozen=True)
class Visualization:
    """``signal`` (window, axis, time) in G and its ``score`` (window,); ``history`` (window, record) of the ``steps``.

    Scores are those of the plain signal, without transforms, of the objective called ``objective``.
    """

    signal: np.ndarray
    score: np.ndarray
    history: np.ndarray
    steps: np.ndarray
    objective: str


def visualize(
    network: nn.Module,
    objective: Objective,
    start: Tensor | np.ndarray,
    parametrization: Parametrization | None = None,
    *,
    transforms: Sequence[Transform] = (),
    prior: Callable[[Tensor], Tensor] | None = None,
    prior_rate: float = 0.1,
    n_steps: int = 200,
    step_size: float = 0.05,
    decay: float = 1.0,
    waking_steps: int = 16,
    waking_slope: float = WAKING_SLOPE,
    seed: int = 0,
) -> Visualization:
    """The signals that ascent with Adam finds from ``start`` (window, axis, time) in G, in the parametrization's space.

    Every step shows the network the signal after the ``transforms``, drawn anew from ``seed``. With a ``prior``, which
    denoises windows, every step is followed by one towards what it returns, ``prior_rate`` of the way. After each step
    the step size is multiplied by ``decay``. In the first ``waking_steps`` closed rectifiers pass ``waking_slope`` of
    the gradient, to wake silent units (Olah et al. 2017, appendix); in all steps, this is ascent under a backward slope
    (Linse et al. 2024, :mod:`harvis_utils.lenses.slopes`).

    The network computes in evaluation mode and is left as it was. Raises ``ValueError`` for windows of another shape
    and where the objective is not finite.
    """
    # a half has too few digits for small steps
    x = taps.as_windows(network, start)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.ndim != 3:
        raise ValueError(f"start should be (window, axis, time), not an array of shape {tuple(x.shape)}")
    generator = torch.Generator().manual_seed(seed)
    record = paper_methods.recorded_steps(n_steps, 30)
    history = []

    def score(seen: Tensor, rows: Tensor, number: int) -> Tensor:
        for transform in transforms:
            seen = transform(seen, generator)
        with backward.rectifiers(backward.waking(waking_slope)) if number < waking_steps else nullcontext():
            return objective(network, seen)

    def denoised(seen: Tensor, rows: Tensor) -> Tensor:
        return seen + prior_rate * (prior(seen) - seen)

    how = {"after": prior and denoised, "coordinates": parametrization}
    with taps.evaluating(network), torch.no_grad():
        for number, _, seen in path(uphill(score), x, Step("adam", step_size, decay), n_steps, **how):
            if number in record:
                history.append(_scored(network, objective, seen, number))
    scores = np.stack(history, 1)
    return Visualization(seen.cpu().numpy(), scores[:, -1], scores, np.array(record), objective.name)


@torch.no_grad()
def _scored(network: nn.Module, objective: Objective, x: Tensor, step: int) -> np.ndarray:
    score = objective(network, x)
    if score.shape != x.shape[:1] or not torch.isfinite(score).all():
        raise ValueError(f"{objective.name}: one finite number per window is wanted, not {score} (step {step})")
    return score.float().cpu().numpy()


@torch.no_grad()
def scores(network: nn.Module, objective: Objective, x: np.ndarray) -> np.ndarray:
    """The objective of many windows (window, axis, time): (window,)."""
    parts = torch.as_tensor(np.ascontiguousarray(x)).split(1024)
    with taps.evaluating(network):
        return torch.cat([objective(network, part) for part in parts]).float().cpu().numpy()


def extremes(values: np.ndarray, recording: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``n`` windows with the largest values, largest first, and the ``n`` with the smallest, smallest first.

    ``values`` and ``recording`` are (window,); at most one window of a recording is taken, because its neighbours
    overlap it. Returns indices. Raises ``ValueError`` where there are fewer recordings than ``n``.
    """
    if n > (n_recordings := len(np.unique(recording))):
        raise ValueError(f"{n} windows of different recordings are wanted, but there are {n_recordings}")

    def first(keys: np.ndarray) -> np.ndarray:
        order = np.argsort(keys, kind="stable")
        _, at = np.unique(recording[order], return_index=True)
        return order[np.sort(at)[:n]]

    return first(-values), first(values)


def amplitude_bound(split: Split, share: float = 0.999) -> float:
    """Amplitude in G that this share of a split's samples, over all axes, stays below."""
    return float(np.quantile(np.abs(split.series), share))
