"""SF-HF, the shared-filter hybrid-fusion network (paper section 4.2 and Fig. 2, after Muenzner et al. 2017).

The first three convolutions apply the same filters to each sensor axis by itself; the head mixes the axes.
Shapes are (batch, channel, axis, time); a kernel of (1, 5) never looks across axes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harvis_utils.settings import ModelSettings

POOLS = ("none", "max2", "mean")
MIXINGS = ("conv", "dense")


def known(kind: str, name, valid: Collection):
    """``name`` itself; raises ``ValueError`` listing the valid names of this kind where it is none of them."""
    if name not in valid:
        raise ValueError(f"unknown {kind} {name!r}; valid {kind}s: {', '.join(map(str, valid))}")
    return name


class Dropout(nn.Module):
    """Dropout that draws from a generator of its own, so that networks trained side by side stay reproducible.

    Without a ``generator`` it draws from torch's global one.
    """

    def __init__(self, share: float):
        super().__init__()
        self.share, self.generator = share, None

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself in evaluation; in training a share of its entries is 0 and the others are larger."""
        if not self.training or self.share == 0:
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.share, generator=self.generator)
        return x * kept.div_(1 - self.share)


class SFHF(nn.Module):
    """A per-axis trunk ``conv1`` ... ``convN`` and an axis-mixing head ending in class scores.

    Input: (batch, axis, time) in G. Output: (batch, class) scores before softmax.
    Raises ``ValueError`` for a setting that is not one of the valid choices.
    """

    def __init__(self, n_axes: int, length: int, n_classes: int, settings: ModelSettings):
        super().__init__()
        if settings.pool not in POOLS or settings.mixing not in MIXINGS:
            wanted = f"pool {settings.pool!r} must be one of {POOLS}, mixing {settings.mixing!r} one of {MIXINGS}"
            raise ValueError(wanted)
        if settings.kernel % 2 == 0:
            raise ValueError(f"kernel {settings.kernel} must be odd: feature maps keep the length of the input")
        units, kernel = settings.n_units, settings.kernel
        norm = nn.BatchNorm2d if settings.batch_norm else nn.Identity
        self.settings = settings
        self.layers = tuple(f"conv{i + 1}" for i in range(settings.n_layers))
        for i, name in enumerate(self.layers):
            # 'same' padding: the paper's feature maps keep the length N_T
            setattr(self, name, nn.Conv2d(1 if i == 0 else units, units, (1, kernel), padding=(0, kernel // 2)))
            setattr(self, f"norm_{name}", norm(units))
        steps = {"none": length, "max2": length // 2, "mean": 1}[settings.pool]
        if settings.mixing == "conv":
            self.mix = nn.Conv2d(units, units, (n_axes, 1))
            self.norm_mix = norm(units)
        width = units * steps * (1 if settings.mixing == "conv" else n_axes)
        self.dense = nn.Linear(width, settings.n_dense) if settings.n_dense else nn.Identity()
        self.dropout = Dropout(settings.dropout)
        self.classes = nn.Linear(settings.n_dense or width, n_classes)

    def feature_maps(self, x: Tensor, upto: str | None = None) -> dict[str, Tensor]:
        """Rectified outputs of the trunk's layers by name, each (batch, unit, axis, time); stops at ``upto``.

        An unknown ``upto`` raises ``ValueError`` listing the valid layers.
        """
        maps, h, upto = {}, x.unsqueeze(1), known("layer", upto or self.layers[-1], self.layers)
        for name in self.layers[: self.layers.index(upto) + 1]:
            h = maps[name] = F.relu(getattr(self, f"norm_{name}")(getattr(self, name)(h)))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Class scores before softmax: (batch, axis, time) -> (batch, class)."""
        h = self.feature_maps(x)[self.layers[-1]]
        if self.settings.pool == "max2":
            h = F.max_pool2d(h, (1, 2))
        elif self.settings.pool == "mean":
            h = h.mean(dim=3, keepdim=True)
        if self.settings.mixing == "conv":
            h = F.relu(self.norm_mix(self.mix(h)))
        h = h.flatten(1)
        if self.settings.n_dense:
            h = F.relu(self.dense(h))
        return self.classes(self.dropout(h))


@dataclass(frozen=True)
class Trunk:
    """The per-axis trunk as bare weights, batch norm folded in.

    ``weights[i]`` is (unit, input unit, kernel), ``biases[i]`` is (unit,).
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the convolutions, from the input on."""
        return tuple(f"conv{i + 1}" for i in range(len(self.weights)))

    def to(self, *args, **kwargs) -> Trunk:
        """The same weights on another device or in another precision."""
        return Trunk(*(tuple(t.to(*args, **kwargs) for t in of) for of in (self.weights, self.biases)))

    def depth(self, layer: str) -> int:
        """Number of convolutions up to ``layer``; an unknown layer raises ``ValueError`` listing the valid ones."""
        return self.layers.index(known("layer", layer, self.layers)) + 1

    def receptive_field(self, layer: str) -> int:
        """Samples of the input that one output of ``layer`` sees."""
        return 1 + sum(w.shape[2] - 1 for w in self.weights[: self.depth(layer)])

    def feature_maps(self, x: Tensor) -> Iterator[Tensor]:
        """Rectified maps of each layer in turn for single-axis signals: (signal, time) -> (signal, unit, time)."""
        h = x[:, None, None, :]
        for w, b in zip(self.weights, self.biases, strict=True):
            h = F.relu(F.conv2d(h, w[:, :, None, :], b, padding=(0, w.shape[2] // 2)))
            yield h[:, :, 0, :]

    def feature_map(self, x: Tensor, layer: str) -> Tensor:
        """The maps of one layer; see :meth:`feature_maps`."""
        return next(islice(self.feature_maps(x), self.depth(layer) - 1, None))


def folded(conv: nn.Conv1d | nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weights and biases, in double precision, of a convolution and the batch norm behind it (evaluation mode)."""
    w = conv.weight.detach().double()
    b = w.new_zeros(len(w)) if conv.bias is None else conv.bias.detach().double()
    if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
        spread = torch.sqrt(norm.running_var.double() + norm.eps)
        scale = (1 if norm.weight is None else norm.weight.detach().double()) / spread
        w, b = w * scale.view(-1, *[1] * (w.ndim - 1)), (b - norm.running_mean.double()) * scale
        b = b if norm.bias is None else b + norm.bias.detach().double()
    return w, b


def folded_trunk(model: SFHF) -> Trunk:
    """The trunk of a trained network with its batch norms folded into the convolutions (evaluation mode)."""
    pairs = [folded(getattr(model, name), getattr(model, f"norm_{name}")) for name in model.layers]
    return Trunk(tuple(w[:, :, 0].float().contiguous() for w, _ in pairs), tuple(b.float() for _, b in pairs))
