"""Rectifiers with another backward pass, or leaky in both passes, in any network, while a block runs.

A rectifier is a function that is x itself in a range, and of constant slope, mostly 0, below it: ReLU however it is
spelled (``relu``, ``clamp(min=0)``, ``maximum`` with 0, ``threshold``, ``where(x > 0, x, 0)``, ``x * (x > 0)``), ReLU6
and other bounded ones, leaky ReLU, PReLU, RReLU in evaluation mode; as functions, methods, modules, in place or not.
They are caught wherever a network calls them. Under a rule forward passes do not change by a bit; only in a block of
:class:`leaking` they do, which makes another network for as long as it runs.

Rules are not defined for other functions that are not linear (GELU, ELU, SiLU, tanh, a sigmoid gate, softmax): they
keep their gradient, and :func:`refuse_others` says so where a rule is to mean something.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, handle_torch_function

from harvis_utils.networks.layouts import PlaceError

#: what the gradient before a rectifier is, out of a tensor that is positive where it is open, its forward slope below
#: and the gradient after it
Rule = Callable[[Tensor, float | Tensor, Tensor], Tensor]

#: names of functions that bend what they get, besides those of rectifiers
SMOOTH = ("gelu", "elu", "selu", "celu", "silu", "mish", "tanh", "sigmoid", "softplus", "hardswish", "hardsigmoid")
SMOOTH = (*SMOOTH, "hardtanh", "softsign", "logsigmoid", "softshrink", "hardshrink", "tanhshrink", "glu")


@dataclass(frozen=True)
class Rectifier:
    """One call of a rectifier: its input ``x``, the range ``low`` to ``high`` in which it is x, ``slope`` below it."""

    x: Tensor
    slope: float | Tensor = 0.0
    low: float = 0.0
    high: float = torch.inf
    in_place: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is ReLU."""
        return not isinstance(self.slope, Tensor) and (self.slope, self.low, self.high) == (0, 0, torch.inf)

    @property
    def opened(self) -> Tensor:
        """Positive where the rectifier is open; its very input for one that opens at 0 and has no upper end."""
        if self.low == 0 and self.high == torch.inf:
            return self.x
        return torch.where(self.x < self.high, self.x - self.low, torch.zeros_like(self.x))


def _zero(value) -> bool:
    """Whether a value is the constant 0."""
    if isinstance(value, Tensor):
        return not value.requires_grad and not bool(value.any())
    return not isinstance(value, bool) and isinstance(value, int | float) and value == 0


def _mask_of(mask, x) -> bool:
    """Whether ``mask`` is 1 where x is above 0 and 0 else."""
    if not (isinstance(mask, Tensor) and isinstance(x, Tensor)) or mask.shape != x.shape or mask.requires_grad:
        return False
    return x.is_floating_point() and (torch.equal(mask.to(x), (x > 0).to(x)) or torch.equal(mask.to(x), (x >= 0).to(x)))


def rectifier(func, args, kwargs) -> Rectifier | None:
    """What a call of a torch function rectifies, and how; None for a call that does not rectify."""
    name = getattr(func, "__name__", "")
    kind, values = name.strip("_"), dict(kwargs)
    names = _ARGUMENTS.get(kind)
    if names is None:
        return None
    values = dict(zip(names, args, strict=False)) | values
    x, in_place = values.get("input", values.get("self")), name.endswith("_") or bool(values.get("inplace"))
    if kind in ("maximum", "max", "fmax"):
        other = values.get("other")
        if not (isinstance(x, Tensor) and isinstance(other, Tensor)):
            return None
        of = next((one for one, two in ((x, other), (other, x)) if _zero(two) and one.numel() >= two.numel()), None)
        return None if of is None else Rectifier(of)
    if kind == "where":
        mask, kept, other = values.get("condition"), values.get("input"), values.get("other")
        mask, kept = (kept, mask) if isinstance(mask, Tensor) and mask.is_floating_point() else (mask, kept)
        return Rectifier(kept) if _zero(other) and _mask_of(mask, kept) else None
    if kind in ("mul", "multiply"):
        other = values.get("other")
        pairs = [(x, other), (other, x)]
        return next((Rectifier(of, in_place=in_place) for of, mask in pairs if _mask_of(mask, of)), None)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    if kind == "relu":
        return Rectifier(x, in_place=in_place)
    if kind == "leaky_relu":
        return Rectifier(x, float(values.get("negative_slope", 0.01)), in_place=in_place)
    if kind == "relu6":
        return Rectifier(x, high=6.0, in_place=in_place)
    if kind == "threshold":
        return Rectifier(x, low=float(values["threshold"]), in_place=in_place)
    if kind == "prelu":
        weight = values["weight"].detach()
        return Rectifier(x, weight.view(-1, *[1] * max(x.ndim - 2, 0)) if weight.numel() > 1 else weight)
    if kind == "rrelu":
        if values.get("training", False):
            return None
        return Rectifier(x, (values.get("lower", 1 / 8) + values.get("upper", 1 / 3)) / 2, in_place=in_place)
    low = values.get("min_val", -1.0) if kind == "hardtanh" else values.get("min")
    high = values.get("max_val", 1.0) if kind == "hardtanh" else values.get("max")
    if low is None or not _zero(low) or isinstance(high, Tensor):
        return None
    return Rectifier(x, high=torch.inf if high is None else float(high), in_place=in_place)


_ARGUMENTS = {
    "relu": ("input", "inplace"),
    "relu6": ("input", "inplace"),
    "leaky_relu": ("input", "negative_slope", "inplace"),
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
    "threshold": ("input", "threshold", "value", "inplace"),
    "prelu": ("input", "weight"),
    "rrelu": ("input", "lower", "upper", "training", "inplace"),
    "where": ("condition", "input", "other"),
    **dict.fromkeys(("clamp", "clip"), ("input", "min", "max")),
    "clamp_min": ("input", "min"),
    **dict.fromkeys(("maximum", "max", "fmax", "mul", "multiply"), ("input", "other")),
}


def activated(func, args, kwargs) -> Tensor | None:
    """What a call of a torch function rectifies or bends by another activation; None for any other call."""
    if func is ruled:
        return args[0].x
    met = rectifier(func, args, kwargs)
    if met is not None:
        return met.x
    return args[0] if args and getattr(func, "__name__", "").rstrip("_") in SMOOTH else None


class _Rectified(torch.autograd.Function):
    """A rectifier whose gradient is what a rule makes of it."""

    @staticmethod
    def forward(ctx, x: Tensor, call: Callable[[], Tensor], of: Rectifier, rule: Rule) -> Tensor:
        """The plain rectifier, by the very call of the network."""
        ctx.slope, ctx.rule = of.slope, rule
        # of a ReLU the output is kept, as torch does: what it got may be changed in place later
        opened = None if of.plain else of.opened.clone() if of.in_place and of.opened is of.x else of.opened
        out = call()
        if of.in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(out if opened is None else opened)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """What the rule makes of the gradient."""
        (opened,) = ctx.saved_tensors
        return ctx.rule(opened, ctx.slope, gradient), None, None, None


def ruled(of: Rectifier, call: Callable[[], Tensor], rule: Rule) -> Tensor:
    """The call of a rectifier with the backward pass of ``rule``; other modes that are on are asked first."""
    if torch._C._is_torch_function_mode_enabled():
        return handle_torch_function(ruled, (of.x,), of, call, rule)
    try:
        with disable_saved_tensors_hooks("backward rules do not hold in parts that are computed anew"):
            pass
    except RuntimeError as error:
        raise PlaceError(f"{error}: switch off the network's checkpointing (torch.utils.checkpoint)") from error
    return _Rectified.apply(of.x, call, of, rule)


class rectifiers(TorchFunctionMode):
    """While the block runs, every rectifier that is *called* in it has the backward pass of ``rule``.

    A gradient taken after the block still follows the rule, because the forward pass has fixed it. Blocks may be
    nested; the inner one counts.
    """

    def __init__(self, rule: Rule):
        super().__init__()
        self.rule = rule

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is ruled:  # of an inner block, which counts
            return func(*args, **kwargs)
        of = rectifier(func, args, kwargs)
        if of is None:
            return func(*args, **kwargs)
        return ruled(of, lambda: func(*args, **kwargs), self.rule)


class leaking(TorchFunctionMode):
    """While the block runs, the network that is called is its leaky copy: what rectifiers get below their range, they
    multiply by ``slope``, forward and backward.

    Gradients are those of the copy, at the copy's own activations. They are ordinary ones, so that whatever else bends
    on the way (a softmax, a GELU) keeps its meaning. Raises ``ValueError`` for a slope that is no finite number.
    """

    def __init__(self, slope: float):
        super().__init__()
        if not math.isfinite(slope):
            raise ValueError(f"a slope is a finite number, not {slope}")
        self.slope = slope

    def __torch_function__(self, func, types, args=(), kwargs=None):
        of = rectifier(func, args, kwargs or {})
        if of is None:
            return func(*args, **(kwargs or {}))
        x = of.x.clone() if of.in_place else of.x
        if of.low == 0 and of.high == torch.inf:
            out = F.leaky_relu(x, self.slope)
        else:
            out = torch.where(x > of.low, x.clamp(max=of.high), self.slope * x)
        return of.x.copy_(out) if of.in_place else out


class switches(TorchFunctionMode):
    """While the block runs, max pooling that is *called* in it has other switches for the way back than its own.

    ``guide`` makes of what is pooled a tensor of that shape; the places of *its* maxima, one in each region, get what
    comes back. What pooling gives out does not change by a bit.
    """

    def __init__(self, guide: Callable[[Tensor], Tensor]):
        super().__init__()
        self.guide = guide

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        kind = name.removesuffix("_with_indices")
        if kind.removeprefix("adaptive_") not in ("max_pool1d", "max_pool2d", "max_pool3d"):
            return func(*args, **kwargs)
        pool, inner = getattr(F, f"{kind}_with_indices"), -int(kind[-2])
        x, *sizes = args if args else (kwargs.pop("input"),)
        wanted = kwargs.pop("return_indices", False)
        (out, own), (_, at) = (pool(of, *sizes, **kwargs) for of in (x.detach(), self.guide(x.detach())))
        there = x.flatten(inner).gather(-1, at.flatten(inner)).view_as(out)
        out = out + (there - there.detach())  # adds nothing but the way back
        return (out, own) if wanted else out


#: nodes of autograd that are linear in what comes from the input, or choose from it; norms keep their gradient
_LINEAR = {
    *("Convolution", "ConvolutionOverrideable", "MkldnnConvolution", "SlowConvDilated2D", "Addmm", "Mm", "Bmm", "Mv"),
    *("Baddbmm", "MkldnnLinear", "T", "Transpose", "Permute", "Movedim", "View", "UnsafeView", "ReshapeAlias", "Alias"),
    *("Squeeze", "Unsqueeze", "Flatten", "Expand", "Repeat", "Roll", "Flip", "Unfold", "Im2Col", "AsStrided", "Clone"),
    *("Slice", "Select", "Index", "IndexSelect", "IndexFill", "Gather", "Split", "SplitWithSizes", "Unbind", "Cat"),
    *("Stack", "Add", "Sub", "Rsub", "Neg", "Mul", "Div", "Sum", "Mean", "Cumsum", "ToCopy", "AccumulateGrad"),
    *("NativeBatchNorm", "CudnnBatchNorm", "NativeLayerNorm", "NativeGroupNorm", "ConstantPadNd", "ReflectionPad1D"),
    *("ReplicationPad1D", "UpsampleNearest1D", "UpsampleLinear1D", "AvgPool1D", "AvgPool2D", "AdaptiveAvgPool1D"),
    *("AdaptiveAvgPool2D", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "Amax", "Max"),
}
#: those that are so only where one of two comes from the input: x times x is not linear, max(x, 0.1 x) is a rectifier
_OF_ONE = {"Mul", "Div", "Bmm", "Mm", "Mv", "Max"}


def refuse_others(output: Tensor, where: str) -> None:
    """Raise ``ValueError`` where a rule would not mean what it says on the way from ``output`` back to the input.

    ``output`` comes from a forward pass in a block of :class:`rectifiers`. Its way may lead through rectifiers and
    linear functions alone; without a rectifier all rules are the gradient.
    """
    others, todo = set(), [output.grad_fn]
    seen = {None, *todo}
    while todo:
        node = todo.pop()
        name = node.name().split("::")[-1].partition("Backward")[0].lstrip("_")
        before = [of for of, _ in node.next_functions]
        varying = [of for of in before if of and not isinstance(getattr(of, "variable", None), nn.Parameter)]
        if name != "Rectified" and (name not in _LINEAR or (name in _OF_ONE and len(varying) > 1)):
            others.add(name)
        todo += set(before) - seen
        seen.update(before)
    if others:
        raise ValueError(
            f"between {where} and the input lies what is no rectifier that a backward rule is defined for "
            f"({', '.join(sorted(others))}): use the plain gradient (rule 'gradient', slope None), or a place before it"
        )


def gradient_of(output: Tensor, x: Tensor, above: Tensor | None = None, keep: bool = False) -> Tensor:
    """The gradient of ``output``, or of its sum with ``above``, by x; ``keep`` allows another one behind it.

    Raises ``ValueError`` where a part of the network that is to be computed anew for it cannot be.
    """
    try:
        (gradient,) = torch.autograd.grad(output, x, above, retain_graph=keep)
    except RuntimeError as error:
        if "torch.utils.checkpoint" not in str(error):
            raise
        why = str(error).partition("\n")[0]
        raise PlaceError(f"no gradient leads to the windows: switch off the network's checkpointing ({why})") from error
    return gradient


def deconvnet(x: Tensor, slope: float | Tensor, gradient: Tensor) -> Tensor:
    """Zeiler and Fergus (2014): what comes back is rectified, wherever the unit stood in the forward pass."""
    return torch.relu(gradient)


def guided(x: Tensor, slope: float | Tensor, gradient: Tensor) -> Tensor:
    """Springenberg et al. (2015): rectified, and only through rectifiers that were open."""
    return torch.relu(gradient) * (x > 0)


def sloped(backward_slope: float) -> Rule:
    """A rule with a slope of its own where closed: the gradient there is ``backward_slope`` times what comes."""

    def rule(x: Tensor, slope: float | Tensor, gradient: Tensor) -> Tensor:
        return torch.where(x > 0, gradient, gradient * backward_slope)

    return rule


def waking(least: float) -> Rule:
    """A rule by which closed rectifiers pass at least this share of the gradient."""

    def rule(x: Tensor, slope: float | Tensor, gradient: Tensor) -> Tensor:
        passed = slope.clamp(min=least) if isinstance(slope, Tensor) else max(slope, least)
        return torch.where(x > 0, gradient, gradient * passed)

    return rule
