"""Results of functions kept as files, by content, all or nothing, with their provenance.

A heavy result lives in ``<artifacts>/store/<stage>/<key>/``. The key is a digest of the arguments, the code, and the
versions of the libraries, so equal questions find their answer and any other question does not. The folder is filled
under a temporary name and renamed when complete; its ``manifest.json`` is written last and holds the provenance.

In a bundle on another machine results are addressed as where it was packed: ``HARVIS_KEYS`` names its ``keys.json``.
Their provenance says what they were really computed with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache, partial, update_wrapper
from importlib.metadata import version
from pathlib import Path

import filelock

from harvis_utils.parallel import threads, torch_device
from harvis_utils.settings import REPOSITORY, artifact_root, keys_file
from harvis_utils.store import files
from harvis_utils.store.code import code_digest, reachable, remember

#: libraries whose version can change a number
VERSIONED = ("numpy", "scipy", "torch", "scikit-learn")

# ------------------------------------------------------------------------------------------------- provenance


@lru_cache
def git_revision() -> str:
    """The checked-out or packed revision, with ``+`` when files differ from it; ``unknown`` outside a checkout."""
    if "git" in packed():
        return packed()["git"]
    words = ("git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+")
    try:
        return subprocess.check_output(words, cwd=REPOSITORY, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance(device: str | None = None, **more) -> dict:
    """Versions, revision, device and threads of a result, and ``more`` about it, as plain JSON values."""
    import torch

    chosen = torch_device(device)
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": {"python": platform.python_version(), **{lib: version(lib) for lib in VERSIONED}},
        "git": git_revision(),
        "device": f"{chosen.type} ({name})",
        "threads": threads(),
        **more,
    }


_read_keys = lru_cache(files.read_json)


def packed() -> dict:
    """What the ``keys.json`` of the bundle that this is says; empty outside bundles."""
    path = keys_file()
    return _read_keys(path) if path else {}


def versions() -> dict[str, str]:
    """Versions of the libraries that addresses hold; in a bundle those of the machine that packed it."""
    return packed().get("versions") or {lib: version(lib).split("+")[0] for lib in VERSIONED}


def _code(module: str, name: str) -> str:
    """The digest that an address holds. Syntax trees differ between versions of Python: a bundle brings its own."""
    known = packed()
    if known and known["package"] == package_digest():
        return known["code"][f"{module}.{name}"]
    remember(module.partition(".")[0])
    try:
        return code_digest(module, name)
    except ValueError:  # there is no file
        raise TypeError(f"the code of {module}.{name} cannot be read: move it from the notebook to a module") from None


@lru_cache
def _reached(module: str, name: str) -> bool:
    """Whether there is code that an address can hold: any two lambdas, methods or foreign functions share none."""
    return bool(reachable(module, name))


@lru_cache
def package_digest() -> str:
    """SHA-256 over all Python files of the package."""
    folder = Path(__file__).parents[1]
    sources = sorted(folder.rglob("*.py"))
    lines = [f"{files.file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in sources]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------- addresses


def described(value):
    """What an address holds of an argument, as a plain JSON value.

    A stored result counts by its ``key``, data by their ``digest``, settings by their values, arrays by their bytes, a
    function by its code. A field of settings that was added later names, as ``metadata={"unless": value}``, the value
    that results from before stand for. Raises ``TypeError`` for anything else.
    """
    for name in ("key", "digest"):
        if isinstance(getattr(value, name, None), str):
            return getattr(value, name)
    if dataclasses.is_dataclass(value):
        fields = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        return {f.name: described(v) for f, v in fields if "unless" not in f.metadata or f.metadata["unless"] != v}
    if isinstance(value, Mapping):
        return {str(name): described(v) for name, v in value.items()}
    if isinstance(value, list | tuple | range):
        return [described(v) for v in value]
    if hasattr(value, "to_dataset") or hasattr(value, "data_vars"):  # xarray
        arrays = {**value.coords, **getattr(value, "data_vars", {"": value})}
        return [[str(name), list(array.dims), described(array.values)] for name, array in sorted(arrays.items())]
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if hasattr(value, "dtype") and getattr(value, "ndim", 0):
        # text of any kind by its letters: arrays of numpy's own text hold where they stand, not what they are
        values = value.astype(object).astype(str) if value.dtype.kind in "OUT" else value
        if not values.dtype.isnative:
            values = values.astype(values.dtype.newbyteorder("="))
        content = hashlib.sha256(values.tobytes()).hexdigest()
        return [
            list(value.shape),
            values.dtype.str if values.dtype.kind in "mM" else value.dtype.kind.replace("T", "U"),
            content,
        ]
    if callable(value) and hasattr(value, "__qualname__"):
        place = (str(value.__module__), value.__qualname__)
        if (found := _code(*place)) and _reached(*place):
            return found
        raise TypeError(f"{'.'.join(place)} is no function or class of a module's own and cannot be part of an address")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has neither key nor digest and cannot be part of an address")


# --------------------------------------------------------------------------------------------------- the store


_around: Callable[[str, str], AbstractContextManager] = lambda stage, key: nullcontext()  # noqa: E731


@contextmanager
def around_builds(enter: Callable[[str, str], AbstractContextManager]):
    """Until the block ends, every result that is missing is computed inside ``enter(stage, key)``.

    What that raises stops the computation there, and leaves what is stored already.
    """
    global _around
    before, _around = _around, enter
    try:
        yield
    finally:
        _around = before


_cost = threading.local()
_opened: dict[tuple[str, str], float] = {}


def charge(seconds: float) -> None:
    """Inside a kept function: what its result cost, where it shared the time with others."""
    _cost.seconds = seconds


def seconds_by_stage() -> dict[str, float]:
    """What the results that this process made or read once took to compute, summed by stage."""
    total: Counter = Counter()
    for (stage, _), seconds in _opened.items():
        total[stage] += seconds
    return dict(total)


def folder_of(stage: str, key: str) -> Path:
    """Where a result is or will be."""
    return artifact_root() / "store" / stage / key


def damage(folder: Path) -> str | None:
    """What is wrong with a stored result, in words; None for a whole one."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        expected, about = dict(manifest["files"]), (manifest["stage"], manifest["key"], float(manifest["wall_s"]))
    except FileNotFoundError:
        return "manifest.json is missing"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "manifest.json is not readable"
    if about[:2] != (folder.parent.name, folder.name):
        return "manifest.json belongs to another result"
    try:
        if expected.keys() != {path.name for path in folder.iterdir()} - {"manifest.json"}:
            return "files are missing, or do not belong to it"
        for name, digest in expected.items():
            if not (folder / name).is_file() or files.file_digest(folder / name) != digest:
                return f"{name} is damaged"
    except OSError as error:  # of another user, or removed meanwhile
        return f"{Path(error.filename or folder).name} cannot be read ({error.strerror})"
    return None


def obtain(stage: str, key: str, build: Callable[[Path], object], about: Mapping) -> Path:
    """Folder of the result of ``stage`` with ``key``, filled by ``build(folder)`` unless it is there already.

    ``about`` is its provenance. A build that fails or is killed leaves nothing under the final name; a damaged result
    is made anew, with a warning. Raises :class:`~harvis_utils.store.files.ArtifactError` where it cannot be written, or
    a damaged one not be removed.
    """
    folder = folder_of(stage, key)
    files.note("HARVIS_JOURNAL", f"{stage}/{key}")
    if damage(folder):
        with _alone(folder):  # looked at again: another process may have made it, or made it anew, meanwhile
            if os.path.lexists(folder) and (wrong := damage(folder)):
                warnings.warn(f"{folder}: {wrong}; made anew", stacklevel=3)
                files.remove(folder)
            if not folder.exists():
                _fill(folder, build, about)
    _opened[stage, key] = files.read_json(folder / "manifest.json")["wall_s"]
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While the block runs, nobody else on this machine builds this result: two notebooks may want the same.

    The system frees the lock however its holder ends.
    """
    name = hashlib.sha256(str(folder.parent.resolve() / folder.name).encode()).hexdigest()[:20]
    lock = Path(tempfile.gettempdir()) / f"harvis-{name}.lock"
    with files.writing(lock):
        # others may build here too, who are not the owner of what lies in a folder for all
        held = filelock.FileLock(lock, mode=0o666)
        held.acquire()
    try:
        yield
    finally:
        held.release()
        with suppress(OSError):
            lock.unlink(missing_ok=True)


def _fill(folder: Path, build: Callable[[Path], object], about: Mapping) -> None:
    with files.writing(folder), files.scratch(folder) as part:
        started, _cost.seconds = time.perf_counter(), None
        with _around(folder.parent.name, folder.name):
            build(part)
        seconds = time.perf_counter() - started if _cost.seconds is None else _cost.seconds
        manifest = {"stage": folder.parent.name, "key": folder.name, "wall_s": round(seconds, 3)}
        digests = {path.name: files.file_digest(path) for path in sorted(part.iterdir())}
        files.write_json(part / "manifest.json", manifest | {"files": digests, "provenance": about})
        try:
            os.replace(part, folder)
        except OSError:
            if damage(folder):
                raise
            # another process was faster: its result stays
    shutil.rmtree(folder.with_name(f"{folder.name}.checkpoint"), ignore_errors=True)


# ---------------------------------------------------------------------------------------------- kept functions

#: every kept function of the modules that are imported
KEPT: list[Kept] = []


class Kept:
    """A function whose results are stored; made by :func:`kept`, called like the function itself."""

    def __init__(self, function: Callable, stage: str, apart: tuple[str, ...], version: int | None):
        self.function, self.stage, self.apart, self.version = function, stage, (*apart, "checkpoint"), version
        self.signature = inspect.signature(function)
        update_wrapper(self, function)
        KEPT.append(self)
        remember(function.__module__.partition(".")[0])

    def __call__(self, *args, **kwargs):
        bound, about, key = self._addressed(args, kwargs)
        for value in bound.values():  # what data and networks say of themselves
            about |= {name: getattr(value, name) for name in ("caveat", "seed") if hasattr(value, name)}
        if "checkpoint" in self.signature.parameters:
            bound["checkpoint"] = folder_of(self.stage, key).with_name(f"{key}.checkpoint")
        about = provenance(bound.get("device"), **about)
        return read_result(obtain(self.stage, key, lambda part: write_result(part, self.function(**bound)), about))

    def key(self, *args, **kwargs) -> str:
        """The address of the result for these arguments."""
        return self._addressed(args, kwargs)[2]

    def _addressed(self, args, kwargs) -> tuple[dict, dict, str]:
        """The arguments by name, those that decide the result as their descriptions, and the address."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        about = {"arguments": {n: described(v) for n, v in bound.arguments.items() if n not in self.apart}}
        code = self.version or _code(self.function.__module__, self.function.__name__)
        content = about | {"stage": self.stage, "code": code, "versions": versions()}
        return bound.arguments, about, hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def kept(stage: str, *, apart: Sequence[str] = (), version: int | None = None) -> Callable[[Callable], Kept]:
    """Make a function's results stored ones: computed at the first call, read from a file at later ones.

    The address is a digest of the arguments (see :func:`described`), of all code of the package that the function
    reaches (see :func:`reachable`) and of library versions. ``apart`` names parameters that decide where and how it
    computes, not what. An explicit ``version`` stands for the code, where computing anew would cost hours: it must be
    raised when the numbers change, and a golden test says whether they do. A parameter called ``checkpoint`` is given
    a folder for what an interrupted computation leaves; it is emptied when the result is complete.

    The function returns an xarray Dataset, a pandas table, a dict of torch tensors or a plain JSON value.
    """
    return lambda function: Kept(function, stage, tuple(apart), version)


def write_result(folder: Path, result) -> None:
    """Write what a kept function returned: ``result`` with the ending of its kind."""
    if hasattr(result, "to_netcdf"):
        files.write_dataset(folder / "result.nc", result)
    elif hasattr(result, "to_csv"):
        files.write_text(folder / "result.csv", result.to_csv(index=False))
    elif isinstance(result, dict) and result and all(hasattr(value, "detach") for value in result.values()):
        import torch
        from safetensors.torch import save_file

        # cloned, because tensors in a file may not share their memory
        tensors = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in result.items()}
        with files.replacing(folder / "result.safetensors") as part:
            save_file(tensors, part)
    else:
        files.write_json(folder / "result.json", result)


def read_result(folder: Path):
    """Read what :func:`write_result` wrote."""
    import pandas as pd
    from safetensors.torch import load_file

    readers = {
        "result.nc": files.read_dataset,
        # exact from pandas 3.1; "None" and "NA" are words, and only what is empty is missing
        "result.csv": partial(pd.read_csv, keep_default_na=False, na_values=[""]),
        "result.safetensors": load_file,
        "result.json": files.read_json,
    }
    (name,) = readers.keys() & {path.name for path in folder.iterdir()}
    return readers[name](folder / name)
