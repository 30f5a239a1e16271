"""How work runs: threads, the device, work side by side, bars that show how far it is, and how a command ends."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from harvis_utils.settings import HarvisError, Settings, SettingsError


def threads() -> int:
    """Number of computing threads: ``HARVIS_THREADS``, else the cores this process may use.

    Where the system cannot say which those are (macOS, Windows), all cores.
    """
    text = os.environ.get("HARVIS_THREADS")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(f"HARVIS_THREADS={text!r} is not a number of threads (1, 2, ...)")
    return int(text)


def check_device(device) -> None:
    """Raise :class:`SettingsError` for what is no device's name, before anything heavy is imported."""
    if device and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(device)):
        raise SettingsError(f"unknown device {device!r}; valid: cpu, cuda, cuda:1, mps")


def torch_device(device: str | None = None):
    """The one place where the device is chosen: the one asked for, else CUDA where there is one, else the CPU.

    Raises :class:`SettingsError` for one that is not there.
    """
    import torch  # here and below: takes a second, which what only starts notebooks need not wait for

    check_device(device)
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    if device and not there[str(device).partition(":")[0]]():
        raise SettingsError(f"device {device!r}: torch {torch.__version__} finds none here; use cpu, or none by name")
    return torch.device(device or ("cuda" if there["cuda"]() else "cpu"))


def progress(iterable=None, **options):
    """A tqdm bar over long work, or one to be updated by hand: on a terminal or in a notebook, and nowhere else.

    Where ``HARVIS_PROGRESS`` names a file (the chain sets it for its kernels), the bar goes there instead, so that
    executed notebooks stay free of it and a person can still watch.
    """
    from tqdm import auto, std

    if path := os.environ.get("HARVIS_PROGRESS"):
        watched = open(path, "a", encoding="utf-8")  # noqa: SIM115
        return std.tqdm(iterable, file=watched, mininterval=5, ascii=True, **options)
    return auto.tqdm(iterable, disable=None, **options)


@contextmanager
def threads_inside(n: int | None):
    """Compute on ``n`` threads (None: no change) and put the number back afterwards."""
    import torch

    before = torch.get_num_threads()
    if n:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def workers(n: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool of ``n`` threads (None: as many as torch computes on), each computing on one.

    What is not begun when the block ends, by an error or an interrupt too, is not begun any more.
    """
    import torch

    n = n or torch.get_num_threads()
    with threads_inside(1), ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            print("interrupted: what is not begun is left out, what is being computed ends first", file=sys.stderr)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def side_by_side(cfg: Settings, job: Callable, things: Sequence, title: str | None = None) -> list:
    """``job`` of each thing, as many at once as there are threads on a CPU; each is computed on one thread.

    The results come in the order of ``things``. With a ``title`` a bar shows how far it is.
    """
    with workers(None if torch_device(cfg.device).type == "cpu" else 1) as pool:
        done = pool.map(job, things)
        return list(progress(done, total=len(things), desc=title, leave=False) if title else done)


def command_line(main: Callable[[list[str] | None], object]) -> Callable[[list[str] | None], int]:
    """``main`` with an exit code: its own, 0, that of a :class:`HarvisError`, 130 after an interrupt; told in words."""

    @functools.wraps(main)
    def coded(arguments: list[str] | None = None) -> int:
        try:
            code = main(arguments)
        except HarvisError as error:
            print(f"\n{error}", file=sys.stderr)
            return error.code
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on where it stopped", file=sys.stderr)
            return 130
        return code if isinstance(code, int) else 0

    return coded
