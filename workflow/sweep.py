"""One small file turned into many networks, computed as jobs on more than one core or machine, and into one table.

    python -m workflow.sweep start workflow/sweep.toml --workflow-profile slurm

Every job fills the store, and nothing passes from job to job but through it. Results are kept under the keys of the
notebooks, so a sweep over the architecture ``default`` with a profile's own seeds leaves nothing heavy for
``make reproduce``. Snakemake (``workflow/sweep.smk``) decides what runs where; it sees one light stamp per job. At the
end stands one table, ``<reports>/sweep/<name>/sweep.csv``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import pandas as pd
import pydantic
import torch
import xarray as xr
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from harvis_utils.chain import commands
from harvis_utils.data import archive, kinds
from harvis_utils.maximization import paper_methods
from harvis_utils.metrics import similarity
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.paper.stages import Stages
from harvis_utils.parallel import command_line, threads
from harvis_utils.settings import (
    APPROXIMATE,
    PRESETS,
    PROFILES,
    REPOSITORY,
    HarvisError,
    Settings,
    artifact_root,
    load_settings,
)
from harvis_utils.store import results
from harvis_utils.store.files import file_digest, read_json, write_text
from harvis_utils.training import supervised

T = TypeVar("T")
HERE = Path(__file__).resolve().parent
PUBLISHED = REPOSITORY / "reports" / "published"
KINDS = ("networks", "signals", "scores")
#: holds the digest of the table as it was collected
DIGEST = "sweep.csv.sha256"
#: what of a published run's times a sweep would spend again
STAGES = ("networks", "statistics", "signals", "scores")


class SweepError(HarvisError, ValueError):
    """A sweep file that is wrong or a job that cannot be done; the message names the file and the key."""


# --------------------------------------------------------------------------------------------- the sweep file


class Section(pydantic.BaseModel, strict=True, frozen=True):
    """A table of a sweep file: known keys only, and no value is converted."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _known(cls, given):
        if isinstance(given, dict) and (unknown := sorted(set(given) - set(cls.model_fields))):
            valid = ", ".join(name for name in cls.model_fields if name != "path")
            raise ValueError(f"unknown: {', '.join(unknown)}; valid keys: {valid}")
        return given


def _changes(*sections: str) -> type[Section]:
    """Sections of the settings with any of their fields; types are read from their classes."""
    within = {
        "n_dense": NonNegativeInt,
        int: PositiveInt,
        float: Annotated[NonNegativeFloat, Field(allow_inf_nan=False)],
    }
    within |= {"dropout": Annotated[float, Field(ge=0, lt=1)]}
    within |= dict.fromkeys(("rate_hz", "lowpass_hz"), Annotated[float, Field(gt=0, allow_inf_nan=False)])
    within |= {"schedule": Literal[supervised.SCHEDULES], "reduction": Literal[paper_methods.REDUCTIONS]}
    found = {}
    for name in sections:
        hints = typing.get_type_hints(typing.get_type_hints(Settings)[name])
        fields = {f: (within.get(f, within.get(hint, hint)), None) for f, hint in hints.items() if f != "seeds"}
        found[name] = (pydantic.create_model(name, __base__=Section, **fields), None)
    return pydantic.create_model("changes", __base__=Section, **found)


def _different(values: list) -> tuple:
    if len(set(values)) != len(values):
        raise ValueError("a value stands here twice")
    return tuple(values)


def _data_set(dataset: str) -> str:
    kinds.check_name(dataset)
    return dataset


Architecture = _changes("model", "training")
Changes = _changes("windows", "model", "training", "maximization", "similarity")
Several = Annotated[list[T], Field(min_length=1, validate_default=True), AfterValidator(_different)]
Name = Annotated[str, Field(pattern=r"^[\w-]+$")]


class Sweep(Section):
    """What a sweep file says, see ``workflow/sweep.toml``; ``architectures`` and ``settings`` hold what they change."""

    path: Path
    profile: Literal[tuple(PROFILES)]
    datasets: Several[Annotated[str, AfterValidator(_data_set)]]
    seeds: Several[NonNegativeInt] = None
    seeds_per_job: PositiveInt = 1
    presets: Several[Literal[tuple(PRESETS)]] = list(PRESETS)
    architectures: Annotated[dict[Name, Architecture], Field(min_length=1)] = {"default": Architecture()}
    settings: Changes = Changes()
    device: Literal["cpu", "cuda"] | None = None

    @pydantic.field_validator("presets")
    @classmethod
    def _in_order(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in PRESETS if name in names)  # as the notebooks have them

    @pydantic.field_validator("seeds", mode="before")
    @classmethod
    def _listed(cls, seeds, given: pydantic.ValidationInfo):
        """From a number of networks, or the profile's own."""
        if seeds is None:
            return list(load_settings(given.data.get("profile", "quick")).training.seeds)
        return list(range(seeds)) if type(seeds) is int else seeds

    @property
    def place(self) -> Settings:
        """Settings whose report folder is the sweep's: ``<reports>/sweep/<name>``."""
        return Settings("sweep", self.path.stem)

    def groups(self) -> dict[str, tuple[int, ...]]:
        """The seeds of each job by a name that stays the same when the sweep grows."""
        size = self.seeds_per_job
        found = (self.seeds[i : i + size] for i in range(0, len(self.seeds), size))
        return {f"{seeds[0]}-{seeds[-1]}": seeds for seeds in found}

    def cfg(self, dataset: str, architecture: str, seeds: tuple[int, ...] | None = None) -> Settings:
        """The settings of one data set, architecture and group of seeds, by default all seeds."""
        cfg = kinds.fitted(load_settings(self.profile, dataset, self.device))
        for changes in (self.settings, self.architectures[architecture]):
            for section, fields in changes.model_dump(exclude_unset=True).items():
                cfg = dataclasses.replace(cfg, **{section: dataclasses.replace(getattr(cfg, section), **fields)})
        return dataclasses.replace(cfg, training=dataclasses.replace(cfg.training, seeds=seeds or self.seeds))


def load(path: Path | str) -> Sweep:
    """Read and check a sweep file; one clear :class:`SweepError` names the file and the key that is wrong."""
    path = Path(path)
    try:
        sweep = Sweep.model_validate(tomllib.loads(path.read_text(encoding="utf-8")) | {"path": path})
    except pydantic.ValidationError as error:
        said = (f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
        raise SweepError(f"{path}: {'; '.join(said)}") from None
    except (OSError, ValueError) as error:  # not there, or not TOML
        raise SweepError(f"{path}: {error}") from None
    seen: dict[tuple, str] = {}
    for name in sweep.architectures:
        cfg = sweep.cfg(sweep.datasets[0], name)
        try:
            with torch.device("meta"):  # its shapes only: can it be built?
                SFHF(1, cfg.windows.length, 2, cfg.model)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            raise SweepError(f"{path}: architectures.{name}: {error}") from None
        if cfg.maximization.lowpass_hz >= cfg.windows.rate_hz / 2:
            limit = f"below half of windows.rate_hz ({cfg.windows.rate_hz:g})"
            raise SweepError(f"{path}: settings.maximization.lowpass_hz should be {limit}")
        other = seen.setdefault((cfg.model, cfg.training), name)
        if other != name:  # their jobs would write the same results at the same time
            raise SweepError(f"{path}: architectures.{name} is the same as architectures.{other}")
    return sweep


def parts(sweep: Sweep) -> pd.DataFrame:
    """What Snakemake is told: data set, architecture and seeds of each part, and digests of what decides its results.

    These are settings, data and the code of the whole package: what is stored already is not computed again.
    """
    rows = []
    for dataset in sweep.datasets:
        data = archive.load_recordings(dataset).digest  # fetches what is missing
        for architecture, (name, seeds) in itertools.product(sweep.architectures, sweep.groups().items()):
            digest = f"{sweep.cfg(dataset, architecture, seeds).digest()} {data} {results.package_digest()}"
            rows.append({"dataset": dataset, "architecture": architecture, "seeds": name, "digest": digest})
    return pd.DataFrame(rows)


# --------------------------------------------------------------------------------------------------- one job


def run(sweep: Sweep, kind: str, dataset: str, architecture: str, seeds: str, preset: str | None = None) -> None:
    """Compute what is missing of one job.

    ``networks`` trains and computes statistics, ``signals`` ascends under one preset, ``scores`` scores all presets,
    which are searched together, and the controls as notebooks 03 and 04 make them.
    """
    known = {"kind": KINDS, "data set": sweep.datasets, "architecture": sweep.architectures, "seeds": sweep.groups()}
    for (what, names), name in zip(known.items(), (kind, dataset, architecture, seeds), strict=True):
        if name not in names:
            raise SweepError(f"{sweep.path}: no {what} {name!r}; there are {', '.join(names)}")
    run = Stages(sweep.cfg(dataset, architecture, sweep.groups()[seeds]))
    run.recordings = archive.load_recordings(dataset, download=False)
    statistics = run.statistics
    if kind == "signals":
        paper_methods.signals(run.cfg, run.networks, statistics, presets=(preset,) if preset else sweep.presets)
    elif kind == "scores":
        scored(run, sweep.presets)


def scored(run: Stages, presets: tuple[str, ...]) -> dict[str, xr.Dataset]:
    """Scores of all methods under some presets ("technique"), and of the controls ("control")."""
    run.signals = paper_methods.signals(run.cfg, run.networks, run.statistics, presets=presets)
    return {"technique": run.scores, "control": run.controls}


# -------------------------------------------------------------------------------------------------- the table


def collect(sweep: Sweep) -> Path:
    """Write ``sweep.csv`` from stored results alone, all or nothing; a missing one raises :class:`SweepError`.

    One row per data set, architecture, seed, method or control, preset and layer.
    """
    rows = []
    for dataset in sweep.datasets:
        recordings = archive.load_recordings(dataset, download=False)
        for architecture, seed in itertools.product(sweep.architectures, sweep.seeds):
            run = Stages(sweep.cfg(dataset, architecture, (seed,)))
            run.recordings = recordings

            def missing(stage: str, key: str, what: str = f"{dataset}, architecture {architecture}, seed {seed}"):
                raise SweepError(f"{sweep.path}: {what} is not finished: no {stage}; start the sweep again")

            with results.around_builds(missing):
                tables = scored(run, sweep.presets)
            about = {"dataset": dataset, "caveat": run.data.caveat, "architecture": architecture, "seed": seed}
            about["macro_f1"] = supervised.macro_f1(run.data.test, run.networks[0].predicted["test"])
            for kind, table in tables.items():
                rows += [about | row for row in summaries(table, kind)]
    table = write_text(sweep.place.reports / "sweep.csv", pd.DataFrame(rows).to_csv(index=False))
    write_text(table.with_name(DIGEST), file_digest(table))
    return table


def summaries(scores: xr.Dataset, kind: str) -> Iterator[dict]:
    """A row per method or control, preset and layer: what :func:`similarity.summarize` says of its units."""
    dims = [d for d in ("preset", kind, "layer") if d in scores.dims]
    for values in itertools.product(*(scores[d].values.tolist() for d in dims)):
        place = dict(zip(dims, values, strict=True))
        said = similarity.summarize(scores.sel(place))
        where = {"kind": kind, "name": place[kind], "preset": place.get("preset", ""), "layer": place["layer"]}
        yield where | {name: v["mean"] if isinstance(v, dict) else v for name, v in said.items()}


# ---------------------------------------------------------------------------------------------------- the cost


def cost(sweep: Sweep, measured: bool = True) -> str:
    """What a sweep would cost, as text: core-hours, and for each data set and architecture where they come from.

    A network is taken to cost what those of the same data set and architecture took that were computed in this sweep,
    by Snakemake's own benchmarks, if these are to count (``measured``); else what those of a published run of this
    profile took, whatever its architecture. Raises :class:`SweepError` where neither is there.
    """
    lines, hours, n_seeds = [], 0.0, len(sweep.seeds)
    for dataset, architecture in itertools.product(sweep.datasets, sweep.architectures):
        own = _measured(sweep, dataset, architecture) if measured else None
        core_s, source = own or _published(sweep, dataset)
        own_hours = n_seeds * core_s / 3600
        hours += own_hours
        lines.append(
            f"- {dataset}, {architecture}: {own_hours:.3g} core-hours ({core_s:.3g} s a network); from {source}"
        )
    n_jobs = len(lines) * len(sweep.groups()) * (2 + len(sweep.presets))
    return (
        f"**A projection, not a measurement**: the {len(lines) * n_seeds} networks of `{sweep.path.name}` (data sets: "
        f"{len(sweep.datasets)}, architectures: {len(sweep.architectures)}, seeds: {n_seeds}; presets: "
        f"{len(sweep.presets)}) would take about {hours:.3g} core-hours, in {n_jobs} jobs, on cores like those "
        "measured. Waiting in queues is not counted.\n\n" + "\n".join(lines)
    )


def _measured(sweep: Sweep, dataset: str, architecture: str) -> tuple[float, str] | None:
    """Core-seconds per network of the jobs that were run, and their source; None where a kind of job is missing."""
    core_s = 0.0
    for kind in KINDS:
        seconds = networks = 0
        for group, seeds in sweep.groups().items():
            name = f"{kind}/dataset~{dataset}.architecture~{architecture}.seeds~{group}.*tsv"
            for path in (sweep.place.reports / "benchmarks").glob(name):
                seconds += pd.read_csv(path, sep="\t")["cpu_time"].sum()
                networks += len(seeds)
        if not networks:
            return None
        core_s += seconds / networks * (len(sweep.presets) if kind == "signals" else 1)
    return core_s, "this sweep"


def _published(sweep: Sweep, dataset: str) -> tuple[float, str]:
    base = dataset.removesuffix(APPROXIMATE)
    for path in sorted((PUBLISHED / sweep.profile).glob(f"{base}*/results.json")):
        found = read_json(path)
        if found["provenance"]["device"].startswith("cpu"):
            seconds = sum(found["timings_s"][stage] for stage in STAGES)
            return seconds * found["provenance"]["threads"] / found["n_seeds"], "/".join(path.parts[-5:])
    raise SweepError(
        f"no measured time of profile {sweep.profile} on {base}: compute a first part of the sweep (seeds = 1), or "
        f"publish `make reproduce PROFILE={sweep.profile} DATASET={base}`"
    )


# ----------------------------------------------------------------------------------------- the whole, and commands


def start(sweep: Sweep, workflow_profile: str, *options: str) -> Path:
    """Run all jobs that are not done with Snakemake, as a workflow profile says; returns the table.

    ``workflow_profile`` is a folder, or the name of one in ``workflow/profiles``. Raises :class:`SweepError`.
    """
    profiles = {p.parent.name: p.parent for p in sorted((HERE / "profiles").glob("*/config.yaml"))}
    profile = profiles.get(workflow_profile, Path(workflow_profile).resolve())
    if not (profile / "config.yaml").exists():
        valid = f"valid: {', '.join(profiles)}, or a folder that holds a config.yaml"
        raise SweepError(f"unknown workflow profile {workflow_profile!r}; {valid}")
    folder = sweep.place.reports
    with commands.alone(sweep.place) as lock:
        own, other = os.path.relpath(sweep.path.resolve(), folder), folder / "file.txt"
        last = other.read_text(encoding="utf-8") if other.is_file() else own
        if last != own and (folder / last).exists():
            raise SweepError(f"{sweep.path}: {folder} is of {(folder / last).resolve()}; give one of them another name")
        write_text(other, own)
        damaged = functools.cache(lambda address: results.damage(artifact_root() / "store" / address))
        for stamp in folder.glob("stamps/*/*.txt"):  # the stored results that a job answers for
            if any(map(damaged, stamp.read_text(encoding="utf-8").split())):
                stamp.unlink()
        table, digest = folder / "sweep.csv", folder / DIGEST
        if table.is_file() and not (digest.is_file() and digest.read_text(encoding="utf-8") == file_digest(table)):
            table.unlink()  # changed since it was collected
        write_text(folder / "parts.csv", parts(sweep).to_csv(index=False))
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(HERE / "sweep.smk")]
        command += ["--workflow-profile", str(profile), "--rerun-incomplete", "--nolock", "--show-failed-logs"]
        command += ["--rerun-triggers", "mtime", "params", "input", *options]
        told = {"sweep": own, "presets": " ".join(sweep.presets)}
        # Snakemake does not undo escapes
        command += ["--config", *(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in told.items())]
        code = subprocess.run(command, cwd=folder, pass_fds=(lock,)).returncode
    if code:
        raise SweepError(f"Snakemake ended with status {code}; the logs of failed jobs are above, and in {folder}/logs")
    return folder / "sweep.csv"


@command_line
def main(arguments: list[str] | None = None) -> None:
    """``start`` (with options for Snakemake), ``run``, ``collect`` or ``cost``; 0 when it worked."""
    parser = argparse.ArgumentParser(prog="python -m workflow.sweep", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("start", "run", "collect", "cost"):
        command = commands.add_parser(name)
        command.add_argument("sweep")
        if name == "run":
            command.add_argument("job", nargs="+", help="kind, data set, architecture, seeds and, of signals, preset")
        if name == "start":
            command.add_argument("--workflow-profile", default="local")
    words, options = parser.parse_known_args(arguments)
    if options and words.command != "start":
        parser.error(f"only start passes options on to Snakemake: {' '.join(options)}")
    sweep = load(words.sweep)
    if words.command == "start":
        print(start(sweep, words.workflow_profile, *options))
    elif words.command == "cost":
        print(cost(sweep))
    else:
        torch.set_num_threads(threads())
        run(sweep, *words.job) if words.command == "run" else print(collect(sweep))


if __name__ == "__main__":
    sys.exit(main())
