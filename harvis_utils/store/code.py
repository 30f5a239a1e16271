"""The code behind a result: what a function names, and what that names, as one digest."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
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


@lru_cache
def _is_module(dotted: str) -> bool:
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package
        return False


#: source of each module and what it was imported by, which is another one after it was imported again
_SOURCES: dict[str, tuple[object, str]] = {}


def remember(package: str) -> None:
    """Keep the sources of a package's modules as they are imported: their files may be edited while they live."""
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if name.partition(".")[0] != package or not str(getattr(spec, "origin", "")).endswith(".py"):
            continue
        if _SOURCES.get(name, (None,))[0] is not spec:
            if name in _SOURCES:
                forget()
            _SOURCES[name] = spec, Path(spec.origin).read_text(encoding="utf-8")


def forget() -> None:
    """Let digests be computed anew."""
    for cached in (_definitions, _defined, code_digest):
        cached.cache_clear()


@lru_cache
def _definitions(module: str) -> dict[str, list[_Place]]:
    """What the top level of a module binds, by name and in turn, without docstrings."""
    if module in _SOURCES:
        source = _SOURCES[module][1]
    else:
        source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
    with _PARSING:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        match getattr(node, "body", None):
            case [ast.Expr(value=ast.Constant()), *_]:
                del node.body[0]
    found: dict[str, list[_Place]] = {}
    for name, place in _bound(tree):
        found.setdefault(name, []).append(place)
    return found


def _bound(tree: ast.AST) -> Iterator[tuple[str, _Place]]:
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.ImportFrom(module=str(origin), level=0):
                yield from ((alias.asname or alias.name, (origin, alias.name)) for alias in node.names)
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name, node
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from ((n.id, node) for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
            case ast.If() | ast.Try():
                yield from _bound(node)


def _named(module: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of everything of the same package that a definition in ``module`` names."""
    nodes = [*ast.walk(node)]
    own = _definitions(module).keys()
    origins = {name: places[-1] for name, places in _definitions(module).items() if isinstance(places[-1], tuple)}
    for inner in nodes:
        if isinstance(inner, ast.ImportFrom):  # inside a function
            origins |= {alias.asname or alias.name: (inner.module, alias.name) for alias in inner.names}
    for inner in nodes:
        match inner:
            case ast.Name(id=name) if name in origins or name in own:
                yield origins.get(name, (module, name))
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in origins:
                yield ".".join(origins[name]), attribute


@lru_cache
def _defined(module: str, name: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Digest of the syntax tree of ``module.name``, and where what it names in its own package is defined.

    No digest where it is only imported there, or stands for settings.
    """
    package, _, inside = module.partition(".")
    dumps, named = [], []
    for place in _definitions(module).get(name, ()):
        match place:
            case (str(origin), str(original)):
                named.append((origin, original))
            case ast.ClassDef() if inside == "settings":
                pass
            case node:
                dumps.append(ast.dump(node))
                named.extend(_named(module, node))
    digest = hashlib.sha256("\n".join(dumps).encode()).hexdigest()[:16] if dumps else ""
    return digest, tuple(dict.fromkeys(place for place in named if place[0].split(".")[0] == package))


def reachable(module: str, name: str, found: dict[str, str] | None = None) -> dict[str, str]:
    """Digests of the syntax trees of ``module.name`` and of all that it names in its own package, by dotted name.

    Functions, classes with all their methods and constants are followed, through imports and annotations; docstrings
    and comments do not count. Classes of settings are left out, because their values are part of every address.
    """
    found = {} if found is None else found
    inside = module.partition(".")[2]
    if f"{module}.{name}" in found or inside.split(".")[0] in _GROUND or not _is_module(module):
        return found
    digest, named = _defined(module, name)
    if digest:
        found[f"{module}.{name}"] = digest
    for place in named:
        reachable(*place, found)
    return found


@lru_cache
def code_digest(module: str, name: str, apart: tuple[str, ...] = ()) -> str:
    """One digest of all that is :func:`reachable` from ``module.name``; what ``apart`` names in full stays out."""
    found = reachable(module, name, dict.fromkeys(apart, ""))
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
