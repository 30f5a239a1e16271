"""The book's documents: links lead somewhere, and what they name is there."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DOCUMENTS = [
    ROOT / name for name in ("CONTRIBUTING.md", "README.ja.md", "data/README.md", "reports/published/ERRATA.md")
]
ERRATA = DOCUMENTS[-1]
#: where a link ends, which may hold one pair of parentheses
LINK = re.compile(r"\]\(((?:[^()\s]|\([^()\s]*\))+)\)")
#: terms that a reader may look up by a link
TERMS = (
    "AM L2 TV AAP EAP th p95 Ssim SF-HF IoU MACO ProxyGrad GRU SAN ABN GAN IS FID AUC t-SNE flat silent dead failed "
)
TERMS += "preset reading nearness activation specificity identification recall control null ceiling decoy prior"


@cache
def prose(path: Path) -> str:
    """A document's text; of a notebook its Markdown cells'."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@cache
def anchors(path: Path) -> set[str]:
    """What ``#...`` may be behind a link: headings as Jupyter writes them, or as GitHub does in a text."""
    headings = re.findall(r"^#+ (.+?)\s*$", prose(path), re.M)
    if path.suffix == ".ipynb":
        return {heading.replace(" ", "-") for heading in headings}
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*DOCUMENTS, *NOTEBOOKS], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    lost = []
    for link in LINK.findall(prose(path)):
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        if path in NOTEBOOKS and place.startswith("tables/"):
            continue  # written where the notebook is executed
        if not link.startswith("http") and not (target.exists() and (not anchor or anchor in anchors(target))):
            lost.append(link)
    assert not lost


@pytest.mark.parametrize("section", ["What is promised", "What goes wrong when one looks inside networks"])
def test_every_test_named_beside_what_is_promised_and_what_goes_wrong_is_there(section):
    _, _, text = prose(ROOT / "CONTRIBUTING.md").partition(f"## {section}\n")
    rows = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")][2:]
    named = [set(re.findall(r"`(test_\w+)`", row.rpartition(" | ")[2])) for row in rows]
    files = [*ROOT.glob("tests/test_*.py"), *ROOT.glob("tests/long/test_*.py")]
    there = {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    assert len(rows) >= 10 and all(named) and set().union(*named) <= there, set().union(*named) - there


def test_the_glossary_has_every_term_once():
    terms = re.findall(r"^### (.+)$", prose(ROOT / "notebooks/20_reference.ipynb"), re.M)
    assert set(TERMS.split()) <= set(terms) and len(terms) == len(set(terms))


def test_every_figure_of_the_paper_is_named_in_a_notebook_about_it():
    about = [prose(path) for path in NOTEBOOKS if "01" < path.name < "07"]
    lists = re.findall(r"Figs?\. ((?:\d|, | and )+)", "\n".join(about))
    assert {int(number) for one in lists for number in re.findall(r"\d", one)} >= set(range(1, 9))


def test_the_japanese_readme_names_every_notebook():
    assert [path.stem for path in NOTEBOOKS if path.stem not in prose(ROOT / "README.ja.md")] == []


def test_every_error_has_an_answer_and_the_table_says_which_are_open():
    head, *parts = re.split(r"^## (E\d+)$", prose(ERRATA), flags=re.M)
    told = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(told) == [f"E{n}" for n in range(1, 22)]
    assert all("**Now**" in text and ".ipynb" in text for text in told.values())
    answered = re.search(r"^\| answered.*", head, re.M)[0]
    assert re.findall(r"E\d+", answered) == [name for name, text in told.items() if "**Open:**" not in text]


def test_examples_say_that_they_were_not_tried_and_can_be_read():
    workflow, container = ROOT / ".github/workflows/notebooks.yml", ROOT / ".devcontainer/devcontainer.json"
    for path in (workflow, container, ROOT / "binder/requirements.txt"):
        assert "NOT TRIED" in path.read_text(encoding="utf-8")
    assert "quick" in yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    json.loads(re.sub(r"^//.*$", "", container.read_text(encoding="utf-8"), flags=re.M))
