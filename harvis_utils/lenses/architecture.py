"""Architecture by looking: what first-layer filters show, what F1 says, and which layers can go.

Zeiler and Fergus (2014, section 4.1) saw in their first layer filters of very low and very high frequencies with little
between, dead ones, and aliasing by a large stride; a smaller filter and stride looked better and classified better.
Here what they saw is turned into shares of power, for several widths and strides, and F1 is asked whether the looks
tell anything. All networks are small and see thinned windows: they are compared with one another only.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import nn

from harvis_utils.data.windowing import Windows
from harvis_utils.metrics.intervals import interval
from harvis_utils.networks import taps
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.parallel import side_by_side, threads_inside
from harvis_utils.settings import PROFILES, ModelSettings, Settings, TrainingSettings
from harvis_utils.store import stages
from harvis_utils.store.files import read_json, write_json
from harvis_utils.training import supervised

STAGE = stages.Stage(
    "architecture",
    notebook="12_deconvnet",
    modules=("data.windowing", "networks.sfhf", "training.supervised", "lenses.architecture"),
)

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


@dataclass(frozen=True)
class ArchitectureSettings:
    """Small networks, so that many fit into a notebook."""

    variants: tuple[str, ...] = tuple(v.name for v in VARIANTS)
    seeds: tuple[int, ...] = (400, 401, 402, 403, 404)
    n_windows: int = 2000  # about so many training windows, every n-th of all
    model: ModelSettings = PROFILES["quick"]["model"]
    training: TrainingSettings = PROFILES["quick"]["training"]


SETTINGS = {
    "quick": ArchitectureSettings(
        variants=(
            BASE,
            "width 3",
            "width 9",
            "width 9, stride 4",
            "one convolution",
            "no dense layer",
            "max pooling by 2",
        ),
        seeds=(400,),
        n_windows=1600,
    ),
    "desk": ArchitectureSettings(),
    "paper": ArchitectureSettings(n_windows=6000),
}


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


@dataclass(frozen=True)
class Small:
    """A small trained network (at the epoch with the best validation F1), its scores, and its address."""

    variant: Variant
    seed: int
    model: SFHF
    val_f1: float
    test_f1: float
    cpu_s: float
    key: str


def train(cfg: Settings, few: Windows, variant: Variant, seed: int, settings: ArchitectureSettings) -> Small:
    """Train one small network on ``few`` windows; one stored result."""

    def build(part: Path) -> None:
        model = new_model(few, settings.model, variant, seed)
        scores, cpu_s = fit(model, few, settings.training, seed)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, part / "weights.safetensors")
        write_json(part / "scores.json", scores | {"cpu_s": cpu_s})

    about = stages.provenance(cfg, data=few.digest, caveat=few.caveat, seed=seed, variant=variant.name)
    shape = {k: v for k, v in dataclasses.asdict(variant).items() if k not in ("name", "question")}
    key = STAGE.key([cfg.windows, settings.model, settings.training, shape, seed], few.digest)
    folder = STAGE.obtain(key, build, about)
    model = new_model(few, settings.model, variant, seed)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    return Small(variant, seed, model.eval(), **read_json(folder / "scores.json"), key=key)


def fit(model: SFHF, few: Windows, settings: TrainingSettings, seed: int) -> tuple[dict[str, float], float]:
    """Train in place, leave the weights of the epoch with the best validation F1; its scores and the CPU time."""
    started = time.thread_time()
    with threads_inside(1):
        history = supervised.fit_best(model, few, settings, seed)
    best = int(np.nanargmax(history["val_f1"]))
    scores = {name: history[name][best] for name in ("val_f1", "test_f1")}
    return scores, time.thread_time() - started


def networks(cfg: Settings, windows: Windows) -> list[Small]:
    """All variants of the profile with all its seeds; trained where missing."""
    settings = SETTINGS[cfg.profile]
    few = windows.thinned(settings.n_windows)
    wanted = [BY_NAME[name] for name in settings.variants]
    jobs = [(v, s) for v in wanted for s in settings.seeds]
    return side_by_side(cfg, lambda job: train(cfg, few, *job, settings), jobs)


# --------------------------------------------------------------------------------------------- what filters show


def band_shares(filters: np.ndarray, rate_hz: float, n_fft: int = 256) -> dict[str, np.ndarray]:
    """Share of each filter's power in each of ``BANDS``: (unit,) each, from filters (unit, tap); NaN for zero filters.

    The filter's own mean counts as low: a constant input is 0 Hz.
    """
    power = np.abs(np.fft.rfft(np.asarray(filters, dtype=np.float64), n_fft, axis=1)) ** 2
    power[:, 1:-1] *= 2  # both signs of a frequency
    hertz = np.fft.rfftfreq(n_fft, 1 / rate_hz)
    total = power.sum(1)
    known = total > 0
    found = {}
    for name, (low, high) in BANDS.items():
        inside = (hertz >= low) & ((hertz < high) | ((high >= rate_hz / 2) & (hertz <= high)))
        found[name] = np.divide(power[:, inside].sum(1), total, out=np.full(len(power), np.nan), where=known)
    return found


def aliased_share(filters: np.ndarray, stride: int, n_fft: int = 256) -> np.ndarray:
    """Share of each filter's power beyond what every ``stride``-th output can carry, (unit,): it comes back as another
    frequency. 0 for a stride of 1; NaN for zero filters."""
    power = np.abs(np.fft.rfft(np.asarray(filters, dtype=np.float64), n_fft, axis=1)) ** 2
    power[:, 1:-1] *= 2
    beyond = np.fft.rfftfreq(n_fft) > 0.5 / stride
    total = power.sum(1)
    return np.divide(power[:, beyond].sum(1), total, out=np.full(len(power), np.nan), where=total > 0)


def looks(small: Small, few: Windows) -> dict[str, float]:
    """What one sees of a first layer: mean shares of power per band, aliased share, dead units, dominance.

    ``dead`` is the share of first-layer units silent on all validation windows; ``dominance`` the largest filter norm
    over the median one (Paper: one filter dominates the first layer). ``evenness`` is the entropy of the bands' shares,
    1 where all three are covered alike; ``score`` takes off what is aliased or dead.
    """
    filters = small.model.conv1.weight.detach()[:, 0, 0, :].numpy()
    shares = {band: float(np.nanmean(values)) for band, values in band_shares(filters, few.rate_hz).items()}
    present = np.array([v for v in shares.values() if v > 0])
    evenness = float(-(present * np.log(present)).sum() / np.log(len(BANDS)))
    aliased = float(np.nanmean(aliased_share(filters, small.variant.stride)))
    dead = dead_share(small.model, "conv1", few.val.x)
    norms = np.linalg.norm(filters, axis=1)
    return {
        **shares,
        "aliased": aliased,
        "dead": dead,
        "dominance": float(norms.max() / np.median(norms)),
        "evenness": evenness,
        "score": evenness * (1 - aliased) * (1 - dead),
    }


def dead_share(network: nn.Module, tap: str | taps.Tap, x: np.ndarray) -> float:
    """Share of a layer's units that give nothing above 0 anywhere in the windows (window, axis, time)."""
    alive = None
    with taps.evaluating(network), torch.no_grad():
        for batch in torch.as_tensor(x).split(supervised.EVALUATION_BATCH):
            now = (taps.maps_of(network, tap, batch) > 0).amax((0, 2, 3))
            alive = now if alive is None else alive | now
    return float((~alive).double().mean())


def table(found: Sequence[Small], few: Windows) -> pd.DataFrame:
    """One row per variant: F1 of validation and test people with intervals over seeds, paired gain over ``BASE``, and
    :func:`looks` of the first layer averaged over seeds."""
    base = {s.seed: s for s in found if s.variant.name == BASE}
    rows = []
    for name in dict.fromkeys(s.variant.name for s in found):
        own = [s for s in found if s.variant.name == name]
        seen = pd.DataFrame([looks(s, few) for s in own]).mean()
        values = {
            "test F1": [s.test_f1 for s in own],
            "val F1": [s.val_f1 for s in own],
            "gain": [s.test_f1 - base[s.seed].test_f1 for s in own],
        }
        row = {"variant": name, "question": own[0].variant.question, "networks": len(own)}
        for column, of in values.items():
            value, bounds = interval(np.array(of))
            low, high = bounds if len(of) > 1 else (np.nan, np.nan)
            row |= {column: value, f"{column} low": low, f"{column} high": high}
        rows.append(row | {"weights": sum(p.numel() for p in own[0].model.parameters())} | seen.to_dict())
    return pd.DataFrame(rows).set_index("variant")


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
