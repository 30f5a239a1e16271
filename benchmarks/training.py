"""Training: all networks side by side, against one after the other, and both against the machine's ceiling."""

from __future__ import annotations

from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from harvis_utils.data.windowing import Windows
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.parallel import side_by_side, threads_inside
from harvis_utils.settings import Settings
from harvis_utils.training import supervised


def operations_per_window(model: SFHF, n_axes: int, length: int) -> int:
    """Floating-point operations of products and convolutions for one window, there and twice back."""
    window = torch.zeros(1, n_axes, length, device=next(model.parameters()).device, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(window).sum().backward()
    model.zero_grad()
    return counter.get_total_flops()


#: kinds of work by what torch calls them; the first that fits. Everything else is "the rest": copies, sums, the loss
KINDS = {
    "convolutions": ("conv",),
    "dense products": ("addmm", "aten::mm", "matmul"),
    "ReLU": ("relu", "threshold", "clamp_min"),
    "batch norm": ("batch_norm",),
    "Adam": ("_foreach", "Optimizer", "addcdiv", "addcmul", "lerp"),
}


def account(cfg: Settings, windows: Windows, n_batches: int = 12) -> dict:
    """Share of the time on one thread that each of :data:`KINDS` takes while one network trains.

    Convolutions and dense products are the same work in any schedule. If they kept their rate and everything else
    were free, training would be faster by ``products_alone_are_faster_by``.
    """
    seed, n = cfg.training.seeds[0], n_batches * cfg.training.batch_size
    x, y = torch.as_tensor(windows.train.x[:n]), torch.as_tensor(windows.train.activity[:n])
    with threads_inside(1):
        model = supervised.new_model(windows, cfg.model, seed)
        supervised.fit(model, x, y, cfg.training, seed, epochs=1)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            supervised.fit(model, x, y, cfg.training, seed, epochs=1)
    spent: Counter = Counter()
    for event in profiled.key_averages():
        kind = next((k for k, parts in KINDS.items() if any(p in event.key for p in parts)), "the rest")
        spent[kind] += event.self_cpu_time_total
    shares = {kind: spent[kind] / spent.total() for kind in (*KINDS, "the rest")}
    return {
        "shares": shares,
        "products_alone_are_faster_by": 1 / (shares["convolutions"] + shares["dense products"]),
    }


def compare(cfg: Settings, windows: Windows, rounds: int, machine: dict, n_batches: int = 24) -> dict:
    """Milliseconds per batch and network, one after the other on all threads and side by side on one each."""
    device, seeds, batch = machine["kind"], cfg.training.seeds, cfg.training.batch_size
    x = torch.as_tensor(windows.train.x[: n_batches * batch], device=device)
    y = torch.as_tensor(windows.train.activity[: n_batches * batch], device=device)
    models = [supervised.new_model(windows, cfg.model, seed).to(device) for seed in seeds]
    work = operations_per_window(models[0].eval(), len(windows.axes), windows.train.length) * batch

    def one(i: int) -> None:
        supervised.fit(models[i], x, y, cfg.training, seeds[i], epochs=1)

    contenders = {
        "one after the other": lambda: [one(i) for i in range(len(seeds))],
        "side by side": lambda: side_by_side(cfg, one, range(len(seeds))),
    }
    contenders["one after the other"]()  # first calls prepare kernels
    seconds = measure.alternate(contenders, rounds)
    n = len(seeds) * n_batches
    rates = {name: work * n / value / 1e9 for name, value in seconds.items()}
    return {
        "networks": len(seeds),
        "contenders": {
            name: {
                "ms_per_batch": value / n * 1e3,
                "gflops": rates[name],
                "share_of_convolution_rate": rates[name] / machine["convolution_gflops"],
            }
            for name, value in seconds.items()
        },
        "side_by_side_is_faster_by": seconds["one after the other"] / seconds["side by side"],
        # no schedule of the same work can be faster than the ceiling, so this bounds the gain of any
        "ceiling_is_faster_by": machine["convolution_gflops"] / rates["one after the other"],
        **({"account": account(cfg, windows)} if device == "cpu" else {}),
    }
