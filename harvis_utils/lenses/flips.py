"""A real window turned into the nearest one that the network takes for something else: the adversarial side of dreams.

A dream and an adversarial example climb the same hill, a class score, from the same real window; they differ in where
they stop. The first goes on until the class is as sure as it can be, the second stops at the border (seed of both:
Olah et al. 2017; Szegedy et al. 2014).

The smallest change is searched for with DeepFool (Moosavi-Dezfooli et al. 2016), bisection and steps along the border.
It is an upper bound on the true one, as that of every such search. Choice: L2, in G RMS over all samples of all axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from harvis_utils.networks import taps

#: DeepFool goes a little beyond where the linearized border lies
OVERSHOOT = 0.02
BISECTIONS = 20


@dataclass(frozen=True)
class Flips:
    """``signal`` (window, axis, time) in G just beyond the border, its class ``after``, the class ``before``.

    ``rms_g`` is the size of the change, (window,); NaN, and the signal unchanged, where no flip was found.
    """

    signal: np.ndarray
    before: np.ndarray
    after: np.ndarray
    rms_g: np.ndarray


def rms(change: Tensor | np.ndarray):
    """Root mean square over axes and samples: (window, axis, time) in G -> (window,)."""
    return (change**2).mean((1, 2)) ** 0.5


def smallest_change(network: nn.Module, x: np.ndarray | Tensor, n_steps: int = 30, n_along: int = 6) -> Flips:
    """The smallest change found that gives windows (window, axis, time) another class than the network gives them now.

    All windows at once: DeepFool until the class changes, at most ``n_steps``; bisection on the straight line back;
    where DeepFool met no slope, bisection on the lines to the windows of the batch with other classes; then ``n_along``
    times the direction is set along the border's normal at the point found, and the border searched on it, which is
    kept where it is nearer.
    """
    x = torch.as_tensor(x, dtype=torch.float32).clone()
    with taps.evaluating(network):
        with torch.no_grad():
            before = network(x).argmax(1)
        beyond = _deepfool(network, x, before, n_steps)
        best = _towards_others(network, x, _bisected(network, x, beyond - x, before), before)
        for _ in range(n_along):
            _, normal = _nearest_border(network, best, before)
            along = normal / normal.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
            # to where the plane of the border is nearest to x, and as far again, so that a bent border is crossed
            reach = ((best - x) * along).sum((1, 2))[:, None, None]
            tried = _bisected(network, x, 2 * reach * along, before)
            nearer = (rms(tried - x) < rms(best - x)) & (_class(network, tried) != before)
            best = torch.where(nearer[:, None, None], tried, best)
        after = _class(network, best)
    flipped = (after != before).numpy()
    signal = torch.where((after != before)[:, None, None], best, x)
    return Flips(signal.numpy(), before.numpy(), after.numpy(), np.where(flipped, rms(signal - x).numpy(), np.nan))


@torch.no_grad()
def _class(network: nn.Module, x: Tensor) -> Tensor:
    return network(x).argmax(1)


def _nearest_border(network: nn.Module, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Lead of the class ``before`` over the one whose linearized border is nearest, (window,), and minus its gradient.

    One backward pass per class.
    """
    x = x.detach().requires_grad_()
    scores = network(x)
    own = scores.gather(1, before[:, None])
    lead = own - scores  # (window, class)
    slopes = torch.stack([torch.autograd.grad(lead[:, k].sum(), x, retain_graph=True)[0] for k in range(lead.shape[1])])
    lead, slopes = lead.detach(), slopes.transpose(0, 1)  # (window, class, axis, time)
    far = lead.abs() / slopes.flatten(2).norm(dim=2).clamp(min=1e-12)
    nearest = far.scatter(1, before[:, None], torch.inf).argmin(1)
    every = torch.arange(len(x))
    return lead[every, nearest], -slopes[every, nearest]


def _deepfool(network: nn.Module, x: Tensor, before: Tensor, n_steps: int) -> Tensor:
    """Windows whose class has changed, as far as that was reached; those go no farther."""
    found = x.clone()
    for _ in range(n_steps):
        there = _class(network, found) == before
        if not there.any():
            break
        lead, down = _nearest_border(network, found[there], before[there])
        size = (lead.abs() + 1e-6) / down.flatten(1).square().sum(1).clamp(min=1e-12)
        found[there] += (1 + OVERSHOOT) * size[:, None, None] * down
    return found


def _towards_others(network: nn.Module, x: Tensor, found: Tensor, before: Tensor) -> Tensor:
    """``found``, where that has not changed its class the nearest border on the lines to windows of other classes."""
    found = found.clone()
    for i in torch.nonzero(_class(network, found) == before)[:, 0].tolist():
        others = x[before != before[i]]
        if len(others):
            tried = _bisected(network, x[[i]].expand_as(others), others - x[i], before[[i]].expand(len(others)))
            found[i] = tried[rms(tried - x[i]).argmin()]
    return found


@torch.no_grad()
def _bisected(network: nn.Module, x: Tensor, change: Tensor, before: Tensor) -> Tensor:
    """The point on the line from x to x + change that lies just beyond the border; x + change where that does not."""
    low, high = torch.zeros(len(x)), torch.ones(len(x))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        changed = _class(network, x + middle[:, None, None] * change) != before
        low, high = torch.where(changed, low, middle), torch.where(changed, middle, high)
    return x + high[:, None, None] * change


@torch.no_grad()
def predicted(network: nn.Module, x: np.ndarray) -> np.ndarray:
    """Class of each window, (window,)."""
    with taps.evaluating(network):
        return _class(network, torch.tensor(x)).numpy()


def random_change(shape: tuple[int, ...], rms_g: np.ndarray, seed: int) -> np.ndarray:
    """White noise (window, axis, time) of exactly these sizes (window,): the control for a change of that size."""
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return noise * (rms_g / rms(noise))[:, None, None].astype(np.float32)
