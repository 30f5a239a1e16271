"""The form of the notebooks: short cells, formulas, words explained before they are used, findings that can be read.

Sources are looked at here as they stand; what only shows when they are executed is looked at in published runs.
"""

import ast
import json
import re
import statistics

import pytest

from harvis_utils.chain.stamps import PARTS, find_notebooks

BOOKS = find_notebooks()
#: the appendix: tables and lists that nobody reads from end to end
APPENDIX = "20_reference"
#: notebooks that explain no method of their own
WITHOUT_FORMULA = {"00_start_here", "01_data", "06_paper_vs_ours", "14_cards", "19_your_network", APPENDIX}
#: what a short form stands for; one of these words must stand near its first use in every notebook
SHORT = {
    "AM": ["Activation Maximization"],
    "EAP": ["Extreme Activation Penalty"],
    "AAP": ["Abnormal Amplitude Penalty"],
    "TV": ["total variation"],
    "IoU": ["intersection over union"],
    "SF-HF": ["late fusion", "sensor fusion", "hybrid fusion", "Münzner"],
    "GRU": ["gated recurrent unit", "recurrent"],
    "GAN": ["generative adversarial"],
    "FID": ["Fréchet"],
    "AUC": ["area under"],
    "t-SNE": ["neighbour embedding"],
    "MACO": ["magnitude"],
    "F1": ["precision", "mean of precision and recall", "macro F1"],
}


def cells(path, kind):
    """Sources of the cells of one kind."""
    book = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def named(books):
    return pytest.mark.parametrize("path", books, ids=[book.stem for book in books])


@named(BOOKS)
def test_cells_are_short(path):
    lines = [[line for line in cell.splitlines() if line.strip()] for cell in cells(path, "code")]
    counts = [len(of) for of in lines]
    middle = 0 if path.stem == APPENDIX else statistics.median(counts)  # a table each
    assert sum(counts) <= 110 and middle <= 6 and max(counts) <= 20, counts


@named([book for book in BOOKS if book.stem not in WITHOUT_FORMULA])
def test_a_method_is_told_by_its_formula(path):
    text = "\n".join(cells(path, "markdown"))
    assert re.search(r"\$[^$\n]+\$", text), "no formula"


@named([book for book in BOOKS if book.stem != APPENDIX])
def test_short_forms_are_explained_where_they_are_first_used(path):
    text = "\n\n".join(cells(path, "markdown"))
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$|`[^`]*`", " ", text, flags=re.S)  # formulas explain their own symbols
    missing = []
    for short, words in SHORT.items():
        first = re.search(rf"(?<![\w+-]){re.escape(short)}(?![\w-])", text)
        if first:
            near = text[max(0, first.start() - 300) : first.end() + 300].lower()
            link = f"{APPENDIX}.ipynb#{'macro-' * (short == 'F1')}{short}".lower()
            if link not in near and not any(word.lower() in near for word in words):
                missing.append(short)
    assert not missing, f"not explained at their first use: {', '.join(missing)}"


@named(BOOKS)
def test_an_early_cell_draws_the_first_picture(path):
    code = cells(path, "code")[1:]  # behind the parameters
    if path.stem != APPENDIX:
        assert any("figure(" in cell for cell in code[:3]), "no figure in the first three cells"


#: what is greater by how it is made: the best of several ascents, and the first point of one of them
BY_CONSTRUCTION = {"maximum", "at_start"}


def measured(side: ast.AST) -> set[str]:
    """Names of columns that one side of a comparison asks for."""
    if isinstance(side, ast.Set) or (isinstance(side, ast.Call) and ast.unparse(side.func) == "set"):
        return set()  # parts of a set are compared, not values
    keys = [node.slice for node in ast.walk(side) if isinstance(node, ast.Subscript)]
    return {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)} - BY_CONSTRUCTION


@named(BOOKS)
def test_checks_are_of_arithmetic_and_not_of_findings(path):
    """On somebody's honest data a control may win; that is told, and stops no chain."""
    findings = []
    for check in (node for cell in cells(path, "code") for node in ast.walk(ast.parse(cell))):
        for compared in ast.walk(check.test) if isinstance(check, ast.Assert) else ():
            if isinstance(compared, ast.Compare) and isinstance(compared.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE):
                sides = [measured(side) for side in (compared.left, *compared.comparators)]
                findings += [ast.unparse(check)] * (sum(map(bool, sides)) > 1)
    assert not findings, "two measured things are compared, which may come out otherwise"


@named(BOOKS)
def test_prose_takes_no_number_of_axes_and_no_place_of_a_sensor_for_granted(path):
    """What one data set has is said by its description, in a figure or a table."""
    text = "\n".join(cells(path, "markdown"))
    assert not re.findall(r"\b(?:six|6|both|two) (?:axes|sensors)\b|\b(?:right arm|left leg|lower arm|ankle)\b", text)


def test_parts_hold_every_notebook_once():
    numbers = [int(book.stem[:2]) for book in BOOKS]
    assert all(sum(number in part for part in PARTS.values()) == 1 for number in numbers)


# -------------------------------------------------------------------------------------------------- executed notebooks

ROOT = BOOKS[0].parents[1]
#: pages as they were executed
PAGES = sorted((ROOT / "reports" / "published").glob("*/*/*.ipynb"))
#: not numbers that are found: names, formulas and links, an interval behind its number, "99 %" of "the 99 % point"
NO_FINDING = re.compile(
    r"`[^`]*`|\$[^$]*\$|(?<!\*)\*[^*]+\*(?!\*)|\]\([^)]*\)|\([^()]* to [^()]*\)|± ?[\d.]+|made-up \d+|\d+ % (?=point)"
)
NUMBER = re.compile(r"(?<![\w.,])[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")


def outputs(cell, kind):
    """Outputs of an executed cell of one kind."""
    found = (of.get("data", {}).get(kind, "") for of in cell.get("outputs", ()))
    return [text for text in map("".join, found) if text]


def executed(path):
    """The cells of a page; left out is one that was made before its notebook was edited."""
    own = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in own if cell["cell_type"] == "code"]
    code = ["".join(of["source"]) for of in code if "injected-parameters" not in of["metadata"].get("tags", ())]
    if code != cells(ROOT / "notebooks" / path.name, "code"):
        pytest.skip(f"{path.parent.name}/{path.name} was executed before its notebook was edited")
    return own


def findings(cells):
    """Bullets of the section "Findings", written or told by a cell."""
    inside = False
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and re.search("^## ", text, re.M):
            inside = "## Findings" in text
        for told in ([text] if cell["cell_type"] == "markdown" else outputs(cell, "text/markdown")) * inside:
            yield from (line for line in told.splitlines() if line.startswith("- "))


def in_pages(pages):
    return pytest.mark.parametrize("path", pages, ids=["/".join(page.with_suffix("").parts[-3:]) for page in pages])


@in_pages([page for page in PAGES if page.stem != APPENDIX])
def test_a_finding_has_at_most_three_numbers(path):
    numbers = {line: NUMBER.findall(NO_FINDING.sub(" ", line)) for line in findings(executed(path))}
    assert {line: of for line, of in numbers.items() if len(of) > 3} == {}


@in_pages([page for page in PAGES if page.stem != APPENDIX])
def test_a_table_has_at_most_twelve_rows(path):
    rows = {
        number: table.rpartition("<tbody>")[2].count("<tr")
        for number, cell in enumerate(executed(path))
        for table in outputs(cell, "text/html")
        if "<tbody>" in table
    }
    assert {number: n for number, n in rows.items() if n > 12} == {}


def test_numbers_are_counted_without_names_and_intervals():
    line = (
        "- **B1**, `0.3 G` at *slope 0.1*: +0.42 (+0.4 to +0.46), margin 0.1; 5,600 of conv1, $p_{95}$, the 95 % point"
    )
    assert NUMBER.findall(NO_FINDING.sub(" ", line)) == ["+0.42", "0.1", "5,600"]
