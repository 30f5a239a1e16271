"""1D-SAN, a network of pairwise self-attention over time, and what it is compared with.

A block lets each instant look at the ``k`` instants of its footprint R(t) (Zhao et al. 2020, "Exploring self-attention
for image recognition", in one dimension):

    y_t = sum over j in R(t) of softmax_j gamma([phi(h_t) - psi(h_j), p_t - p_j]) * beta(h_j),   out = h + W ReLU(BN(y))

where phi, psi and beta are convolutions of one sample, p is the position in the window, and the product is taken
channel by channel. Without p a block is an operator on the set of its instants, and with a mean over time behind it the
network answers a window and the same window backwards alike.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from harvis_utils.networks.sfhf import known
from harvis_utils.settings import SelfAttentionSettings

#: attention; the mean over the footprint; a filter as wide instead; two convolutions. The last two have as many
#: parameters as attention
KINDS = ("attention", "uniform", "convolution", "plain")
#: Choice: samples that each filter of the plain network sees; the source does not say
PLAIN_KERNEL = 5


class Reflected(nn.Module):
    """A window (..., time) with ``reach`` samples more at both ends, reflected there.

    By hand, because torch's own padding is not reproducible on a GPU. Raises ``ValueError`` for windows too short.
    """

    def __init__(self, reach: int):
        super().__init__()
        self.reach = reach

    def forward(self, h: Tensor) -> Tensor:
        """(..., time) -> (..., reach + time + reach)."""
        last = h.shape[-1] - 1
        if self.reach > last:
            raise ValueError(f"a footprint reaches {self.reach} samples and windows have {last + 1}")
        return torch.cat([h[..., 1 : self.reach + 1].flip(-1), h, h[..., last - self.reach : last].flip(-1)], -1)


def around(h: Tensor, footprint: int, dilation: int) -> Tensor:
    """The footprint of every instant: (..., time) -> (..., footprint, time), reflected at a window's ends."""
    if footprint % 2 == 0:
        raise ValueError(f"a footprint of {footprint} has no middle; use 3, 5, ...")
    padded, length = Reflected(footprint // 2 * dilation)(h), h.shape[-1]
    return torch.stack([padded[..., i * dilation : i * dilation + length] for i in range(footprint)], -2)


class Attention(nn.Module):
    """Attention of each instant over its footprint: (window, unit, time) -> (window, inner, time).

    ``uniform`` gives all instants of the footprint the weight 1 / k. A function ``change`` may stand in for the weights
    (window, weight, footprint, time); see :func:`changing`.
    """

    def __init__(self, inner: int, footprint: int, dilation: int, settings: SelfAttentionSettings):
        super().__init__()
        units, related = settings.n_units, max(settings.n_units // 4, 4)
        self.footprint, self.dilation, self.settings = footprint, dilation, settings
        self.change: Callable[[Tensor], Tensor] | None = None
        self.beta = nn.Conv1d(units, inner, 1)
        if settings.kind == "attention":
            self.phi, self.psi = nn.Conv1d(units, related, 1), nn.Conv1d(units, related, 1)
            related += settings.position
            # footprint and time laid end to end: batch norm and filters of one sample do not mind
            self.gamma = nn.Sequential(
                *(nn.BatchNorm1d(related), nn.ReLU(), nn.Conv1d(related, inner, 1, bias=False)),
                *(nn.BatchNorm1d(inner), nn.ReLU(), nn.Conv1d(inner, inner, 1)),
            )

    def around(self, h: Tensor) -> Tensor:
        """:func:`around` with this footprint."""
        return around(h, self.footprint, self.dilation)

    def weights(self, h: Tensor) -> Tensor:
        """What each instant gives to those of its footprint: (window, weight, footprint, time)."""
        pairs = self.phi(h).unsqueeze(2) - self.around(self.psi(h))
        if self.settings.position:  # a learned scale of p would be one more factor before a batch norm
            place = torch.linspace(-1, 1, h.shape[2], dtype=h.dtype, device=h.device)
            apart = (place - self.around(place)).expand(len(h), 1, -1, -1)
            pairs = torch.cat([pairs, apart], 1)
        # Choice: softmax, as the reference code; the source does not say
        return self.gamma(pairs.flatten(2)).view(len(h), -1, *pairs.shape[2:]).softmax(2)

    def forward(self, h: Tensor) -> Tensor:
        """The weighted sum of beta over the footprint."""
        values = self.around(self.beta(h))
        if self.settings.kind == "uniform":
            return values.mean(2)
        weights = self.weights(h)
        return ((self.change(weights) if self.change else weights) * values).sum(2)


class Block(nn.Module):
    """``h + back(units(mix(active(h))))``: (window, unit, time) -> the same; its units are rectified."""

    def __init__(self, n_units: int, inner: int, mix: nn.Module):
        super().__init__()
        self.active = nn.Sequential(nn.BatchNorm1d(n_units), nn.ReLU())
        self.mix = mix
        self.units = nn.Sequential(nn.BatchNorm1d(inner), nn.ReLU())
        self.back = nn.Conv1d(inner, n_units, 1)

    def forward(self, h: Tensor) -> Tensor:
        """What the block gives out."""
        return h + self.back(self.units(self.mix(self.active(h))))


class SelfAttention(nn.Module):
    """1D-SAN: (window, axis, time) -> class scores (window, class).

    Of the kind "convolution" a filter of the footprint, ``inner`` of them, stands where attention does.
    """

    def __init__(self, n_axes: int, n_classes: int, settings: SelfAttentionSettings, inner: int | None = None):
        super().__init__()
        units = settings.n_units
        inner = inner or units // 2
        self.settings = settings
        self.embed = nn.Conv1d(n_axes, units, 1)
        spans = list(zip(settings.footprints, settings.dilations, strict=True))
        for i, (footprint, dilation) in enumerate(spans):
            if settings.kind == "convolution":
                filters = nn.Conv1d(units, inner, footprint, dilation=dilation)
                mix = nn.Sequential(Reflected(footprint // 2 * dilation), filters)
            else:
                mix = Attention(inner, footprint, dilation, settings)
            setattr(self, f"block{i + 1}", Block(units, inner, mix))
        self.blocks = tuple(f"block{i + 1}" for i in range(len(spans)))
        self.layers = tuple(f"{name}.units" for name in self.blocks)
        self.active = nn.Sequential(nn.BatchNorm1d(units), nn.ReLU())
        self.classes = nn.Linear(units, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores before softmax."""
        h = self.embed(x)
        for name in self.blocks:
            h = getattr(self, name)(h)
        return self.classes(self.active(h).mean(2))


class Plain(nn.Module):
    """The source's CNN: two convolutions, the second ``inner`` wide, and classes of the mean over time."""

    layers = ("conv1", "conv2")

    def __init__(self, n_axes: int, n_classes: int, settings: SelfAttentionSettings, inner: int):
        super().__init__()
        for i, (before, units) in enumerate(((n_axes, settings.n_units), (settings.n_units, inner))):
            conv = nn.Conv1d(before, units, PLAIN_KERNEL, padding=PLAIN_KERNEL // 2)
            setattr(self, self.layers[i], nn.Sequential(conv, nn.BatchNorm1d(units), nn.ReLU()))
        self.classes = nn.Linear(inner, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores before softmax."""
        return self.classes(self.conv2(self.conv1(x)).mean(2))


def n_parameters(network: nn.Module) -> int:
    """How many numbers training may change."""
    return sum(of.numel() for of in network.parameters())


def network(n_axes: int, length: int, n_classes: int, settings: SelfAttentionSettings) -> nn.Module:
    """The network of the settings; "convolution" and "plain" are as wide as has most nearly attention's parameters.

    It takes windows of any ``length``. Raises ``ValueError`` for an unknown kind.
    """
    if known("kind", settings.kind, KINDS) in ("attention", "uniform"):
        return SelfAttention(n_axes, n_classes, settings)
    make = SelfAttention if settings.kind == "convolution" else Plain
    wanted = n_parameters(SelfAttention(n_axes, n_classes, replace(settings, kind="attention")))
    one, two = (n_parameters(make(n_axes, n_classes, settings, inner)) for inner in (1, 2))
    return make(n_axes, n_classes, settings, max(1, round(1 + (wanted - one) / (two - one))))


# ------------------------------------------------------------------------------------------- the weights looked at


@contextmanager
def changing(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While the block runs, ``change`` of each block's weights (window, weight, footprint, time) stands for them."""
    places = [module for module in model.modules() if isinstance(module, Attention)]
    for module in places:
        module.change = change
    try:
        yield
    finally:
        for module in places:
            module.change = None


def evened(weights: Tensor) -> Tensor:
    """The same sum, spread evenly over the footprint."""
    return weights.mean(2, keepdim=True).expand_as(weights)


def shuffled(weights: Tensor, seed: int = 0) -> Tensor:
    """The same weights at other instants of their footprint, drawn for each window, channel and instant."""
    generator = torch.Generator(weights.device).manual_seed(seed)
    order = torch.rand(weights.shape, generator=generator, device=weights.device).argsort(2)
    return weights.gather(2, order)


@torch.no_grad()
def attended(model: SelfAttention, x: Tensor, change: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    """Weights of each block by name, (window, weight, footprint, time), as they are or under ``change``."""
    found: list[Tensor] = []

    def keep(weights: Tensor) -> Tensor:
        found.append(change(weights) if change else weights)
        return found[-1]

    with changing(model.eval(), keep):
        model(x)
    return dict(zip(model.blocks, found, strict=True))


def received(weights: Tensor, dilation: int) -> Tensor:
    """What each instant gets from all that look at it, over what it would get of equal weights.

    ``weights`` (window, weight, footprint, time) -> (window, time): above 1 attention goes there, below 1 it leaves.
    """
    *_, footprint, length = weights.shape
    looked_at = around(torch.arange(length, device=weights.device), footprint, dilation).flatten()
    given = weights.mean(1).flatten(1)
    both = torch.stack([given, torch.full_like(given, 1 / footprint)])
    got = both.new_zeros(2, len(weights), length).scatter_add(2, looked_at.expand_as(both), both)
    return got[0] / got[1]
