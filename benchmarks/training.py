"""Training: all networks side by side, against one after the other, and both against the machine's ceiling."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from harvis_utils.data.windowing import Windows
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.parallel import side_by_side
from harvis_utils.settings import Settings
from harvis_utils.training import supervised


def operations_per_window(model: SFHF, n_axes: int, length: int) -> int:
    """Floating-point operations of products and convolutions for one window, there and twice back."""
    window = torch.zeros(1, n_axes, length, device=next(model.parameters()).device, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(window).sum().backward()
    model.zero_grad()
    return counter.get_total_flops()


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
    }
