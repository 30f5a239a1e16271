"""Architecture by looking: what first-layer filters show, what F1 says, which layers can go, and what carries over.

Zeiler and Fergus (2014, section 4.1) saw in their first layer filters of very low and very high frequencies with little
between, dead ones, and aliasing by a large stride; a smaller filter and stride looked and classified better. Here that
becomes shares of power, compared with F1. All networks are small and see thinned windows: they are compared with one
another only.

They also (section 5) retrain the last layer of a trained network on other data with few examples a class. Here the
source is half of the training people doing half of the activities; the targets are the other people, with the same
activities and with the others.
"""

import dataclasses
import time
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses.dissection import over_networks
from harvis_utils.networks import taps
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.networks.taps import Tap
from harvis_utils.parallel import side_by_side, threads_inside
from harvis_utils.settings import ArchitectureSettings, ModelSettings, Settings, TrainingSettings, TransferSettings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised

#: bands of the spectra in Hz; Choice: steps of walking, then what limbs do within a step, then impacts and noise
BANDS = {"low": (0.0, 3.0), "middle": (3.0, 8.0), "high": (8.0, 15.0)}
#: points of a filter's spectrum
N_FFT = 256


@dataclass(frozen=True)
class Variant:
    """SF-HF with another first layer, fewer layers, or pooling."""

    name: str
    question: str  # "first layer" or "layers"
    kernel: int = 5  # of the first layer, odd, so that a filter has a middle; the others keep theirs
    stride: int = 1  # of the first layer
    n_layers: int = 3
    dense: bool = True
    pool: str = "none"


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
        n_dense = settings.n_dense if variant.dense else 0
        settings = dataclasses.replace(settings, n_layers=variant.n_layers, n_dense=n_dense, pool=variant.pool)
        super().__init__(n_axes, -(-length // variant.stride), n_classes, settings)  # 'same' padding
        kernel, padding = (1, variant.kernel), (0, variant.kernel // 2)
        self.conv1 = nn.Conv2d(1, settings.n_units, kernel, (1, variant.stride), padding)


def new_model(windows: Windows, settings: ModelSettings, variant: Variant, seed: int) -> Reshaped:
    """An untrained network of a variant; its weights depend on the seed alone."""
    with supervised.drawing(seed):
        return Reshaped(len(windows.axes), windows.train.length, len(windows.activities), settings, variant)


@kept("architecture")
@threads_inside(1)
def trained(
    few: Windows, variant: Variant, model: ModelSettings, training: TrainingSettings, seed: int
) -> pd.DataFrame:
    """One small network trained on ``few`` windows, one row: "val F1" and "test F1" at the epoch with the best
    validation F1, ``cpu_s`` of training, the number of ``weights``, and :func:`looks`.
    """
    network, started = new_model(few, model, variant, seed), time.thread_time()
    found = supervised.fit_best(network, few, training, seed)
    best, seconds = int(np.nanargmax(found["val_f1"])), time.thread_time() - started
    row = {"val F1": found["val_f1"][best], "test F1": found["test_f1"][best], "cpu_s": seconds}
    return pd.DataFrame([row | {"weights": sum(p.numel() for p in network.parameters())} | looks(network, few)])


def outcomes(cfg: Settings, windows: Windows) -> pd.DataFrame:
    """:func:`trained` of all variants and seeds of the run: one row each, with ``variant``, ``question``, ``seed``."""
    settings = cfg.architecture
    few = windows.thinned(settings.n_windows)

    def one(job: tuple[str, int]) -> pd.DataFrame:
        variant, seed = BY_NAME[job[0]], job[1]
        found = trained(few, variant, settings.model, settings.training, seed)
        return found.assign(variant=variant.name, question=variant.question, seed=seed)

    jobs = list(product(settings.variants or BY_NAME, settings.seeds))
    return pd.concat(side_by_side(cfg, one, jobs), ignore_index=True)


# --------------------------------------------------------------------------------------------- what filters show


def shares(filters: np.ndarray, rate_hz: float, stride: int = 1) -> dict[str, np.ndarray]:
    """Share of each filter's power in each of ``BANDS``, and ``aliased``: (unit,) each, from filters (unit, tap).

    The filter's own mean counts as low: a constant input is 0 Hz. The Nyquist frequency belongs to the band that ends
    there. ``aliased`` is above the Nyquist frequency of every ``stride``-th output. NaN for zero filters.
    """
    power = np.abs(np.fft.rfft(np.asarray(filters, dtype=np.float64), N_FFT, axis=1)) ** 2
    power[:, 1:-1] *= 2  # both signs of a frequency
    hertz, total = np.fft.rfftfreq(N_FFT) * rate_hz, power.sum(1)
    chosen = {name: (hertz >= low) & ((hertz < high) | (high >= rate_hz / 2)) for name, (low, high) in BANDS.items()}
    chosen["aliased"] = 0.5 / stride < np.fft.rfftfreq(N_FFT)
    nothing = np.full(len(power), np.nan)
    return {n: np.divide(power[:, of].sum(1), total, out=nothing.copy(), where=total > 0) for n, of in chosen.items()}


def looks(network: Reshaped, few: Windows) -> dict[str, float]:
    """What one sees of a first layer: mean :func:`shares` of power per band, and ``aliased``.

    ``dead`` is the share of units silent on all validation windows; ``dominance`` the largest filter norm over the
    median one (Paper: one filter dominates); ``evenness`` the entropy of the bands' shares, 1 where all three are
    covered alike; ``score`` takes off what is aliased or dead.
    """
    filters = network.conv1.weight.detach()[:, 0, 0, :].numpy()
    found = {n: np.nanmean(of) for n, of in shares(filters, few.rate_hz, network.conv1.stride[1]).items()}
    present = np.array([found[band] for band in BANDS if found[band] > 0])
    found["dead"] = float((taps.outputs(network, "conv1", few.val.x).amax((0, 2, 3)) <= 0).double().mean())
    norms = np.linalg.norm(filters, axis=1)
    found["dominance"] = float(norms.max() / np.median(norms))
    found["evenness"] = -(present * np.log(present)).sum() / np.log(len(BANDS))
    return found | {"score": found["evenness"] * (1 - found["aliased"]) * (1 - found["dead"])}


def table(found: pd.DataFrame) -> pd.DataFrame:
    """One row per variant of :func:`outcomes`: F1 and paired ``gain`` over ``BASE`` with intervals, mean looks."""
    base = found[found["variant"] == BASE].set_index("seed")["test F1"]
    found = found.assign(gain=found["test F1"] - found["seed"].map(base))
    rows = {}
    for (name, question), own in found.groupby(["variant", "question"], sort=False):
        rows[name] = {"question": question, "networks": len(own), "weights": own["weights"].iloc[0]}
        for column in ("test F1", "val F1", "gain"):
            rows[name] |= over_networks(column, own[column], 2)
        rows[name] |= own.loc[:, "low":"score"].mean().to_dict()
    return pd.DataFrame.from_dict(rows, "index").rename_axis("variant")


# --------------------------------------------------------------------------------------------------- carried over

#: Paper: 15 to 60 examples a class on Caltech; the steps between are ours
N_PER_CLASS = (1, 5, 20, 60)
TARGETS = ("new people", "new people, new activities")
ARMS = ("frozen, new last layer", "from scratch", "random weights, new last layer")


def part_of(split: Split, subjects: np.ndarray, activities: np.ndarray) -> Split:
    """Windows of these subjects doing these activities, the activities renumbered from 0 in the order given."""
    own = split.chosen(np.isin(split.subject, subjects) & np.isin(split.activity, activities))
    return dataclasses.replace(own, activity=pd.Index(activities).get_indexer(own.activity))


def tasks(windows: Windows, few: Windows | None = None) -> dict[str, Windows]:
    """``source`` and the ``TARGETS``: training people halved, activities halved; validation and test people stay.

    All but a target's training windows is taken from ``few``, the same windows thinned, where given. Raises
    ``ValueError`` for fewer than two training people or four activities.
    """
    few = few or windows
    people, activities = np.unique(windows.train.subject), np.arange(len(windows.activities))
    if len(people) < 2 or len(activities) < 4:
        raise ValueError(
            f"halves need two training people and four activities, not {len(people)} and {len(activities)}"
        )
    half = len(people) // 2
    # every other activity: neighbours in a list of activities resemble each other
    whole = {
        "source": (few, people[:half], 0),
        TARGETS[0]: (windows, people[half:], 0),
        TARGETS[1]: (windows, people[half:], 1),
    }

    def task(of: Windows, who: np.ndarray, first: int) -> Windows:
        what = activities[first::2]
        val, test = (part_of(split, np.unique(split.subject), what) for split in (few.val, few.test))
        names = tuple(windows.activities[a] for a in what)
        return dataclasses.replace(windows, train=part_of(of.train, who, what), val=val, test=test, activities=names)

    return {name: task(*of) for name, of in whole.items()}


def few_of_each(split: Split, n: int, seed: int) -> np.ndarray:
    """``n`` windows of every class (all where there are fewer), drawn so that a larger ``n`` holds the smaller one."""
    rng = np.random.default_rng(seed)
    found = [rng.permutation(np.flatnonzero(split.activity == c))[:n] for c in np.unique(split.activity)]
    return np.concatenate(found)


@kept("transfer")
@threads_inside(1)
def carried(windows: Windows, small: ArchitectureSettings, settings: TransferSettings, seed: int) -> pd.DataFrame:
    """Test macro F1 of every target, arm and number of windows, for one source network."""
    of = tasks(windows, windows.thinned(small.n_windows))
    source, random = (new_model(of["source"], small.model, BY_NAME[BASE], seed) for _ in range(2))
    found = supervised.fit_best(source, of["source"], small.training, seed)
    source_f1 = found["test_f1"][int(np.nanargmax(found["val_f1"]))]
    trunks, rows = {ARMS[0]: source, ARMS[2]: random}, []
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
                row = {"target": target, "arm": arm, "windows a class": n, "seed": seed}
                rows.append(row | {"F1": supervised.macro_f1(task.test, predicted[arm]), "source F1": source_f1})
    return pd.DataFrame(rows)


def last_inputs(model: nn.Module, x: np.ndarray | Tensor, layer: str | Tap = "dropout") -> Tensor:
    """What the last layer gets, (window, feature), in evaluation mode, for windows (window, axis, time) in G.

    Of another network than SF-HF what ``layer`` gives out, unit by unit, so that a new last layer goes behind it.
    """
    with taps.evaluating(model), torch.no_grad():
        batches = torch.as_tensor(x).split(supervised.EVALUATION_BATCH)
        return torch.cat([taps.maps_of(model, layer, batch).float().cpu() for batch in batches]).flatten(1)


def new_last_layer(x: Tensor, y: Tensor, test: Tensor, n_classes: int, settings: TransferSettings) -> np.ndarray:
    """Classes of the ``test`` features after training one linear layer on ``x``; features on a common scale."""
    centre, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 1e-6, scale, 1.0)
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
    """:func:`carried` of all seeds of the run, one row per target, arm and windows a class.

    Mean ``F1`` over seeds, and its paired ``gain`` over "from scratch", with their intervals.
    """
    small, rows = cfg.architecture, {}
    found = pd.concat(side_by_side(cfg, lambda seed: carried(windows, small, cfg.transfer, seed), small.seeds))
    wide = found.pivot_table(index="seed", columns=["target", "arm", "windows a class"], values="F1")
    for (target, arm, n), values in wide.items():
        gain = values - wide[target, ARMS[1], n]
        both = over_networks("F1", values, 2) | over_networks("gain", gain, 2)
        rows[target, arm, n] = {"networks": len(values)} | both
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["target", "arm", "windows a class"])
