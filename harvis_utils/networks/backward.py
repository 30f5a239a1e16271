"""Rectifiers with another backward pass: for deconvnet and for backward slopes, in any network, while a block runs.

``relu`` and ``leaky_relu`` are caught wherever a network calls them. Forward passes do not change by a bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

#: what the gradient before a rectifier is, out of its input, its forward slope below zero and the gradient after it
Rule = Callable[[Tensor, float, Tensor], Tensor]

_RELU = (F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_, F.relu_)
_LEAKY = (F.leaky_relu, F.leaky_relu_, torch._C._nn.leaky_relu)


class _Rectified(torch.autograd.Function):
    """``leaky_relu`` whose gradient is what a rule makes of it."""

    @staticmethod
    def forward(ctx, x: Tensor, slope: float, rule: Rule) -> Tensor:
        """The plain rectifier."""
        ctx.save_for_backward(x)
        ctx.slope, ctx.rule = slope, rule
        return torch.relu(x) if slope == 0 else F.leaky_relu(x, slope)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """What the rule makes of the gradient."""
        (x,) = ctx.saved_tensors
        return ctx.rule(x, ctx.slope, gradient), None, None


class rectifiers(TorchFunctionMode):
    """While the block runs, every ReLU and leaky ReLU that is *called* in it has the backward pass of ``rule``.

    A gradient taken after the block still follows the rule, because the forward pass has fixed it. Blocks may be
    nested; the inner one counts. Inside the block nothing is done in place.
    """

    def __init__(self, rule: Rule):
        super().__init__()
        self.rule = rule

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _RELU:
            return _Rectified.apply(args[0] if args else kwargs["input"], 0.0, self.rule)
        if func in _LEAKY:
            named = dict(zip(("input", "negative_slope", "inplace"), args, strict=False)) | kwargs
            return _Rectified.apply(named["input"], float(named.get("negative_slope", 0.01)), self.rule)
        return func(*args, **kwargs)


def deconvnet(x: Tensor, slope: float, gradient: Tensor) -> Tensor:
    """Zeiler and Fergus (2014): what comes back is rectified, wherever the unit stood in the forward pass."""
    return torch.relu(gradient)


def guided(x: Tensor, slope: float, gradient: Tensor) -> Tensor:
    """Springenberg et al. (2015): rectified, and only through rectifiers that were open."""
    return torch.relu(gradient) * (x > 0)


def sloped(backward_slope: float) -> Rule:
    """A rule with a slope of its own below zero: the gradient there is ``backward_slope`` times the one that comes."""

    def rule(x: Tensor, slope: float, gradient: Tensor) -> Tensor:
        return torch.where(x > 0, gradient, gradient * backward_slope)

    return rule
