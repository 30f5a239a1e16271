"""What is climbed: rows, their objective with its penalties, and the map of a unit per row with its gradient."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from harvis_utils.networks.sfhf import Trunk


@dataclass(frozen=True)
class Rows:
    """What belongs to each signal; every field's first dimension is the row.

    ``l2``, ``tv``, ``aap``, ``eap`` are the weights of the penalties in its objective (0: not used),
    ``clips``, ``filtered`` and ``normed`` are booleans, ``threshold`` is th_eap of its unit (inf: none).
    """

    unit: Tensor
    threshold: Tensor
    l2: Tensor
    tv: Tensor
    aap: Tensor
    eap: Tensor
    clips: Tensor
    filtered: Tensor
    normed: Tensor

    def __len__(self) -> int:
        return len(self.unit)

    def take(self, chosen) -> Rows:
        """The rows that an index, a mask or a slice chooses."""
        return Rows(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def to(self, device, dtype) -> Rows:
        """On another device, real numbers in another precision."""
        values = (getattr(self, f.name) for f in fields(self))
        return Rows(*(v.to(device, dtype if v.is_floating_point() else v.dtype) for v in values))


def l2_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each signal: (signal, time) in G -> (signal,). Paper eq. 3 with p = 2."""
    return torch.linalg.vector_norm(x, dim=-1)


def total_variation(x: Tensor) -> Tensor:
    """Sum of the absolute differences of neighbours: (signal, time) in G -> (signal,). Paper eq. 4."""
    return x.diff(dim=-1).abs().sum(-1)


def _mean_excess(values: Tensor, threshold: Tensor | float) -> Tensor:
    excess = F.relu(values - threshold)
    return excess.sum(-1) / (excess > 0).sum(-1).clamp(min=1)


def aap(x: Tensor, th_aap_g: float) -> Tensor:
    """Abnormal Amplitude Penalty: mean excess of ``|x|`` over ``th_aap_g`` among samples beyond it, else 0.

    (signal, time) in G -> (signal,). Paper section 4.4; Choice: the mean, by analogy with EAP.
    """
    return _mean_excess(x.abs(), th_aap_g)


def eap(maps: Tensor, th_eap: Tensor) -> Tensor:
    """Extreme Activation Penalty: mean excess over ``th_eap`` among outputs beyond it, else 0. Paper eq. 6.

    ``maps`` (signal, time) are unclipped outputs, ``th_eap`` is (signal,); returns (signal,).
    """
    return _mean_excess(maps, th_eap[:, None])


def clipped(maps: Tensor, th_eap: Tensor) -> Tensor:
    """Activation Clipping: outputs above ``th_eap`` count as ``th_eap`` and pass no gradient. Paper eq. 7.

    Choice: the paper's th_max and th_eap are taken as equal.
    """
    return torch.where(maps > th_eap[:, None], th_eap[:, None], maps)


TERMS = ("activation", "l2", "tv", "aap", "eap", "objective", "amplitude_g")


def terms(x: Tensor, maps: Tensor, rows: Rows, th_aap_g: float) -> dict[str, Tensor]:
    """The objective and its parts, each (row,), of signals ``x`` (row, axis, time) and ``maps`` (row, output).

    Choice: where a unit mixes the sensor axes, every penalty on the signal is the sum over its axes of the paper's, so
    that at one axis it is the paper's, and the weight w means the same for each sample of each axis.
    """
    counted = torch.where(rows.clips[:, None], clipped(maps, rows.threshold), maps)
    found = {
        "activation": counted.mean(1),
        "l2": l2_norm(x).sum(1),
        "tv": total_variation(x).sum(1),
        "aap": aap(x, th_aap_g).sum(1),
        "eap": eap(maps, rows.threshold),  # Paper: on the unclipped map
    }
    # Paper: R is the plain sum of the penalties in use
    penalty = sum(getattr(rows, name) * found[name] for name in ("l2", "tv", "aap", "eap"))
    return found | {"objective": found["activation"] - penalty, "amplitude_g": x.abs().amax((1, 2))}


class UnitMaps:
    """Feature map of one unit per row and the gradient through it, for signals of one sensor axis.

    Closed rectifiers of the layers below pass ``slope`` times the gradient back (0: the network's own gradient). Arrays
    inside are (row, time, channel), channels-last for the convolutions between.
    """

    def __init__(self, trunk: Trunk, layer: str, unit: Tensor, slope: float = 0.0):
        depth = trunk.depth(layer)
        self.trunk, self.depth, self.slope = trunk, depth, slope
        last = trunk.weights[depth - 1][unit]  # (row, channel, tap)
        self.own, self.own_bias = last.transpose(1, 2).contiguous(), trunk.biases[depth - 1][unit][:, None]
        # the gradient of a 'same' convolution is one with its kernel turned around and its channels exchanged
        self.own_back = self.own.flip(1)
        self.first = torch.cat([trunk.weights[0][:, 0].T, trunk.biases[0][None]])  # (tap and bias, channel)
        self.first_back = self.first[:-1].flip(0)
        self.between = [_channels_last(w[:, :, None, :]) for w in trunk.weights[1 : depth - 1]]
        self.back = [_channels_last(w.transpose(0, 1).flip(2)[:, :, None, :]) for w in trunk.weights[1 : depth - 1]]
        self.hidden: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """(row, time) in G -> rectified map of each row's unit, (row, time)."""
        self.hidden = []
        if self.depth > 1:
            pieces = x.new_ones(*x.shape, len(self.first))  # the last one meets the bias
            pieces[:, :, :-1] = _pieces(x, len(self.first) - 1)
            h = (pieces.view(-1, len(self.first)) @ self.first).relu_().view(*x.shape, -1)
            self.hidden.append(h)
        for w, b in zip(self.between, self.trunk.biases[1:], strict=False):
            h = _convolve(h, w, b).relu_()
            self.hidden.append(h)
        # (row, tap, time); batched products of one channel are slow
        taps = torch.bmm(self.own, h.transpose(1, 2)) if self.depth > 1 else self.own * x[:, None]
        return _gather(taps).add_(self.own_bias).relu_()

    def backward(self, g: Tensor) -> Tensor:
        """Gradient with respect to x, (row, time), of what has gradient ``g`` with respect to the map before ReLU."""
        if self.depth == 1:
            return _gather(self.own_back * g[:, None])
        # contiguous: a batched product of overlapping views goes row by row
        g = torch.bmm(_pieces(g, self.own.shape[1]).contiguous(), self.own_back)
        for h, w in zip(reversed(self.hidden[1:]), reversed(self.back), strict=True):
            g = _convolve(rectified(g, h, self.slope), w)
        g = rectified(g, self.hidden[0], self.slope)
        taps = (self.first_back @ g.reshape(-1, g.shape[2]).T).view(-1, *g.shape[:2])
        return _gather(taps.transpose(0, 1))


def rectified(g: Tensor, h: Tensor, slope: float = 0.0) -> Tensor:
    """Gradient ``g`` of a rectified output ``h``: ``slope`` times as large where the output is 0; in place for 0."""
    if slope:
        return torch.ops.aten.leaky_relu_backward(g, h, slope, False)
    return torch.ops.aten.threshold_backward.grad_input(g, h, 0, grad_input=g)


def _channels_last(w: Tensor) -> Tensor:
    return w.contiguous(memory_format=torch.channels_last)


def _pieces(x: Tensor, kernel: int) -> Tensor:
    """The samples that each tap of a 'same' convolution meets: (row, time) -> (row, time, tap)."""
    return F.pad(x, (kernel // 2, kernel // 2)).unfold(1, kernel, 1)


def _convolve(h: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """'Same' convolution over time of (row, time, channel)."""
    if h.is_cuda:
        return _by_products(h, w, b)
    out = F.conv2d(h[:, None].permute(0, 3, 1, 2), w, b, padding=(0, w.shape[3] // 2))
    return out.permute(0, 2, 3, 1).reshape(len(h), h.shape[1], -1)


def _by_products(h: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """The same as one matrix product: cuDNN takes Fourier transforms for it, slower by far and less exact."""
    pieces = F.pad(h, (0, 0, w.shape[3] // 2, w.shape[3] // 2)).unfold(1, w.shape[3], 1)  # (row, time, channel, tap)
    out = pieces.flatten(2) @ w.flatten(1).T
    return out if b is None else out + b


def _gather(taps: Tensor) -> Tensor:
    """Each tap's product, (row, tap, time), moved to its place and summed: (row, time)."""
    half = taps.shape[1] // 2
    out = taps[:, half].clone()
    for k in range(half):
        out[:, half - k :] += taps[:, k, : k - half]
    for shift in range(1, half + 1):
        out[:, :-shift] += taps[:, half + shift, shift:]
    return out
