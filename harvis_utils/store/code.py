"""The code behind a result: what a function names, and what that names, as one digest."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

#: CPython 3.11's parser of syntax trees fails when two threads use it at once
_PARSING = threading.Lock()
#: modules of the package that store, schedule and describe, and decide no number
_GROUND = ("store", "parallel")

#: what a module binds a name to: its definition, or the module and the name that it is imported from
_Place = ast.AST | tuple[str, str]


def _is_module(dotted: str) -> bool:
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package
        return False


@lru_cache
def _definitions(module: str) -> dict[str, _Place]:
    """What the top level of a module binds, by name, without docstrings."""
    source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
    with _PARSING:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        match getattr(node, "body", None):
            case [ast.Expr(value=ast.Constant()), *_]:
                del node.body[0]
    return dict(_bound(tree))


def _bound(tree: ast.AST) -> Iterator[tuple[str, _Place]]:
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.ImportFrom(module=str(origin), level=0):
                yield from ((alias.asname or alias.name, (origin, alias.name)) for alias in node.names)
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name, node
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from ((n.id, node) for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
            case ast.If() | ast.Try():
                yield from _bound(node)


def _named(module: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of everything of the same package that a definition in ``module`` names."""
    places = dict(_definitions(module))
    for inner in ast.walk(node):
        if isinstance(inner, ast.ImportFrom):  # inside a function
            places |= {alias.asname or alias.name: (inner.module, alias.name) for alias in inner.names}
    for inner in ast.walk(node):
        match inner:
            case ast.Name(id=name) if name in places:
                place = places[name]
                yield place if isinstance(place, tuple) else (module, name)
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if isinstance(places.get(name), tuple):
                yield ".".join(places[name]), attribute


def reachable(module: str, name: str, found: dict[str, str] | None = None) -> dict[str, str]:
    """Digests of the syntax trees of ``module.name`` and of all that it names in its own package, by dotted name.

    Functions, classes with all their methods and constants are followed, through imports and annotations; docstrings
    and comments do not count. Classes of settings are left out, because their values are part of every address.
    """
    found = {} if found is None else found
    package, _, inside = module.partition(".")
    if f"{module}.{name}" in found or inside.split(".")[0] in _GROUND or not _is_module(module):
        return found
    match _definitions(module).get(name):
        case None:
            pass
        case (str(origin), str(original)):
            if origin.split(".")[0] == package:
                reachable(origin, original, found)
        case ast.ClassDef() if inside == "settings":
            pass
        case node:
            found[f"{module}.{name}"] = hashlib.sha256(ast.dump(node).encode()).hexdigest()[:16]
            for place in _named(module, node):
                if place[0].split(".")[0] == package:
                    reachable(*place, found)
    return found


@lru_cache
def code_digest(module: str, name: str, apart: tuple[str, ...] = ()) -> str:
    """One digest of all that is :func:`reachable` from ``module.name``; what ``apart`` names in full stays out."""
    found = reachable(module, name, dict.fromkeys(apart, ""))
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
