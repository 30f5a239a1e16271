"""One small file turned into many jobs, for more than one core or machine, and into one table.

    python -m workflow.sweep start workflow/sweep.toml --workflow-profile slurm

Every job fills the store of :mod:`harvis_utils.store.stages`, and nothing passes from job to job but through it. The
keys are those of the notebooks, so a sweep over the architecture ``default`` with a profile's own seeds leaves
nothing heavy for ``make reproduce``. Snakemake (``workflow/sweep.smk``) decides what runs where; it sees one light
stamp per job in ``<reports>/sweep/<name>/stamps/``. At the end stands one table, ``sweep.csv``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
import xarray as xr

from harvis_utils.chain import commands, stamps
from harvis_utils.data import archive, kinds, windowing
from harvis_utils.data.windowing import Windows
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.metrics import similarity
from harvis_utils.parallel import threads
from harvis_utils.settings import PRESETS, Settings, artifact_root
from harvis_utils.store.files import ArtifactError, read_json, write_json, write_text
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network
from workflow import sweep_cost
from workflow.sweep_plan import Sweep, SweepError, jobs, load, plan, settings

WORKFLOW = Path(__file__).resolve().parent

# --------------------------------------------------------------------------------------------------- one job


def run(sweep: Sweep, name: str) -> Path:
    """Compute what is missing of one job and return its stamp, which lists the stored results it answers for."""
    known = {job.name: job for job in jobs(sweep)}
    if name not in known:
        raise SweepError(f"{sweep.path}: no job {name!r}; its jobs are called like {next(iter(known))!r}")
    job = known[name]
    cfg = settings(sweep, job.dataset, job.architecture, job.seeds)
    data = windowing.cut(archive.load_recordings(job.dataset, download=False), cfg.windows)
    with _journal() as journal:
        if job.kind == "networks":
            unit_statistics.statistics(cfg, data, supervised.networks(cfg, data))
        else:
            nets = supervised.load_networks(cfg, data)
            statistics = unit_statistics.load_statistics(cfg, data, nets)
            if job.kind == "signals":
                paper_methods.signals(cfg, nets, statistics, presets=(job.preset,))
            else:
                _score(sweep, cfg, data, nets, statistics)
        stored = sorted(set(journal.read_text(encoding="utf-8").split()))
    return write_json(_stamp(sweep, name), {"job": name, "stored": stored})


def _score(sweep: Sweep, cfg: Settings, data: Windows, nets: list[Network], statistics: xr.Dataset) -> None:
    """Scores of the sweep's presets, and their controls as notebooks 03 and 04 make them."""
    made = paper_methods.load_signals(cfg, nets, presets=sweep.presets)
    similarity.scores(cfg, data, _addressed(sweep, nets), statistics, made)
    random = supervised.untrained(cfg, data)
    random_statistics = unit_statistics.statistics(cfg, data, random)
    methods, presets = paper_methods.CONTROL_METHODS, ("calibrated",)
    made = paper_methods.signals(cfg, random, random_statistics, methods, presets)
    proposed = made.sel(preset=presets[0], technique=methods[0], drop=True)
    similarity.controls(cfg, data, nets, statistics, random, random_statistics, proposed)


def _addressed(sweep: Sweep, nets: list[Network]) -> list[Network]:
    """The networks under the address of their scores: with some presets only it must not be the notebooks' one."""
    if sweep.presets == tuple(PRESETS):
        return nets
    return [dataclasses.replace(n, key=f"{n.key} {' '.join(sweep.presets)}") for n in nets]


def _stamp(sweep: Sweep, name: str) -> Path:
    return sweep.place.reports / "stamps" / f"{name}.json"


@contextlib.contextmanager
def _journal() -> Iterator[Path]:
    """A file in which the store notes what is asked of it inside the block."""
    before = os.environ.get("HARVIS_JOURNAL")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.txt"
        path.touch()
        os.environ["HARVIS_JOURNAL"] = str(path)
        try:
            yield path
        finally:
            del os.environ["HARVIS_JOURNAL"]
            if before is not None:
                os.environ["HARVIS_JOURNAL"] = before


# -------------------------------------------------------------------------------------------------- the table


def collect(sweep: Sweep) -> Path:
    """Write ``sweep.csv`` from stored results alone, all or nothing; a missing one raises :class:`SweepError`.

    One row per data set, architecture, seed, method or control, preset and layer. ``network_s`` and ``signals_s``
    are the seconds that the network, and the signals of this preset and layer (all methods), once took.
    """
    tables = []
    for dataset in sweep.datasets:
        recordings = archive.load_recordings(dataset, download=False)
        data = windowing.cut(recordings, settings(sweep, dataset, next(iter(sweep.architectures))).windows)
        for architecture in sweep.architectures:
            for seed in sweep.seeds:
                try:
                    table = _table(sweep, settings(sweep, dataset, architecture, (seed,)), data)
                except ArtifactError as error:
                    raise SweepError(
                        f"{sweep.path}: {dataset}, architecture {architecture}, seed {seed} is not finished; start the "
                        f"sweep again ({error})"
                    ) from error
                tables.append(table.assign(dataset=dataset, caveat=data.caveat, architecture=architecture, seed=seed))
    found = pd.concat(tables, ignore_index=True)
    first = ["dataset", "caveat", "architecture", "seed", "macro_f1", "kind", "name", "preset", "layer"]
    found = found[[*first, *(c for c in found.columns if c not in first)]]
    return write_text(sweep.place.reports / "sweep.csv", found.to_csv(index=False))


def _table(sweep: Sweep, cfg: Settings, data: Windows) -> pd.DataFrame:
    (net,) = nets = supervised.load_networks(cfg, data)
    scores = similarity.load_scores(cfg, data, _addressed(sweep, nets)).sel(seed=net.seed)
    controls = similarity.load_scores(cfg, data, nets, "controls").sel(seed=net.seed)
    table = pd.concat([measured(scores, "method"), measured(controls, "control")], ignore_index=True)
    seconds = {}
    for preset in sweep.presets:
        for layer in net.trunk.layers:
            key = paper_methods.key(cfg, data, net, layer, preset, tuple(paper_methods.METHODS))
            seconds[preset, layer] = paper_methods.STAGE.manifest(key)["wall_s"]
    made = [seconds.get(place) for place in zip(table["preset"], table["layer"], strict=True)]
    f1 = supervised.macro_f1(data.test, net.predicted["test"])
    return table.assign(macro_f1=f1, network_s=net.wall_s, signals_s=made)


def measured(scores: xr.Dataset, kind: str) -> pd.DataFrame:
    """One network's scores over its units, as :func:`similarity.summarize` has them: a row per method or control."""
    alive = ~scores["dead"]
    found = xr.Dataset(
        {
            "ssim": scores["s_u"].where(alive & ~scores["failed"]).mean("unit"),
            "activation_ratio": scores["activation_ratio"].where(alive).mean("unit"),
            "failed_units": (scores["failed"] & alive).sum("unit"),
            "dead_units": scores["dead"].sum("unit"),
        }
    )
    order = [d for d in ("preset", kind, "layer") if d in found.dims]
    table = found.drop_vars("seed", errors="ignore").to_dataframe(dim_order=order).reset_index()
    return table.rename(columns={kind: "name"}).assign(kind=kind, preset=table.get("preset", ""))


# ----------------------------------------------------------------------------------------- the whole, and commands


def start(sweep: Sweep, workflow_profile: str, *options: str) -> Path:
    """Run all jobs that are not done with Snakemake, as a workflow profile says; returns the table.

    ``workflow_profile`` is a folder, or the name of one in ``workflow/profiles``. Raises :class:`SweepError`.
    """
    profiles = {p.parent.name: p.parent for p in sorted((WORKFLOW / "profiles").glob("*/config.yaml"))}
    profile = profiles.get(workflow_profile, Path(workflow_profile).resolve())
    if not (profile / "config.yaml").exists():
        raise SweepError(
            f"unknown workflow profile {workflow_profile!r}; valid: {', '.join(profiles)}, "
            "or a folder that holds a config.yaml"
        )
    folder = sweep.place.reports
    with commands.alone(sweep.place) as lock:
        for stamp in (folder / "stamps").glob("*.json"):
            kept = [artifact_root() / "store" / s for s in read_json(stamp)["stored"]]
            if not all((result / "manifest.json").exists() for result in kept):
                stamp.unlink()
        planned = plan(sweep)
        write_json(folder / "plan.json", planned)
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(WORKFLOW / "sweep.smk")]
        command += ["--workflow-profile", str(profile), "--rerun-incomplete", "--nolock"]
        command += ["--rerun-triggers", "mtime", "params", "input", *options]
        path = os.path.relpath(sweep.path.resolve(), folder)
        command += ["--config", f"sweep={json.dumps(path, ensure_ascii=False)}"]  # Snakemake does not undo escapes
        code = subprocess.run(command, cwd=folder, pass_fds=(lock,)).returncode
    if code:
        undone = [j["name"] for j in planned["jobs"] if not _stamp(sweep, j["name"]).exists()] or ["collect"]
        logs = [log for name in undone if (log := folder / "logs" / f"{name}.txt").exists()]
        ends = {log: log.read_text(encoding="utf-8").strip().splitlines()[-3:] for log in logs}
        said = ["\n  ".join([str(log), *end]) for log, end in ends.items() if end]
        raise SweepError("\n".join([f"Snakemake ended with status {code} in {folder}", *said]))
    return folder / "sweep.csv"


def main(arguments: list[str] | None = None) -> int:
    """``start`` (after ``--``: options for Snakemake), ``run``, ``collect`` or ``cost``; 0 when it worked."""
    parser = argparse.ArgumentParser(prog="python -m workflow.sweep", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("start", "run", "collect", "cost"):
        command = commands.add_parser(name)
        command.add_argument("sweep")
        if name == "run":
            command.add_argument("job")
        if name == "start":
            command.add_argument("--workflow-profile", default="local")
    given = sys.argv[1:] if arguments is None else arguments
    at = given.index("--") if "--" in given else len(given)  # what follows is for Snakemake
    words = parser.parse_args(given[:at])
    if given[at:] and words.command != "start":
        parser.error("only start passes options on to Snakemake")
    try:
        sweep = load(words.sweep)
        if words.command == "start":
            print(start(sweep, words.workflow_profile, *given[at + 1 :]))
        elif words.command == "cost":
            print(sweep_cost.describe(sweep))
        else:
            torch.set_num_threads(threads())
            run(sweep, words.job) if words.command == "run" else collect(sweep)
    except (SweepError, supervised.TrainingError, ArtifactError, kinds.DataError, stamps.ChainError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
