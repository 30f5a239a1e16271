"""What a notebook depends on and what it made: the plan of a run, and the stamps that say what is up to date."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from harvis_utils.data import archive, kinds
from harvis_utils.settings import REPOSITORY, HarvisError, Settings, artifact_root
from harvis_utils.store.files import read_json
from harvis_utils.store.results import versions

PACKAGE = Path(__file__).resolve().parents[1]

NOTEBOOKS = REPOSITORY / "notebooks"

#: keys whose values differ between equal runs
UNSTABLE = frozenset({"provenance", "timings_s", "wall_s", "seconds", "date"})

#: folders of a run that are about the run, not made by a notebook
OWN_FOLDERS = ("logs", "stamps", "html", ".snakemake")


class ChainError(HarvisError, RuntimeError):
    """A notebook failed or cannot be run; the message names it, the cell, and the file to look into."""


def find_notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    """The numbered notebooks ``NN_name.ipynb`` of a folder, in order."""
    found = sorted(p for p in Path(folder).glob("*.ipynb") if re.fullmatch(r"\d\d_\w+", p.stem))
    if not found:
        raise ChainError(f"no numbered notebooks (NN_name.ipynb) in {folder}")
    return found


def package_files() -> list[Path]:
    """Files of the package, code and data: what every notebook depends on.

    Choice: all of them, whichever a notebook imports. Heavy results are stored by the code that they depend on, so that
    executing a notebook again after an edit elsewhere costs little more than its figures.
    """
    return sorted(p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix != ".pyc")


@dataclass(frozen=True)
class Job:
    """One notebook of a run. ``settings`` is a digest; ``earlier`` names the notebooks executed before it."""

    name: str
    notebook: Path
    settings: str
    earlier: tuple[str, ...]


def plan(cfg: Settings, folder: Path = NOTEBOOKS) -> list[Job]:
    """The jobs of a run, in order. Notebook 00 waits for none; each other one for all before it."""
    jobs: list[Job] = []
    libraries = ",".join(f"{lib}={number}" for lib, number in versions().items())
    for notebook in find_notebooks(folder):
        earlier = tuple(j.name for j in jobs if not j.name.startswith("00_"))
        jobs.append(Job(notebook.stem, notebook, f"{cfg.digest()} {libraries}", earlier))
    return jobs


def raw_data(cfg: Settings) -> str | None:
    """Digest of what tells the run's raw archive from another one; None where there is none, and for made-up data.

    Of a zip file its members' names, sizes and checksums, so that a copy counts as the same; of an extracted folder
    its members' sizes and times, because reading them all takes too long to be done before every run.
    """
    described = kinds.check_name(cfg.dataset).archive
    place = archive.locate(cfg.dataset, described) if described else None
    if place is None:
        return None
    if place.is_dir():
        found = [(m, place / m) for m in described.members if (place / m).is_file()]
        parts = [(m, path.stat().st_size, path.stat().st_mtime_ns) for m, path in found]
    else:
        try:
            with zipfile.ZipFile(place) as packed:
                parts = [(m.filename, m.file_size, m.CRC) for m in packed.infolist()]
        except (OSError, zipfile.BadZipFile):  # the notebook that reads it says what is wrong
            parts = [(place.stat().st_size, place.stat().st_mtime_ns)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def stamp_of(cfg: Settings, name: str) -> Path:
    """The file that says what a notebook made."""
    return cfg.reports / "stamps" / f"{name}.json"


def made_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Files of a run that notebooks made, with inode and time: an atomically replaced file gets a new inode."""
    own = [p for p in sorted(folder.rglob("*")) if p.relative_to(folder).parts[0] not in OWN_FOLDERS and p.is_file()]
    made = [p for p in own if not p.name.startswith(".") and (p.parent != folder or p.suffix != ".ipynb")]
    return {p.relative_to(folder).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns) for p in made}


def describe(cfg: Settings, name: str, files: list[str], journal: Path, earlier: tuple[str, ...]) -> dict:
    """A notebook's stamp: the files it made, the stored results it answers for, and what it was run after."""
    stored = sorted(set(journal.read_text(encoding="utf-8").split())) if journal.exists() else []
    data = {f: _content_digest(cfg.reports / f) for f in files if Path(f).suffix in (".csv", ".json", ".nc", ".npz")}
    made = {"data": data, "files": files, "stored": stored}
    after = {other: _made_digest(cfg, other) for other in earlier}
    return {"notebook": name, "made": made, "after": after}


def _made_digest(cfg: Settings, name: str) -> str | None:
    """Digest of the data files a notebook made, or None when it has no stamp."""
    path = stamp_of(cfg, name)
    if not path.exists():
        return None
    return hashlib.sha256(json.dumps(read_json(path)["made"]["data"], sort_keys=True).encode()).hexdigest()


def _content_digest(path: Path) -> str:
    """SHA-256 of a file; of a JSON file without what differs between equal runs."""
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(stable(read_json(path)), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def stable(value):
    """A JSON value without provenance and times, at any depth: what has to be equal between equal runs."""
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if k not in UNSTABLE}
    return [stable(v) for v in value] if isinstance(value, list) else value


def outdated(cfg: Settings, jobs: list[Job]) -> list[str]:
    """Finished notebooks to execute again: what they made is missing, the archive is another, or earlier data differ.

    Snakemake sees none of it: stored results are kept by content and are not its outputs, an archive may be downloaded
    while the chain runs, and a notebook that made the same data again is no reason to execute those after it.
    """
    store, archived = artifact_root() / "store", raw_data(cfg)
    names, claimed = [], set()
    for job in jobs:
        if not (path := stamp_of(cfg, job.name)).exists():
            continue
        stamp = read_json(path)
        gone = {s for s in stamp["made"]["stored"] if not (store / s / "manifest.json").exists()} - claimed
        gone |= {f for f in stamp["made"]["files"] if not (cfg.reports / f).exists()}
        differ = any(_made_digest(cfg, other) not in (digest, None) for other, digest in stamp["after"].items())
        replaced = archived is not None and archived != stamp.get("archive")  # without one, what is stored counts
        if gone or differ or replaced:
            names.append(job.name)
            claimed |= gone  # the first notebook that answers for a result makes it again
    return names
