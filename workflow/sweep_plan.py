"""A sweep file turned into typed settings and jobs: data set x seed group x preset x architecture.

See ``workflow/sweep.toml`` for a commented one. :mod:`workflow.sweep` computes what stands here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import typing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import fastjsonschema
import torch

from harvis_utils.data import archive, kinds
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.metrics import similarity
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.settings import PRESETS, PROFILES, Settings, load_settings
from harvis_utils.store import stages
from harvis_utils.training import supervised

#: kind of job -> the sections of the settings and the stages that decide what it makes
KINDS = {
    "networks": (("windows", "model", "training"), (supervised.STAGE, unit_statistics.STAGE)),
    "signals": (("windows", "model", "training", "maximization"), (paper_methods.STAGE,)),
    "scores": (
        ("windows", "model", "training", "maximization", "similarity"),
        (unit_statistics.STAGE, paper_methods.STAGE, similarity.STAGE),
    ),
}


class SweepError(ValueError):
    """A sweep file that is wrong or a job that cannot be done; the message names the file and the key."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says; ``settings`` and each of ``architectures`` map sections to changed fields."""

    path: Path
    profile: str
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    seeds_per_job: int
    presets: tuple[str, ...]
    architectures: dict[str, dict[str, dict]]
    settings: dict[str, dict]
    device: str | None

    @property
    def place(self) -> Settings:
        """Settings whose report folder is the sweep's: ``<reports>/sweep/<name>``."""
        return Settings("sweep", self.path.stem)


@dataclass(frozen=True)
class Job:
    """One part of a sweep; ``after`` names the jobs whose results it reads."""

    kind: str
    dataset: str
    architecture: str
    seeds: tuple[int, ...]
    preset: str = ""
    after: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """The name without the kind."""
        words = (self.dataset, self.architecture, f"s{self.seeds[0]}-{self.seeds[-1]}", self.preset)
        return ".".join(w for w in words if w)

    @property
    def name(self) -> str:
        """Stable: the same part of a sweep is called the same when the sweep grows."""
        return f"{self.kind}.{self.part}"


# --------------------------------------------------------------------------------------------- the sweep file


def schema() -> dict:
    """The JSON Schema of a sweep file; the fields of the settings are read from their classes."""
    types = {
        int: {"type": "integer", "minimum": 1},
        float: {"type": "number", "minimum": 0},
        bool: {"type": "boolean"},
        str: {"type": "string"},
    }

    def table(properties: dict, **more) -> dict:
        return {"type": "object", "properties": properties, "additionalProperties": False, **more}

    def sections(*names: str) -> dict:
        of = {name: typing.get_type_hints(type(getattr(Settings("", ""), name))) for name in names}
        found = {name: table({k: types[t] for k, t in f.items() if k != "seeds"}) for name, f in of.items()}
        found["model"]["properties"]["n_dense"] = {"type": "integer", "minimum": 0}
        return table(found)

    def some(**items) -> dict:
        found = {"type": "array", "minItems": 1, "uniqueItems": True, "items": items}
        return found | {"description": "different ones, at least one"}

    count = {"type": "integer", "minimum": 1}
    named = {
        "type": "object",
        "description": "names of letters, digits, - and _",
        "minProperties": 1,
        "propertyNames": {"pattern": r"^[\w-]+$"},
        "additionalProperties": sections("model", "training"),
    }
    seeds = {
        "description": "a number of networks, or a list of different seeds",
        "anyOf": [count, some(type="integer", minimum=0)],
    }
    return table(
        {
            "profile": {"enum": list(PROFILES)},
            "datasets": some(type="string"),
            "seeds": seeds,
            "seeds_per_job": count,
            "presets": some(enum=list(PRESETS)),
            "architectures": named,
            "settings": sections("windows", "model", "training", "maximization", "similarity"),
            "device": {"enum": ["cpu", "cuda"]},
        },
        required=["profile", "datasets"],
    )


def load(path: Path | str) -> Sweep:
    """Read and check a sweep file; one clear :class:`SweepError` names the file and the key that is wrong."""
    path = Path(path)
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
        fastjsonschema.compile(schema())(given)  # jsonschema takes seconds to load, in each of many jobs
        for name in given["datasets"]:
            kinds.check_name(name)
    except OSError as error:
        raise SweepError(f"{path}: the sweep file cannot be read ({error.strerror})") from None
    except fastjsonschema.JsonSchemaValueException as error:
        hint = error.definition.get("description", "")
        if error.rule == "additionalProperties" and "properties" in error.definition:
            hint = f"valid keys: {', '.join(error.definition['properties'])}"
        said = error.message.removeprefix("data.").replace("data must", "the file must")
        raise SweepError(f"{path}: {said}" + (f"; {hint}" if hint else "")) from None
    except ValueError as error:  # not TOML, or an unknown data set
        raise SweepError(f"{path}: {error}") from None
    seeds = given.get("seeds", load_settings(given["profile"]).training.seeds)
    presets = given.get("presets", PRESETS)
    found = Sweep(
        path=path,
        profile=given["profile"],
        datasets=tuple(given["datasets"]),
        seeds=tuple(range(int(seeds))) if isinstance(seeds, int | float) else tuple(sorted(map(int, seeds))),
        seeds_per_job=int(given.get("seeds_per_job", 1)),
        presets=tuple(p for p in PRESETS if p in presets),  # the order that the notebooks have
        architectures=given.get("architectures", {"default": {}}),
        settings=given.get("settings", {}),
        device=given.get("device"),
    )
    seen: dict[tuple, str] = {}
    for name in found.architectures:
        cfg = settings(found, found.datasets[0], name)
        try:
            with torch.device("meta"):  # its shapes only: can it be built?
                SFHF(1, cfg.windows.length, 2, cfg.model)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            raise SweepError(f"{path}: architectures.{name}: {error}") from None
        other = seen.setdefault((cfg.model, cfg.training), name)
        if other != name:  # their jobs would write the same results at the same time
            raise SweepError(f"{path}: architectures.{name} is the same as architectures.{other}")
    return found


def settings(sweep: Sweep, dataset: str, architecture: str, seeds: tuple[int, ...] | None = None) -> Settings:
    """The settings of one data set, architecture and group of seeds, by default all seeds."""
    cfg = load_settings(sweep.profile, dataset, sweep.device)
    for changes in (sweep.settings, sweep.architectures[architecture]):
        for section, fields in changes.items():
            before = getattr(cfg, section)
            types = typing.get_type_hints(type(before))
            # 1 and 1.0 are one setting, and should have one key
            after = dataclasses.replace(before, **{k: types[k](v) for k, v in fields.items()})
            cfg = dataclasses.replace(cfg, **{section: after})
    return dataclasses.replace(cfg, training=dataclasses.replace(cfg.training, seeds=seeds or sweep.seeds))


# -------------------------------------------------------------------------------------------------- the jobs


def jobs(sweep: Sweep) -> list[Job]:
    """All jobs, each after those it needs. What presets share, training and statistics, is one job before them."""
    size = sweep.seeds_per_job
    found = []
    for dataset in sweep.datasets:
        for architecture in sweep.architectures:
            for seeds in (sweep.seeds[i : i + size] for i in range(0, len(sweep.seeds), size)):
                about = (dataset, architecture, seeds)
                first = Job("networks", *about)
                signals = [Job("signals", *about, preset, (first.name,)) for preset in sweep.presets]
                found += [first, *signals, Job("scores", *about, after=tuple(j.name for j in signals))]
    return found


def plan(sweep: Sweep) -> dict:
    """What Snakemake is told: jobs and, of each, a digest of all that decides its results, data and code included."""
    data = {name: archive.load_recordings(name).digest for name in sweep.datasets}  # fetches what is missing
    versions = [version(lib) for lib in stages.VERSIONED]
    code = {
        kind: [stages.code_digest(m) for m in sorted({m for stage in stages for m in stage.modules})]
        for kind, (_, stages) in KINDS.items()
    }

    def digest(job: Job) -> str:
        chosen = settings(sweep, job.dataset, job.architecture, job.seeds).digest(*KINDS[job.kind][0])
        presets = sweep.presets if job.kind == "scores" else [job.preset]
        content = [job.name, chosen, presets, data[job.dataset], code[job.kind], versions]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    rows = [
        {"name": job.name, "kind": job.kind, "part": job.part, "after": job.after, "digest": digest(job)}
        for job in jobs(sweep)
    ]
    return {"sweep": sweep.path.stem, "jobs": rows}
