"""The house: a room imports only from rooms above it, openly, without a circle; and none grows too large."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "harvis_utils"

#: from the ground up: a room may import from those before it, and from itself
ROOMS = (
    *("settings", "parallel", "store", "data", "networks", "fast", "training", "maximization", "metrics"),
    *("lenses", "paper", "figures", "run", "own", "chain"),
)
#: rooms that may import from fewer rooms than stand before them
ONLY = {"figures": (), "chain": ("settings", "parallel", "store", "data")}
MOST_LINES = 450
#: a list of all numbers that one may tune, a line each, is read by looking one up
MOST_SETTINGS = 760

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


every_file = pytest.mark.parametrize("path", FILES, ids=module_of)


def imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, dotted name inside the package, and whether it stands inside a function, of each import of our own."""
    functions = [f for f in ast.walk(TREES[path]) if isinstance(f, ast.FunctionDef)]
    inside = {id(n) for f in functions for n in ast.walk(f)}
    for node in ast.walk(TREES[path]):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        own = [name for name in names if name.split(".")[0] in ("harvis_utils", "workflow")]
        yield from ((node.lineno, name, id(node) in inside) for name in own)


def own_module(dotted: str) -> str:
    """The module that ``harvis_utils.a.b.name`` lies in, without the package."""
    parts = dotted.split(".")[1:]
    while parts and not (PACKAGE.joinpath(*parts).with_suffix(".py").exists() or PACKAGE.joinpath(*parts).is_dir()):
        parts.pop()
    return ".".join(parts)


def test_rooms_are_the_ones_listed():
    there = {p.stem for p in PACKAGE.iterdir() if p.name != "__init__.py" and not p.name.startswith("__")}
    assert there == set(ROOMS)


@every_file
def test_imports_run_up_the_list_and_stand_at_the_top(path):
    room = module_of(path).split(".")[0]
    wrong = []
    for line, dotted, inside in imports(path):
        other = own_module(dotted).split(".")[0]
        if dotted.startswith("workflow"):
            wrong.append(f"line {line}: {dotted}, which the package never imports")
        elif inside:
            wrong.append(f"line {line}: {dotted} inside a function")
        elif other and other != room and other not in ONLY.get(room, ROOMS[: ROOMS.index(room)] if room else ()):
            wrong.append(f"line {line}: {dotted}, a room that does not stand above {room}")
        elif dotted.rpartition(".")[2].startswith("_"):
            wrong.append(f"line {line}: {dotted}, which is private")
    assert not wrong, f"{path.relative_to(ROOT)}\n" + "\n".join(wrong)


def test_no_circle_among_modules():
    arrows = {module_of(p): {own_module(d) for _, d, _ in imports(p)} - {module_of(p)} for p in FILES}
    while arrows:
        free = {m for m, targets in arrows.items() if not targets & arrows.keys()}
        assert free, f"a circle: {arrows}"
        arrows = {m: t for m, t in arrows.items() if m not in free}


@every_file
def test_no_module_goes_by_another_name_or_by_that_of_a_value(path):
    nodes, modules = list(ast.walk(TREES[path])), set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("harvis_utils"):
            for alias in node.names:
                assert not alias.asname, f"line {node.lineno}: {alias.name} as {alias.asname}"
                if own_module(f"{node.module}.{alias.name}").endswith(alias.name):
                    modules.add(alias.name)
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    assert not modules & (bound | {n.arg for n in nodes if isinstance(n, ast.arg)})


@every_file
def test_public_functions_have_docstrings_and_no_file_is_too_long(path):
    defined = [n for n in ast.walk(TREES[path]) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    nested = {id(inner) for f in defined if isinstance(f, ast.FunctionDef) for inner in ast.walk(f) if inner is not f}
    bare = [n.name for n in defined if id(n) not in nested and n.name[0] != "_" and not ast.get_docstring(n)]
    assert ast.get_docstring(TREES[path]) and not bare
    assert len(path.read_text(encoding="utf-8").splitlines()) <= (
        MOST_SETTINGS if path.stem == "settings" else MOST_LINES
    )


def named_by(path: Path) -> set[str]:
    """Dotted names of all that a file imports or calls."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found |= {ast.unparse(call.func) for call in calls if isinstance(call.func, ast.Name | ast.Attribute)}
    return found | {f"{word.arg}={ast.unparse(word.value)}" for call in calls for word in call.keywords}


EVERYWHERE = [*FILES, *sorted(ROOT.glob("workflow/*.py"))]


def test_only_archives_are_fetched_and_nothing_is_sent():
    """Who talks to other machines: one module, which asks for archives by their address."""
    network = r"(requests|urllib|urllib3|http|socket|ssl|pooch|ftplib|smtplib|aiohttp|httpx|boto3)\b(?!\.parse)"
    talking = {module_of(path) for path in FILES if any(re.match(network, name) for name in named_by(path))}
    assert talking == {"data.archive"}
    assert not [p.name for p in EVERYWHERE if p not in FILES and any(re.match(network, n) for n in named_by(p))]
    sending = r"requests\.(post|put|patch|request)$|.*\.(sendall|sendmail|urlopen)$"
    assert not [(path.name, name) for path in EVERYWHERE for name in named_by(path) if re.match(sending, name)]


def test_nothing_that_is_read_is_executed():
    """No pickle in any disguise; the only code that is imported by name are modules of data sets."""
    pickles = (
        r"(pickle|dill|joblib|shelve|marshal|cloudpickle)\b|(torch|joblib)\.load$|.*read_pickle$|allow_pickle=True"
    )
    running = r"(eval|exec|compile|__import__|os\.system|yaml\.load)$|shell=True"
    for path in EVERYWHERE:
        found = [name for name in named_by(path) if re.match(rf"{pickles}|{running}", name)]
        assert not found, f"{path.name}: {found}"
    importing = {module_of(p) for p in FILES if any(name.endswith("import_module") for name in named_by(p))}
    assert importing == {"__init__", "data.kinds"}  # of this package, and of HARVIS_DATASETS
