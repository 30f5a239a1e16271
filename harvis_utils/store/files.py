"""Files written all or nothing: text, JSON, netCDF, figures and tables."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import safetensors
from safetensors import SafetensorError

from harvis_utils.settings import HarvisError, as_json


class ArtifactError(HarvisError, RuntimeError):
    """A missing or damaged artifact; the message names the file and what to do."""


@contextmanager
def writing(path: Path):
    """Turn what a failed write raises into one error that names the file; safetensors has an error of its own.

    An error that names a file elsewhere is of what was read for it, and stays as it is.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, SafetensorError) and "deserializ" in str(error):
            raise  # a damaged file was read
        if isinstance(named := getattr(error, "filename", None), str):
            there, place = Path(named).absolute(), Path(path).absolute()
            if not (there.is_relative_to(place.parent) or place.is_relative_to(there)):
                raise
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"{path}: could not be written ({reason}); nothing was left behind") from error


@contextmanager
def reading(path: Path):
    """Turn what content of another form raises, where it is used, into one error that names the file."""
    try:
        yield
    except HarvisError:
        raise
    except (OSError, LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise ArtifactError(
            f"{path} does not hold what it should ({type(error).__name__}: {error}); remove it, or make it anew"
        ) from error


def note(variable: str, line: str) -> None:
    """Add a line to the file that an environment variable names, where it does: the chain asks what a notebook made."""
    if path := os.environ.get(variable):
        with writing(Path(path)), open(path, "a", encoding="utf-8") as lines:
            lines.write(f"{line}\n")


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder; nothing is no error.

    Raises :class:`ArtifactError` where that fails.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"{path}: could not be removed ({error.strerror}); remove it, or let its owner do so"
        ) from error


@contextmanager
def replacing(path: Path):
    """Yield a temporary sibling of ``path`` to write to; it takes the name when the block ends without error."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}@{node()}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with owning(part, os.O_CREAT | os.O_RDWR):
                mode = part.stat().st_mode & 0o777
                yield part
                part.chmod(mode)  # safetensors' files are private: others may share the place
                with part.open("rb") as file:
                    os.fsync(file.fileno())
            os.replace(part, path)
        note("HARVIS_WRITTEN", str(path.resolve()))
    finally:
        with suppress(OSError):  # where even its folder could not be made
            part.unlink(missing_ok=True)


def node() -> str:
    """This machine's name, as it stands in the names of unfinished files and folders."""
    return platform.node().replace(".", "-")


@contextmanager
def owning(part: Path, flags: int = os.O_RDONLY) -> Iterator[bool]:
    """While the block runs nobody :func:`sweep`-s this unfinished file or folder; yields whether somebody else owns it.

    Numbers of processes tell less: containers of one name share folders, and number their processes apart.
    """
    handle = os.open(part, flags, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = False
    except OSError as error:
        taken = isinstance(error, BlockingIOError)  # else a file system without locks
    try:
        yield taken
    finally:
        os.close(handle)


def sweep(parts: Iterable[Path]) -> None:
    """Remove those unfinished files and folders that killed processes of this machine left."""
    for part in list(parts):
        owner = re.search(r"\.(\d+)@([^.]+)\.(\w+\.)?part$", part.name)
        if owner and owner[2] == node() and not psutil.pid_exists(int(owner[1])):
            with suppress(OSError, ArtifactError), owning(part) as taken:  # another's, or gone
                if not taken:
                    remove(part)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``path`` to make it in, which is removed when the block ends.

    What killed processes of this machine left there is removed first; others may share the place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent.glob(".*.part"))
    # not by tempfile, whose folders are private: others may share the place
    part = path.with_name(f".{path.name}.{os.getpid()}@{node()}.{secrets.token_hex(8)}.part")
    part.mkdir()
    try:
        with owning(part):
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` to ``path``, all or nothing."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: Path, value, nan_as_null: bool = False) -> Path:
    """Write ``value`` as JSON; NaN, which JSON has not, is refused, or becomes null where that is asked for."""
    return write_text(path, json.dumps(as_json(value, nan_as_null), indent=1, allow_nan=False) + "\n")


def read_json(path: Path):
    """Read a JSON file; a missing or broken one, or a folder, raises :class:`ArtifactError` naming it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not readable as JSON ({error}); delete it and run its notebook again"
        ) from error


def write_dataset(path: Path, dataset) -> Path:
    """Write an xarray Dataset as netCDF, all or nothing."""
    # made in memory: HDF5 on a full disk raises an error of its own and may crash the process afterwards
    content = dataset.to_netcdf(engine="h5netcdf")
    with replacing(path) as part:
        part.write_bytes(content)
    return Path(path)


def read_dataset(path: Path):
    """Read a netCDF file into memory and close it."""
    import xarray as xr

    return xr.load_dataset(path, engine="h5netcdf")


def save_file(tensors: dict, path: Path, metadata: dict[str, str]) -> None:
    """Safetensors' ``save_file`` for what an interrupted computation leaves; notes for which result that is."""
    import safetensors.torch  # a second, which what only starts notebooks need not wait for

    safetensors.torch.save_file(tensors, path, metadata | {"of": path.parent.name})


@contextmanager
def safe_open(path: Path, framework: str):
    """Safetensors' ``safe_open`` of what :func:`save_file` wrote; ``ValueError`` for what another result left."""
    with safetensors.safe_open(path, framework=framework) as file:
        left, here = (file.metadata() or {}).get("of", ""), path.parent.name
        if left != here and left.endswith(".checkpoint") and here.endswith(".checkpoint"):
            raise ValueError(f"it is of another training: {left}")
        yield file


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
