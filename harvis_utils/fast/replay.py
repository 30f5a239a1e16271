"""Steps of training on CUDA recorded once and replayed: launching their small kernels takes longer than these run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def timed_kernels() -> Iterator[None]:
    """Inside, cuDNN times its kernels and takes the fastest: for small convolutions its guess is several times slower.

    Which one is fastest may differ between runs, and so do roundings. Nothing changes on a CPU.
    """
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Replayed:
    """``step``, a function of (row,) numbers of windows that returns a tensor, recorded at its fourth call.

    Recorded are calls with ``size`` rows; others take the step as it is. It must do the same every time and never wait
    for the device; what is random in it must come from ``noise``.
    """

    #: calls before it is recorded, on a stream aside: torch asks for some, in which libraries choose their kernels
    BEFORE = 3

    def __init__(self, step: Callable[[torch.Tensor], torch.Tensor], size: int, noise: torch.Generator):
        self.step, self.size, self.noise, self.calls = step, size, noise, 0

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """What the step returns, valid until the next call."""
        if len(rows) != self.size:
            return self.step(rows)
        self.calls += 1
        if self.calls <= self.BEFORE:
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                found = self.step(rows)
            here.wait_stream(aside)
            return found
        if self.calls == self.BEFORE + 1:
            self._rows, self._graph = rows.clone(), torch.cuda.CUDAGraph()
            self._graph.register_generator_state(self.noise)
            with torch.cuda.graph(self._graph):
                self._found = self.step(self._rows)
        self._rows.copy_(rows)
        self._graph.replay()
        return self._found
