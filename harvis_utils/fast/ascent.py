"""Gradient ascent on many signals at once: what :mod:`harvis_utils.maximization.paper_methods` says, computed fast.

A row is one signal, of one unit and one method. Rows never mix, so a batch gives what single runs give;
``tests/made_trunks.py`` holds the readable loop that it must equal. Four ideas make it fast, none costs accuracy:

* Only what is needed: the network stops at the layer, and of that layer each row computes its own unit alone.
* The gradient is written out (:mod:`harvis_utils.fast.gradients`), which spares autograd's bookkeeping.
* The network sees blocks of rows that fit a cache, channels last; one worker per core, each computing alone.
* A row stops once everything the remaining steps could do is below a tolerance (:func:`stopping_step`).
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harvis_utils import parallel
from harvis_utils.fast.gradients import TERMS, Rows, UnitMaps, l2_norm, rectified, terms
from harvis_utils.networks.sfhf import Trunk, known
from harvis_utils.settings import OPTIMIZERS, Step

#: bytes of a block's intermediate arrays. Choice: on a CPU about what one core's caches hold; see the benchmarks
CPU_BLOCK_BYTES = 8 * 2**20
CUDA_BLOCK_BYTES = 4 * 2**30

#: torch.optim.Adam's own values
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
MOMENTUM = 0.9

# -------------------------------------------------------------------------------------------- one chunk of rows


def move(x: Tensor, g: Tensor, first: Tensor, second: Tensor, step: Step, number: int) -> None:
    """The ``number``-th move from 0 of the step's optimizer along ``g``, in place, as are its moments."""
    eta = step.step_size * step.decay**number
    if step.optimizer == "ascent":
        x.add_(g, alpha=eta)
    elif step.optimizer == "momentum":
        x.add_(first.mul_(MOMENTUM).add_(g), alpha=eta)
    else:
        first.lerp_(g, 1 - BETA1)
        second.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
        scale = second.sqrt().div_((1 - BETA2 ** (number + 1)) ** 0.5).add_(EPSILON)
        x.addcdiv_(first, scale, value=eta / (1 - BETA1 ** (number + 1)))


@dataclass(eq=False)
class Chunk:
    """Rows of one network and layer that are climbed together: their signals ``x`` and moments, (row, time) each.

    The network sees ``block`` rows at a time, there and back, so that their hidden layers stay in a cache.
    """

    trunk: Trunk
    layer: str
    rows: Rows
    x: Tensor
    step: Step
    th_aap_g: float
    lowpass: Tensor
    block: int

    def __post_init__(self) -> None:
        # Adam's moments; momentum uses the first
        self.first, self.second = torch.zeros_like(self.x), torch.zeros_like(self.x)
        self._hold(self.rows)
        self.project()

    def _hold(self, rows: Rows) -> None:
        self.rows, self.blocks = rows, []
        for begin in range(0, len(rows), self.block):
            part = rows.take(at := slice(begin, begin + self.block))
            maps = UnitMaps(self.trunk, self.layer, part.unit)
            self.blocks.append((at, part, maps, bool(part.clips.any()), bool(part.eap.any())))
        self.filtered, self.normed = rows.filtered.nonzero()[:, 0], rows.normed.nonzero()[:, 0]
        self.bounded = rows.aap.nonzero()[:, 0]

    def keep(self, n: int) -> None:
        """Go on with the first ``n`` rows only."""
        self.x, self.first, self.second = self.x[:n].clone(), self.first[:n].clone(), self.second[:n].clone()
        self._hold(self.rows.take(slice(n)))

    def outputs(self) -> Tensor:
        """Feature map of each row's unit, (row, time)."""
        return torch.cat([maps.forward(self.x[at]) for at, _, maps, *_ in self.blocks])

    def gradient(self) -> Tensor:
        """Gradient of each row's objective f - w R with respect to its signal, (row, time)."""
        rows, x, g = self.rows, self.x, torch.empty_like(self.x)
        for at, part, maps, some_clip, some_eap in self.blocks:
            out = maps.forward(x[at])
            slope = torch.full_like(out, 1 / out.shape[1])
            if some_clip or some_eap:
                over = out > part.threshold[:, None]
            if some_clip:
                slope.masked_fill_(over & part.clips[:, None], 0)
            if some_eap:
                slope -= over * (part.eap / over.sum(1).clamp(min=1))[:, None]
            g[at] = maps.backward(rectified(slope, out))
        g -= x * (rows.l2 / l2_norm(x).clamp(min=torch.finfo(x.dtype).tiny))[:, None]
        slope = x.diff(dim=1).sign_().mul_(rows.tv[:, None])
        g[:, 1:] -= slope
        g[:, :-1] += slope
        if len(self.bounded):
            signal = x[self.bounded]
            beyond = signal.abs() > self.th_aap_g
            weight = rows.aap[self.bounded] / beyond.sum(1).clamp(min=1)
            g[self.bounded] -= signal.sign() * beyond * weight[:, None]
        return g

    def advance(self, number: int) -> None:
        """One step of the optimizer, the ``number``-th from 0, then the method's projection."""
        move(self.x, self.gradient(), self.first, self.second, self.step, number)
        self.project()

    def project(self) -> None:
        """Filter or normalize the rows whose method asks for it."""
        if len(self.filtered):
            self.x[self.filtered] = self.x[self.filtered] @ self.lowpass.T
        if len(self.normed):
            chosen = self.x[self.normed]
            self.x[self.normed] = chosen / l2_norm(chosen).clamp(min=1e-12)[:, None]

    def terms(self) -> dict[str, Tensor]:
        """The objective and its parts as they are now, each (row,)."""
        return terms(self.x[:, None], self.outputs(), self.rows, self.th_aap_g)


# ------------------------------------------------------------------------------------- when a row may stop


def steepest(trunk: Trunk, layer: str, rows: Rows, length: int) -> np.ndarray:
    """The largest that each row's gradient can be at any sample of any signal, (row,).

    Bounded by the absolute weights along every path of the network, plus what the penalties can add.
    """
    # response to one impulse with all weights taken positive: the most that a sample can change each output
    positive = Trunk(tuple(w.abs() for w in trunk.weights), tuple(torch.zeros_like(b) for b in trunk.biases))
    positive = positive.to("cpu", torch.float64)
    impulse = torch.zeros(1, 2 * positive.receptive_field(layer) + 1, dtype=torch.float64)
    impulse[0, impulse.shape[1] // 2] = 1
    response = positive.feature_map(impulse, layer)[0].numpy()[rows.unit.cpu().numpy()]
    l2, tv, aap, eap = (getattr(rows, name).double().cpu().numpy() for name in ("l2", "tv", "aap", "eap"))
    return response.sum(1) / length + l2 + 2 * tv + aap + eap * response.max(1)


def stopping_step(
    rows: Rows, step: Step, n_steps: int, n_samples: int, tolerance_g: float, gradient: np.ndarray | float = np.inf
) -> np.ndarray:
    """First step of each row from which on all remaining ones together move no sample by ``tolerance_g``, (row,).

    What is left is the sum of the remaining step sizes eta gamma^t times the most that the optimizer can do per eta:

    * ascent: the largest ``gradient`` (:func:`steepest`; inf where it is not known: then all steps are taken);
      momentum: 1 / (1 - mu) times that.
    * Adam: m / sqrt(v) is at most (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) = 7.27 (Cauchy and Schwarz).

    Normalizing at most doubles the length of a move, whose signal has ``n_samples``. Filtered rows take all steps,
    because the filter itself goes on moving them. ``tolerance_g = 0`` switches stopping off.
    """
    if tolerance_g <= 0:
        return np.full(len(rows), n_steps)
    number = np.arange(n_steps)
    if step.optimizer == "adam":
        most = (1 - BETA1) / np.sqrt((1 - BETA2) * (1 - BETA1**2 / BETA2)) / (1 - BETA1 ** (number + 1))
        reach = np.ones(len(rows))
    else:
        most = np.ones(n_steps)
        reach = np.broadcast_to(gradient, len(rows)) / (1 if step.optimizer == "ascent" else 1 - MOMENTUM)
    reach = np.where(rows.normed.cpu().numpy(), 2 * np.sqrt(n_samples) * reach, reach)
    reach = np.where(rows.filtered.cpu().numpy(), np.inf, reach)
    left = np.cumsum((step.step_size * step.decay**number * most)[::-1])[::-1]  # falls with the step
    return n_steps - np.searchsorted(left[::-1], tolerance_g / reach, side="left")


# ----------------------------------------------------------------------------------------- chunks and workers


@dataclass(frozen=True)
class Climbed:
    """``signal`` and ``map`` are (row, time), each entry of ``history`` is (row, record), ``steps`` taken (row,)."""

    signal: np.ndarray
    map: np.ndarray
    history: dict[str, np.ndarray]
    steps: np.ndarray


def climb(
    trunk: Trunk,
    layer: str,
    rows: Rows,
    start: np.ndarray,
    step: Step,
    *,
    n_steps: int,
    record: Sequence[int] = (),
    tolerance_g: float = 0.0,
    th_aap_g: float = 1.5,
    lowpass: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    block_bytes: int | None = None,
    workers: int = 1,
    tick: Callable[[int], object] = lambda n: None,
) -> Climbed:
    """Climb from ``start`` (row, time) in G for ``n_steps``; ``record`` are the steps whose terms are kept.

    Each worker climbs an equal share of the rows; the network sees blocks of as many rows as ``block_bytes`` of
    intermediate arrays allow, so memory is bounded by that and about 16 arrays of the size of ``start``. ``tick`` is
    called with the number of row-steps done since the last call. An exception in one worker stops the others. Raises
    ``ValueError`` for an unknown optimizer.
    """
    known("optimizer", step.optimizer, OPTIMIZERS)
    device = torch.device(device)
    length = start.shape[1]
    trunk, rows = trunk.to(device, dtype), rows.to(device, dtype)
    x = torch.tensor(np.ascontiguousarray(start), device=device).to(dtype)
    filtering = torch.tensor(np.eye(length) if lowpass is None else lowpass.copy()).to(device, dtype)
    until = stopping_step(rows, step, n_steps, length, tolerance_g, steepest(trunk, layer, rows, length))
    record = np.asarray(sorted(record), dtype=int)
    signal, maps = (torch.empty_like(x, device="cpu").numpy() for _ in range(2))
    found = Climbed(signal, maps, {name: np.empty((len(rows), len(record))) for name in TERMS}, until)
    # rows that stop late come first, so that a chunk shrinks from its end; equal shares stop together
    order = np.argsort(-until, kind="stable")
    budget = block_bytes or (CPU_BLOCK_BYTES if device.type == "cpu" else CUDA_BLOCK_BYTES)
    block = block_rows(trunk, layer, length, dtype, budget)
    n_chunks = workers if len(rows) > block else 1  # what fits one block is not worth dividing
    chunks = [chunk for chunk in np.array_split(order, n_chunks) if len(chunk)]
    halt = threading.Event()

    @torch.inference_mode()
    def run(chosen: np.ndarray) -> None:
        at = torch.as_tensor(chosen, device=device)
        chunk = Chunk(trunk, layer, rows.take(at), x[at], step, th_aap_g, filtering, block)
        ends, done = until[chosen], 0
        for number in range(int(ends.max(initial=0)) + 1):
            if halt.is_set():
                return
            stay = int((ends > number).sum())  # rows are in falling order of their end
            if stay < len(chosen) or number in record:
                column = int(np.searchsorted(record, number))
                for name, value in chunk.terms().items():
                    term, values = found.history[name], value.cpu().numpy()[:, None]
                    term[chosen, column : column + int(number in record)] = values
                    term[chosen[stay:], column:] = values[stay:]
                if stay < len(chosen):
                    gone = chosen[stay:]
                    found.signal[gone] = chunk.x[stay:].cpu().numpy()
                    found.map[gone] = chunk.outputs()[stay:].cpu().numpy()
                    chosen, ends = chosen[:stay], ends[:stay]
                    if not stay:
                        break
                    chunk.keep(stay)
            chunk.advance(number)
            done += stay
            if number % 50 == 49:
                tick(done)
                done = 0
        tick(done)

    with exact_products(device), parallel.threads_inside(1 if workers > 1 else None):
        if len(chunks) == 1:
            run(chunks[0])
        else:
            with parallel.workers(workers) as pool:
                try:
                    for future in as_completed([pool.submit(run, chosen) for chosen in chunks]):
                        future.result()
                finally:
                    halt.set()
    return found


def block_rows(trunk: Trunk, layer: str, length: int, dtype: torch.dtype, budget_bytes: int) -> int:
    """Rows whose intermediate arrays fit ``budget_bytes``: each hidden layer there and back, and about 16 signals."""
    hidden = sum(len(b) for b in trunk.biases[: trunk.depth(layer) - 1])
    per_row = length * (2 * hidden + 16) * torch.finfo(dtype).bits // 8
    return max(1, budget_bytes // per_row)


@contextmanager
def exact_products(device: torch.device):
    """No TF32 on CUDA: its 10 bits of mantissa would be seen in every signal."""
    if device.type != "cuda":
        yield
        return
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
