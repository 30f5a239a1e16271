"""Executed notebooks turned into pages to read in a browser, and an index of all runs.

``reports/<profile>/<dataset>/html/`` holds a run's notebooks as pages that need no other file;
``reports/index.html`` lists all runs found and the published ones::

    python -m workflow.pages
    python -m workflow.pages --profile quick --dataset synthetic
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jinja2
import nbformat
from nbconvert import HTMLExporter

from harvis_utils.chain import commands
from harvis_utils.data import kinds
from harvis_utils.parallel import command_line
from harvis_utils.settings import APPROXIMATE, PROFILES, load_settings, report_root
from harvis_utils.store.files import read_json, write_text

TEMPLATES = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True)
class Page:
    """A notebook of a run: its name as words, its file and its page's, and how long it took."""

    title: str
    notebook: Path
    path: Path
    seconds: float
    date: str


@dataclass(frozen=True)
class Run:
    """What the index says about one run; ``folder`` is ``.../<profile>/<dataset>``."""

    folder: Path
    name: str
    caveat: str  # "made-up data", "approximate data ...", or empty
    facts: dict[str, str]  # what is known of its results, empty where there are none
    pages: tuple[Page, ...]
    more: tuple[Path, ...]  # what else there is to look at


def caveat(dataset: str) -> str:
    """What every page made from a data set has to say; empty for verified real data."""
    known = kinds.registry().get(dataset.removesuffix(APPROXIMATE))
    if known is None:
        return "a data set this checkout does not know"
    return kinds.Recordings(dataset, known, (), verified=not dataset.endswith(APPROXIMATE), digest="").caveat


def describe(folder: Path) -> Run:
    """Read what the index shows from a run's executed notebooks and its ``results.json``."""
    root = report_root()
    published = folder.is_relative_to(root / "published")  # their pages stay out of the published folder
    html = root / "html" / folder.relative_to(root / "published") if published else folder / "html"
    pages = []
    for notebook in sorted(p for p in folder.glob("*.ipynb") if re.fullmatch(r"\d\d[a-z]?_\w+", p.stem)):
        about = read_json(notebook)["metadata"].get("papermill", {})
        took, date = about.get("duration") or 0.0, (about.get("end_time") or "")[:10]
        title = notebook.stem.replace("_", " ")
        pages.append(Page(title, notebook, html / f"{notebook.stem}.html", took, date))
    results = read_json(folder / "results.json") if (folder / "results.json").exists() else {}
    verdicts = Counter(claim["direction"] for claim in results.get("claims", []))
    facts = {
        "macro F1": spread(results["training"]["macro_f1"]) if results else "",
        "claims": ", ".join(f"{verdict} {n}" for verdict, n in verdicts.most_common()),
        "executed": max((page.date for page in pages), default=""),
        "took": duration(sum(page.seconds for page in pages)),
    }
    more = [folder / "results.json", folder / "figures", folder / "tables", *sorted(folder.glob("*.html"))]
    there = tuple(path for path in more if path.exists())
    return Run(folder, f"{folder.parent.name} · {folder.name}", caveat(folder.name), facts, tuple(pages), there)


def spread(score: dict) -> str:
    """Mean and standard deviation over networks in words."""
    return f"{score['mean']:.3f}" + (" (one network)" if score["std"] is None else f" ± {score['std']:.3f}")


def duration(seconds: float) -> str:
    """Seconds in words; empty for none."""
    return (f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min") if seconds else ""


def find_runs(root: Path) -> list[Run]:
    """Runs under ``<root>/<profile>/<dataset>`` that have executed notebooks, known profiles in their order."""
    runs = [describe(folder) for profile in PROFILES for folder in sorted(root.glob(f"{profile}/*"))]
    return [run for run in runs if run.pages]


def build_run(run: Run) -> list[Path]:
    """Make the pages of a run's executed notebooks; those whose notebook did not change are kept.

    A page carries the modification time of its notebook: that is how it is known to be up to date. Pages
    embed their images and need no network, save that formulas are typeset by MathJax where there is one.
    """
    for old in run.folder.glob("html/[0-9][0-9]*_*.html"):
        if old not in [page.path for page in run.pages]:
            old.unlink()
    made = []
    names = [None, *(page.notebook.stem for page in run.pages), None]
    for place, page in enumerate(run.pages):
        changed = page.notebook.stat().st_mtime_ns
        if page.path.exists() and page.path.stat().st_mtime_ns == changed:
            continue
        exporter = HTMLExporter(template_name="harvis", extra_template_basedirs=[str(TEMPLATES)], embed_images=True)
        book = nbformat.read(page.notebook, as_version=4)
        book.metadata.title = f"{page.title} · {run.name}"
        index = os.path.relpath(report_root() / "index.html", page.path.parent)
        about = {"run": run, "index": index, "before": names[place], "after": names[place + 2]}
        content, _ = exporter.from_notebook_node(book, resources=about)
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


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Make the pages of one run, or of all, and the index; says where it is, and the one run's main result."""
    parser = argparse.ArgumentParser(prog="python -m workflow.pages", description="Executed notebooks as pages.")
    parser.add_argument("--profile", help="only the pages of one run, and the index; default: of all runs")
    parser.add_argument("--dataset", default="synthetic")
    words = parser.parse_args(arguments)
    kinds.check_name(words.dataset)
    if words.profile:
        runs = [describe(load_settings(words.profile, words.dataset).reports)]
    else:
        runs = [*find_runs(report_root()), *find_runs(report_root() / "published")]
    for run in runs:
        build_run(run)
    print(f"  {'pages':<9}{commands.near(build_index())}")
    if words.profile:
        score = runs[0].facts["macro F1"]
        said = (f"macro F1 {score} on test subjects" if score else "", runs[0].caveat)
        for line in filter(None, said):
            print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
