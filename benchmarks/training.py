"""Training: all networks side by side, against one after the other, and both against the machine's ceiling."""

from __future__ import annotations

from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import measure
from harvis_utils.data.windowing import Windows
from harvis_utils.parallel import side_by_side, threads_inside
from harvis_utils.settings import Settings
from harvis_utils.training import supervised


def operations_per_window(cfg: Settings, windows: Windows) -> int:
    """Floating-point operations of products and convolutions for one window, there and twice back."""
    model, axes, length = cfg.model, len(windows.axes), windows.train.length
    macs = axes * length * model.kernel * model.n_units  # the first convolution
    macs += (model.n_layers - 1) * axes * length * model.kernel * model.n_units**2
    steps = {"none": length, "max2": length // 2, "mean": 1}[model.pool]
    flat = model.n_units * steps * (axes if model.mixing == "dense" else 1)
    if model.mixing == "conv":
        macs += model.n_units**2 * axes * steps
    macs += flat * model.n_dense + model.n_dense * len(windows.activities)
    return 2 * macs * 3  # forward, with respect to inputs, with respect to weights


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
    batch, seed = cfg.training.batch_size, cfg.training.seeds[0]
    x = torch.as_tensor(windows.train.x[: n_batches * batch])
    y = torch.as_tensor(windows.train.activity[: n_batches * batch])
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
    device, seeds = machine["kind"], cfg.training.seeds
    batch = cfg.training.batch_size
    x = torch.as_tensor(windows.train.x[: n_batches * batch], device=device)
    y = torch.as_tensor(windows.train.activity[: n_batches * batch], device=device)
    models = [supervised.new_model(windows, cfg.model, seed).to(device) for seed in seeds]

    def one(i: int) -> None:
        supervised.fit(models[i], x, y, cfg.training, seeds[i], epochs=1)

    def in_turn() -> None:
        for i in range(len(seeds)):
            one(i)

    def together() -> None:
        side_by_side(cfg, one, range(len(seeds)))

    in_turn()
    seconds = measure.alternate({"one after the other": in_turn, "side by side": together}, rounds)
    work = operations_per_window(cfg, windows) * batch
    n = len(seeds) * n_batches
    found = {
        name: {
            "ms_per_batch": value / n * 1e3,
            "gflops": work * n / value / 1e9,
            "share_of_product_rate": work * n / value / 1e9 / machine["product_gflops"],
            "share_of_convolution_rate": work * n / value / 1e9 / machine["convolution_gflops"],
        }
        for name, value in seconds.items()
    }
    return {
        "networks": len(seeds),
        "batch": batch,
        "operations_per_batch": work,
        "contenders": found,
        "side_by_side_is_faster_by": seconds["one after the other"] / seconds["side by side"],
        # no schedule of the same work can be faster than the ceiling, so this bounds the gain of any
        "ceiling_is_faster_by": machine["convolution_gflops"] / found["one after the other"]["gflops"],
        **({"account": account(cfg, windows)} if device == "cpu" else {}),
    }
