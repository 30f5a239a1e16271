"""Networks for activity recognition as they were published, small, each with its forward pass written again in NumPy.

:func:`case` makes one by its name: a network fitted for a moment on made-up windows, and the place in it that lenses
look at. ``Case.by_hand`` is the independent way to its numbers: no torch in it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.special import erf, expit, softmax
from torch import Tensor, nn
from torch.nn import functional as F

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.networks.attention_branch import AttentionBranch
from harvis_utils.networks.pooled import Pooled
from harvis_utils.networks.self_attention import Attention, SelfAttention
from harvis_utils.networks.sfhf import SFHF, Trunk, folded_trunk
from harvis_utils.networks.taps import Tap
from harvis_utils.settings import BranchSettings, ModelSettings, PooledSettings, SelfAttentionSettings

N_AXES, LENGTH, CLASSES = 3, 30, ("still", "slow", "fast")
Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A network for windows (window, axis, time), a place in it, and what is known of both without the package.

    The place is the output of ``module``, ``rectified`` where the network does that later by a function; the roles of
    its dimensions are in ``layout``. ``by_hand`` turns windows into the place's maps (window, unit, axis, time) and
    class scores (window, class), in float64. Sample i of a map is about sample ``first + stride * i`` of the window.
    ``silence`` names modules: where their weights of a unit are zero, what follows sees zeros of it; those with a
    colon read it, the others give it out. ``stages`` are the steps from
    one rectifier to the next, up to the place, for networks that are such a chain. In ``smooth`` ones other functions
    than rectifiers bend what comes to the place. Units that see each axis by itself are ``by_axis``.
    """

    network: nn.Module
    module: str
    layout: str
    by_hand: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    silence: tuple[str, ...]
    rectified: bool = False
    first: float = 0.0
    stride: float = 1.0
    stages: tuple[Callable[[Tensor], Tensor], ...] = ()
    smooth: bool = False
    by_axis: bool = False
    trunk: Trunk | None = None
    name: str = ""

    @property
    def tap(self) -> Tap:
        """The place as its user declares it, with as much of that as a tap can say."""
        said = {"name": self.module, "module": self.module, "rectified": self.rectified, "layout": self.layout}
        return Tap(**{field.name: said[field.name] for field in dataclasses.fields(Tap) if field.name in said})

    def edited(self, unit: int) -> nn.Module:
        """A copy of the network in which ``unit`` is silent by its weights."""
        other = copy.deepcopy(self.network)
        for name in self.silence:
            module = other.get_submodule(name.strip(":"))
            if name.endswith(":"):
                module.weight.data[:, unit] = 0
            else:
                module.weight.data[unit] = module.bias.data[unit] = 0
        return other


class Taking(nn.Module):
    """A network that wants windows in another layout, given windows (window, axis, time)."""

    def __init__(self, network: nn.Module, layout: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network, self.layout = network, layout

    def forward(self, x: Tensor) -> Tensor:
        """What the network says of windows (window, axis, time)."""
        return self.network(self.layout(x))


def time_first(x: Tensor) -> Tensor:
    """(window, axis, time) as (window, time, axis): Keras' layout, and that of recurrent layers."""
    return x.transpose(1, 2)


def time_first_with_channel(x: Tensor) -> Tensor:
    """(window, axis, time) as (window, 1, time, axis): DeepConvLSTM as it was published."""
    return x.transpose(1, 2)[:, None]


# ------------------------------------------------------------------------------------------------- made-up windows


@cache
def made_windows() -> Windows:
    """48 windows of 12 recordings by 3 people: rest under gravity, slow swings on one axis, fast ones on another."""
    rng, time = np.random.default_rng(0), np.arange(4 * LENGTH) / 30
    pieces, activity = [], np.repeat(np.arange(12) % 3, 4)
    for recording in range(12):
        signal = 0.05 * rng.normal(size=(len(time), N_AXES))
        signal[:, 2] += 0.9
        kind, phase, size = recording % 3, rng.uniform(0, 6), rng.uniform(0.8, 1.2)
        if kind:
            signal[:, kind - 1] += size * np.sin(2 * np.pi * (1.5, 4.0)[kind - 1] * time + phase)
            signal[:, 2 - kind] += 0.3 * size * np.sin(2 * np.pi * 1.5 * time)
        pieces.append(signal)
    number = np.arange(48)
    series = np.concatenate(pieces).astype(np.float32)
    columns = (number * LENGTH, activity, number // 4 // 3 % 3, number // 4, number % 4 * LENGTH)
    split = Split(series, *columns, length=LENGTH)
    axes = tuple(f"{'arm' if k < 3 else f'place {k // 3}'} {'xyz'[k % 3]}" for k in range(N_AXES))
    return Windows(split, split, split, activities=CLASSES, axes=axes, rate_hz=30.0, caveat="made-up data")


def fitted(network: nn.Module, n_steps: int = 30, rate: float = 0.01) -> nn.Module:
    """The network after some steps of Adam on all windows at once, in evaluation mode."""
    split = made_windows().train
    x, y = torch.tensor(split.x), torch.as_tensor(split.activity)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    network.train()
    for _ in range(n_steps):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return network.eval()


# ------------------------------------------------------------------------------------------- layers again, in NumPy


def weights_of(network: nn.Module) -> Weights:
    """All parameters and buffers by name, float64."""
    return {name: value.numpy().astype(np.float64) for name, value in network.state_dict().items()}


def np_relu(x: np.ndarray) -> np.ndarray:
    """The rectifier."""
    return np.maximum(x, 0)


def np_linear(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    """A dense layer over the last dimension."""
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def np_conv(x: np.ndarray, w: Weights, name: str, stride: int = 1, padding: int = 0) -> np.ndarray:
    """A convolution over time: (window, channel, time)."""
    kernel = w[f"{name}.weight"].reshape(*w[f"{name}.weight"].shape[:2], -1)
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2], axis=2)[:, :, ::stride]
    out = np.tensordot(seen, kernel, axes=((1, 3), (1, 2))).transpose(0, 2, 1)
    return out + w.get(f"{name}.bias", np.zeros(len(kernel)))[:, None]


def np_batch_norm(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    """Batch norm in evaluation mode: (window, channel, time)."""
    mean, var, weight, bias = (w[f"{name}.{of}"][:, None] for of in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def np_layer_norm(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    """Layer norm over the last dimension."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def np_pool(x: np.ndarray, width: int, stride: int, padding: int = 0) -> np.ndarray:
    """Maximum pooling over time: (window, channel, time)."""
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(padded, width, axis=2)[:, :, ::stride].max(-1)


def np_lstm(x: np.ndarray, w: Weights, name: str, layer: int) -> np.ndarray:
    """One layer of an LSTM, all steps: (window, time, channel) -> (window, time, unit)."""
    into, back, *biases = (w[f"{name}.{of}_l{layer}"] for of in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h = c = np.zeros((len(x), back.shape[1]))
    steps = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ into.T + h @ back.T + sum(biases), 4, axis=1)
        c = expit(f) * c + expit(i) * np.tanh(g)
        h = expit(o) * np.tanh(c)
        steps.append(h)
    return np.stack(steps, 1)


def np_gru(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    """A GRU of one layer, all steps: (window, time, channel) -> (window, time, unit)."""
    into, back, b_in, b_back = (w[f"{name}.{of}_l0"] for of in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h = np.zeros((len(x), back.shape[1]))
    steps = []
    for t in range(x.shape[1]):
        r, z, n = np.split(x[:, t] @ into.T + b_in, 3, axis=1)
        r_h, z_h, n_h = np.split(h @ back.T + b_back, 3, axis=1)
        z = expit(z + z_h)
        h = (1 - z) * np.tanh(n + expit(r + r_h) * n_h) + z * h
        steps.append(h)
    return np.stack(steps, 1)


def np_attention(x: np.ndarray, w: Weights, name: str, n_heads: int) -> np.ndarray:
    """Self-attention of several heads over time: (window, time, unit)."""
    projected = x @ w[f"{name}.in_proj_weight"].T + w[f"{name}.in_proj_bias"]
    q, k, v = (of.reshape(*x.shape[:2], n_heads, -1).transpose(0, 2, 1, 3) for of in np.split(projected, 3, axis=2))
    share = softmax(q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]), axis=-1)
    return np_linear((share @ v).transpose(0, 2, 1, 3).reshape(x.shape), w, f"{name}.out_proj")


def units_last(maps: np.ndarray) -> np.ndarray:
    """(window, time, unit) as maps (window, unit, 1, time)."""
    return maps.transpose(0, 2, 1)[:, :, None]


# ----------------------------------------------------------------------------------------------------- the networks


def sf_hf() -> Case:
    """SF-HF, the package's own: per-axis convolutions, then dense layers over all axes (after Muenzner et al. 2017,
    "CNN-based sensor fusion techniques for multimodal human activity recognition")."""
    settings = ModelSettings(n_units=6, n_layers=2, n_dense=8)
    network = fitted(SFHF(N_AXES, LENGTH, 3, settings))
    w = weights_of(network)

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = x.reshape(-1, 1, LENGTH)
        for i in (1, 2):
            h = np_relu(np_batch_norm(np_conv(h, w, f"conv{i}", padding=2), w, f"norm_conv{i}"))
        maps = h.reshape(len(x), N_AXES, 6, LENGTH).transpose(0, 2, 1, 3)
        return maps, np_linear(np_relu(np_linear(maps.reshape(len(x), -1), w, "dense")), w, "classes")

    stages = (lambda x: network.norm_conv1(network.conv1(x[:, None])), lambda h: network.norm_conv2(network.conv2(h)))
    return Case(
        network,
        "norm_conv2",
        "window unit axis time",
        by_hand,
        ("norm_conv2",),
        rectified=True,
        stages=stages,
        by_axis=True,
        trunk=folded_trunk(network),
    )


def pooled() -> Case:
    """SF-HF that pools behind every convolution, the package's own (after Zeiler and Fergus 2014, "Visualizing and
    understanding convolutional networks")."""
    network = fitted(Pooled(N_AXES, LENGTH, 3, PooledSettings(n_units=6, n_layers=2, n_dense=8)))
    w = weights_of(network)

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = x.reshape(-1, 1, LENGTH)
        for i in (1, 2):
            maps = np_relu(np_batch_norm(np_conv(h, w, f"conv{i}.0", padding=2), w, f"conv{i}.1"))
            h = np_pool(maps, 2, 2)
        maps, h = (of.reshape(len(x), N_AXES, *of.shape[1:]).transpose(0, 2, 1, 3) for of in (maps, h))
        return maps, np_linear(np_relu(np_linear(h.reshape(len(x), -1), w, "dense")), w, "classes")

    stages = (lambda x: network.conv1[:2](x[:, None]), lambda h: network.conv2[:2](network.pool1(h)))
    layout = "window unit axis time"
    return Case(network, "conv2", layout, by_hand, ("conv2.1",), first=0.5, stride=2, stages=stages, by_axis=True)


def cnn() -> Case:
    """A 1-D CNN of two convolutions without padding, pooling between them and a dense layer (after Ignatov 2018,
    "Real-time human activity recognition from accelerometer data using convolutional neural networks")."""
    body = nn.Sequential(
        nn.Conv1d(N_AXES, 6, 5), nn.ReLU(inplace=True), nn.MaxPool1d(2), nn.Conv1d(6, 8, 3), nn.ReLU(inplace=True)
    )
    network = fitted(nn.Sequential(body, nn.Flatten(), nn.Dropout(0.05), nn.Linear(88, 3)))
    w = weights_of(network)

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = np_pool(np_relu(np_conv(x, w, "0.0")), 2, 2)
        h = np_relu(np_conv(h, w, "0.3"))
        return h[:, :, None], np_linear(h.reshape(len(x), -1), w, "3")

    stages = (body[0], lambda h: body[3](body[2](h)))
    # the pooled pairs of unpadded outputs: 2 to either side, half a sample, then one pooled sample
    return Case(network, "0.4", "window unit time", by_hand, ("0.3",), first=4.5, stride=2, stages=stages)


class DeepConvLSTM(nn.Module):
    """Four convolutions over time alone, an LSTM of two layers over all of them, the last step's classes (Ordonez and
    Roggen 2016, "Deep convolutional and LSTM recurrent neural networks for multimodal wearable activity recognition").

    ``folded`` is a common rewriting for windows (window, axis, time): axes go into the batch, convolutions are padded.
    The published network wants (window, 1, time, axis) and does not pad.
    """

    def __init__(self, folded: bool, n_units: int = 8, n_axes: int = N_AXES, n_classes: int = 3):
        super().__init__()
        self.folded, self.n_axes = folded, n_axes
        for i in range(4):
            n_in = n_units if i else 1
            conv = nn.Conv1d(n_in, n_units, 5, padding=2) if folded else nn.Conv2d(n_in, n_units, (5, 1))
            setattr(self, f"conv{i + 1}", conv)
        self.lstm = nn.LSTM(n_units * n_axes, n_units, 2, batch_first=True)
        self.dropout, self.classes = nn.Dropout(0.1), nn.Linear(n_units, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(0, 1)[:, None] if self.folded else x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = F.relu(conv(h))
        # (window, time, axis, unit)
        h = h.unflatten(0, (-1, self.n_axes)).permute(0, 3, 1, 2) if self.folded else h.permute(0, 2, 3, 1)
        steps, _ = self.lstm(h.flatten(2))
        return self.classes(self.dropout(steps[:, -1]))


def np_deep_conv_lstm(w: Weights, x: np.ndarray, padding: int, prefix: str = "") -> tuple[np.ndarray, ...]:
    """Maps of the last convolution, the LSTM's steps (window, time, unit), class scores."""
    h = x.reshape(-1, 1, LENGTH)
    for i in range(4):
        h = np_relu(np_conv(h, w, f"{prefix}conv{i + 1}", padding=padding))
    maps = h.reshape(*x.shape[:2], *h.shape[1:]).transpose(0, 2, 1, 3)
    steps = maps.transpose(0, 3, 2, 1).reshape(len(x), maps.shape[3], -1)
    for layer in (0, 1):
        steps = np_lstm(steps, w, f"{prefix}lstm", layer)
    return maps, steps, np_linear(steps[:, -1], w, f"{prefix}classes")


def deep_conv_lstm() -> Case:
    """DeepConvLSTM as published, looked at in its last convolution; see :class:`DeepConvLSTM`."""
    network = fitted(Taking(DeepConvLSTM(folded=False), time_first_with_channel), 80, 0.01)
    w, inner = weights_of(network), network.network

    stages = (lambda x: inner.conv1(time_first_with_channel(x)), inner.conv2, inner.conv3)
    stages = (*stages, lambda h: inner.conv4(h).transpose(2, 3))

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps, _, scores = np_deep_conv_lstm(w, x, 0, "network.")
        return maps, scores

    return Case(
        network,
        "network.conv4",
        "window unit time axis",
        by_hand,
        ("network.conv4",),
        rectified=True,
        first=8,
        stages=stages,
        by_axis=True,
    )


def deep_conv_lstm_folded() -> Case:
    """DeepConvLSTM with axes folded into the batch, looked at in its LSTM; see :class:`DeepConvLSTM`."""
    network = fitted(DeepConvLSTM(folded=True), 80, 0.01)
    w = weights_of(network)

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, steps, scores = np_deep_conv_lstm(w, x, 2)
        return units_last(steps), scores

    return Case(network, "lstm", "window time unit", by_hand, ("classes:",), smooth=True)


class Recurrent(nn.Module):
    """A GRU over (window, time, channel) and the last step's classes (Cho et al. 2014, "Learning phrase representations
    using RNN encoder-decoder"; for activities e.g. Hammerla et al. 2016, with LSTMs)."""

    def __init__(self):
        super().__init__()
        self.gru, self.classes = nn.GRU(N_AXES, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.gru(x)[0][:, -1])


def gru() -> Case:
    """The GRU's sequence; see :class:`Recurrent`."""
    network = fitted(Taking(Recurrent(), time_first), 60, 0.02)
    w = weights_of(network)

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steps = np_gru(x.transpose(0, 2, 1), w, "network.gru")
        return units_last(steps), np_linear(steps[:, -1], w, "network.classes")

    return Case(network, "network.gru", "window time unit", by_hand, ("network.classes:",), smooth=True)


class Inception(nn.Module):
    """A bottleneck, three widths beside pooling, joined, normed, rectified (Ismail Fawaz et al. 2020, "InceptionTime:
    finding AlexNet for time series classification")."""

    def __init__(self, n_in: int):
        super().__init__()
        self.bottleneck = nn.Conv1d(n_in, 2, 1, bias=False)
        self.wide = nn.ModuleList([nn.Conv1d(2, 2, k, padding=k // 2, bias=False) for k in (9, 5, 3)])
        self.pool, self.pooled = nn.MaxPool1d(3, 1, 1), nn.Conv1d(n_in, 2, 1, bias=False)
        self.norm = nn.BatchNorm1d(8)

    def joined(self, x: Tensor) -> Tensor:
        """What is rectified."""
        narrow = self.bottleneck(x)
        return self.norm(torch.cat([*(conv(narrow) for conv in self.wide), self.pooled(self.pool(x))], 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.joined(x))


class InceptionTime(nn.Module):
    """Two Inception modules with a shortcut beside them, and classes of the mean over time; see :class:`Inception`."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Inception(N_AXES), Inception(8)
        self.shortcut = nn.Sequential(nn.Conv1d(N_AXES, 8, 1, bias=False), nn.BatchNorm1d(8))
        self.classes = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(F.relu(self.second(self.first(x)) + self.shortcut(x)).mean(2))


def inception_time() -> Case:
    """The second module's output; see :class:`InceptionTime`."""
    network = fitted(InceptionTime())
    w = weights_of(network)

    def module(x: np.ndarray, name: str) -> np.ndarray:
        narrow = np_conv(x, w, f"{name}.bottleneck")
        wide = [np_conv(narrow, w, f"{name}.wide.{i}", padding=k // 2) for i, k in enumerate((9, 5, 3))]
        joined = np.concatenate([*wide, np_conv(np_pool(x, 3, 1, 1), w, f"{name}.pooled")], 1)
        return np_relu(np_batch_norm(joined, w, f"{name}.norm"))

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = module(module(x, "first"), "second")
        beside = np_batch_norm(np_conv(x, w, "shortcut.0"), w, "shortcut.1")
        return maps[:, :, None], np_linear(np_relu(maps + beside).mean(2), w, "classes")

    stages = (network.first.joined, network.second.joined)
    return Case(network, "second", "window unit time", by_hand, ("second.norm",), stages=stages)


class Block(nn.Module):
    """Two convolutions beside a shortcut; one rectifier, in place, is used twice."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm1d(n_out)
        self.conv2, self.norm2 = nn.Conv1d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm1d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv1d(n_in, n_out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(h + self.down(x))


class ResNet(nn.Module):
    """A residual network in one dimension: a wide first layer of stride 2, pooling, a block, a block of stride 2 (He et
    al. 2016, "Deep residual learning for image recognition"; for signals e.g. Hannun et al. 2019)."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(N_AXES, 6, 7, 2, 3, bias=False), nn.BatchNorm1d(6)
        self.pool = nn.MaxPool1d(3, 2, 1)
        self.block1, self.block2 = Block(6, 6), Block(6, 8, 2)
        self.classes = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.block2(self.block1(self.pool(F.relu(self.norm(self.conv(x)))))).mean(2))


def resnet() -> Case:
    """The first block's output, every fourth sample of the window; see :class:`ResNet`."""
    network = fitted(ResNet())
    w = weights_of(network)

    def block(x: np.ndarray, name: str, stride: int, beside: np.ndarray) -> np.ndarray:
        h = np_relu(np_batch_norm(np_conv(x, w, f"{name}.conv1", stride, 1), w, f"{name}.norm1"))
        return np_relu(np_batch_norm(np_conv(h, w, f"{name}.conv2", 1, 1), w, f"{name}.norm2") + beside)

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = np_pool(np_relu(np_batch_norm(np_conv(x, w, "conv", 2, 3), w, "norm")), 3, 2, 1)
        maps = block(h, "block1", 1, h)
        h = block(maps, "block2", 2, np_conv(maps, w, "block2.down", 2))
        return maps[:, :, None], np_linear(h.mean(2), w, "classes")

    return Case(network, "block1", "window unit time", by_hand, ("block2.conv1:", "block2.down:"), stride=4)


class Encoder(nn.Module):
    """A Transformer encoder over samples with learned positions, classes of the mean over time (Vaswani et al. 2017,
    "Attention is all you need"; for sensors after Zerveas et al. 2021). Wants (window, time, axis)."""

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Linear(N_AXES, 8), nn.Parameter(0.1 * torch.randn(LENGTH, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 6, 0.05, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classes = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.encoder(self.embed(x) + self.position).mean(1))


def transformer() -> Case:
    """The rectified neurons of the second layer's dense part; see :class:`Encoder`."""
    network = fitted(Taking(Encoder(), time_first))
    w, layers = weights_of(network), [f"network.encoder.layers.{i}" for i in (0, 1)]

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = np_linear(x.transpose(0, 2, 1), w, "network.embed") + w["network.position"]
        for name in layers:
            h = np_layer_norm(h + np_attention(h, w, f"{name}.self_attn", 2), w, f"{name}.norm1")
            neurons = np_relu(np_linear(h, w, f"{name}.linear1"))
            h = np_layer_norm(h + np_linear(neurons, w, f"{name}.linear2"), w, f"{name}.norm2")
        return units_last(neurons), np_linear(h.mean(1), w, "network.classes")

    return Case(
        network,
        f"{layers[1]}.linear1",
        "window time unit",
        by_hand,
        ("network.encoder.layers.1.linear1",),
        rectified=True,
        smooth=True,
    )


class SensorAttention(nn.Module):
    """Attention over sensors, over time, and in pooling: a block of SA-HAR (Mahmud et al. 2020, "Human activity
    recognition from wearable sensor data using self-attention"). Wants (window, time, axis)."""

    def __init__(self):
        super().__init__()
        self.look, self.score = nn.Conv2d(1, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 1, 1)
        self.embed = nn.Linear(N_AXES, 6)
        self.attention, self.norm1 = nn.MultiheadAttention(6, 2, batch_first=True), nn.LayerNorm(6)
        self.dense, self.norm2 = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), nn.LayerNorm(6)
        self.when, self.weight = nn.Linear(6, 6), nn.Linear(6, 1, bias=False)
        self.classes = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.score(F.relu(self.look(x[:, None])))[:, 0].softmax(2)
        h = F.relu(self.embed(x))
        attended, _ = self.attention(h, h, h)
        h = self.norm1(h + attended)
        h = self.norm2(h + self.dense(h))
        return self.classes((h * self.weight(torch.tanh(self.when(h))).softmax(1)).sum(1))


def sa_har() -> Case:
    """What attention over time gives out; see :class:`SensorAttention`."""
    network = fitted(Taking(SensorAttention(), time_first))
    w = {name.removeprefix("network."): value for name, value in weights_of(network).items()}

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = x.transpose(0, 2, 1)
        padded, kernel = np.pad(x, ((0, 0), (2, 2), (2, 2))), w["look.weight"][:, 0]
        looked = w["look.bias"] + sum(
            padded[:, 2 * i : 2 * i + LENGTH, 2 * j : 2 * j + N_AXES, None] * kernel[:, i, j]
            for i in range(3)
            for j in range(3)
        )
        scored = np_relu(looked) @ w["score.weight"][0, :, 0, 0] + w["score.bias"]
        h = np_relu(np_linear(x * softmax(scored, axis=2), w, "embed"))
        attended = np_attention(h, w, "attention", 2)
        h = np_layer_norm(h + attended, w, "norm1")
        h = np_layer_norm(h + np_linear(np_relu(np_linear(h, w, "dense.0")), w, "dense.2"), w, "norm2")
        share = softmax(np_linear(np.tanh(np_linear(h, w, "when")), w, "weight"), axis=1)
        return units_last(attended), np_linear((h * share).sum(1), w, "classes")

    return Case(network, "network.attention", "window time unit", by_hand, ("network.attention.out_proj",), smooth=True)


class Mixer(nn.Module):
    """Dense layers over time and over channels in turn (Tolstikhin et al. 2021, "MLP-Mixer: an all-MLP architecture for
    vision"; for activities Ojiako and Farrahi 2023). One sample is one patch. Wants (window, time, axis)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(N_AXES, 6)
        self.norm1, self.over_time = (
            nn.LayerNorm(6),
            nn.Sequential(nn.Linear(LENGTH, 8), nn.GELU(), nn.Linear(8, LENGTH)),
        )
        self.norm2, self.over_channels = nn.LayerNorm(6), nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.norm, self.classes = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.over_time(self.norm1(h).transpose(1, 2)).transpose(1, 2)
        h = h + self.over_channels(self.norm2(h))
        return self.classes(self.norm(h).mean(1))


def mixer() -> Case:
    """The neurons that mix channels, behind their GELU; see :class:`Mixer`."""
    network = fitted(Taking(Mixer(), time_first))
    w = {name.removeprefix("network."): value for name, value in weights_of(network).items()}

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * (1 + erf(x / np.sqrt(2))) / 2

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = np_linear(x.transpose(0, 2, 1), w, "embed")
        mixed = gelu(np_linear(np_layer_norm(h, w, "norm1").transpose(0, 2, 1), w, "over_time.0"))
        h = h + np_linear(mixed, w, "over_time.2").transpose(0, 2, 1)
        neurons = gelu(np_linear(np_layer_norm(h, w, "norm2"), w, "over_channels.0"))
        h = h + np_linear(neurons, w, "over_channels.2")
        return units_last(neurons), np_linear(np_layer_norm(h, w, "norm").mean(1), w, "classes")

    return Case(
        network, "network.over_channels.1", "window time unit", by_hand, ("network.over_channels.0",), smooth=True
    )


class FullyConvolutional(nn.Module):
    """Convolution, batch norm, rectifier, twice, and classes of the mean over time (Wang, Yan and Oates 2017, "Time
    series classification from scratch with deep neural networks"). The rectifier is a function, not a module."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(N_AXES, 6, 7, padding=3), nn.BatchNorm1d(6)
        self.conv2, self.norm2 = nn.Conv1d(6, 6, 5, padding=2), nn.BatchNorm1d(6)
        self.classes = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))).mean(2))


def conv_norm_relu() -> Case:
    """Units named by their convolution, meant behind norm and rectifier; see :class:`FullyConvolutional`."""
    network = fitted(FullyConvolutional())
    w = weights_of(network)

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = np_relu(np_batch_norm(np_conv(x, w, "conv1", padding=3), w, "norm1"))
        h = np_relu(np_batch_norm(np_conv(h, w, "conv2", padding=2), w, "norm2"))
        return h[:, :, None], np_linear(h.mean(2), w, "classes")

    stages = (lambda x: network.norm1(network.conv1(x)), lambda h: network.norm2(network.conv2(h)))
    return Case(network, "conv2", "window unit time", by_hand, ("norm2",), rectified=True, stages=stages)


def st_abn() -> Case:
    """Axes mixed behind ST-ABN's attention, the package's own (after Fukui et al. 2019, "Attention branch
    network: learning of attention mechanism for visual explanation")."""
    network = fitted(AttentionBranch(N_AXES, LENGTH, 3, BranchSettings(n_units=6)), 60)
    w = weights_of(network)

    def layer(h: np.ndarray, name: str, norm: str, padding: int = 0) -> np.ndarray:
        return np_relu(np_batch_norm(np_conv(h, w, name, padding=padding), w, norm))

    def with_axes(h: np.ndarray) -> np.ndarray:
        return h.reshape(-1, N_AXES, *h.shape[1:]).transpose(0, 2, 1, 3)

    def over_time(classes: np.ndarray) -> np.ndarray:
        padded, kernel = np.pad(classes, ((0, 0), (0, 0), (1, 1), (1, 1))), w["branch.time.0.weight"][0]
        seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        found = np.einsum("ncatij,cij->nat", seen, kernel).reshape(len(classes), 1, -1)
        found = np_relu(np_batch_norm(found, w, "branch.time.1")).reshape(-1, N_AXES, LENGTH)
        frames = np_relu(found @ w["branch.frames.weight"][:, :, 0, 0].T).mean(1)
        return expit(np_linear(np_relu(np_linear(frames, w, "branch.weigh.0")), w, "branch.weigh.2"))

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        f = layer(layer(x.reshape(-1, 1, LENGTH), "conv1", "norm_conv1", 2), "conv2", "norm_conv2", 2)
        classes = layer(layer(f, "branch.conv", "branch.norm_conv", 2), "branch.k1", "branch.norm_k1")
        space = expit(np_batch_norm(np_conv(classes, w, "branch.space.0"), w, "branch.space.1"))
        time = over_time(with_axes(classes)).repeat(N_AXES, axis=0)[:, None]
        weighed = layer(np.concatenate([(1 + space) * f, time * f], 1), "fuse", "norm_fuse")
        h = with_axes(layer(weighed, "conv3", "norm_conv3", 2))
        h = np.einsum("niat,oia->not", h, w["mix.weight"][..., 0])
        h = np_relu(np_batch_norm(h, w, "norm_mix"))
        return h[:, :, None], np_linear(h.mean(2), w, "classes")

    layout = "window unit axis time"
    return Case(network, "norm_mix", layout, by_hand, ("norm_mix",), rectified=True, smooth=True)


def np_attended(h: np.ndarray, w: Weights, name: str, layer: Attention) -> np.ndarray:
    """What an attention of 1D-SAN gives out, neighbour by neighbour: (window, unit, time) -> (window, inner, time)."""

    def dense(x: np.ndarray, of: str) -> np.ndarray:
        found = np.einsum("oi,ni...->no...", w[f"{name}{of}.weight"][:, :, 0], x, optimize=True)
        return found + np.reshape(w.get(f"{name}{of}.bias", 0.0), (-1, 1))

    length, time = h.shape[2], np.arange(h.shape[2])
    reach = layer.footprint // 2 * layer.dilation
    weights, values = [], []
    for offset in range(-reach, reach + 1, layer.dilation):
        seen = np.abs(time + offset)
        seen = np.where(seen > length - 1, 2 * (length - 1) - seen, seen)
        pair = dense(h, "phi") - dense(h, "psi")[:, :, seen]
        apart = np.broadcast_to(2 * (time - seen) / (length - 1), (len(h), 1, length))
        pair = np.concatenate([pair, apart], 1)
        for norm, filters in (("gamma.0", "gamma.2"), ("gamma.3", "gamma.5")):
            pair = dense(np_relu(np_batch_norm(pair, w, f"{name}{norm}")), filters)
        weights.append(pair)
        values.append(dense(h, "beta")[:, :, seen])
    return (softmax(weights, axis=0) * values).sum(0)


def self_attention() -> Case:
    """The units of the second of three blocks of 1D-SAN, the package's own (after Zhao et al. 2020, "Exploring
    self-attention for image recognition")."""
    network = fitted(SelfAttention(N_AXES, 3, SelfAttentionSettings(n_units=16)))
    w = weights_of(network)

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h, units = np_conv(x, w, "embed"), {}
        for name in network.blocks:
            active = np_relu(np_batch_norm(h, w, f"{name}.active.0"))
            mixed = np_attended(active, w, f"{name}.mix.", network.get_submodule(f"{name}.mix"))
            units[name] = np_relu(np_batch_norm(mixed, w, f"{name}.units.0"))
            h = h + np_conv(units[name], w, f"{name}.back")
        h = np_relu(np_batch_norm(h, w, "active.0"))
        return units["block2"][:, :, None], np_linear(h.mean(2), w, "classes")

    return Case(network, "block2.units", "window unit time", by_hand, ("block2.units.0",), smooth=True)


MAKERS: dict[str, Callable[[], Case]] = {
    "SF-HF": sf_hf,
    "1-D CNN": cnn,
    "DeepConvLSTM (B, 1, T, S)": deep_conv_lstm,
    "DeepConvLSTM (B, S, T)": deep_conv_lstm_folded,
    "GRU (B, T, C)": gru,
    "InceptionTime block": inception_time,
    "ResNet with pooling": resnet,
    "Transformer encoder": transformer,
    "SA-HAR-like block": sa_har,
    "MLP-Mixer-like block": mixer,
    "conv, norm, functional ReLU": conv_norm_relu,
    "ST-ABN": st_abn,
    "1D-SAN": self_attention,
    "SF-HF with pooling": pooled,
}
NAMES = tuple(MAKERS)


@cache
def case(name: str, seed: int = 0) -> Case:
    """The network of that name with its place, from weights that depend on the seed alone; made once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(NAMES.index(name) + 100 * seed)
        return dataclasses.replace(MAKERS[name](), name=name)
