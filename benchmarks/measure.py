"""Timing side by side, peaks of memory, and what this machine can do at most."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch


def alternate(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender, run in turns, so that a slow minute of the machine hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            gc.collect()
            _wait()
            begin = time.perf_counter()
            run()
            _wait()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib(run: Callable[[], object]) -> float:
    """Memory of this process at its highest while ``run`` runs, above what it was before, in MiB."""
    process, done, peak = psutil.Process(), threading.Event(), 0
    gc.collect()
    _give_back()
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return max(0, peak - before) / 2**20


def _give_back() -> None:
    """Return freed memory to the system, or what is used again would not be seen; glibc alone can."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Slope of log time over log size: 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def machine(device: str) -> dict:
    """What was measured on: processor, threads, versions, and the rates that bound everything."""
    name = platform.processor() or platform.machine()
    if device == "cpu" and os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
        "product_gflops": product_rate(device),
        "convolution_gflops": convolution_rate(device),
        "copy_gb_s": copy_rate(device),
    }


def _best(run: Callable[[], object], n: int = 10, rounds: int = 5) -> float:
    run()
    return min(alternate({"": lambda: [run() for _ in range(n)]}, 1)[""] for _ in range(rounds)) / n


def product_rate(device: str) -> float:
    """Billions of floating-point operations a second in a large float32 matrix product, the best of several."""
    n = 2048 if device == "cpu" else 8192
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    return 2 * n**3 / _best(lambda: a @ b, 5) / 1e9


def convolution_rate(device: str, rows: int = 256, length: int = 30, units: int = 64, taps: int = 5) -> float:
    """The same for the convolution between two of SF-HF's layers, which other kernels compute."""
    x = torch.randn(rows, units, 1, length, device=device).to(memory_format=torch.channels_last)
    w = torch.randn(units, units, 1, taps, device=device).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        seconds = _best(lambda: torch.nn.functional.conv2d(x, w, padding=(0, taps // 2)), 20)
    return 2 * rows * length * units**2 * taps / seconds / 1e9


def copy_rate(device: str) -> float:
    """Billions of bytes a second, read and written, in copying an array larger than the caches."""
    a = torch.randn(2**26 if device == "cpu" else 2**28, device=device)
    b = torch.empty_like(a)
    return 2 * 4 * a.numel() / _best(lambda: b.copy_(a), 2) / 1e9
