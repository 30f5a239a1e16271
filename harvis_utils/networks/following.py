"""One tensor of a forward pass followed through norms, pooling and transpositions to the activation behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harvis_utils.networks import backward
from harvis_utils.networks.layouts import Groups
from harvis_utils.networks.local import NORMS

_PASSING = ("dropout", "dropout1d", "dropout2d", "feature_dropout", "alpha_dropout", "contiguous", "clone")
_PASSING = (*_PASSING, "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d")
_MOVING = ("transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis")

#: what comes out of a norm or an activation, its layout, and whether it is the activation -> what to put in its place
Act = Callable[[Tensor, Groups, bool], Tensor | None]


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 where torch does not count that."""
    return 0 if tensor.is_inference() else tensor._version


class Follower(TorchFunctionMode):
    """While the block runs, the tensor given to :meth:`start` is followed, whether modules or functions take it in.

    With ``act``, what it returns stands in place of what came out of norms and of the activation.
    """

    on: ClassVar[list[Follower]] = []  # the blocks that run

    def __init__(self, groups: Groups, act: Act | None = None):
        super().__init__()
        self.groups, self.act = groups, act
        self.held: list[Tensor] = []

    def __enter__(self):
        Follower.on.append(self)
        return super().__enter__()

    def __exit__(self, *error):
        Follower.on.remove(self)
        return super().__exit__(*error)

    def start(self, output: Tensor) -> None:
        """Follow this one from now on."""
        self.held, self.version = [], _version(output)
        self.held, self.takers, self.links = [output], [0], []
        self.at, self.activation = self.groups, ""

    @property
    def normed(self) -> bool:
        """Whether a norm took the tensor in."""
        return "norm" in self.links

    @property
    def normed_only(self) -> bool:
        """Whether it reaches the rest of the network through a norm alone."""
        forks = [i for i, n in enumerate(self.takers[:-1]) if n > 1]
        return "norm" in self.links[: forks[0] if forks else None]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [*args, *kwargs.values()]
        inputs += [one for of in inputs if isinstance(of, list | tuple) for one in of]
        if func is backward.ruled:
            inputs.append(args[0].x)
        taken = [i for i, tensor in enumerate(self.held) if any(one is tensor for one in inputs)]
        bent = taken and backward.activated(func, args, kwargs)
        # what was changed in place on the way, as a residual that is added, is something else from then on
        same = not taken or _version(self.held[-1]) == self.version
        out = func(*args, **kwargs)
        if not taken or isinstance(out, torch.Size) or not isinstance(out, Tensor | list | tuple):
            return out
        for i in taken:
            self.takers[i] += 1
        last, name = self.held[-1], getattr(func, "__name__", "").rstrip("_")
        if taken[-1] < len(self.held) - 1 or self.activation or not (same and isinstance(out, Tensor)):
            return out
        if bent is last:
            of = args[0] if func is backward.ruled else backward.rectifier(func, args, kwargs)
            ends_at_zero = of is not None and not isinstance(of.slope, Tensor) and of.slope == 0
            own = of is not None and of.plain and not any(link.startswith("avg") for link in self.links)
            self.activation = ("relu" if own else "bounded") if ends_at_zero else name
            return self._changed(out, last, True)
        if name in _MOVING:
            sizes = (2, 3, 5, 7, 11, 13)[: last.ndim]
            moved = func(torch.empty(sizes, device="meta"), *args[1:], **kwargs)
            self.at = tuple(self.at[sizes.index(n)] for n in moved.shape)
        elif name in NORMS:
            out = self._changed(out, last, False)
        elif name not in _PASSING:
            return out
        self.version = _version(out)
        self.held.append(out)
        self.takers.append(0)
        self.links.append("norm" if name in NORMS else name)
        return out

    def _changed(self, out: Tensor, last: Tensor, activation: bool) -> Tensor:
        other = None if self.act is None else self.act(out, self.at, activation)
        if other is None:
            return out
        if out is last:  # what was done in place is changed in place
            return out.copy_(other)
        for follower in Follower.on:  # those that follow the same tensor follow what stands in its place
            follower.held = [other if one is out else one for one in follower.held]
        return other
