"""Activation Maximization by lucent itself, the library that many people would take: one unit at a time."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType

import torch
from torch import Tensor, nn


@cache
def render() -> ModuleType:
    """``lucent.optvis.render``; ``ImportError`` where it does not install."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hundreds, of functions for images that are not used here
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            # lucent imports torchvision, whose builds on PyPI are for CUDA: beside a CPU build of torch its operators
            # do not load, and it fails where it needs these two. They belong to object detection; lucent has no use
            # for them
            for name in ("nms", "qnms"):
                torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        return importlib.import_module("lucent.optvis.render")


class _Picture(nn.Module):
    """A network of windows for a library of images: (1, 1, 1, time), the same signal on every axis."""

    def __init__(self, model: nn.Module, n_axes: int):
        super().__init__()
        self.model, self.n_axes = model, n_axes

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image[:, 0].expand(-1, self.n_axes, -1))


class _Decaying(torch.optim.Adam):
    """Adam whose step size shrinks after every step; lucent knows no schedules."""

    def __init__(self, parameters, step_size: float, decay: float):
        super().__init__(parameters, step_size)
        self.decay = decay

    def step(self, closure):
        loss = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= self.decay
        return loss


def climb(
    model: nn.Module,
    layer: str,
    units: Tensor,
    start: Tensor,
    n_steps: int,
    n_axes: int,
    objective: Callable[[Tensor, Tensor, int], Tensor],
    step_size: float,
    decay: float,
) -> Tensor:
    """Signals (signal, time) after ``n_steps`` from ``start`` (1, time) by ``lucent.optvis.render.render_vis``.

    ``layer`` is a module's name with its dots as underscores, as lucent writes it. ``objective`` gets the signal
    (1, time), what that module gives (1, channel, axis, time) and the signal's number, and returns what is to be
    climbed. Raises ``ImportError`` where lucent does not install.
    """
    library, found = render(), []
    for number in range(len(units)):
        x = start.detach().clone()[None, None].requires_grad_()

        def loss(hooked, x=x, number=number) -> Tensor:
            return -objective(x[0, 0], hooked(f"model_{layer}"), number)

        (image,) = library.render_vis(
            _Picture(copy.deepcopy(model), n_axes),  # its hooks stay on the modules
            loss,
            lambda x=x: ([x], lambda: x),
            partial(_Decaying, step_size=step_size, decay=decay),
            transforms=[],
            thresholds=(n_steps,),
            preprocess=False,
            progress=False,
            show_image=False,
            fixed_image_size=0,  # what is smaller than 224 would be enlarged
        )
        found.append(torch.as_tensor(image).reshape(1, -1))
    return torch.cat(found)
