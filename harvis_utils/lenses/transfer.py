"""Do features carry over? A frozen trunk with a new last layer, on other people and other activities.

Zeiler and Fergus (2014, section 5) keep a network trained on one data set, retrain its last layer alone on another
with few examples a class, and compare with training from scratch. Here the source is one half of the training people
doing one half of the activities; the targets are the other half of them, with the same activities and with new ones.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses import architecture
from harvis_utils.lenses.architecture import ArchitectureSettings
from harvis_utils.metrics.intervals import interval
from harvis_utils.networks import taps
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.parallel import side_by_side, threads_inside
from harvis_utils.settings import Settings
from harvis_utils.store import stages
from harvis_utils.store.files import write_text
from harvis_utils.training import supervised

STAGE = stages.Stage(
    "transfer",
    notebook="12_deconvnet",
    modules=(
        "data.windowing",
        "networks.sfhf",
        "training.supervised",
        "networks.taps",
        "lenses.architecture",
        "lenses.transfer",
    ),
)

#: Paper: 15 to 60 examples a class on Caltech; the steps between are ours
N_PER_CLASS = (1, 5, 20, 60)
TARGETS = ("new people", "new people, new activities")
ARMS = ("frozen, new last layer", "from scratch", "random weights, new last layer")


@dataclass(frozen=True)
class TransferSettings:
    """How the last layer and the networks from scratch are trained."""

    n_steps: int = 150  # of Adam, however few the windows: from scratch
    n_head_steps: int = 300  # of Adam on all windows at once: last layer
    head_rate: float = 0.01
    weight_decay: float = 1e-3  # of the last layer


SETTINGS = {"quick": TransferSettings(n_steps=60), "desk": TransferSettings(), "paper": TransferSettings()}


def part_of(split: Split, subjects: np.ndarray, activities: np.ndarray) -> Split:
    """Windows of these subjects doing these activities, the activities renumbered from 0 in the order given."""
    keep = np.flatnonzero(np.isin(split.subject, subjects) & np.isin(split.activity, activities))
    columns = {c: getattr(split, c)[keep] for c in ("start", "activity", "subject", "recording", "offset")}
    number = {a: i for i, a in enumerate(activities)}
    columns["activity"] = np.array([number[a] for a in columns["activity"]], dtype=np.int64)
    return dataclasses.replace(split, **columns)


def tasks(windows: Windows, few: Windows | None = None) -> dict[str, Windows]:
    """``source`` and the ``TARGETS``: training people halved, activities halved; validation and test people stay.

    With ``few``, the same windows thinned, all is taken from them but what a target's training windows are drawn from.
    Raises ``ValueError`` for fewer than two training people or four activities.
    """
    few = few or windows
    people, activities = np.unique(windows.train.subject), np.arange(len(windows.activities))
    if len(people) < 2 or len(activities) < 4:
        raise ValueError(
            f"halves need two training people and four activities, not {len(people)} and {len(activities)}"
        )
    # every other one: neighbours in a list of activities resemble each other
    first, second = activities[::2], activities[1::2]
    halves = people[: len(people) // 2], people[len(people) // 2 :]

    def task(name: str, train: Split, who: np.ndarray, what: np.ndarray) -> Windows:
        splits = {s: part_of(getattr(few, s), np.unique(getattr(few, s).subject), what) for s in ("val", "test")}
        splits["train"] = part_of(train, who, what)
        names = tuple(windows.activities[a] for a in what)
        return dataclasses.replace(windows, **splits, activities=names)

    return {
        "source": task("source", few.train, halves[0], first),
        TARGETS[0]: task(TARGETS[0], windows.train, halves[1], first),
        TARGETS[1]: task(TARGETS[1], windows.train, halves[1], second),
    }


def few_of_each(split: Split, n: int, seed: int) -> np.ndarray:
    """``n`` windows of every class (all where there are fewer), drawn so that a larger ``n`` holds the smaller one."""
    rng = np.random.default_rng(seed)
    found = [rng.permutation(np.flatnonzero(split.activity == c))[:n] for c in np.unique(split.activity)]
    return np.concatenate(found)


def carried(cfg: Settings, windows: Windows, seed: int) -> pd.DataFrame:
    """Test macro F1 of every target, arm and number of windows, for one source network; one stored result."""
    small, settings = architecture.SETTINGS[cfg.profile], SETTINGS[cfg.profile]
    few = windows.thinned(small.n_windows)

    def build(part: Path) -> None:
        with threads_inside(1):
            rows = _carried(tasks(windows, few), seed, small, settings)
        write_text(part / "f1.csv", pd.DataFrame(rows).to_csv(index=False))

    about = stages.provenance(cfg, data=few.digest, caveat=few.caveat, seed=seed)
    key = STAGE.key([cfg.windows, small.model, small.training, settings, list(N_PER_CLASS), seed], few.digest)
    return pd.read_csv(STAGE.obtain(key, build, about) / "f1.csv")


def _carried(of: dict[str, Windows], seed: int, small: ArchitectureSettings, settings: TransferSettings) -> list[dict]:
    base = architecture.BY_NAME[architecture.BASE]
    source = architecture.new_model(of["source"], small.model, base, seed)
    scores, _ = architecture.fit(source, of["source"], small.training, seed)
    random = architecture.new_model(of["source"], small.model, base, seed).eval()
    rows = []
    for target in TARGETS:
        task = of[target]
        trunks = {ARMS[0]: source, ARMS[2]: random}
        test = {arm: last_inputs(model, task.test.x) for arm, model in trunks.items()}
        for n in N_PER_CLASS:
            chosen = few_of_each(task.train, n, seed)
            x, y = task.train.x[chosen], torch.as_tensor(task.train.activity[chosen])
            predicted = {
                arm: new_last_layer(last_inputs(model, x), y, test[arm], len(task.activities), settings)
                for arm, model in trunks.items()
            }
            scratch = architecture.new_model(task, small.model, base, seed + 1)
            epochs = -(-settings.n_steps // -(-len(x) // small.training.batch_size))
            supervised.fit(scratch, torch.as_tensor(x), y, small.training, seed, epochs=epochs)
            predicted[ARMS[1]] = supervised.predict(scratch, task.test)
            for arm in ARMS:
                f1 = supervised.macro_f1(task.test, predicted[arm])
                rows.append({"target": target, "arm": arm, "windows a class": n, "seed": seed, "F1": f1})
    return [row | {"source F1": scores["test_f1"]} for row in rows]


def last_inputs(model: SFHF, x: np.ndarray) -> torch.Tensor:
    """What the last layer gets, (window, feature), in evaluation mode, for windows (window, axis, time) in G."""
    found: list[torch.Tensor] = []
    handle = model.dropout.register_forward_hook(lambda module, args, output: found.append(output))
    try:
        with taps.evaluating(model), torch.no_grad():
            for batch in torch.as_tensor(x).split(supervised.EVALUATION_BATCH):
                model(batch)
    finally:
        handle.remove()
    return torch.cat(found)


def new_last_layer(
    x: torch.Tensor, y: torch.Tensor, test: torch.Tensor, n_classes: int, settings: TransferSettings
) -> np.ndarray:
    """Classes of the ``test`` features after training one linear layer on ``x``; features on a common scale."""
    centre, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 1e-6, scale, torch.ones_like(scale))
    x, test = (x - centre) / scale, (test - centre) / scale
    weight = torch.zeros(n_classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(n_classes, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], settings.head_rate, weight_decay=settings.weight_decay)
    for _ in range(settings.n_head_steps):
        optimizer.zero_grad()
        F.cross_entropy(F.linear(x, weight, bias), y).backward()
        optimizer.step()
    return F.linear(test, weight, bias).argmax(1).detach().numpy()


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Mean F1 with interval over seeds by target, arm and windows a class, and the paired gain over "from scratch"."""
    wide = found.pivot_table(index="seed", columns=["target", "arm", "windows a class"], values="F1")
    rows = []
    for target, arm, n in wide.columns:
        values = wide[target, arm, n].to_numpy()
        row = {"target": target, "arm": arm, "windows a class": n, "networks": len(values)}
        for name, of in (("F1", values), ("gain", values - wide[target, ARMS[1], n].to_numpy())):
            value, bounds = interval(of)
            low, high = bounds if len(of) > 1 else (np.nan, np.nan)
            row |= {name: value, f"{name} low": low, f"{name} high": high}
        rows.append(row)
    return pd.DataFrame(rows).set_index(["target", "arm", "windows a class"])


def results(cfg: Settings, windows: Windows) -> pd.DataFrame:
    """:func:`carried` of all seeds of the profile; computed where missing."""
    seeds = architecture.SETTINGS[cfg.profile].seeds
    return pd.concat(side_by_side(cfg, lambda seed: carried(cfg, windows, seed), seeds))
