"""Windows turned into trained networks and their history, one result per seed, resumable (paper section 4.2)."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from sklearn.metrics import confusion_matrix, f1_score
from torch.nn import functional as F

from harvis_utils.data.windowing import SPLITS, Split, Windows
from harvis_utils.networks.sfhf import SFHF, Dropout, Trunk, folded_trunk
from harvis_utils.parallel import progress, threads_inside, torch_device
from harvis_utils.settings import ModelSettings, Settings, TrainingSettings
from harvis_utils.store import stages
from harvis_utils.store.files import read_json, replacing, write_json

STAGE = stages.Stage(
    "networks", notebook="02_model", modules=("data.windowing", "networks.sfhf", "training.supervised")
)

#: windows pushed through a network at once when only its output is wanted
EVALUATION_BATCH = 1024


class TrainingError(RuntimeError):
    """Training diverged or its checkpoint is damaged; the message says what to do."""


@dataclass(frozen=True)
class Network:
    """One trained network: the model at the chosen epoch, its history and its predictions.

    ``history`` maps "loss", "val_f1", "test_f1" to (epoch,) arrays; ``predicted`` maps "val", "test" to (window,)
    class indices at the chosen epoch, ``predicted_last`` the same at the last epoch.
    """

    seed: int
    model: SFHF
    history: dict[str, np.ndarray]
    best_epoch: int
    predicted: dict[str, np.ndarray]
    predicted_last: dict[str, np.ndarray]
    key: str
    wall_s: float

    @property
    def trunk(self) -> Trunk:
        """The per-axis trunk with batch norm folded in."""
        return folded_trunk(self.model)


#: torch initializes layers from its one global generator
_DRAWING = threading.Lock()


def new_model(windows: Windows, settings: ModelSettings, seed: int) -> SFHF:
    """An untrained network whose weights depend on ``seed`` alone."""
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SFHF(len(windows.axes), windows.train.length, len(windows.activities), settings)
    return model.to(memory_format=torch.channels_last)


def networks(cfg: Settings, windows: Windows) -> list[Network]:
    """One trained network per seed; trains those that are not there yet, on a CPU as many at once as it has threads.

    Each network is computed on one thread, so its weights do not depend on how many are trained beside it. They
    take turns epoch by epoch: no thread is idle while one last network trains.
    """
    seeds = cfg.training.seeds
    at_once = torch.get_num_threads() if torch_device(cfg.device).type == "cpu" else 1
    turns = _Turns(min(at_once, len(seeds)))
    with (
        threads_inside(1),
        ThreadPoolExecutor(len(seeds), initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        futures = [pool.submit(train, cfg, windows, seed, turns) for seed in seeds]
        try:
            wait(futures)
        finally:  # an interrupt
            turns.halt.set()
    errors = [e for e in (future.exception() for future in futures) if e]
    for error in sorted(errors, key=lambda e: isinstance(e, _Halted)):  # the cause before those it stopped
        raise error
    return [future.result() for future in futures]


class _Halted(Exception):
    """Another network failed, or the user interrupted."""


class _Turns:
    """Lets ``n`` networks train at once, first come, first served; ``halt`` stops all of them at their next batch."""

    def __init__(self, n: int):
        self.n, self.halt = n, threading.Event()
        self._waiting, self._running, self._changed = deque(), 0, threading.Condition()

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

    def __exit__(self, *error) -> None:
        if any(error):
            self.halt.set()
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def check(self) -> None:
        if self.halt.is_set():
            raise _Halted


def load_networks(cfg: Settings, windows: Windows) -> list[Network]:
    """The networks that notebook 02 made; a missing one raises :class:`store.files.ArtifactError`."""
    return [_read(STAGE.require(_key(cfg, windows, s)), windows, cfg.model, s) for s in cfg.training.seeds]


def untrained(cfg: Settings, windows: Windows) -> list[Network]:
    """The same networks before any training: the control that tells what training put into them."""
    found = []
    for seed in cfg.training.seeds:
        model = new_model(windows, cfg.model, seed).eval()
        key = STAGE.key([cfg.windows, cfg.model, "untrained", seed], windows.digest)
        found.append(Network(seed, model, {}, -1, {}, {}, key, 0.0))
    return found


def train(cfg: Settings, windows: Windows, seed: int, turns: _Turns | None = None) -> Network:
    """Train one network with Adam on cross entropy, on one thread, and keep the epoch with the best validation F1.

    Interrupted training goes on after its last finished epoch and ends with the weights of an uninterrupted run:
    the order of the windows and the dropout of an epoch depend on (seed, epoch) alone.
    """
    key = _key(cfg, windows, seed)
    about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=seed)
    turns = turns or _Turns(1)
    with threads_inside(1):
        folder = STAGE.obtain(key, lambda part: _fit(cfg, windows, seed, STAGE.checkpoint(key), part, turns), about)
    return _read(folder, windows, cfg.model, seed)


def _key(cfg: Settings, windows: Windows, seed: int) -> str:
    settings = [cfg.windows, cfg.model, dataclasses.replace(cfg.training, seeds=(seed,))]
    return STAGE.key(settings, windows.digest)


def _fit(cfg: Settings, windows: Windows, seed: int, checkpoint: Path, part: Path, turns: _Turns) -> float:
    """Train, save to ``part``, and return this network's share of the seconds that all of them took."""
    device = torch_device(cfg.device)
    training = cfg.training
    model = new_model(windows, cfg.model, seed).to(device)
    optimizer = torch.optim.Adam(model.parameters(), training.learning_rate, weight_decay=training.weight_decay)
    history, best = _resume(checkpoint, model, optimizer)
    x, y = (torch.as_tensor(a, device=device) for a in (windows.train.x, windows.train.activity))
    done = len(history["loss"])
    bar = progress(range(done, training.epochs), initial=done, total=training.epochs, desc=f"network {seed}")
    with turns:
        predicted = {name: predict(model, getattr(windows, name)) for name in ("val", "test")}
    spent = 0.0
    for epoch in bar:
        with turns:
            started = time.perf_counter()
            history["loss"].append(_epoch(model, optimizer, x, y, training, seed, epoch, turns.check))
            predicted = {name: predict(model, getattr(windows, name)) for name in ("val", "test")}
            for name, classes in predicted.items():
                history[f"{name}_f1"].append(macro_f1(getattr(windows, name), classes))
            # Choice: the epoch with the best validation macro F1, the earliest of equals; the paper does not say
            if int(np.argmax(history["val_f1"])) == epoch:
                best = {"state": {k: v.clone() for k, v in model.state_dict().items()}, **predicted}
            bar.set_postfix(loss=f"{history['loss'][-1]:.3f}", val_f1=f"{history['val_f1'][-1]:.3f}")
            _save_checkpoint(checkpoint, model, optimizer, history, best)
            spent += time.perf_counter() - started
    save_file(_contiguous(best["state"]), part / "weights.safetensors")
    save_file(_contiguous(model.state_dict()), part / "last_weights.safetensors")
    arrays = {name: torch.as_tensor(best[name]) for name in predicted}
    arrays |= {f"last_{name}": torch.as_tensor(classes) for name, classes in predicted.items()}
    save_file(_contiguous(arrays), part / "predictions.safetensors")
    write_json(part / "history.json", history | {"best_epoch": int(np.argmax(history["val_f1"]))})
    return spent / turns.n


def _epoch(model, optimizer, x, y, training: TrainingSettings, seed: int, epoch: int, check=lambda: None) -> float:
    """One pass over the training windows; returns the mean loss. Raises :class:`TrainingError` where it diverges.

    ``check`` is called before each batch and may raise.
    """
    noise = torch.Generator(x.device).manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = noise
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed * 100_003 + epoch)).to(x.device)
    model.train()
    total, seen = torch.zeros((), dtype=torch.float64, device=x.device), 0
    for chosen in order.split(training.batch_size):
        check()
        if len(chosen) == 1 and len(order) > 1:
            continue  # batch norm cannot normalize a single leftover window
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(x[chosen]), y[chosen])
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(chosen)
        seen += len(chosen)
    mean = float(total / seen)
    if not np.isfinite(mean):
        raise TrainingError(
            f"network {seed}: the loss is {mean} in epoch {epoch + 1}; lower training.learning_rate "
            f"({training.learning_rate:g}) of this profile and run notebook 02 again"
        )
    return mean


@torch.no_grad()
def predict(model: SFHF, split: Split) -> np.ndarray:
    """Predicted class of every window, (window,)."""
    model.eval()
    device = next(model.parameters()).device
    batches = torch.as_tensor(split.x).split(EVALUATION_BATCH)
    return torch.cat([model(batch.to(device)).argmax(1).cpu() for batch in batches]).numpy()


# ------------------------------------------------------------------------------------------------- evaluation


def macro_f1(split: Split, predicted: np.ndarray) -> float:
    """F1 averaged over the classes that occur in the split."""
    return float(
        f1_score(split.activity, predicted, average="macro", labels=np.unique(split.activity), zero_division=0)
    )


def class_f1(split: Split, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """F1 per class, (class,)."""
    return f1_score(split.activity, predicted, average=None, labels=np.arange(n_classes), zero_division=0)


def subject_f1(split: Split, predicted: np.ndarray) -> dict[int, float]:
    """Macro F1 per subject."""
    return {
        int(s): float(
            f1_score(
                split.activity[split.subject == s],
                predicted[split.subject == s],
                average="macro",
                labels=np.unique(split.activity[split.subject == s]),
                zero_division=0,
            )
        )
        for s in np.unique(split.subject)
    }


def confusion(split: Split, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Share of each true class (row) predicted as each class (column)."""
    counts = confusion_matrix(split.activity, predicted, labels=np.arange(n_classes))
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


# ------------------------------------------------------------------------------------- checkpoints and files


def _contiguous(state: dict) -> dict:
    return {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()}


def _save_checkpoint(folder: Path, model, optimizer, history: dict, best: dict) -> None:
    """Model, Adam moments, history and best epoch so far, in one file written all or nothing."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    tensors |= {f"best.{k}": v for k, v in best["state"].items()}
    tensors |= {f"predicted.{name}": torch.as_tensor(best[name]) for name in ("val", "test")}
    with replacing(folder / "checkpoint.safetensors") as part:
        save_file(_contiguous(tensors), part, metadata={"history": json.dumps(history)})


def _resume(folder: Path, model, optimizer) -> tuple[dict, dict]:
    """History and best epoch of an interrupted run after loading its state; empty where there is none."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return {"loss": [], "val_f1": [], "test_f1": []}, {}
    try:
        with safe_open(path, framework="pt") as file:
            history = json.loads(file.metadata()["history"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise TrainingError(f"{path} is damaged ({error}); delete it and run notebook 02 again") from error

    def part(prefix: str) -> dict:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    model.load_state_dict(part("model."))
    state: dict[int, dict] = {}
    for name, value in part("adam.").items():
        index, moment = name.split(".", 1)
        state.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    best = {"state": part("best."), **{k: v.numpy() for k, v in part("predicted.").items()}}
    return history, best


def _read(folder: Path, windows: Windows, settings: ModelSettings, seed: int) -> Network:
    model = new_model(windows, settings, seed)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    model.eval()
    history = read_json(folder / "history.json")
    best = history.pop("best_epoch")
    arrays = {k: v.numpy() for k, v in load_file(folder / "predictions.safetensors").items()}
    return Network(
        seed=seed,
        model=model,
        history={k: np.asarray(v) for k, v in history.items()},
        best_epoch=best,
        predicted={k: v for k, v in arrays.items() if k in SPLITS},
        predicted_last={k.removeprefix("last_"): v for k, v in arrays.items() if k.startswith("last_")},
        key=folder.name,
        wall_s=read_json(folder / "manifest.json")["wall_s"],
    )
