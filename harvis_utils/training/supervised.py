"""Windows turned into trained networks and their history, one result per seed, resumable (paper section 4.2)."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from sklearn.metrics import confusion_matrix, f1_score
from torch import nn
from torch.nn import functional as F

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.fast.replay import Replayed, timed_kernels
from harvis_utils.networks import builders
from harvis_utils.networks.sfhf import Dropout, Trunk, folded_trunk, known
from harvis_utils.parallel import progress, side_by_side, threads_inside, torch_device, workers
from harvis_utils.settings import Settings, TrainingSettings
from harvis_utils.store import results
from harvis_utils.store.files import read_json
from harvis_utils.store.results import kept
from harvis_utils.training.checkpoints import CHECKPOINT, TrainingError, resume, save_state

#: windows pushed through a network at once when only its output is wanted
EVALUATION_BATCH = 1024
#: what is noted of each epoch
HISTORY = ("loss", "val_f1", "test_f1")
#: how the learning rate runs over the epochs
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Network:
    """One trained network: the model at the chosen epoch, its history and its predictions.

    ``history`` maps "loss", "val_f1", "test_f1" to (epoch,) arrays; ``predicted`` maps "val", "test" to (window,)
    class indices at the chosen epoch, ``predicted_last`` the same at the last epoch.
    """

    seed: int
    model: nn.Module
    history: dict[str, np.ndarray]
    best_epoch: int
    predicted: dict[str, np.ndarray]
    predicted_last: dict[str, np.ndarray]
    key: str
    wall_s: float
    folded: Trunk | None = None  # where the trunk alone is known

    @property
    def trunk(self) -> Trunk:
        """The per-axis trunk of an SF-HF with batch norm folded in."""
        return self.folded or folded_trunk(self.model)


#: torch initializes layers from its one global generator
_DRAWING = threading.Lock()


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """While the block runs, torch draws the weights of new layers from ``seed`` alone, whatever other threads do."""
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def new_model(windows: Windows, settings, seed: int) -> nn.Module:
    """The untrained network of ``settings`` (:mod:`builders`), whose weights depend on ``seed`` alone."""
    with drawing(seed):
        model = builders.build(len(windows.axes), windows.train.length, len(windows.activities), settings)
    return model.to(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------------- stored networks


def networks(cfg: Settings, windows: Windows, model=None, training: TrainingSettings | None = None) -> list[Network]:
    """One trained network per seed; trains those that are not there yet, on a CPU as many at once as it has threads.

    ``model`` are settings of any network that :mod:`builders` knows, by default those of the run, as ``training``.

    Each network is computed on one thread, so its weights do not depend on how many are trained beside it. They
    take turns epoch by epoch: no thread is idle while one last network trains.
    """
    model, training = model or cfg.model, training or cfg.training
    seeds = training.seeds
    at_once = torch.get_num_threads() if torch_device(cfg.device).type == "cpu" else 1
    turns = Turns(min(at_once, len(seeds)))
    with workers(len(seeds)) as pool:
        futures = [pool.submit(train, cfg, windows, seed, turns, model, training) for seed in seeds]
        try:
            wait(futures)
        finally:  # an interrupt
            turns.halt.set()
    errors = [e for e in (future.exception() for future in futures) if e]
    for error in sorted(errors, key=lambda e: isinstance(e, Halted)):  # the cause before those it stopped
        raise error
    return [future.result() for future in futures]


def train(
    cfg: Settings,
    windows: Windows,
    seed: int,
    turns: Turns | None = None,
    model=None,
    training: TrainingSettings | None = None,
) -> Network:
    """One of :func:`networks`, trained on one thread, or read from the store where it is there."""
    settings = model or cfg.model
    about = (windows, settings, dataclasses.replace(training or cfg.training, seeds=()), seed)
    with threads_inside(1):
        found = trained(*about, device=cfg.device, turns=turns)
    key = trained.key(*about)
    model = new_model(windows, settings, seed)
    model.load_state_dict(part_of(found, "weights."))
    history = {name: found[name].numpy() for name in HISTORY}
    return Network(
        seed=seed,
        model=model.eval(),
        history=history,
        best_epoch=int(np.nanargmax(history["val_f1"])),
        predicted={k: v.numpy() for k, v in part_of(found, "predicted.").items()},
        predicted_last={k: v.numpy() for k, v in part_of(found, "last_predicted.").items()},
        key=key,
        wall_s=read_json(results.folder_of(trained.stage, key) / "manifest.json")["wall_s"],
    )


def part_of(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@kept("networks", version=1, apart=("device", "turns"))
def trained(
    windows: Windows,
    model,
    training: TrainingSettings,
    seed: int,
    *,
    device: str | None = None,
    turns: Turns | None = None,
    checkpoint: Path | None = None,
) -> dict[str, torch.Tensor]:
    """Train the network of the settings ``model`` from ``seed``.

    ``training.seeds`` should be empty, because it is part of the address. Returns ``weights.*`` and ``predicted.*`` of
    the epoch with the best validation F1, ``last_weights.*`` and ``last_predicted.*`` of the last one, and "loss",
    "val_f1" and "test_f1" by epoch. Interrupted training goes on after its last finished epoch.
    """
    turns = turns or Turns(1)
    net = new_model(windows, model, seed).to(torch_device(device))
    options = {"around": lambda: turns, "check": turns.check, "checkpoint": checkpoint, "title": f"network {seed}"}
    with timed_kernels():
        notes = fit_best(net, windows, training, seed, replay=True, **options)
    results.charge(turns.spent() / turns.n)
    found = {name: torch.tensor(notes[name], dtype=torch.float64) for name in HISTORY}
    for which, prefix in (("best", ""), ("last", "last_")):
        found |= {f"{prefix}weights.{k}": v for k, v in notes[which]["weights"].items()}
        found |= {f"{prefix}predicted.{k}": notes[which][k] for k in ("val", "test")}
    return found


def untrained(cfg: Settings, windows: Windows, model=None, training: TrainingSettings | None = None) -> list[Network]:
    """The networks of :func:`networks` before any training: the control that tells what training put into them."""
    found, settings = [], model or cfg.model
    for seed in (training or cfg.training).seeds:
        model = new_model(windows, settings, seed).eval()
        key = trained.key(windows, settings, TrainingSettings(seeds=(), epochs=0), seed)
        found.append(Network(seed, model, {}, -1, {}, {}, key, 0.0))
    return found


class Halted(Exception):
    """Another network failed, or the user interrupted."""


class Turns:
    """Lets ``n`` networks train at once, first come, first served; ``halt`` stops all of them at their next batch."""

    def __init__(self, n: int):
        self.n, self.halt = n, threading.Event()
        self._waiting, self._running, self._changed = deque(), 0, threading.Condition()
        self._mine = threading.local()

    def __enter__(self) -> None:
        me = object()
        with self._changed:
            self._waiting.append(me)
            # a semaphore would let the network that just ended its turn go first
            self._changed.wait_for(lambda: self._running < self.n and self._waiting[0] is me)
            self._waiting.popleft()
            self._changed.notify_all()
            self.check()
            self._running += 1
        self._mine.begun = time.perf_counter()

    def __exit__(self, *error) -> None:
        self._mine.spent = self.spent() + time.perf_counter() - self._mine.begun
        if any(error):
            self.halt.set()
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def check(self) -> None:
        """Raise :class:`Halted` where training must not go on."""
        if self.halt.is_set():
            raise Halted

    def spent(self) -> float:
        """Seconds of all turns of the calling thread."""
        return getattr(self._mine, "spent", 0.0)


# ------------------------------------------------------------------------------------------------------ training


def fit(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    settings: TrainingSettings,
    seed: int,
    *,
    epochs: int | None = None,
    each_epoch: Callable[[int, float], Mapping[str, str] | None] = lambda epoch, loss: None,
    around: Callable[[], AbstractContextManager] = nullcontext,
    check: Callable[[], None] = lambda: None,
    checkpoint: Path | None = None,
    notes: dict | None = None,
    title: str | None = None,
    replay: bool = False,
) -> list[float]:
    """Train ``model`` in place with Adam on cross entropy; the mean loss of each epoch.

    A model whose ``heads(x)`` returns several class scores, each (window, class), learns from the sum of their losses.

    ``x`` (window, ...) and ``y`` (window,) lie on the model's device. The order of the windows and the dropout of an
    epoch depend on (``seed``, epoch) alone. ``epochs`` counts instead of ``settings.epochs``. ``each_epoch(epoch,
    loss)`` is called after each one and may score and copy the model; what it returns stands on the bar, which is
    shown where there is a ``title``. Each epoch runs inside ``around()``; ``check`` is called before each batch and
    may raise.

    With a folder ``checkpoint`` a later call goes on after the last finished epoch and ends with the weights of an
    uninterrupted one, bit for bit. ``notes`` is what the caller gathers in ``each_epoch`` (tensors, numbers, lists,
    dicts); it is saved with the epochs and filled again from there. With ``replay`` steps on CUDA are recorded and
    replayed (:class:`~harvis_utils.fast.replay.Replayed`), which not every model allows. Raises
    :class:`TrainingError` where the loss diverges or the checkpoint is damaged.
    """
    replay = replay and x.is_cuda and settings.schedule == "constant"  # a recorded step keeps its learning rate
    options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "capturable": replay}
    known("schedule", settings.schedule, SCHEDULES)
    optimizer = torch.optim.Adam(model.parameters(), **options)
    notes = {} if notes is None else notes
    losses = resume(checkpoint, model, optimizer, notes) if checkpoint else []
    step = partial(_step, model, optimizer, x, y)
    step = Replayed(step, settings.batch_size, torch.Generator(x.device)) if replay else step
    epochs = settings.epochs if epochs is None else epochs
    todo = range(len(losses), epochs)
    bar = progress(todo, initial=len(losses), total=epochs, desc=title) if title else None
    for epoch in bar or todo:
        if settings.schedule == "cosine":
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
        with around():
            losses.append(_epoch(model, step, x, settings.batch_size, seed, epoch, check))
            if not np.isfinite(losses[-1]):
                raise TrainingError(
                    f"network {seed}: the loss is {losses[-1]} in epoch {epoch + 1}; lower training.learning_rate "
                    f"({settings.learning_rate:g}) of this profile and train again"
                )
            shown = each_epoch(epoch, losses[-1])
            if bar:
                bar.set_postfix(loss=f"{losses[-1]:.3f}", **(shown or {}))
            if checkpoint:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                save_state(checkpoint / CHECKPOINT, state | {"losses": losses, "notes": notes})
    return losses


def _step(model, optimizer, x: torch.Tensor, y: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """One step on the windows with the numbers ``chosen``; the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    heads = model.heads(x[chosen]) if hasattr(model, "heads") else [model(x[chosen])]
    loss = sum(F.cross_entropy(scores, y[chosen]) for scores in heads)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _epoch(model, step, x: torch.Tensor, batch_size: int, seed: int, epoch: int, check: Callable[[], None]) -> float:
    noise = step.noise if isinstance(step, Replayed) else torch.Generator(x.device)
    noise.manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = noise
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed * 100_003 + epoch)).to(x.device)
    model.train()
    total, seen = torch.zeros((), dtype=torch.float64, device=x.device), 0
    for chosen in order.split(batch_size):
        check()
        if len(chosen) == 1 and len(order) > 1:
            continue  # batch norm cannot normalize a single leftover window
        total += step(chosen) * len(chosen)
        seen += len(chosen)
    return float(total / seen)


def fit_best(model: nn.Module, windows: Windows, settings: TrainingSettings, seed: int, **options) -> dict:
    """:func:`fit` to the training windows; leaves the weights of the scored epoch with the best validation F1.

    Scored are every ``settings.evaluate_every``-th epoch and the last. Returns "loss", "val_f1" and "test_f1" by epoch
    (NaN: not scored), and under "best" and "last" what the network was at that epoch: its "weights" and the predicted
    classes of "val" and "test". ``options`` go to :func:`fit`.
    """
    device = next(model.parameters()).device
    x, y = (torch.as_tensor(a, device=device) for a in (windows.train.x, windows.train.activity))
    notes: dict = {"val_f1": [], "test_f1": [], "best": {}, "last": {}}

    def score(epoch: int, loss: float) -> dict[str, str]:
        if (epoch + 1) % settings.evaluate_every and epoch + 1 < settings.epochs:
            notes["val_f1"].append(np.nan)
            notes["test_f1"].append(np.nan)
            return {}
        notes["last"] = {name: torch.as_tensor(predict(model, getattr(windows, name))) for name in ("val", "test")}
        for name, classes in notes["last"].items():
            notes[f"{name}_f1"].append(macro_f1(getattr(windows, name), classes.numpy()))
        # Choice: the epoch with the best validation macro F1, the earliest of equals; the paper does not say
        if int(np.nanargmax(notes["val_f1"])) == epoch:
            notes["best"] = {"weights": {k: v.clone() for k, v in model.state_dict().items()}, **notes["last"]}
        return {"val_f1": f"{notes['val_f1'][-1]:.3f}"}

    losses = fit(model, x, y, settings, seed, each_epoch=score, notes=notes, **options)
    notes["last"]["weights"] = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(notes["best"]["weights"])
    model.eval()
    return notes | {"loss": losses}


@torch.no_grad()
def predict(model: nn.Module, split: Split) -> np.ndarray:
    """Predicted class of every window, (window,)."""
    model.eval()
    device = next(model.parameters()).device
    batches = torch.as_tensor(split.x).split(EVALUATION_BATCH)
    return torch.cat([model(batch.to(device)).argmax(1).cpu() for batch in batches]).numpy()


# ------------------------------------------------------------------------------------------------- evaluation


def macro_f1(split: Split, predicted: np.ndarray) -> float:
    """F1 averaged over the classes that occur in the split."""
    true = split.activity
    return float(f1_score(true, predicted, average="macro", labels=np.unique(true), zero_division=0))


def class_f1(split: Split, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """F1 per class, (class,)."""
    return f1_score(split.activity, predicted, average=None, labels=np.arange(n_classes), zero_division=0)


def subject_f1(split: Split, predicted: np.ndarray) -> dict[int, float]:
    """Macro F1 per subject."""
    own = {int(s): split.subject == s for s in np.unique(split.subject)}
    return {s: macro_f1(split.chosen(which), predicted[which]) for s, which in own.items()}


def confusion(split: Split, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Share of each true class (row) predicted as each class (column)."""
    return confusion_matrix(split.activity, predicted, labels=np.arange(n_classes), normalize="true")


def of_networks(
    networks: Sequence[Network],
    one: Callable[..., xr.Dataset],
    *values: xr.Dataset,
    cfg: Settings | None = None,
    title: str | None = None,
) -> xr.Dataset:
    """``one`` of every network and of what ``values`` (with a dimension seed) hold of it, under the dimension seed.

    With ``cfg`` they are made side by side; a bar with a ``title`` shows how far it is.
    """

    def own(network: Network) -> xr.Dataset:
        return one(network, *(of.sel(seed=network.seed, drop=True) for of in values))

    found = (
        side_by_side(cfg, own, networks, title) if cfg else list(map(own, progress(networks, desc=title, leave=False)))
    )
    return xr.concat(found, pd.Index([net.seed for net in networks], name="seed"))
