"""What a sweep would cost, projected from measured times; nothing here is computed but arithmetic.

    core-seconds = networks x (epochs x a + 2 x b + signals x steps x c + scored x d)

summed over data sets and architectures. a, b, c and d are core-seconds per epoch, per pass over the training
windows (one for the trained, one for the untrained network), per signal and step, and per scored signal, as
measured on the same data set. They come from the manifests of stored results where one of the same model is
there, else from a run's ``results.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py

from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.metrics import similarity
from harvis_utils.settings import APPROXIMATE, REPOSITORY, Settings, artifact_root, as_json, report_root
from harvis_utils.store.files import read_json
from harvis_utils.training import supervised
from workflow.sweep_plan import Sweep, SweepError, jobs, settings

PUBLISHED = REPOSITORY / "reports" / "published"
STAGES = (supervised.STAGE.name, unit_statistics.STAGE.name, paper_methods.STAGE.name, similarity.STAGE.name)


@dataclass(frozen=True)
class Measured:
    """Core-seconds that some work of a stage took, and for which data set and model."""

    stage: str
    dataset: str
    windows: dict
    model: dict
    core_s: float
    work: float
    source: str


def work(cfg: Settings, n_presets: int) -> dict[str, float]:
    """What one network of these settings asks of each stage, in the units of the formula above."""
    units = cfg.model.n_layers * cfg.model.n_units
    rows = units * (len(paper_methods.METHODS) * n_presets + len(paper_methods.CONTROL_METHODS))
    scored = units * (len(paper_methods.METHODS) * n_presets + len(similarity.CONTROLS))
    per_stage = (cfg.training.epochs, 2, rows * cfg.maximization.n_steps, scored)
    return dict(zip(STAGES, map(float, per_stage), strict=True))


def multiply_adds(model: dict) -> float:
    """Of the trunk, per axis and time step: what larger networks cost more."""
    return model["kernel"] * model["n_units"] * (1 + (model["n_layers"] - 1) * model["n_units"])


def from_store() -> Iterator[Measured]:
    """What every stored CPU result took, from its manifest; how many signals it holds, from its file."""
    for manifest in sorted((artifact_root() / "store").glob("*/*/manifest.json")):
        found = read_json(manifest)
        about, stage = found["provenance"], found["stage"]
        # a study trains on part of the windows, which its data digest says
        if stage not in STAGES or not about["device"].startswith("cpu") or "/" in about["data"]:
            continue
        used = about["settings"]
        amount = _amount(stage, used, manifest.parent)
        yield _measured(stage, used, found["wall_s"] * about["threads"], amount, "the store")


def _amount(stage: str, used: dict, folder: Path) -> float:
    if stage == supervised.STAGE.name:
        return used["training"]["epochs"]
    if stage == unit_statistics.STAGE.name:
        return 1
    name, variable = ("signals.nc", "steps") if stage == paper_methods.STAGE.name else ("scores.nc", "failed")
    with h5py.File(folder / name) as file:
        n_signals = file[variable].size
    return n_signals * (used["maximization"]["n_steps"] if name == "signals.nc" else 1)


def from_results(folder: Path) -> Iterator[Measured]:
    """What the stages of the finished CPU runs in a folder of reports took, from their ``results.json``."""
    for path in sorted(folder.glob("*/*/results.json")):
        results = read_json(path)
        about = results["provenance"]
        if not about["device"].startswith("cpu"):
            continue
        used = about["settings"]
        units = used["model"]["n_layers"] * used["model"]["n_units"]
        methods = sum(map(len, results["methods"].values()))
        rows = units * (methods + len(paper_methods.CONTROL_METHODS)) * used["maximization"]["n_steps"]
        scored = units * (methods + len(results["controls"]))
        amounts = (used["training"]["epochs"], 2, rows, scored)
        where = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
        for stage, amount in zip(STAGES, amounts, strict=True):
            core_s = results["timings_s"][stage] * about["threads"]
            yield _measured(stage, used, core_s, amount * results["n_seeds"], where.as_posix())


def _measured(stage: str, used: dict, core_s: float, amount: float, source: str) -> Measured:
    base = used["dataset"].removesuffix(APPROXIMATE)
    return Measured(stage, base, used["windows"], used["model"], core_s, float(amount), source)


def rate(stage: str, cfg: Settings, known: list[Measured]) -> tuple[float, str]:
    """Core-seconds per unit of work of a stage, and where that was measured. Raises :class:`SweepError`.

    Preferred is what comes first in ``known``, and the same model. Another model's rate is multiplied by the growth
    in multiply-adds; a smaller one is counted like the one measured, because not all of its time shrinks with it.
    """
    model, base = as_json(cfg.model), cfg.dataset.removesuffix(APPROXIMATE)
    near = [m for m in known if (m.stage, m.dataset, m.windows) == (stage, base, as_json(cfg.windows))]
    if not near:
        raise SweepError(
            f"no measured time of stage {stage!r} on {base}: compute a first part of the sweep (seeds = 1), or "
            f"`make reproduce DATASET={base}`"
        )
    same = [m for m in near if m.model == model] or near
    pool = [m for m in same if m.source == same[0].source]
    core_s, amount = sum(m.core_s for m in pool), sum(m.work for m in pool)
    per_work, source = core_s / amount, pool[0].source
    if pool[0].model == model or stage == similarity.STAGE.name:
        return per_work, source
    growth = multiply_adds(model) * amount / sum(m.work * multiply_adds(m.model) for m in pool)
    said = f"times {growth:.2g}, by multiply-adds" if growth > 1 else "a larger network"
    return per_work * max(1.0, growth), f"{source} ({said})"


def describe(sweep: Sweep, known: list[Measured] | None = None) -> str:
    """The projection as text: core-hours of all jobs, of each data set and architecture, and their sources.

    ``known`` is by default all that was measured here, then own runs, then published ones.
    """
    if known is None:
        known = [*from_store(), *from_results(report_root()), *from_results(PUBLISHED)]
    lines, total = [], 0.0
    for dataset in sweep.datasets:
        for architecture in sweep.architectures:
            cfg = settings(sweep, dataset, architecture)
            rates = {stage: rate(stage, cfg, known) for stage in STAGES}
            hours = {
                stage: rates[stage][0] * amount * len(sweep.seeds) / 3600
                for stage, amount in work(cfg, len(sweep.presets)).items()
            }
            total += sum(hours.values())
            parts = ", ".join(f"{stage} {h:.3g}" for stage, h in hours.items())
            said = dict.fromkeys(source for _, source in rates.values())
            sources = "; ".join(s for s in said if not any(other.startswith(f"{s} (") for other in said))
            lines.append(f"- {dataset}, {architecture}: {sum(hours.values()):.3g} core-hours ({parts}); from {sources}")
    n = len(sweep.datasets) * len(sweep.architectures) * len(sweep.seeds)
    head = (
        f"**A projection, not a measurement**: the {n} networks of `{sweep.path.name}` (data sets: "
        f"{len(sweep.datasets)}, architectures: {len(sweep.architectures)}, seeds: {len(sweep.seeds)}; presets: "
        f"{len(sweep.presets)}) would take about {total:.3g} core-hours, in {len(jobs(sweep))} jobs, on cores like "
        "those measured. Starting, reading data and waiting in queues are not counted."
    )
    return "\n".join([head, "", *lines])
