"""Gradient ascent on windows (row, axis, time) by autograd: any network, any place in it, any objective.

:func:`path` is the one loop. :func:`climb` walks it for the paper's objective, with a unit, a threshold and weights for
each row; :mod:`harvis_utils.maximization.visualization` for objectives of one's own, and
:mod:`harvis_utils.lenses.slopes` for directions that are no gradient. :mod:`harvis_utils.fast.ascent` gives what
:func:`climb` gives, for per-axis trunks alone and sooner.

A unit that sees single axes gets a signal with one axis, as in the paper; one that mixes them a signal with all axes.
Choice, what the paper's terms mean there (at one axis they are the paper's):

* f is the mean over all outputs of the unit's map, also over its axes where it has any;
* L2, TV and AAP are sums over the axes of what they are at one axis; EAP is that of all outputs of the map;
* unit norm makes the root mean square of the whole signal what it is for one axis of norm 1;
* the low-pass filter and the start are the same for each axis;
* a signal is beyond an amplitude where one of its axes is.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import nullcontext
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from harvis_utils import parallel
from harvis_utils.fast.ascent import Climbed, move, stopping_step
from harvis_utils.fast.gradients import TERMS, Rows, l2_norm, terms
from harvis_utils.maximization.coordinates import Parametrization
from harvis_utils.maximization.transforms import Transform
from harvis_utils.networks import taps
from harvis_utils.networks.backward import Rule, gradient_of, rectifiers, refuse_others
from harvis_utils.networks.sfhf import known
from harvis_utils.settings import OPTIMIZERS, Step

#: rows that are climbed together, which bounds the memory
CHUNK = 512

#: signals (row, ...), which rows of the start they are (row,), and the number of the step -> where to climb, (row, ...)
Direction = Callable[[Tensor, Tensor, int], Tensor]


def path(
    direction: Direction,
    start: Tensor,
    step: Step,
    n_steps: int,
    *,
    ends: np.ndarray | None = None,
    after: Callable[[Tensor, Tensor], Tensor] | None = None,
    coordinates: Parametrization | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Climb from ``start`` (row, ...): before each step and after the last its number, the rows that are still here
    (row,), and their signals, which hold until the next step.

    ``ends`` (row,) is the step at which each row leaves, by default the last. Moves are made in ``coordinates``;
    ``after`` each one, signals become what it makes of them and of their rows. Raises ``ValueError`` for an unknown
    optimizer.
    """
    known("optimizer", step.optimizer, OPTIMIZERS)
    ends = np.full(len(start), n_steps) if ends is None else ends
    signal, parameters = (coordinates.signal, coordinates.parameters) if coordinates else (lambda p: p, Tensor.clone)
    rows, p = torch.arange(len(start), device=start.device), parameters(start.detach())
    first, second = torch.zeros_like(p), torch.zeros_like(p)
    for number in range(int(ends.max(initial=0)) + 1):
        yield number, rows, signal(p)
        if (ends <= number).any():
            stay = torch.as_tensor(np.flatnonzero(ends > number), device=start.device)
            ends, (rows, p, first, second) = ends[ends > number], (v[stay] for v in (rows, p, first, second))
            if not len(ends):
                return
        if coordinates is None:
            g = direction(p, rows, number)
        else:
            with torch.enable_grad():
                leaf = p.detach().requires_grad_()
                x = signal(leaf)
            (g,) = torch.autograd.grad(x, leaf, direction(x.detach(), rows, number))
        move(p, g, first, second, step, number)
        if after is not None:
            p = parameters(after(signal(p), rows))


def uphill(score: Callable[[Tensor, Tensor, int], Tensor]) -> Direction:
    """The gradient, by autograd, of what gives each row one number, (row,), out of the same arguments."""

    def direction(x: Tensor, rows: Tensor, number: int) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = taps.led(score(x, rows, number), x, "what is to become large")
            return gradient_of(value.sum(), x)

    return direction


def climb(
    maps: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]],
    rows: Rows,
    start: Tensor,
    step: Step,
    *,
    n_steps: int,
    record: Sequence[int] = (),
    tolerance_g: float = 0.0,
    th_aap_g: float = 1.5,
    lowpass: np.ndarray | None = None,
    coordinates: Parametrization | None = None,
    transforms: Sequence[Transform] = (),
    after: Callable[[Tensor], Tensor] | None = None,
    rule: Rule | None = None,
    gradient: np.ndarray | float = np.inf,
    seed: int = 0,
    chunk: int = CHUNK,
    tick: Callable[[int], object] = lambda n: None,
) -> Climbed:
    """The paper's ascent from ``start`` (row, axis, time) in G, for any ``maps``.

    ``maps`` turns windows (row, axis, time) into maps (row, unit, axis, time) and treats rows apart; several, of equal
    networks, share the rows, each in a thread of its own. Computations are in the device and precision of ``start``.
    What differs from row to row is in ``rows``. The network sees signals after the ``transforms``, drawn anew from
    ``seed`` in every step, and its rectifiers pass back what ``rule`` says. Moves are made in ``coordinates``.
    ``after`` is done to the start and after each
    step, behind the method's own filter or normalization: a bound, a denoiser.

    Rows stop as in :func:`harvis_utils.fast.ascent.stopping_step`, where ``gradient`` is the largest that theirs can
    be; all steps are taken in other coordinates and with an ``after``, where nothing is known. Returns ``signal``
    (row, axis, time), the unit's ``map`` likewise, the history of :data:`TERMS` at the steps ``record``. ``tick`` is
    called with the number of row-steps done. Raises ``ValueError`` for an unknown optimizer.
    """
    rows, record = rows.to(start.device, start.dtype), np.asarray(sorted(record), dtype=int)
    filtering = torch.tensor(np.array(np.eye(start.shape[2]) if lowpass is None else lowpass)).to(start)
    tolerance_g = tolerance_g if coordinates is None and after is None else 0.0
    until = stopping_step(rows, step, n_steps, start[0].numel(), tolerance_g, gradient)
    generator = torch.Generator().manual_seed(seed)
    history = {name: np.empty((len(rows), len(record))) for name in TERMS}
    signal, mapped = torch.empty_like(start, device="cpu").numpy(), np.empty(0)
    plain = rule is None and not transforms  # then what a step looks at is what is recorded
    places: SimpleQueue[Callable[[Tensor], Tensor]] = SimpleQueue()
    for one in [maps] if callable(maps) else maps:
        places.put(one)
    n_places, lock, halt = places.qsize(), threading.Lock(), threading.Event()
    if n_places > 1 and transforms:
        raise ValueError("transforms are drawn for all rows at once, so there can be only one network")
    order = np.argsort(-until, kind="stable")  # rows that stop together are climbed together
    chunk = min(chunk, -(-len(order) // n_places))

    def note(number: int, row: np.ndarray, found: dict[str, Tensor]) -> None:
        column = int(np.searchsorted(record, number))
        for name, value in found.items():
            values = value.detach().cpu().numpy()[:, None]
            history[name][row, column : column + int(number in record)] = values
            left = until[row] <= number
            history[name][row[left], column:] = values[left]

    def run(chosen: np.ndarray, maps: Callable[[Tensor], Tensor]) -> None:
        nonlocal mapped
        every = torch.as_tensor(chosen, device=start.device)

        def own(x: Tensor, part: Rows) -> Tensor:
            return maps(x)[torch.arange(len(x), device=x.device), part.unit]

        def score(x: Tensor, at: Tensor, number: int) -> Tensor:
            seen, part = x, rows.take(every[at])
            for transform in transforms:
                seen = transform(seen, generator)
            with nullcontext() if rule is None else rectifiers(rule):
                outputs = own(seen, part)
            if rule is not None:
                refuse_others(outputs, "the place")
            found = terms(x, outputs.flatten(1), part, th_aap_g)
            if plain and number in record:
                note(number, chosen[at.cpu().numpy()], found)
            return found["objective"]

        def project(x: Tensor, at: Tensor) -> Tensor:
            filtered, normed = (flags[every[at]][:, None, None] for flags in (rows.filtered, rows.normed))
            x = torch.where(filtered, x @ filtering.T, x)
            size = l2_norm(x.flatten(1)).clamp(min=1e-12)[:, None, None] / x.shape[1] ** 0.5
            x = torch.where(normed, x / size, x)
            return x if after is None else after(x)

        begin = project(start[every], torch.arange(len(every), device=start.device))
        steps = path(uphill(score), begin, step, n_steps, ends=until[chosen], after=project, coordinates=coordinates)
        for number, at, x in steps:
            if halt.is_set():
                return
            row = chosen[at.cpu().numpy()]
            leaves = until[row] <= number
            if leaves.any() or (number in record and not plain):
                with torch.no_grad():
                    part = rows.take(every[at])
                    outputs = own(x, part)
                    note(number, row, terms(x, outputs.flatten(1), part, th_aap_g))
                with lock:
                    if not mapped.size:
                        mapped = np.empty((len(rows), *outputs.shape[1:]), outputs.cpu().numpy().dtype)
                signal[row[leaves]], mapped[row[leaves]] = (v.cpu().numpy()[leaves] for v in (x, outputs))
            tick(int((~leaves).sum()))

    def run_where_free(chosen: np.ndarray) -> None:
        own = places.get()
        try:
            run(chosen, own)
        finally:
            places.put(own)

    parts = np.split(order, range(chunk, len(order), chunk))
    if n_places == 1:
        for chosen in parts:
            run_where_free(chosen)
    else:
        with parallel.workers(n_places) as pool:
            try:
                for future in as_completed([pool.submit(run_where_free, chosen) for chosen in parts]):
                    future.result()
            finally:
                halt.set()
    return Climbed(signal, mapped, history, until)
