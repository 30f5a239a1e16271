"""What a notebook depends on and what it made: the plan of a run, and the stamps that say what is up to date.

No notebook needs another one to be executed first: what they share are stored results, made by whoever comes first.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from harvis_utils.data import archive, kinds
from harvis_utils.settings import REPOSITORY, HarvisError, Settings, artifact_root
from harvis_utils.store.files import ArtifactError, file_digest, read_json
from harvis_utils.store.results import damage, versions

PACKAGE = Path(__file__).resolve().parents[1]

NOTEBOOKS = REPOSITORY / "notebooks"

#: parts of the book by the numbers of their notebooks
PARTS = {"paper": range(0, 7), "lenses": range(7, 15), "systems": range(15, 19), "practice": range(19, 100)}


class ChainError(HarvisError, RuntimeError):
    """A notebook failed or cannot be run; the message names it, the cell, and the file to look into."""


class NotebookError(ChainError):
    """Notebooks of a run failed; all that need not wait for them are done."""

    code = 3


def find_notebooks(folder: Path = NOTEBOOKS, part: str | None = None) -> list[Path]:
    """The notebooks ``NN_name.ipynb`` and ``NNb_name.ipynb`` of a folder, in order; those of a ``part`` if named."""
    if part is not None and part not in PARTS:
        raise ChainError(f"unknown part {part!r}; valid parts: {', '.join(PARTS)}")
    found = sorted(p for p in Path(folder).glob("*.ipynb") if re.fullmatch(r"\d\d[a-z]?_\w+", p.stem))
    found = [p for p in found if part is None or int(p.stem[:2]) in PARTS[part]]
    if not found:
        raise ChainError(f"no numbered notebooks (NN_name.ipynb) in {folder}" + (f" for {part!r}" if part else ""))
    return found


def package_files() -> list[Path]:
    """Files of the package, code and data, and modules of own data sets: what every notebook depends on.

    Choice: all of them, whichever a notebook imports. Heavy results are stored by the code that they depend on, so that
    executing a notebook again after an edit elsewhere costs little more than its figures.
    """
    return sorted([*(p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix != ".pyc"), *kinds.own_modules()])


def content(paths: list[Path]) -> str:
    """One digest of what files hold."""
    return hashlib.sha256("".join(map(file_digest, paths)).encode()).hexdigest()


def settings_digest(cfg: Settings) -> str:
    """What tells a run's settings and library versions from others."""
    return " ".join([cfg.digest(), *(f"{library}={number}" for library, number in versions().items())])


def raw_data(cfg: Settings) -> str | None:
    """Digest of what tells the run's raw data from other ones; None for an archive that is not there, and made-up data.

    Of a zip file its members' names, sizes and checksums, so that a copy counts as the same; of an extracted folder
    its members' sizes and times, because reading them all takes too long to be done before every run. Own data without
    an archive are read: nobody else knows where they lie.
    """
    dataset = kinds.check_name(cfg.dataset)
    if not (dataset.archive or dataset.made_up):
        return archive.load_recordings(cfg.dataset).digest
    described = dataset.archive
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


def read_stamp(cfg: Settings, name: str) -> dict | None:
    """What a notebook's stamp says; None where there is none, or one of another form, as before results were kept."""
    with suppress(ArtifactError, LookupError, TypeError, AttributeError):
        stamp = read_json(stamp_of(cfg, name))
        said = [*stamp["files"], *stamp["stored"], *stamp.get("digests", {}).values()]
        return stamp if all(isinstance(one, str) for one in said) else None


def edited(cfg: Settings, names: list[str]) -> dict[str, str]:
    """Files that are no longer what they were when a notebook was executed: each with the last one that wrote it."""
    written = [path for name in names if (path := stamp_of(cfg, name)).exists()]
    wanted: dict[str, tuple[str, str]] = {}
    for path in sorted(written, key=lambda path: path.stat().st_mtime_ns):
        stamp = read_stamp(cfg, path.stem) or {}
        wanted |= {file: (path.stem, digest) for file, digest in stamp.get("digests", {}).items()}
    there = {file: of for file, of in wanted.items() if (cfg.reports / file).is_file()}
    return {file: name for file, (name, digest) in there.items() if file_digest(cfg.reports / file) != digest}


def outdated(cfg: Settings, names: list[str]) -> list[str]:
    """Finished notebooks to execute again: what they made or used is gone or damaged, or the data are other ones.

    Snakemake sees none of it: stored results are kept by content and are not its outputs, and an archive may be
    downloaded while the chain runs.
    """
    store, archived = artifact_root() / "store", raw_data(cfg)
    found, claimed, damaged = [], set(), cache(lambda address: damage(store / address) is not None)
    for name in (name for name in names if stamp_of(cfg, name).exists()):
        if (stamp := read_stamp(cfg, name)) is None:
            found.append(name)
            continue
        gone = {s for s in stamp["stored"] if damaged(s)} - claimed
        gone |= {f for f in stamp["files"] if not (cfg.reports / f).is_file()}
        replaced = archived is not None and archived != stamp.get("archive")  # without one, what is stored counts
        if gone or replaced:
            found.append(name)
            claimed |= gone  # the first notebook that answers for a result makes it again
    return found
