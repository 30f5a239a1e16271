"""Executed notebooks turned into pages to read in a browser, and an index of all runs with a search.

``reports/<profile>/<dataset>/html/`` holds a run's notebooks as pages that need no other file, ``reports/api/`` the
package's docstrings; ``reports/index.html`` lists and searches all of it. No page loads anything from anywhere::

    python -m workflow.pages
    python -m workflow.pages --profile quick --dataset synthetic
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jinja2
import nbformat
from docutils.utils.math.latex2mathml import tex2mathml
from markupsafe import escape
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from harvis_utils.chain import commands
from harvis_utils.chain.stamps import NOTEBOOKS, PARTS
from harvis_utils.data import kinds
from harvis_utils.parallel import command_line
from harvis_utils.settings import APPROXIMATE, PROFILES, REPOSITORY, load_settings, report_root
from harvis_utils.store.files import ArtifactError, read_json, reading, write_text

TEMPLATES = Path(__file__).resolve().parent / "templates"
PACKAGE = REPOSITORY / "harvis_utils"


@dataclass(frozen=True)
class Page:
    """A notebook of a run: its title, its file and its page's, how long it took, and its :func:`passages`.

    ``failed`` says why it stopped half way, and is empty where it did not.
    """

    title: str
    notebook: Path
    path: Path
    seconds: float
    date: str
    passages: tuple[tuple[str, str, str], ...]
    failed: str = ""


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
    """Read what the index shows from a run's executed notebooks and its ``results.json``.

    Raises :class:`ArtifactError` where one of them is of another form.
    """
    root = report_root()
    published = folder.is_relative_to(root / "published")  # their pages stay out of the published folder
    html = root / "html" / folder.relative_to(root / "published") if published else folder / "html"
    pages, failed = [], {path.name.split(".")[0]: path for path in folder.glob("logs/*.error.txt")}
    halves = [of for name in failed if (of := folder / "logs" / f"{name}.ipynb").exists()]
    whole = [of for of in folder.glob("*.ipynb") if of.stem not in failed]
    for notebook in sorted([*whole, *halves], key=lambda path: path.stem):
        if not re.fullmatch(r"\d\d[a-z]?_\w+", notebook.stem):
            continue
        with reading(notebook):
            book = read_json(notebook)
            about = book["metadata"].get("papermill", {})
            took, date = about.get("duration") or 0.0, (about.get("end_time") or "")[:10]
            said = tuple(passages(book["cells"]))
            number, _, name = notebook.stem.partition("_")
            title = f"{number} · " + ((said and said[0][0].split(" · ")[-1]) or name.replace("_", " "))
            why = failed[notebook.stem].read_text(encoding="utf-8").strip() if notebook.stem in failed else ""
            pages.append(Page(title, notebook, html / f"{notebook.stem}.html", took, date, said, why))
    results = read_json(folder / "results.json") if (folder / "results.json").exists() else {}
    with reading(folder / "results.json"):
        verdicts = Counter(claim["direction"] for claim in results.get("claims", []))
        facts = {
            "macro F1": spread(results["training"]["macro_f1"]) if results else "",
            "claims": ", ".join(f"{verdict} {n}" for verdict, n in verdicts.most_common()),
            "executed": max((page.date for page in pages), default=""),
            "took": duration(sum(page.seconds for page in pages)),
            "failed": ", ".join(sorted(failed)),
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
    runs = []
    for folder in (folder for profile in PROFILES for folder in sorted(root.glob(f"{profile}/*"))):
        try:
            runs.append(describe(folder))
        except ArtifactError as error:
            print(f"left out: {error}", file=sys.stderr)  # the others are shown all the same
    return [run for run in runs if run.pages]


def passages(cells: list[dict]) -> Iterator[tuple[str, str, str]]:
    """What a notebook's search finds: (heading, plain text, id of the cell) of prose, of findings and of figures."""
    heading = ""
    for place, cell in enumerate(cells):
        outputs = cell.get("outputs", [])
        texts = [cell["source"]] if cell["cell_type"] == "markdown" else []
        texts += [output["data"]["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})]
        texts += [output["metadata"].get("image/png", {}).get("alt", "") for output in outputs if "metadata" in output]
        for part in (part for text in texts for part in re.split(r"^(?=#+ )", "".join(text), flags=re.MULTILINE)):
            if found := re.match(r"#+ (.*)\n?", part):
                heading, part = plain(found[1]), part[found.end() :]
                yield heading, plain(part), cell.get("id", place)
            elif part.strip():
                yield heading, plain(part), cell.get("id", place)


def plain(text: str) -> str:
    """Markdown without its marks."""
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)|<[^>]*>|^\|[-:|]+\|$", r"\1", text, flags=re.MULTILINE)
    return " ".join(re.sub(r"[*`|$]", " ", text).split())


class Prose(IPythonRenderer):
    """Markdown as HTML: formulas as MathML, which browsers draw by themselves, and links led by ``lead``."""

    def __init__(self, lead: Callable[[str], str] = str, **more) -> None:
        super().__init__(escape=False, embed_images=True, **more)
        self.lead = lead

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, self.lead(url), title)

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return mathml(body, block=True)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", block=True)


#: commands that docutils does not know, and what it draws the same
UNKNOWN = {r"([bB]igg?)": r"\\\1l", "dots": r"\\ldots", "tfrac": r"\\frac", "textstyle": ""}


def mathml(formula: str, block: bool = False) -> str:
    """A LaTeX formula as MathML; as it stands, marked by a class, where it has commands that are not known."""
    for name, known in UNKNOWN.items():
        formula = re.sub(rf"\\{name}(?![A-Za-z])", known, formula)
    try:
        made = tex2mathml(formula, as_block=block)
        return f'<span class="{"block " * block}math">{made}</span>'  # which scrolls where it is too wide
    except (ValueError, AttributeError, IndexError, SyntaxError):
        return f'<code class="formula">{escape(formula)}</code>'


def leading(url: str, run: Run, page: Page) -> str:
    """Where a link of a notebook leads from its page: to pages where there are some, else to the file meant."""
    target, mark, place = url.partition("#")
    if not target or re.match(r"[a-z]+:", target):
        return url
    if target.endswith(".ipynb") and Path(target).stem in {other.notebook.stem for other in run.pages}:
        return f"{Path(target).stem}.html{mark}{place}"
    meant = [run.folder / target, NOTEBOOKS / target, NOTEBOOKS / Path(target).name]
    path = next((path.resolve() for path in meant if path.exists()), None)
    if path and path.suffix == ".py" and path.is_relative_to(PACKAGE):
        room, module = named(path)
        path, mark, place = report_root() / "api" / f"{room}.html", "#", module
    return f"{os.path.relpath(path, page.path.parent)}{mark}{place}" if path else url


def secured(template: str) -> dict:
    """What keeps a page from loading or sending anything: its one script, and a policy that allows only that one.

    Styles may stand in the page, because tables of pandas and the highlighting of code bring theirs.
    """
    script = (TEMPLATES / "harvis" / template).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return {"script": script, "policy": f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"}


def build_run(run: Run) -> list[Path]:
    """Make the pages of a run's executed notebooks; those are kept of which neither notebook nor template changed.

    A page carries the modification time of the newest of these: that is how it is known to be up to date.
    """
    for old in run.folder.glob("html/[0-9][0-9]*_*.html"):
        if old not in [page.path for page in run.pages]:
            old.unlink()
    made = []
    exporter = HTMLExporter(template_name="harvis", extra_template_basedirs=[str(TEMPLATES)])
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    names = [None, *(page.notebook.stem for page in run.pages), None]
    for place, page in enumerate(run.pages):
        sources = (page.notebook, Path(__file__), *TEMPLATES.glob("harvis/*"))
        changed = max(path.stat().st_mtime_ns for path in sources)
        if page.path.exists() and page.path.stat().st_mtime_ns == changed:
            continue
        prose = Prose(partial(leading, run=run, page=page), path=str(run.folder))
        exporter.register_filter("markdown2html", MarkdownWithMath(renderer=prose).render)
        book = nbformat.read(page.notebook, as_version=4)
        describe_pictures(book, run.caveat)
        book.metadata.title = f"{page.title} · {run.name}"
        index = os.path.relpath(report_root() / "index.html", page.path.parent)
        about = {"run": run, "index": index, "before": names[place], "after": names[place + 2], "failed": page.failed}
        content, _ = exporter.from_notebook_node(book, resources=about | secured("page.js"))
        write_text(page.path, content)
        os.utime(page.path, ns=(changed, changed))
        made.append(page.path)
    return made


def describe_pictures(book: nbformat.NotebookNode, caveat: str) -> None:
    """Give every picture of a notebook an alt text: its own or the heading above it, and what to know of the data."""
    heading = "Figure"
    for cell in book.cells:
        found = re.findall(r"^#+ (.*)", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        heading = plain(found[-1]) if found else heading
        for output in (output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})):
            about = output.metadata.setdefault("image/png", {})
            said = about.get("alt") or heading
            about["alt"] = said if caveat in said else f"{said}. {caveat}"


def named(path: Path) -> tuple[str, str]:
    """The room of the package that a file belongs to, and the name by which the file is imported."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0], ".".join((PACKAGE.name, *(part for part in parts if part != "__init__")))


def read_package() -> dict[str, list[dict]]:
    """Modules of every room of the package: name, docstring, and public functions and classes with theirs.

    The files are parsed, not imported, so that nothing heavy is loaded.
    """
    rooms: dict[str, list[dict]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room, module = named(path)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        items = [item for node in tree.body for item in described(node, module)]
        if items or ast.get_docstring(tree):
            about = {"name": module, "text": ast.get_docstring(tree) or "", "items": items}
            rooms.setdefault(room, []).append(about)
    rooms.pop("__init__", None)
    return rooms


def described(node: ast.AST, module: str, within: str = "") -> list[dict]:
    """A public function, or class with its public methods, by name, signature, docstring; nothing for other nodes."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
        return []
    name = within + node.name
    about = {"name": f"{module}.{name}", "text": ast.get_docstring(node) or ""}
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return [about | {"signature": f"{name}({ast.unparse(node.args)}){returns}"}]
    fields = [ast.unparse(field) for field in node.body if isinstance(field, ast.AnnAssign)]
    bases = ", ".join(map(ast.unparse, node.bases))
    signature = "\n    ".join([f"class {name}" + (f"({bases})" if bases else ""), *fields])
    methods = [item for part in node.body for item in described(part, module, f"{name}.")]
    return [about | {"signature": signature}, *methods]


def build_api(environment: jinja2.Environment) -> dict[str, list[dict]]:
    """Write a page for each room of the package, ``reports/api/<room>.html``; returns what they are made from."""
    rooms = read_package()
    known = {of["name"]: room for room, modules in rooms.items() for m in modules for of in (m, *m["items"])}

    def link(role: re.Match, module: str) -> str:
        """A role of a docstring as a link, where one name only can be meant; names of the same module come first."""
        name = role[1].lstrip("~")
        fitting = [full for full in known if f".{full}".endswith(f".{name}")]
        fitting = [full for full in fitting if full == f"{module}.{name}"] or fitting
        return f"[`{name}`]({known[fitting[0]]}.html#{fitting[0]})" if len(fitting) == 1 else f"`{name}`"

    def docstring(text: str, module: str) -> str:
        text = re.sub(r":[a-z]+:`([^`]+)`", partial(link, module=module), text)
        return MarkdownWithMath(renderer=Prose()).render(re.sub(r"::$", ":", text, flags=re.MULTILINE))

    environment.filters["docstring"] = docstring
    for room, modules in rooms.items():
        content = environment.get_template("api.html.j2").render(room=room, modules=modules, **secured("page.js"))
        write_text(report_root() / "api" / f"{room}.html", content)
    return rooms


def entries(runs: list[Run], rooms: dict[str, list[dict]]) -> list[list]:
    """What the search looks through: [title, heading, text, [[name of a run, address], ...]], functions first."""
    found = [
        [
            of["name"],
            "",
            plain(re.sub(r":[a-z]+:`", "`", of["text"].split("\n\n")[0])),
            [["", f"api/{room}.html#{of['name']}"]],
        ]
        for room, modules in rooms.items()
        for module in modules
        for of in (module, *module["items"])
    ]
    places: dict[tuple, list] = {}  # what several runs say in the same words stands here once
    for run, page in ((of, page) for of in runs for page in of.pages):
        for heading, text, cell in page.passages:
            address = f"{os.path.relpath(page.path, report_root())}#cell-id={cell}"
            places.setdefault((page.title, heading, text), []).append([run.name, address])
    return found + [[*said, where] for said, where in places.items()]


def build_index() -> Path:
    """Write ``reports/index.html``, what was found, every run, notebooks by parts and the search, and the API pages."""
    root = report_root()
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES / "harvis"), autoescape=True)
    environment.filters |= {"near": lambda path: os.path.relpath(path, root), "duration": duration}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    groups = {"Published results": find_runs(root / "published"), "Runs in this checkout": find_runs(root)}
    runs = [run for group in groups.values() for run in group]
    books: dict[str, list[tuple[Run, Page]]] = {}
    for run in runs:
        for page in run.pages:
            books.setdefault(page.notebook.stem, []).append((run, page))
    parts = {
        part.capitalize(): [books[stem] for stem in sorted(books) if int(stem[:2]) in numbers]
        for part, numbers in PARTS.items()
    }
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    said = re.search(r"<!-- findings: .*?-->\n(.*?)<!-- end of findings -->", readme, re.DOTALL)
    findings = MarkdownWithMath(renderer=Prose()).render(said[1]) if said and groups["Published results"] else ""
    rooms = build_api(environment)
    content = environment.get_template("runs.html.j2").render(
        groups=groups, parts=parts, findings=findings, rooms=rooms, entries=entries(runs, rooms), **secured("search.js")
    )
    return write_text(root / "index.html", content)


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
