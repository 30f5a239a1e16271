"""Networks trained with one slope forward and another backward, beside networks trained plainly on the same budget.

Everything but the slope is the same for a seed: first weights, order of the windows, dropout, epochs. The networks and
the data are small, because each slope wants several seeds and a learning rate of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from harvis_utils.data.windowing import Windows
from harvis_utils.lenses.slopes import SLOPES, sloped
from harvis_utils.maximization import unit_statistics
from harvis_utils.metrics.intervals import paired
from harvis_utils.networks.sfhf import SFHF, folded_trunk
from harvis_utils.parallel import side_by_side, threads_inside, torch_device
from harvis_utils.settings import PROFILES, ModelSettings, Settings, TrainingSettings
from harvis_utils.store import stages
from harvis_utils.store.files import read_json, write_json
from harvis_utils.training import supervised

STAGE = stages.Stage(
    "slope_training",
    notebook="13_slopes",
    modules=(
        "data.windowing",
        "networks.sfhf",
        "maximization.unit_statistics",
        "training.supervised",
        "networks.backward",
        "lenses.slopes",
        "lenses.slopes_training",
    ),
)


@dataclass(frozen=True)
class Plan:
    """What is trained: each slope in each kind of network, with learning rates tried on the seeds kept for choosing."""

    slopes: tuple[float, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    epochs: int
    n_windows: int  # about as many training windows are kept


#: with batch norm a unit hardly dies; without, it may
KINDS = ("batch norm", "no batch norm")

#: Choice: rates around the quick profile's; 8e-3 was tried on the seeds for choosing and was too large for every slope
PLANS = {
    "quick": Plan((0.0, 0.1, 1.0), (0, 1), (2e-3,), 5, 1200),
    "desk": Plan((0.0, 0.01, 0.1, 0.3, 1.0), (0, 1, 2, 3, 4), (5e-4, 2e-3), 6, 3000),
    "paper": Plan(SLOPES, (0, 1, 2, 3, 4), (1e-4, 5e-4, 2e-3), 12, 12000),
}


def settings_of(kind: str, cfg: Settings, plan: Plan, rate: float) -> Settings:
    """The quick profile's network of one of ``KINDS`` for ``cfg``'s data; another kind raises ``ValueError``."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; valid kinds: {', '.join(KINDS)}")
    small: ModelSettings = PROFILES["quick"]["model"]
    trained = TrainingSettings(seeds=plan.seeds, epochs=plan.epochs, learning_rate=rate)
    return dataclasses.replace(cfg, model=dataclasses.replace(small, batch_norm=kind == KINDS[0]), training=trained)


def fit(cfg: Settings, windows: Windows, seed: int, slope: float | None) -> tuple[SFHF, dict]:
    """A network trained with ``slope`` backward (None: plainly), and what :func:`supervised.fit_best` notes of it."""
    model = supervised.new_model(windows, cfg.model, seed).to(torch_device(cfg.device))
    with sloped(slope):
        return model, supervised.fit_best(model, windows, cfg.training, seed)


def dead_share(model: SFHF, windows: Windows) -> float:
    """Share of the trunk's units that answer no training window at all."""
    found = unit_statistics.collect(folded_trunk(model), windows.train.segments, next(model.parameters()).device)
    return float(found["dead"].mean())


def outcome(cfg: Settings, windows: Windows, kind: str, seed: int, rate: float, slope: float, plan: Plan) -> dict:
    """F1 on both other splits and the share of dead units of one network; trained unless it is stored.

    ``windows`` are thinned ones.
    """
    chosen = settings_of(kind, cfg, plan, rate)

    def build(folder: Path) -> None:
        with threads_inside(1):
            model, notes = fit(chosen, windows, seed, slope)
            history = notes["val_f1"]
            test = notes["test_f1"][int(np.argmax(history))]
            values = {"val_f1": max(history), "test_f1": test, "dead": dead_share(model, windows), "history": history}
        write_json(folder / "outcome.json", values)

    settings = [chosen.windows, chosen.model, dataclasses.replace(chosen.training, seeds=(seed,)), slope]
    about = stages.provenance(chosen, data=windows.digest, caveat=windows.caveat, seed=seed, slope=slope)
    folder = STAGE.obtain(STAGE.key(settings, windows.digest), build, about)
    return read_json(folder / "outcome.json")


def _all(cfg: Settings, windows: Windows, plan: Plan, jobs: Sequence[tuple[str, float, float, int]]) -> pd.DataFrame:
    """Outcomes of (kind, slope, rate, seed), one network on each thread; rectifiers are caught thread by thread."""

    def one(job: tuple[str, float, float, int]) -> dict:
        kind, slope, rate, seed = job
        return outcome(cfg, windows, kind, seed, rate, slope, plan)

    found = side_by_side(cfg, one, jobs, title="training with slopes")
    table = pd.DataFrame(found).drop(columns="history")
    return table.set_index(pd.MultiIndex.from_tuples(jobs, names=["kind", "slope", "rate", "seed"]))


def choose_rates(cfg: Settings, windows: Windows, plan: Plan, seeds: Sequence[int]) -> dict[tuple[str, float], float]:
    """For each kind and slope the learning rate with the best mean validation F1 on ``seeds``; one needs no choice."""
    cases = [(kind, slope) for kind in KINDS for slope in plan.slopes]
    if len(plan.rates) == 1:
        return dict.fromkeys(cases, plan.rates[0])
    tried = _all(cfg, windows, plan, [(*case, rate, seed) for case in cases for rate in plan.rates for seed in seeds])
    scores = tried["val_f1"].groupby(level=["kind", "slope", "rate"]).mean().unstack("rate")
    return {case: float(scores.loc[case].idxmax()) for case in cases}


def outcomes(cfg: Settings, windows: Windows, plan: Plan, rates: Mapping[tuple[str, float], float]) -> pd.DataFrame:
    """F1 and dead units by kind, slope and seed, each at the rate of its kind and slope."""
    table = _all(cfg, windows, plan, [(*case, rate, seed) for case, rate in rates.items() for seed in plan.seeds])
    return table.reset_index("rate")


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """Each slope against plain training (the smallest slope), paired by seed, with intervals over the seeds."""
    rows = []
    for kind, part in table.groupby("kind", sort=False):
        wide = {name: part[name].unstack("slope") for name in ("test_f1", "dead")}
        plain = wide["test_f1"].columns.min()
        for slope in wide["test_f1"]:
            row: dict = {"kind": kind, "slope": slope, "rate": part.xs(slope, level="slope")["rate"].iloc[0]}
            for name, values in wide.items():
                found = paired(values[[slope]].to_numpy(), values[[plain]].to_numpy())
                low, high = found.interval or (np.nan, np.nan)
                row |= {name: values[slope].mean(), f"{name} difference": found.mean}
                row |= {f"{name} difference low": low, f"{name} difference high": high}
            rows.append(row | {"networks": len(wide["test_f1"])})
    return pd.DataFrame(rows).set_index(["kind", "slope"])
