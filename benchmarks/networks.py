"""Activation Maximization of networks other than SF-HF: ours beside a loop over units that stops at the place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from benchmarks.climbing import LENGTH, Task, climb, engine
from harvis_utils.parallel import threads_inside

N_AXES, N_CLASSES = 6, 19


class DeepConvLSTM(nn.Module):
    """Four convolutions along time, each axis by itself, two LSTM layers over all of them (Ordonez and Roggen 2016)."""

    def __init__(self, n_units: int = 64, n_hidden: int = 128):
        super().__init__()
        widths = (1, *[n_units] * 4)
        convs = [nn.Sequential(nn.Conv2d(a, b, (1, 5)), nn.ReLU()) for a, b in zip(widths, widths[1:], strict=False)]
        self.convs = nn.Sequential(*convs)
        self.lstm = nn.LSTM(n_units * N_AXES, n_hidden, 2, batch_first=True)
        self.classes = nn.Linear(n_hidden, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of windows (window, axis, time)."""
        maps = self.convs(x[:, None]).flatten(1, 2)
        return self.classes(self.lstm(maps.transpose(1, 2))[0][:, -1])


class Inception(nn.Module):
    """One module of InceptionTime: a bottleneck, three lengths of filters, and pooling (Ismail Fawaz et al. 2020)."""

    def __init__(self, n_in: int, n_units: int = 32):
        super().__init__()
        self.bottleneck = nn.Conv1d(n_in, n_units, 1, bias=False)
        self.convs = nn.ModuleList(
            nn.Conv1d(n_units, n_units, kernel, padding=kernel // 2, bias=False) for kernel in (9, 19, 39)
        )
        self.pooled = nn.Conv1d(n_in, n_units, 1, bias=False)
        self.norm, self.relu = nn.BatchNorm1d(4 * n_units), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (window, unit, time)."""
        narrow = self.bottleneck(x)
        pooled = self.pooled(F.max_pool1d(x, 3, 1, 1))
        return self.relu(self.norm(torch.cat([*(conv(narrow) for conv in self.convs), pooled], 1)))


class Transformer(nn.Module):
    """Two layers of an encoder over time, whose units are looked at behind the first linear layer's ReLU."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.embedding = nn.Linear(N_AXES, width)
        layers = [nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, nn.ReLU(), batch_first=True) for _ in range(2)]
        self.encoder = nn.Sequential(*layers)
        self.classes = nn.Linear(width, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of windows (window, axis, time)."""
        return self.classes(self.encoder(self.embedding(x.transpose(1, 2))).mean(1))


@dataclass(frozen=True)
class Place:
    """A ``module`` of a ``network``, its units in dimension ``unit``; ``by_axis`` where they see single axes."""

    network: nn.Module
    module: str
    n_units: int
    unit: int = 1
    by_axis: bool = False


def places() -> dict[str, Place]:
    """Networks with random weights, which cost what trained ones cost."""
    torch.manual_seed(0)
    pooled = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, N_CLASSES)]
    made = {
        "DeepConvLSTM, fourth convolution": Place(DeepConvLSTM(), "convs.3.1", 64, by_axis=True),
        "DeepConvLSTM, LSTM": Place(DeepConvLSTM(), "lstm", 128, unit=2),
        "InceptionTime, second module": Place(nn.Sequential(Inception(N_AXES), Inception(128), *pooled), "1", 128),
        "Transformer, second layer": Place(Transformer(), "encoder.1.linear1", 128, unit=2),
    }
    for place in made.values():
        place.network.eval().requires_grad_(False)
    return made


def ours(place: Place, task: Task) -> Tensor:
    """Signals (signal, time), or (signal, axis, time) of units that mix the axes, by our engine."""
    return engine(place.network, task, n_axes=N_AXES, length=LENGTH)


class Reached(Exception):
    """The place has given its output, so the rest of the network need not run."""


def stopping_at(place: Place, task: Task) -> Callable[[Tensor], Tensor]:
    """Outputs (signal, output) of the signals' units, the network's rest spared."""
    caught: list[Tensor] = []

    def reached(module, given, output) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        raise Reached

    def maps_of(x: Tensor) -> Tensor:
        windows = x if x.ndim == 3 else x[:, None]  # what comes before the place takes one axis alone
        with place.network.get_submodule(place.module).register_forward_hook(reached):
            try:
                place.network(windows)
            except Reached:
                output = caught.pop().movedim(place.unit, 1)
        return output[torch.arange(len(x)), task.units].flatten(1)

    return maps_of


def one_at_a_time(place: Place, task: Task) -> Tensor:
    """A loop over units, each stopping at the place."""
    return torch.cat([climb(one, stopping_at(place, one)) for one in task.alone()])


def operations(place: Place, task: Task) -> int:
    """Operations of one signal and step, there and back."""
    one = task.alone()[0]
    x = one.start.requires_grad_()
    # without oneDNN recurrent layers are made of products, which are counted
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        stopping_at(place, one)(x).sum().backward()
    return counter.get_total_flops()


def compare(rounds: int, machine: dict) -> dict:
    """Microseconds per signal and step of the batch and the loop, and the bound by operations, for every place."""
    found = {}
    for name, place in places().items():
        axes = 1 if place.by_axis else N_AXES
        few = Task(place.module, torch.ones(place.n_units), torch.arange(3), 50, "naive", axes=axes)
        many = replace(few, units=torch.arange(64).repeat(8), n_steps=100)
        runs = {
            "ours": (partial(ours, place), many),
            "loop": (threads_inside(1)(partial(one_at_a_time, place)), few),
        }
        for run, task in runs.values():
            run(replace(task, n_steps=2))
        seconds = measure.alternate({of: partial(run, task) for of, (run, task) in runs.items()}, rounds)
        us = {of: seconds[of] / len(task.units) / task.n_steps * 1e6 for of, (_, task) in runs.items()}
        least = operations(place, few) / machine["product_gflops"] / 1e3
        found[name] = {
            "us_per_signal_step": us,
            "us_by_products": least,
            "times_faster": us["loop"] / us["ours"],
            "ours_over_products": us["ours"] / least,
        }
    return found
