"""Executed notebooks turned into pages to read in a browser, and finished runs into published ones.

``reports/<profile>/<dataset>/html/`` holds a run's notebooks as pages that need no other file;
``reports/index.html`` lists all runs found and the published ones. ``publish`` copies a finished run, without
pages, to ``reports/published/<profile>/<dataset>/``::

    python -m workflow.pages report
    python -m workflow.pages publish --profile desk --dataset dsads
"""

from __future__ import annotations

import argparse
import base64
import filecmp
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jinja2
import nbformat
from nbconvert import HTMLExporter
from PIL import Image

from harvis_utils.chain import commands, stamps
from harvis_utils.data import kinds
from harvis_utils.settings import (
    APPROXIMATE,
    PROFILES,
    REPOSITORY,
    Settings,
    SettingsError,
    artifact_root,
    data_folders,
    load_settings,
    report_root,
)
from harvis_utils.store.files import ArtifactError, read_json, write_text

TEMPLATES = Path(__file__).resolve().parent / "templates"

#: a published run stays small enough to live in a git repository
PUBLISHED_BYTES = 6_000_000


class PublishError(ArtifactError):
    """A run that cannot be published as it is; the message says what is missing or wrong."""


# ----------------------------------------------------------------------------------------- what is known of a run


@dataclass(frozen=True)
class Page:
    """A notebook of a run: its file and its page's, and how long it took."""

    notebook: Path
    path: Path
    seconds: float
    date: str

    @property
    def title(self) -> str:
        """The notebook's name as words."""
        return self.notebook.stem.replace("_", " ")


@dataclass(frozen=True)
class Run:
    """What the index says about one run; ``folder`` is ``.../<profile>/<dataset>``."""

    folder: Path
    profile: str
    dataset: str
    caveat: str  # "made-up data", "approximate data ...", or empty
    facts: dict[str, str]  # what is known of its results, empty where there are none
    pages: tuple[Page, ...]
    more: tuple[Path, ...]  # what else there is to look at


def caveat(dataset: str) -> str:
    """What every page made from a data set has to say; empty for verified real data."""
    if dataset.endswith(APPROXIMATE):
        return "approximate data (archive not verified)"
    known = kinds.registry().get(dataset)
    if known is None:
        return "a data set this checkout does not know"
    return "made-up data" if known.made_up else ""


def describe(folder: Path) -> Run:
    """Read what the index shows from a run's executed notebooks and its ``results.json``."""
    root = report_root()
    published = folder.is_relative_to(root / "published")  # their pages stay out of the published folder
    html = root / "html" / folder.relative_to(root / "published") if published else folder / "html"
    pages = []
    for notebook in sorted(p for p in folder.glob("*.ipynb") if re.fullmatch(r"\d\d_\w+", p.stem)):
        about = read_json(notebook)["metadata"].get("papermill", {})
        date = (about.get("end_time") or "")[:10]
        pages.append(Page(notebook, html / f"{notebook.stem}.html", about.get("duration") or 0.0, date))
    results = read_json(folder / "results.json") if (folder / "results.json").exists() else {}
    verdicts = Counter(claim["verdict"] for claim in results.get("claims", []))
    facts = {
        "macro F1": _mean_and_spread(results.get("training", {}).get("macro_f1", {})),
        "claims": ", ".join(f"{verdict} {n}" for verdict, n in verdicts.most_common()),
        "executed": max((page.date for page in pages), default=""),
        "took": duration(sum(page.seconds for page in pages)),
    }
    more = [folder / "results.json", folder / "figures", folder / "tables", *sorted(folder.glob("*.html"))]
    there = tuple(path for path in more if path.exists())
    return Run(folder, folder.parent.name, folder.name, caveat(folder.name), facts, tuple(pages), there)


def _mean_and_spread(score: dict) -> str:
    if score.get("mean") is None:
        return ""
    return f"{score['mean']:.3f}" + (f" ± {score['std']:.3f}" if score.get("std") is not None else " (one network)")


def duration(seconds: float) -> str:
    """Seconds in words; empty for none."""
    if not seconds:
        return ""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def find_runs(root: Path) -> list[Run]:
    """Runs under ``<root>/<profile>/<dataset>`` that have executed notebooks, known profiles in their order."""
    runs = [describe(folder) for profile in PROFILES for folder in sorted(root.glob(f"{profile}/*"))]
    return [run for run in runs if run.pages]


# ----------------------------------------------------------------------------------------------------- the pages


def build_run(run: Run) -> list[Path]:
    """Make the pages of a run's executed notebooks; those whose notebook did not change are kept.

    A page carries the modification time of its notebook: that is how it is known to be up to date. Pages
    embed their images and need no network, save that formulas are typeset by MathJax where there is one.
    """
    for old in run.folder.glob("html/[0-9][0-9]_*.html"):
        if old not in [page.path for page in run.pages]:
            old.unlink()
    made = []
    for place, page in enumerate(run.pages):
        changed = page.notebook.stat().st_mtime_ns
        if page.path.exists() and page.path.stat().st_mtime_ns == changed:
            continue
        exporter = HTMLExporter(template_name="harvis", extra_template_basedirs=[str(TEMPLATES)], embed_images=True)
        book = nbformat.read(page.notebook, as_version=4)
        book.metadata.title = f"{page.title} · {run.profile} {run.dataset}"
        names = [None, *(other.notebook.stem for other in run.pages), None]
        about = {
            "index": os.path.relpath(report_root() / "index.html", page.path.parent),
            "name": f"{run.profile} · {run.dataset}",
            "caveat": run.caveat,
            "before": names[place],
            "after": names[place + 2],
        }
        content, _ = exporter.from_notebook_node(book, resources={"run": about})
        # links from notebook to notebook lead from page to page here
        content = re.sub(r'href="(?:\./)?(\d\d_\w+)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', content)
        write_text(page.path, content)
        os.utime(page.path, ns=(changed, changed))
        made.append(page.path)
    return made


def build_index() -> Path:
    """Write ``reports/index.html``: every run found, then the published ones."""
    root = report_root()
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES / "harvis"), autoescape=True)
    environment.filters |= {"near": lambda path: os.path.relpath(path, root), "duration": duration}
    groups = {"Runs in this checkout": find_runs(root), "Published results": find_runs(root / "published")}
    return write_text(root / "index.html", environment.get_template("runs.html.j2").render(groups=groups))


def build(cfg: Settings | None = None) -> str:
    """Make the pages of one run, or of all, and the index; says where they are, and the run's main result."""
    root = report_root()
    runs = [describe(cfg.reports)] if cfg else [*find_runs(root), *find_runs(root / "published")]
    for run in runs:
        build_run(run)
    lines = [f"  {'pages':<9}{commands.near(build_index())}"]
    if cfg:
        said = [f"macro F1 {runs[0].facts['macro F1']} on test subjects"] if runs[0].facts["macro F1"] else []
        lines += [f"  {line}" for line in (*said, runs[0].caveat) if line]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- publishing


def publish(cfg: Settings, notebooks: list[Path]) -> Path:
    """Copy a finished run, without pages, to ``reports/published/<profile>/<dataset>``, replacing an older one.

    Raises :class:`PublishError` when a notebook of ``notebooks`` was not executed to its end, when
    ``results.json`` is missing or invalid, when a file contains a path of this machine, or when more than 6 MB are new
    or changed.
    """
    from harvis_utils.paper import report  # loads torch, which pages do without

    again = f"run `make reproduce PROFILE={cfg.profile} DATASET={cfg.dataset}` to its end first"
    made = set()
    for name in (notebook.stem for notebook in notebooks):
        executed, stamp = cfg.reports / f"{name}.ipynb", cfg.reports / "stamps" / f"{name}.json"
        if not executed.exists() or not stamp.exists():
            raise PublishError(f"{name}.ipynb has not been executed for this run; {again}")
        book = read_json(executed)
        code = [c for c in book["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]
        failed = book["metadata"].get("papermill", {}).get("exception")
        if failed or any(c.get("execution_count") is None for c in code):
            raise PublishError(f"{executed} was not executed to its end; {again}")
        # only what the stamps list is published, not what an older version of a notebook left
        made |= {Path(file) for file in read_json(stamp)["made"]["files"]}
    results = cfg.reports / "results.json"
    if not results.exists():
        raise PublishError(f"{results} does not exist; {again}")
    try:
        report.validate(read_json(results))
    except Exception as error:
        raise PublishError(f"{results} is not valid: {error}") from error
    wanted = {p for p in made if p.parts[0] in ("figures", "tables") or (len(p.parts) == 1 and p.suffix == ".json")}
    wanted |= {Path("results.json"), *(Path(f"{notebook.stem}.ipynb") for notebook in notebooks)}
    files = [cfg.reports / p for p in sorted(wanted) if p.suffix != ".html"]
    for path in files:
        if not path.exists():
            raise PublishError(f"{path} is missing; {again}")
        if found := machine_paths(path):
            raise PublishError(
                f"{path} contains paths of this machine, as {found[0]!r}; print them relative to the project"
            )
    return _replace(report_root() / "published" / cfg.profile / cfg.dataset, files, cfg.reports)


def machine_paths(path: Path) -> list[str]:
    """Absolute paths of this machine in a text file."""
    if path.suffix not in (".ipynb", ".json", ".csv", ".txt", ".svg", ".md"):
        return []
    text = re.sub(r"\\[nt]", " ", path.read_text(encoding="utf-8"))  # what JSON writes in front of a word
    known = [REPOSITORY, Path.home(), report_root(), artifact_root(), *data_folders()]
    here = "|".join(re.escape(str(p)) for p in known if len(p.parts) > 1)
    found = re.findall(rf"(?<![\w.~+/-])(?:(?:{here})(?![\w-])|/(?:home|Users)/\w)[^\s\"'\\]{{0,80}}", text)
    return sorted(set(found))


def _replace(target: Path, files: list[Path], base: Path) -> Path:
    """Copy files beside ``target`` first, then let the copy take its place in two renames."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    sources = Path(os.path.relpath(REPOSITORY / "notebooks", target)).as_posix()
    try:
        part.chmod(0o755)  # mkdtemp makes it private
        for path in files:
            copy = part / path.relative_to(base)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(_light(path, {p.name for p in files}, sources))
        copies = {p: target / p.relative_to(part) for p in part.rglob("*") if p.is_file()}
        size = sum(p.stat().st_size for p, old in copies.items() if not old.exists() or not filecmp.cmp(p, old, False))
        if size > PUBLISHED_BYTES:
            raise PublishError(
                f"{size / 1e6:.1f} MB of the run are new or changed; at most {PUBLISHED_BYTES / 1e6:.0f} MB are "
                "published at a time: publish some notebooks first, from a folder that holds these alone (--notebooks)"
            )
        older = part.with_suffix(".old")
        if target.exists():
            os.rename(target, older)
        os.rename(part, target)
        shutil.rmtree(older, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _light(path: Path, beside: set[str], sources: str) -> bytes:
    """A file's content with its images, also those inside a notebook, in at most 256 colours: a third of the size.

    A notebook's links to others that are not ``beside`` it lead to those in the folder ``sources``.
    """
    if path.suffix == ".png":
        return light_png(path.read_bytes())
    if path.suffix != ".ipynb":
        return path.read_bytes()

    def linked(lines: str | list[str]) -> list[str]:
        text = re.sub(
            r"(?<=\]\()\d\d_\w+\.ipynb", lambda m: m[0] if m[0] in beside else f"{sources}/{m[0]}", "".join(lines)
        )
        return text.splitlines(keepends=True)

    book = read_json(path)
    for cell in book["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = linked(cell["source"])
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            if "text/markdown" in data:
                data["text/markdown"] = linked(data["text/markdown"])
            if "image/png" in data:
                small = light_png(base64.b64decode("".join(data["image/png"])))
                data["image/png"] = base64.b64encode(small).decode("ascii")
    return (json.dumps(book, indent=1, ensure_ascii=False) + "\n").encode()


def light_png(content: bytes) -> bytes:
    """A PNG in at most 256 colours on white, enough for plots; the given one where that is no smaller."""
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    out = io.BytesIO()
    # an octree keeps rare colours, which the default merges; no dithering, which puts dots into plain areas
    flat.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return min(content, out.getvalue(), key=len)


# -------------------------------------------------------------------------------------------- the command line


def main(arguments: list[str] | None = None) -> int:
    """``report`` (of one run, or of all) or ``publish``; 0 when it worked."""
    parser = argparse.ArgumentParser(prog="python -m workflow.pages", description="Executed notebooks as pages.")
    commands = parser.add_subparsers(dest="command", required=True)
    reporting, publishing = commands.add_parser("report"), commands.add_parser("publish")
    reporting.add_argument("--profile", help="only the pages of one run, and the index; default: of all runs")
    publishing.add_argument("--profile", default="quick")
    publishing.add_argument("--notebooks", type=Path, default=stamps.NOTEBOOKS)
    for command in (reporting, publishing):
        command.add_argument("--dataset", default="synthetic")
    words = parser.parse_args(arguments)
    try:
        cfg = load_settings(words.profile, words.dataset) if words.profile else None
        if words.command == "report":
            print(build(cfg))
        else:
            print(f"published: {commands.near(publish(cfg, stamps.find_notebooks(words.notebooks)))}")
    except (stamps.ChainError, SettingsError, ArtifactError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
