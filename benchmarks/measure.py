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


def seconds(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    return alternate({"": run}, 1)[""]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib(run: Callable[[], object]) -> float:
    """Memory of this process at its highest while ``run`` runs, above what it was before, in MiB."""
    process, done, peak = psutil.Process(), threading.Event(), 0
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc alone can
        ctypes.CDLL(None).malloc_trim(0)  # returns freed memory to the system, or its use again would not be seen
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


def machine(device: str) -> dict:
    """What was measured on: processor, threads, versions, and the rates that bound everything."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return {
        "kind": device,
        "device": torch.cuda.get_device_name() if device == "cuda" else name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
        **rates(device),
    }


def rates(device: str, rows: int = 256, length: int = 30, units: int = 64, taps: int = 5) -> dict[str, float]:
    """Billions of floating-point operations, or bytes, a second; the best of several.

    ``product_gflops`` is that of a large float32 matrix product, ``convolution_gflops`` that of the convolution
    between two of SF-HF's layers, which other kernels compute, ``copy_gb_s`` what is read and written in copying an
    array larger than the caches.
    """
    n, n_copied = (2048, 2**26) if device == "cpu" else (8192, 2**28)
    a, b = torch.randn(2, n, n, device=device)
    x = torch.randn(rows, units, 1, length, device=device).to(memory_format=torch.channels_last)
    w = torch.randn(units, units, 1, taps, device=device).to(memory_format=torch.channels_last)
    long = torch.randn(n_copied, device=device)
    other = torch.empty_like(long)

    def best(run: Callable[[], object], times: int) -> float:
        run()
        return min(seconds(lambda: [run() for _ in range(times)]) for _ in range(5)) / times

    with torch.inference_mode():
        convolving = best(lambda: torch.nn.functional.conv2d(x, w, padding=(0, taps // 2)), 20)
    return {
        "product_gflops": 2 * n**3 / best(lambda: a @ b, 5) / 1e9,
        "convolution_gflops": 2 * rows * length * units**2 * taps / convolving / 1e9,
        "copy_gb_s": 2 * 4 * n_copied / best(lambda: other.copy_(long), 2) / 1e9,
    }
