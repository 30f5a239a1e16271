"""Finished runs turned into published ones: ``reports/published/<profile>/<dataset>/``, small enough for git.

python -m workflow.publish --profile desk --dataset dsads
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from harvis_utils.chain import commands, stamps
from harvis_utils.data import kinds
from harvis_utils.paper import report
from harvis_utils.paper.stages import Stages
from harvis_utils.parallel import command_line
from harvis_utils.settings import REPOSITORY, Settings, artifact_root, data_folders, load_settings, report_root
from harvis_utils.store.files import ArtifactError, file_digest, read_json, scratch, write_json, writing
from harvis_utils.store.results import around_builds
from harvis_utils.training import published

README = REPOSITORY / "README.md"
#: the digests of a published run's files, but of those that its networks/networks.json knows
DIGESTS = "digests.json"

#: what may be new or changed in a published run: pages and tables; and networks, which change seldom
PUBLISHED_BYTES, NETWORK_BYTES = 8_000_000, 16_000_000
TABLE_BYTES = 250_000  # Choice: a larger table lists single signals; what is concluded from them is in a smaller one


class PublishError(ArtifactError):
    """A run that cannot be published as it is; the message says what is missing or wrong."""


def publish(cfg: Settings, notebooks: list[Path]) -> Path:
    """Copy a finished run to ``reports/published/<profile>/<dataset>``, replacing an older one.

    What other notebooks have published there stays, so that a run can be published part by part.
    Executed notebooks, tables up to 250 kB, JSON files, the interactive pages and figures that README shows go; where
    its notebooks made networks, these too (:mod:`harvis_utils.training.published`). Raises :class:`PublishError` when
    a notebook of ``notebooks`` was not executed to its end, when other networks made what stays published, when
    ``results.json`` is missing or invalid, when a file is no longer what its notebook left or contains a path of this
    machine, or when more than 8 MB beside the networks are new or changed.
    """
    again = f"run `make reproduce PROFILE={cfg.profile} DATASET={cfg.dataset}` to its end first"
    made, stored = set(), set()
    for name in (notebook.stem for notebook in notebooks):
        executed, stamp = cfg.reports / f"{name}.ipynb", stamps.stamp_of(cfg, name)
        if not executed.exists() or not stamp.exists():
            raise PublishError(f"{name}.ipynb has not been executed for this run; {again}")
        book = read_json(executed)
        code = [c for c in book["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]
        failed = book["metadata"].get("papermill", {}).get("exception")
        if failed or any(c.get("execution_count") is None for c in code):
            raise PublishError(f"{executed} was not executed to its end; {again}")
        # only what the stamps list is published, not what an older version of a notebook left
        about = read_json(stamp)
        made |= {Path(file) for file in about["files"]}
        stored |= set(about["stored"])
    shown = README.read_text(encoding="utf-8")  # figures are in the notebooks; README shows some by themselves

    def wanted(file: Path) -> bool:
        alone = len(file.parts) == 1 and file.suffix in (".json", ".html")
        table = file.parts[0] == "tables" and file.suffix != ".html"
        path = cfg.reports / file
        if table and path.exists() and path.stat().st_size > TABLE_BYTES:
            return False
        return alone or table or f"{cfg.profile}/{cfg.dataset}/{file.as_posix()}" in shown

    target = report_root() / "published" / cfg.profile / cfg.dataset
    others = _of_others(target, notebooks)
    files = {Path(notebook.name) for notebook in notebooks} | set(filter(wanted, made))
    results = cfg.reports / "results.json"
    if results.relative_to(cfg.reports) not in made and others:
        results = target / "results.json"
    places = {target / file: file for file in others} | {cfg.reports / file: file for file in sorted(files)}
    places[results] = Path("results.json")
    edited = stamps.edited(cfg, [stamp.stem for stamp in cfg.reports.glob("stamps/*.json")])
    edited = {cfg.reports / file: name for file, name in edited.items()}
    for path in places:
        if not path.exists():
            raise PublishError(f"{path} is missing; {again}")
        if path in edited:
            raise PublishError(f"{path} is no longer what {edited[path]}.ipynb left; {again}")
        if found := machine_paths(path):
            said = f"contains paths of this machine, as {found[0]!r}; print them relative to the project"
            raise PublishError(f"{path} {said}")
    try:
        whole = read_json(results) | with_systems(places)
        report.validate(whole)
    except Exception as error:
        raise PublishError(f"{results} is not valid: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        del places[results]
        places[write_json(Path(folder) / "results.json", whole)] = Path("results.json")
        if not others or Path("results.json") in made:
            stages = {of.split("/")[0] for of in stored}
            networks = _networks(cfg, target, Path(folder) / "networks", stages, again)
            _refuse_other_networks(target, networks, [path for path in others if path.suffix == ".ipynb"])
            places = {path: place for path, place in places.items() if place not in networks.values()} | networks
        return _replace(target, places)


def _of_others(target: Path, notebooks: list[Path]) -> list[Path]:
    """Files of a published run that stay when ``notebooks`` are published: none where no other notebook is there."""
    numbers = tuple(notebook.stem.split("_")[0] + "_" for notebook in notebooks)
    there = [path.relative_to(target) for path in sorted(target.rglob("*")) if path.is_file()]
    stay = [path for path in there if not path.name.startswith((*numbers, DIGESTS))]
    return stay if any(path.suffix == ".ipynb" for path in stay) else []


def _refuse_other_networks(target: Path, networks: dict[Path, Path], others: list[Path]) -> None:
    """Raise where results of newly trained networks would stand beside pages made with those that are published."""
    for file, place in networks.items():
        there = target / place
        if others and place.name == "trunks.safetensors" and there.exists() and file_digest(file) != file_digest(there):
            names = ", ".join(sorted(path.stem.split("_")[0] for path in others))
            raise PublishError(
                f"its networks are not those of {target}, with which {names} were made; execute these too, remove that "
                "folder and publish all, in parts where they are large, or execute with WEIGHTS=published"
            )


def with_systems(files: Iterable[Path]) -> dict:
    """The part of ``results.json`` that notebooks on systems of other sources have left: ``judged`` in their JSON."""
    read = {path.stem: read_json(path) for path in files if path.suffix == ".json" and path.stem != "results"}
    judged = {name: of["judged"] for name, of in read.items() if "judged" in of}
    return {"systems": judged} if judged else {}


def _networks(cfg: Settings, target: Path, folder: Path, stages: set[str], again: str) -> dict[Path, Path]:
    """The files of a run's networks, written to ``folder``, and where they go in the published run.

    A run that trained none, which its ``stages`` tell, was made from those that are published already: they stay, with
    what it found of their units.
    """

    def missing(stage: str, key: str):
        raise PublishError(f"its {stage} are stored no more; {again}")

    with around_builds(missing):
        own = replace(cfg, weights="trained" if "networks" in stages else "published")
        run = Stages(kinds.fitted(own))
        if "networks" in stages:
            about = (run.data, [*run.networks, *run.choosing.networks], run.statistics, run.signals)
            published.save(folder, *about, whole=not kinds.check_name(cfg.dataset).made_up)
        elif (target / "networks").exists():
            shutil.copytree(target / "networks", folder)
            if "signals" in stages:
                published.save_units(folder, run.statistics, run.signals)
    return {path: path.relative_to(folder.parent) for path in sorted(folder.glob("*"))}


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of the files of a published run, by their places in it: what its ``DIGESTS`` should say."""
    beside = {DIGESTS, *(f"networks/{name}" for name in published.FILES)}
    places = sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file())
    return {place: file_digest(run / place) for place in places if place not in beside}


def machine_paths(path: Path) -> list[str]:
    """Absolute paths of this machine in a text file."""
    if path.suffix not in (".ipynb", ".json", ".csv", ".txt", ".svg", ".md"):
        return []
    text = re.sub(r"\\[nt]", " ", path.read_text(encoding="utf-8"))  # what JSON writes in front of a word
    known = [REPOSITORY, Path.home(), report_root(), artifact_root(), *data_folders()]
    known += [Path(sys.prefix), Path(tempfile.gettempdir())]
    here = "|".join(re.escape(str(p)) for p in known if len(p.parts) > 1)
    found = re.findall(rf"(?<![\w.~+/-])(?:(?:{here})(?![\w-])|/(?:home|Users)/\w)[^\s\"'\\]{{0,80}}", text)
    return sorted(set(found))


def _replace(target: Path, files: dict[Path, Path]) -> Path:
    """Copy files, to the given places, beside ``target`` first, then let the copy take its place in two renames."""
    sources = Path(os.path.relpath(REPOSITORY / "notebooks", target)).as_posix()
    with writing(target), scratch(target) as part:
        part.chmod(0o755)  # a temporary folder is private
        for path, place in files.items():
            copy = part / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(_linked(path, {p.name for p in files}, sources))
        copies = {p: target / p.relative_to(part) for p in part.rglob("*") if p.is_file()}
        fresh = [p for p, old in copies.items() if not old.exists() or not filecmp.cmp(p, old, False)]
        for of_networks, most in ((False, PUBLISHED_BYTES), (True, NETWORK_BYTES)):
            size = sum(p.stat().st_size for p in fresh if (p.parent.name == "networks") == of_networks)
            if size > most:
                raise PublishError(
                    f"{size / 1e6:.1f} MB of the run are new or changed; at most {most / 1e6:.0f} MB are published at "
                    "a time: publish some notebooks first, from a folder that holds these alone (--notebooks)"
                )
        write_json(part / DIGESTS, {"files": digests(part)})
        older = part.with_suffix(".old")
        if target.exists():
            os.rename(target, older)
        try:
            os.rename(part, target)
        except OSError:
            if older.exists():
                os.rename(older, target)
            raise
        shutil.rmtree(older, ignore_errors=True)
    return target


def _linked(path: Path, beside: set[str], sources: str) -> bytes:
    """A file's content; a notebook's links to others that are not ``beside`` it lead to those in ``sources``, and
    links to files of the project from there.
    """
    if path.suffix != ".ipynb":
        return path.read_bytes()

    def linked(lines: str | list[str]) -> list[str]:
        text = re.sub(
            rf"(?<=\]\()(?:{sources}/)?(\d\d[a-z]?_\w+\.ipynb)",
            lambda m: m[1] if m[1] in beside else f"{sources}/{m[1]}",
            "".join(lines),
        )
        text = re.sub(r"(?<=\]\()\.\./(?!\.\./)", f"{sources.removesuffix('/notebooks')}/", text)
        return text.splitlines(keepends=True)

    book = read_json(path)
    for cell in book["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = linked(cell["source"])
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            if "text/markdown" in data:
                data["text/markdown"] = linked(data["text/markdown"])
    return (json.dumps(book, indent=1, ensure_ascii=False) + "\n").encode()


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Publish a run; 0 when it worked."""
    parser = argparse.ArgumentParser(prog="python -m workflow.publish", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--notebooks", type=Path, default=stamps.NOTEBOOKS, help="a folder; others stay as they are")
    words = parser.parse_args(arguments)
    kinds.check_name(words.dataset)
    cfg = load_settings(words.profile, words.dataset)
    print(f"published: {commands.near(publish(cfg, stamps.find_notebooks(words.notebooks)))}")
    if report_root() != REPOSITORY / "reports":
        print("README.md and WEIGHTS=published read reports/published: copy it there, or unset HARVIS_REPORTS")


if __name__ == "__main__":
    sys.exit(main())
