"""Results turned into files and back: kept by content, written all or nothing, with their provenance.

A heavy result lives in ``<artifacts>/store/<stage>/<key>/``. The key is a digest of the settings, the code of
the stage, the digests of its inputs and the versions of the libraries, so equal questions find their answer
and any other question does not. The folder is filled under a temporary name and renamed when complete; its
``manifest.json`` is written last and holds the provenance.

Results that are computed in a bundle on another machine (``workflow.gpu``) are addressed as the machine
that packed it would: ``HARVIS_KEYS`` names the bundle's ``keys.json``, which :meth:`Stage.key` takes the versions
from. Their provenance says what they were really computed with.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import psutil

from harvis_utils.parallel import threads, torch_device
from harvis_utils.settings import REPOSITORY, Settings, artifact_root, as_json, keys_file
from harvis_utils.store.files import ArtifactError, file_digest, read_json, write_json, writing

#: libraries whose version can change a number
VERSIONED = ("numpy", "scipy", "torch", "scikit-learn")


# ------------------------------------------------------------------------------------------- atomic writing


# ------------------------------------------------------------------------------------------------- provenance


@lru_cache
def git_revision() -> str:
    """The checked-out or packed revision, with ``+`` when files differ from it; ``unknown`` outside a checkout."""
    if "git" in packed():
        return packed()["git"]

    def git(*words: str) -> str:
        return subprocess.run(
            ("git", *words), cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance(cfg: Settings, **more) -> dict:
    """Settings, seed, versions, revision, device and threads of a result, as plain JSON values."""
    import torch

    device = torch_device(cfg.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "settings": as_json(cfg) | {"device": None},
        "versions": {"python": platform.python_version(), **{lib: version(lib) for lib in VERSIONED}},
        "git": git_revision(),
        "device": f"{device.type} ({name})",
        "threads": threads(),
        **more,
    }


# ------------------------------------------------------------------------------------------------- the store


#: CPython 3.11's parser of syntax trees fails when two threads use it at once
_PARSING = threading.Lock()


@lru_cache
def _read_keys(path: Path) -> dict:
    return read_json(path)


def packed() -> dict:
    """What the ``keys.json`` of the bundle that this is says; empty outside bundles."""
    path = keys_file()
    return _read_keys(path) if path else {}


def source_file(module: str) -> Path:
    """The file of a module of the package, named as in :attr:`Stage.modules`."""
    return Path(importlib.util.find_spec(f"harvis_utils.{module}").origin)


def code_digest(module: str) -> str:
    """Digest of what a module computes: its syntax tree without docstrings, so prose never retrains anything."""
    return _syntax_digest(source_file(module).read_text(encoding="utf-8"))


@lru_cache
def _syntax_digest(source: str) -> str:
    with _PARSING:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            del body[0]  # so that adding a docstring changes nothing either
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def key_parts(modules: Iterable[str]) -> dict[str, list[str]]:
    """What of this project's state a key holds: the digests of modules and the library versions.

    In a bundle both are as on the machine that packed it. Digests too, because the syntax tree of one and the same
    file differs between versions of Python; they are looked up by the file's content, so that a changed file counts.
    """
    known = packed()
    digests = known.get("code", {})
    versions = known.get("versions") or {lib: version(lib).split("+")[0] for lib in VERSIONED}
    return {
        "code": [digests.get(file_digest(source_file(m))) or code_digest(m) for m in modules],
        "versions": [versions[lib] for lib in VERSIONED],
    }


def _nothing(stage: Stage, key: str) -> AbstractContextManager:
    return nullcontext()


_around = _nothing


@contextmanager
def around_builds(enter: Callable[[Stage, str], AbstractContextManager]):
    """Until the block ends, every result that is missing is computed inside ``enter(stage, key)``.

    What that raises stops the computation there, and leaves what is stored already.
    """
    global _around
    before, _around = _around, enter
    try:
        yield
    finally:
        _around = before


@dataclass(frozen=True)
class Stage:
    """One kind of result: its name, the notebook that makes it, and the modules that decide its content."""

    name: str
    notebook: str
    modules: tuple[str, ...]

    def key(self, settings, *inputs: str) -> str:
        """Digest of settings, code, inputs and library versions: the address of one result."""
        content = {
            "stage": self.name,
            "settings": as_json(settings),
            "inputs": list(inputs),
            **key_parts(self.modules),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]

    def folder(self, key: str) -> Path:
        """Where the result with ``key`` is or will be."""
        return artifact_root() / "store" / self.name / key

    def checkpoint(self, key: str) -> Path:
        """A folder for what an interrupted computation left; emptied when the result is complete."""
        return self.folder(key).with_name(f"{key}.checkpoint")

    def obtain(self, key: str, build: Callable[[Path], object], about: dict) -> Path:
        """Folder of the result, computed by ``build(folder)`` unless it is there already.

        ``about`` is its provenance. A build that shared its time with others returns its own share in seconds. One
        that fails or is killed leaves nothing under the final name.
        """
        folder = self.folder(key)
        if journal := os.environ.get("HARVIS_JOURNAL"):  # the chain notes which results a notebook answers for
            with open(journal, "a", encoding="utf-8") as lines:
                lines.write(f"{self.name}/{key}\n")
        if (folder / "manifest.json").exists():
            return self.require(key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._sweep()
        prefix = f".{key}.{os.getpid()}@{_node()}."
        part = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=folder.parent))
        started = time.perf_counter()
        try:
            with writing(folder):
                with _around(self, key):
                    share = build(part)
                seconds = share if isinstance(share, float) else time.perf_counter() - started
                files = {p.name: file_digest(p) for p in sorted(part.iterdir())}
                write_json(
                    part / "manifest.json",
                    {"stage": self.name, "key": key, "files": files, "wall_s": round(seconds, 3), "provenance": about},
                )
                if folder.exists():  # another process was faster, or a damaged one lies there
                    shutil.rmtree(folder)
                os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(self.checkpoint(key), ignore_errors=True)
        return folder

    def require(self, key: str) -> Path:
        """Folder of a result that must be there; a missing or damaged one says which notebook makes it."""
        folder = self.folder(key)
        if not (folder / "manifest.json").exists():
            raise ArtifactError(
                f"no result of stage {self.name!r} for these settings, data and code; "
                f"run notebook {self.notebook} first (same PROFILE and DATASET)"
            )
        for name, digest in read_json(folder / "manifest.json")["files"].items():
            if not (folder / name).exists() or file_digest(folder / name) != digest:
                raise ArtifactError(
                    f"{folder / name} is damaged; delete {folder} and run notebook {self.notebook} again"
                )
        return folder

    def manifest(self, key: str) -> dict:
        """Provenance, wall time and file digests of a result."""
        return read_json(self.folder(key) / "manifest.json")

    def _sweep(self) -> None:
        """Remove what killed processes of this machine left half-written; others may share the store."""
        for orphan in self.folder("x").parent.glob(".*.part"):
            pid, _, node = orphan.name.split(".")[2].partition("@")
            if pid.isdigit() and node in ("", _node()) and not psutil.pid_exists(int(pid)):
                shutil.rmtree(orphan, ignore_errors=True)


def _node() -> str:
    return platform.node().replace(".", "-")


# ---------------------------------------------------------------------------------------- figures and tables
