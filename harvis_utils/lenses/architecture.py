"""Architecture by looking: what first-layer filters show, what F1 says, which layers can go, and what carries over.

Zeiler and Fergus (2014, section 4.1) saw in their first layer filters of very low and very high frequencies with little
between, dead ones, and aliasing by a large stride; a smaller filter and stride looked better and classified better.
Here what they saw is turned into shares of power, for several widths and strides, and F1 is asked whether the looks
tell anything. All networks are small and see thinned windows: they are compared with one another only.

They also (section 5) keep a network trained on one data set, retrain its last layer alone on another with few examples
a class, and compare with training from scratch. Here the source is one half of the training people doing one half of
the activities; the targets are the other half of them, with the same activities and with new ones.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.metrics.intervals import with_interval
from harvis_utils.networks import taps
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.parallel import side_by_side, threads_inside
from harvis_utils.settings import ArchitectureSettings, ModelSettings, Settings, TrainingSettings, TransferSettings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised

#: bands of the spectra in Hz; Choice: steps of walking, then what limbs do within a step, then impacts and noise
BANDS = {"low": (0.0, 3.0), "middle": (3.0, 8.0), "high": (8.0, 15.0)}


@dataclass(frozen=True)
class Variant:
    """SF-HF with another first layer, fewer layers, or pooling."""

    name: str
    question: str  # "first layer" or "layers"
    kernel: int = 5  # of the first layer; the others keep theirs
    stride: int = 1  # of the first layer
    n_layers: int = 3
    dense: bool = True
    pool: str = "none"

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise ValueError(f"width {self.kernel} must be odd, so that a filter has a middle")


BASE = "as the paper"
#: Choice: widths and strides around the paper's 5 and 1; layers taken away one after another
VARIANTS = (
    Variant(BASE, "both"),
    Variant("width 3", "first layer", kernel=3),
    Variant("width 9", "first layer", kernel=9),
    Variant("width 15", "first layer", kernel=15),
    Variant("stride 2", "first layer", stride=2),
    Variant("width 9, stride 2", "first layer", kernel=9, stride=2),
    Variant("width 9, stride 4", "first layer", kernel=9, stride=4),
    Variant("two convolutions", "layers", n_layers=2),
    Variant("one convolution", "layers", n_layers=1),
    Variant("no dense layer", "layers", dense=False),
    Variant("one convolution, no dense layer", "layers", n_layers=1, dense=False),
    Variant("max pooling by 2", "layers", pool="max2"),
)
BY_NAME = {v.name: v for v in VARIANTS}


class Reshaped(SFHF):
    """SF-HF whose first convolution has a width and a stride of its own; the head fits what comes out."""

    def __init__(self, n_axes: int, length: int, n_classes: int, settings: ModelSettings, variant: Variant):
        settings = dataclasses.replace(
            settings,
            n_layers=variant.n_layers,
            n_dense=settings.n_dense if variant.dense else 0,
            pool=variant.pool,
        )
        after = -(-length // variant.stride)  # 'same' padding
        super().__init__(n_axes, after, n_classes, settings)
        self.conv1 = nn.Conv2d(
            1, settings.n_units, (1, variant.kernel), stride=(1, variant.stride), padding=(0, variant.kernel // 2)
        )


def new_model(windows: Windows, settings: ModelSettings, variant: Variant, seed: int) -> Reshaped:
    """An untrained network of a variant; its weights depend on the seed alone."""
    with supervised.drawing(seed):
        return Reshaped(len(windows.axes), windows.train.length, len(windows.activities), settings, variant)


@kept("architecture")
def trained(
    few: Windows, variant: Variant, model: ModelSettings, training: TrainingSettings, seed: int
) -> pd.DataFrame:
    """Scores of one small network trained on ``few`` windows, and what one sees of it: one row.

    Columns: "val F1" and "test F1" at the epoch with the best validation F1, ``cpu_s`` of training, ``weights`` (how
    many there are), and those of :func:`looks`.
    """
    network, started = new_model(few, model, variant, seed), time.thread_time()
    with threads_inside(1):
        found = supervised.fit_best(network, few, training, seed)
    best = int(np.nanargmax(found["val_f1"]))
    row = {"val F1": found["val_f1"][best], "test F1": found["test_f1"][best]}
    row |= {"cpu_s": time.thread_time() - started, "weights": sum(p.numel() for p in network.parameters())}
    return pd.DataFrame([row | looks(network, few)])


def outcomes(cfg: Settings, windows: Windows) -> pd.DataFrame:
    """:func:`trained` of all variants and seeds of the run: one row each, with ``variant``, ``question``, ``seed``."""
    settings = cfg.architecture
    few = windows.thinned(settings.n_windows)
    jobs = [(BY_NAME[name], seed) for name in settings.variants or BY_NAME for seed in settings.seeds]

    def one(job: tuple[Variant, int]) -> pd.DataFrame:
        variant, seed = job
        found = trained(few, variant, settings.model, settings.training, seed)
        return found.assign(variant=variant.name, question=variant.question, seed=seed)

    return pd.concat(side_by_side(cfg, one, jobs), ignore_index=True)


# --------------------------------------------------------------------------------------------- what filters show


def _share(filters: np.ndarray, chosen: Callable[[np.ndarray], np.ndarray], n_fft: int = 256) -> np.ndarray:
    """Share of each filter's power at the chosen frequencies, (unit,); these are in cycles per sample, 0 to 0.5."""
    power = np.abs(np.fft.rfft(np.asarray(filters, dtype=np.float64), n_fft, axis=1)) ** 2
    power[:, 1:-1] *= 2  # both signs of a frequency
    total = power.sum(1)
    inside = power[:, chosen(np.fft.rfftfreq(n_fft))].sum(1)
    return np.divide(inside, total, out=np.full(len(power), np.nan), where=total > 0)


def band_shares(filters: np.ndarray, rate_hz: float) -> dict[str, np.ndarray]:
    """Share of each filter's power in each of ``BANDS``: (unit,) each, from filters (unit, tap); NaN for zero filters.

    The filter's own mean counts as low: a constant input is 0 Hz.
    """

    def inside(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
        last = high >= rate_hz / 2
        return lambda f: (f * rate_hz >= low) & ((f * rate_hz < high) | (last & (f * rate_hz <= high)))

    return {name: _share(filters, inside(*band)) for name, band in BANDS.items()}


def aliased_share(filters: np.ndarray, stride: int) -> np.ndarray:
    """Share of each filter's power beyond what every ``stride``-th output can carry, (unit,): it comes back as another
    frequency. 0 for a stride of 1; NaN for zero filters."""
    return _share(filters, lambda f: f > 0.5 / stride)


def looks(network: Reshaped, few: Windows) -> dict[str, float]:
    """What one sees of a first layer: mean shares of power per band, aliased share, dead units, dominance.

    ``dead`` is the share of first-layer units silent on all validation windows; ``dominance`` the largest filter norm
    over the median one (Paper: one filter dominates the first layer). ``evenness`` is the entropy of the bands' shares,
    1 where all three are covered alike; ``score`` takes off what is aliased or dead.
    """
    filters = network.conv1.weight.detach()[:, 0, 0, :].numpy()
    shares = {band: float(np.nanmean(values)) for band, values in band_shares(filters, few.rate_hz).items()}
    present = np.array([v for v in shares.values() if v > 0])
    evenness = float(-(present * np.log(present)).sum() / np.log(len(BANDS)))
    aliased = float(np.nanmean(aliased_share(filters, network.conv1.stride[1])))
    with taps.evaluating(network), torch.no_grad():
        batches = torch.as_tensor(few.val.x).split(supervised.EVALUATION_BATCH)
        largest = torch.stack([network.feature_maps(x, "conv1")["conv1"].amax((0, 2, 3)) for x in batches]).amax(0)
    dead = float((largest <= 0).double().mean())
    norms = np.linalg.norm(filters, axis=1)
    return {
        **shares,
        "aliased": aliased,
        "dead": dead,
        "dominance": float(norms.max() / np.median(norms)),
        "evenness": evenness,
        "score": evenness * (1 - aliased) * (1 - dead),
    }


def table(found: pd.DataFrame) -> pd.DataFrame:
    """One row per variant of :func:`outcomes`: F1 of validation and test people with intervals over seeds, paired
    ``gain`` over ``BASE``, and what one sees averaged over seeds."""
    base = found[found["variant"] == BASE].set_index("seed")["test F1"]
    found = found.assign(gain=found["test F1"] - found["seed"].map(base))
    seen = found.columns[found.columns.get_loc("weights") + 1 : found.columns.get_loc("variant")]
    rows = []
    for (name, question), own in found.groupby(["variant", "question"], sort=False):
        row = {"variant": name, "question": question, "networks": len(own)}
        for column in ("test F1", "val F1", "gain"):
            row |= over_seeds(column, own[column])
        rows.append(row | {"weights": own["weights"].iloc[0]} | own[seen].mean().to_dict())
    return pd.DataFrame(rows).set_index("variant")


def over_seeds(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean with its interval, which one seed does not give."""
    row = with_interval(name, np.array(values))
    return row if len(values) > 1 else row | {f"{name} low": np.nan, f"{name} high": np.nan}


def looks_against_f1(of: pd.DataFrame) -> dict[str, float]:
    """Rank correlation of each thing one sees with validation F1 over the first-layer variants; NaN if constant."""
    first = of[of["question"].isin(("first layer", "both"))]
    seen = ("score", "evenness", "middle", "aliased", "dead", "dominance")
    return {
        name: float(spearmanr(first[name], first["val F1"]).statistic) if first[name].nunique() > 1 else float("nan")
        for name in seen
    }


def chosen_by_looking(of: pd.DataFrame) -> str:
    """The first layer whose filters look best: the largest ``score`` of :func:`looks`."""
    return str(of[of["question"].isin(("first layer", "both"))]["score"].idxmax())


# --------------------------------------------------------------------------------------------------- carried over

#: Paper: 15 to 60 examples a class on Caltech; the steps between are ours
N_PER_CLASS = (1, 5, 20, 60)
TARGETS = ("new people", "new people, new activities")
ARMS = ("frozen, new last layer", "from scratch", "random weights, new last layer")


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

    def task(train: Split, who: np.ndarray, what: np.ndarray) -> Windows:
        splits = {s: part_of(getattr(few, s), np.unique(getattr(few, s).subject), what) for s in ("val", "test")}
        splits["train"] = part_of(train, who, what)
        names = tuple(windows.activities[a] for a in what)
        return dataclasses.replace(windows, **splits, activities=names)

    return {
        "source": task(few.train, halves[0], first),
        TARGETS[0]: task(windows.train, halves[1], first),
        TARGETS[1]: task(windows.train, halves[1], second),
    }


def few_of_each(split: Split, n: int, seed: int) -> np.ndarray:
    """``n`` windows of every class (all where there are fewer), drawn so that a larger ``n`` holds the smaller one."""
    rng = np.random.default_rng(seed)
    found = [rng.permutation(np.flatnonzero(split.activity == c))[:n] for c in np.unique(split.activity)]
    return np.concatenate(found)


@kept("transfer")
def carried(windows: Windows, small: ArchitectureSettings, settings: TransferSettings, seed: int) -> pd.DataFrame:
    """Test macro F1 of every target, arm and number of windows, for one source network."""
    few = windows.thinned(small.n_windows)
    with threads_inside(1):
        return pd.DataFrame(_carried(tasks(windows, few), seed, small, settings))


def _carried(of: dict[str, Windows], seed: int, small: ArchitectureSettings, settings: TransferSettings) -> list[dict]:
    source, random = (new_model(of["source"], small.model, BY_NAME[BASE], seed) for _ in range(2))
    found = supervised.fit_best(source, of["source"], small.training, seed)
    source_f1 = found["test_f1"][int(np.nanargmax(found["val_f1"]))]
    trunks = {ARMS[0]: source, ARMS[2]: random}
    rows = []
    for target in TARGETS:
        task = of[target]
        test = {arm: last_inputs(model, task.test.x) for arm, model in trunks.items()}
        for n in N_PER_CLASS:
            chosen = few_of_each(task.train, n, seed)
            x, y = torch.as_tensor(task.train.x[chosen]), torch.as_tensor(task.train.activity[chosen])
            predicted = {
                arm: new_last_layer(last_inputs(model, x), y, test[arm], len(task.activities), settings)
                for arm, model in trunks.items()
            }
            scratch = new_model(task, small.model, BY_NAME[BASE], seed + 1)
            epochs = -(-settings.n_steps // -(-len(x) // small.training.batch_size))
            supervised.fit(scratch, x, y, small.training, seed, epochs=epochs)
            predicted[ARMS[1]] = supervised.predict(scratch, task.test)
            for arm in ARMS:
                f1 = supervised.macro_f1(task.test, predicted[arm])
                rows.append({"target": target, "arm": arm, "windows a class": n, "seed": seed, "F1": f1})
    return [row | {"source F1": source_f1} for row in rows]


def last_inputs(model: SFHF, x: np.ndarray | Tensor) -> Tensor:
    """What the last layer gets, (window, feature), in evaluation mode, for windows (window, axis, time) in G."""
    found: list[Tensor] = []
    handle = model.dropout.register_forward_hook(lambda module, args, output: found.append(output))
    try:
        with taps.evaluating(model), torch.no_grad():
            for batch in torch.as_tensor(x).split(supervised.EVALUATION_BATCH):
                model(batch)
    finally:
        handle.remove()
    return torch.cat(found)


def new_last_layer(x: Tensor, y: Tensor, test: Tensor, n_classes: int, settings: TransferSettings) -> np.ndarray:
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


def carrying_over(cfg: Settings, windows: Windows) -> pd.DataFrame:
    """:func:`carried` of all seeds of the run."""
    small = cfg.architecture
    return pd.concat(side_by_side(cfg, lambda seed: carried(windows, small, cfg.transfer, seed), small.seeds))


def carried_table(found: pd.DataFrame) -> pd.DataFrame:
    """Mean F1 with interval over seeds by target, arm and windows a class, and the paired gain over "from scratch"."""
    wide = found.pivot_table(index="seed", columns=["target", "arm", "windows a class"], values="F1")
    rows = []
    for target, arm, n in wide.columns:
        values = wide[target, arm, n].to_numpy()
        row = {"target": target, "arm": arm, "windows a class": n, "networks": len(values)}
        gain = values - wide[target, ARMS[1], n].to_numpy()
        rows.append(row | over_seeds("F1", values) | over_seeds("gain", gain))
    return pd.DataFrame(rows).set_index(["target", "arm", "windows a class"])
