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
import html
import io
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

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

#: a published run stays small enough to live in a git repository
PUBLISHED_BYTES = 6_000_000


class PublishError(ArtifactError):
    """A run that cannot be published as it is; the message says what is missing or wrong."""


# ----------------------------------------------------------------------------------------- what is known of a run


@dataclass(frozen=True)
class Run:
    """What the index says about one run; ``folder`` is ``.../<profile>/<dataset>``."""

    folder: Path
    profile: str
    dataset: str
    notebooks: tuple[Path, ...]
    caveat: str  # "made-up data", "approximate data ...", or empty
    macro_f1: str  # "0.731 ± 0.004", or empty before there are results
    verdicts: str  # "holds 5, partly 3", or empty
    seconds: float
    date: str


def executed_notebooks(folder: Path) -> tuple[Path, ...]:
    """The executed notebooks of a run, in order."""
    return tuple(sorted(p for p in folder.glob("*.ipynb") if re.fullmatch(r"\d\d_\w+", p.stem)))


def caveat(dataset: str) -> str:
    """What every page made from a data set has to say; empty for verified real data."""
    if dataset.endswith(APPROXIMATE):
        return "approximate data (archive not verified)"
    known = kinds.registry().get(dataset)
    if known is None:
        return "a data set this checkout does not know"
    return "made-up data" if known.made_up else ""


def describe(folder: Path) -> Run:
    """Read what the index shows from a run's notebooks and its ``results.json``."""
    notebooks = executed_notebooks(folder)
    about = [read_json(p)["metadata"].get("papermill", {}) for p in notebooks]
    results = read_json(folder / "results.json") if (folder / "results.json").exists() else {}
    score = results.get("training", {}).get("macro_f1", {})
    found = [claim.get("verdict") for claim in results.get("claims", [])]
    verdicts = ("holds", "partly", "does not hold", "not testable here")
    return Run(
        folder=folder,
        profile=folder.parent.name,
        dataset=folder.name,
        notebooks=notebooks,
        caveat=caveat(folder.name),
        macro_f1=_mean_and_spread(score),
        verdicts=", ".join(f"{kind} {found.count(kind)}" for kind in verdicts if kind in found),
        seconds=sum(a.get("duration") or 0.0 for a in about),
        date=max((a.get("end_time") or "" for a in about), default="")[:10],
    )


def _mean_and_spread(score: dict) -> str:
    if score.get("mean") is None:
        return ""
    return f"{score['mean']:.3f}" + (f" ± {score['std']:.3f}" if score.get("std") is not None else " (one network)")


def find_runs(root: Path) -> list[Run]:
    """Runs under ``<root>/<profile>/<dataset>`` that have executed notebooks, known profiles in their order."""
    folders = [f for profile in PROFILES for f in sorted(root.glob(f"{profile}/*")) if executed_notebooks(f)]
    return [describe(folder) for folder in folders]


# ----------------------------------------------------------------------------------------------------- the pages

STYLE = """
:root { --ink: #1d2733; --soft: #5c6b7a; --line: #dfe5ea; --paper: #fff; --wash: #f5f7f9; --accent: #0b6e99;
        --warn-ink: #7a4b00; --warn: #fff3d6; }
* { box-sizing: border-box; }
.hv { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink); }
.hv a { color: var(--accent); text-decoration: none; } .hv a:hover { text-decoration: underline; }
.hv .caveat { background: var(--warn); color: var(--warn-ink); border-radius: 999px; padding: .1em .7em;
              font-size: .82rem; font-weight: 600; white-space: nowrap; }
"""

INDEX_STYLE = """
body { margin: 0; background: var(--wash); }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .2rem; letter-spacing: -.01em; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .8rem; }
.lead { color: var(--soft); margin: 0; max-width: 44rem; }
.runs { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.run { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 1.1rem 1.25rem; }
.run h3 { margin: 0 0 .5rem; font-size: 1.05rem; display: flex; gap: .6rem; align-items: center; flex-wrap: wrap; }
.run dl { display: grid; grid-template-columns: auto 1fr; gap: .15rem .9rem; margin: 0 0 .8rem; font-size: .9rem; }
.run dt { color: var(--soft); } .run dd { margin: 0; font-variant-numeric: tabular-nums; }
.run ol { list-style: none; margin: 0; padding: .7rem 0 0; border-top: 1px solid var(--line); font-size: .93rem; }
.run li { display: flex; justify-content: space-between; gap: 1rem; padding: .1rem 0; }
.run li span { color: var(--soft); font-variant-numeric: tabular-nums; }
.run p { margin: .7rem 0 0; font-size: .88rem; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #9aa8b5; --line: #303a44; --paper: #1b222a;
  --wash: #12171d; --accent: #6cc0e5; --warn-ink: #ffdf9e; --warn: #4b3a12; } }
"""

BAR_STYLE = """
:root { --jp-cell-prompt-width: 84px; }
.hv-bar { position: sticky; top: 0; z-index: 99; background: #fff; border-bottom: 1px solid var(--line); display: flex;
          flex-wrap: wrap; gap: .3rem 1.1rem; align-items: center; padding: .55rem 1.25rem; font-size: .9rem; }
.hv-bar .steps { margin-left: auto; display: flex; gap: 1.1rem; }
main > .jp-Cell, main > .hv-wrap { max-width: 72rem; margin-left: auto; margin-right: auto; }
"""


def _page(title: str, style: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head>\n"
        f'<body class="hv">\n{body}\n</body></html>\n'
    )


def _link(target: Path, text: str, start: Path) -> str:
    return f'<a href="{html.escape(Path(os.path.relpath(target, start)).as_posix())}">{html.escape(text)}</a>'


def _readable(stem: str) -> str:
    return stem.replace("_", " ")


def _caveat_label(run: Run) -> str:
    return f'<span class="caveat">{html.escape(run.caveat)}</span>' if run.caveat else ""


def page_folder(run: Run) -> Path:
    """Where a run's pages go; those of published runs stay out of the published folder."""
    published = report_root() / "published"
    if run.folder.is_relative_to(published):
        return report_root() / "html" / run.folder.relative_to(published)
    return run.folder / "html"


def build_run(folder: Path) -> list[Path]:
    """Make the pages of a run's executed notebooks; those whose notebook did not change are kept.

    A page carries the modification time of its notebook: that is how it is known to be up to date. Pages
    embed their images and need no network, save that formulas are typeset by MathJax where there is one.
    """
    run = describe(folder)
    pages = {nb: page_folder(run) / f"{nb.stem}.html" for nb in run.notebooks}
    wanted = {page.name for page in pages.values()}
    for old in page_folder(run).glob("[0-9][0-9]_*.html"):
        if old.name not in wanted:
            old.unlink()
    stale = [n for n, p in pages.items() if not p.exists() or p.stat().st_mtime_ns != n.stat().st_mtime_ns]
    if not stale:
        return []
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab", embed_images=True, require_js_url="")
    for notebook in stale:
        changed = notebook.stat().st_mtime_ns
        exporter.mathjax_url = HTMLExporter.mathjax_url.default_value if _has_formulas(notebook) else ""
        content, _ = exporter.from_filename(str(notebook))
        write_text(pages[notebook], _with_bar(content, run, notebook))
        os.utime(pages[notebook], ns=(changed, changed))
    return [pages[n] for n in stale]


def _has_formulas(notebook: Path) -> bool:
    cells = read_json(notebook)["cells"]
    return any("$" in "".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def _with_bar(content: str, run: Run, notebook: Path) -> str:
    """A notebook's page with a line on top: which run, its caveat, and the notebooks before and after."""
    start = page_folder(run)
    names = [n.stem for n in run.notebooks]
    place = names.index(notebook.stem)
    steps = [_link(start / f"{name}.html", f"← {name}", start) for name in names[max(place - 1, 0) : place]]
    steps += [_link(start / f"{name}.html", f"{name} →", start) for name in names[place + 1 : place + 2]]
    bar = (
        f'<nav class="hv hv-bar">{_link(report_root() / "index.html", "all runs", start)}'
        f"<span>{html.escape(run.profile)} · {html.escape(run.dataset)}</span>{_caveat_label(run)}"
        f'<span class="steps">{"".join(steps)}</span></nav>'
    )
    content = re.sub(r'<script src=""\s*>\s*</script>', "", content)
    title = html.escape(f"{_readable(notebook.stem)} · {run.profile} {run.dataset}")
    content = re.sub(r"<title>.*?</title>", lambda _: f"<title>{title}</title>", content, count=1, flags=re.S)
    # links from notebook to notebook lead from page to page here
    content = re.sub(r'href="(?:\./)?(\d\d_\w+)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', content)
    content = content.replace("</head>", f"<style>{STYLE}{BAR_STYLE}</style></head>", 1)
    return re.sub(r"(<body[^>]*>)", lambda found: found.group(1) + bar, content, count=1)


def _card(run: Run, start: Path) -> str:
    """One run in the index."""
    facts = {"macro F1": run.macro_f1, "claims": run.verdicts, "executed": run.date, "took": _duration(run.seconds)}
    rows = "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items() if v)
    items = []
    for notebook in run.notebooks:
        page = page_folder(run) / f"{notebook.stem}.html"
        seconds = read_json(notebook)["metadata"].get("papermill", {}).get("duration")
        link = _link(page if page.exists() else notebook, _readable(notebook.stem), start)
        items.append(f"<li>{link}<span>{_duration(seconds)}</span></li>")
    more = [run.folder / "results.json", run.folder / "figures", run.folder / "tables", *run.folder.glob("*.html")]
    links = " · ".join(_link(path, path.name, start) for path in more if path.exists())
    return (
        f'<section class="run"><h3>{html.escape(run.profile)} · {html.escape(run.dataset)} {_caveat_label(run)}</h3>'
        f"<dl>{rows}</dl><ol>{''.join(items)}</ol><p>{links}</p></section>"
    )


def _duration(seconds: float | None) -> str:
    if not seconds:
        return ""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def build_index() -> Path:
    """Write ``reports/index.html``: every run found, then the published ones."""
    root = report_root()
    groups = {"Runs in this checkout": find_runs(root), "Published results": find_runs(root / "published")}
    body = (
        "<main><h1>harvis</h1>"
        '<p class="lead">What wearable-sensor networks have learned, by Activation Maximization: '
        "the executed notebooks of each profile and data set.</p>"
    )
    for title, runs in groups.items():
        if runs:
            cards = "".join(_card(run, root) for run in runs)
            body += f'<h2>{title}</h2><div class="runs">{cards}</div>'
    if not any(groups.values()):
        body += "<p>Nothing has been run yet: <code>make reproduce</code>.</p>"
    return write_text(root / "index.html", _page("harvis: results", INDEX_STYLE, body + "</main>"))


def build_all() -> Path:
    """Make the pages of every run and every published run, and the index."""
    root = report_root()
    for run in [*find_runs(root), *find_runs(root / "published")]:
        build_run(run.folder)
    return build_index()


# ---------------------------------------------------------------------------------------------------- publishing


def publish(cfg: Settings, notebooks: list[Path]) -> Path:
    """Copy a finished run, without pages, to ``reports/published/<profile>/<dataset>``, replacing an older one.

    Raises :class:`PublishError` when a notebook of ``notebooks`` was not executed to its end, when
    ``results.json`` is missing or invalid, when a file contains a path of this machine, or when more than 6 MB are new
    or changed.
    """
    from harvis_utils.paper import report  # loads torch, which pages do without

    for notebook in notebooks:
        _check_finished(cfg, notebook)
    results = cfg.reports / "results.json"
    if not results.exists():
        raise PublishError(f"{results} does not exist; {_again(cfg)}")
    try:
        report.validate(read_json(results))
    except Exception as error:
        raise PublishError(f"{results} is not valid: {error}") from error
    files = [cfg.reports / f"{n.stem}.ipynb" for n in notebooks] + [results]
    made = sorted({name for n in notebooks for name in read_json(_stamp(cfg, n))["made"]["files"]})
    for name in map(Path, made):
        if name.parts[0] in ("figures", "tables") or (len(name.parts) == 1 and name.suffix == ".json"):
            files.append(cfg.reports / name)
    files = list(dict.fromkeys(p for p in files if p.suffix != ".html"))
    for path in files:
        if not path.exists():
            raise PublishError(f"{path} is missing; {_again(cfg)}")
    for path in files:
        if found := machine_paths(path):
            raise PublishError(
                f"{path} contains paths of this machine, as {found[0]!r}; print them relative to the project"
            )
    return _replace(report_root() / "published" / cfg.profile / cfg.dataset, files, cfg.reports)


def _again(cfg: Settings) -> str:
    return f"run `make reproduce PROFILE={cfg.profile} DATASET={cfg.dataset}` to its end first"


def _stamp(cfg: Settings, notebook: Path) -> Path:
    """The list of what a notebook made; only that is published, not what an older version of it left."""
    return cfg.reports / "stamps" / f"{notebook.stem}.json"


def _check_finished(cfg: Settings, notebook: Path) -> None:
    executed = cfg.reports / f"{notebook.stem}.ipynb"
    if not executed.exists() or not _stamp(cfg, notebook).exists():
        raise PublishError(f"{notebook.name} has not been executed for this run; {_again(cfg)}")
    book = read_json(executed)
    about = book["metadata"].get("papermill", {})
    code = [c for c in book["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    if about.get("exception") or any(c.get("execution_count") is None for c in code):
        raise PublishError(f"{executed} was not executed to its end; {_again(cfg)}")


def machine_paths(path: Path) -> list[str]:
    """Absolute paths of this machine in a text file; in a notebook, everywhere but in images."""
    if path.suffix == ".ipynb":
        text = "\n".join(_strings(read_json(path)))
    elif path.suffix in (".json", ".csv", ".txt", ".svg", ".md"):
        text = path.read_text(encoding="utf-8")
    else:
        return []
    known = [REPOSITORY, Path.home(), report_root(), artifact_root(), *data_folders()]
    here = "|".join(re.escape(str(p)) for p in known if len(p.parts) > 1)
    found = re.findall(rf"(?<![\w.~-])(?:(?:{here})(?![\w-])|/(?:home|Users)/\w)[^\s\"']{{0,80}}", text)
    return sorted(set(found))


def _strings(value, kind: str = "text/plain") -> list[str]:
    if isinstance(value, dict):
        return [s for k, v in value.items() for s in _strings(v, k if "/" in k else kind)]
    if isinstance(value, list):
        return [s for v in value for s in _strings(v, kind)]
    return [value] if isinstance(value, str) and not kind.startswith("image/") else []


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
    book = read_json(path)
    for cell in book["cells"]:
        outputs = [o["data"] for o in cell.get("outputs", []) if "text/markdown" in o.get("data", {})]
        prose = [(cell, "source")] if cell["cell_type"] == "markdown" else [(data, "text/markdown") for data in outputs]
        for holder, key in prose:
            text = re.sub(
                r"(?<=\]\()\d\d_\w+\.ipynb",
                lambda m: m[0] if m[0] in beside else f"{sources}/{m[0]}",
                "".join(holder[key]),
            )
            holder[key] = text.splitlines(keepends=True)
    for output in (o for cell in book["cells"] for o in cell.get("outputs", [])):
        image = output.get("data", {}).get("image/png")
        if image is not None:
            small = light_png(base64.b64decode("".join(image)))
            output["data"]["image/png"] = base64.b64encode(small).decode("ascii")
    return (json.dumps(book, indent=1, ensure_ascii=False) + "\n").encode()


def light_png(content: bytes) -> bytes:
    """A PNG in at most 256 colours on white, enough for plots; the given one where that is no smaller."""
    from PIL import Image

    image = Image.open(io.BytesIO(content)).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    out = io.BytesIO()
    # an octree keeps rare colours, which the default merges; no dithering, which puts dots into plain areas
    flat.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return min(content, out.getvalue(), key=len)


# -------------------------------------------------------------------------------------------- the command line


def _report(cfg: Settings | None) -> str:
    """Make the pages of one run, or of all, and the index; where they are, and the run's main result."""
    if cfg is None:
        return f"pages: {commands.near(build_all())}"
    build_run(cfg.reports)
    run = describe(cfg.reports)
    lines = [f"  {'pages':<9}{commands.near(build_index())}"]
    lines += [f"  macro F1 {run.macro_f1} on test subjects"] if run.macro_f1 else []
    return "\n".join([*lines, f"  {run.caveat}"] if run.caveat else lines)


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
            print(_report(cfg))
        else:
            print(f"published: {commands.near(publish(cfg, stamps.find_notebooks(words.notebooks)))}")
    except (stamps.ChainError, SettingsError, ArtifactError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
