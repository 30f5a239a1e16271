"""Disks that fail, and files that somebody damaged: one clear error, or healed; nothing half written counts as whole.

Each kind of write is made to fail at its first, second, ... operation (making a folder, writing, syncing, renaming),
for all of them; what is computed is stubbed. Then archives, stored results and checkpoints are mutated at random.
"""

import builtins
import dataclasses
import errno
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import xarray as xr
from made_archives import example_files, isolate, register_example, write_zip
from safetensors import SafetensorError
from sample_notebooks import write

from harvis_utils.chain import commands, execution, stamps
from harvis_utils.data import archive, kinds
from harvis_utils.figures import style
from harvis_utils.run import Run
from harvis_utils.settings import HarvisError, load_settings
from harvis_utils.store import results
from harvis_utils.store.files import read_json, write_json, write_text
from harvis_utils.store.results import kept
from harvis_utils.training import checkpoints
from workflow import publish

BIG = np.random.default_rng(0).normal(size=3000)


class Failing:
    """Operations that change files below ``root`` are counted; the ``at``-th fails with ``code``, half done."""

    def __init__(self, root: Path, at: int | None, code: int = errno.ENOSPC):
        self.root, self.at, self.code, self.count = root.resolve(), at, code, 0

    def step(self, path, half=None) -> None:
        if not Path(path).resolve().is_relative_to(self.root):
            return
        self.count += 1
        if self.count == self.at:
            if half:
                half()
            raise OSError(self.code, os.strerror(self.code), str(path))

    def before(self, real):
        """A function on a path, or a pair of them, that may fail before it does anything."""

        def called(path, *more, **how):
            self.step(os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path)
            return real(path, *more, **how)

        return called

    def opened(self, real):
        def called(path, mode="r", *more, **how):
            file = real(path, mode, *more, **how)
            return Written(file, self, path) if set(mode) & set("wax") and not isinstance(path, int) else file

        return called

    def saved(self, real):
        """Safetensors writes by itself, and has an error of its own."""

        def called(tensors, path, *more, **how):
            real(tensors, path, *more, **how)
            try:
                self.step(path, lambda: os.truncate(path, os.path.getsize(path) // 2))
            except OSError as error:
                raise SafetensorError(f"Error while serializing: I/O error: {error.strerror}") from None

        return called


class Written:
    """A file that is written to, which may fail in the middle of what is written."""

    def __init__(self, file, failing: Failing, path):
        self.file, self.failing, self.path = file, failing, path

    def write(self, data):
        self.failing.step(self.path, lambda: (self.file.write(data[: len(data) // 2]), self.file.flush()))
        return self.file.write(data)

    def fileno(self):
        raise io.UnsupportedOperation  # so that nobody writes past this

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *about):
        return self.file.__exit__(*about)


@contextmanager
def failing(root: Path, at: int | None, code: int = errno.ENOSPC):
    """Until the block ends, disks are as :class:`Failing` says, which is yielded."""
    of = Failing(root, at, code)
    with pytest.MonkeyPatch.context() as patched:
        for name in ("mkdir", "fsync", "rename", "replace"):
            patched.setattr(os, name, of.before(getattr(os, name)))
        patched.setattr(builtins, "open", of.opened(builtins.open))
        patched.setattr(io, "open", of.opened(io.open))
        for module in (safetensors.torch, checkpoints):
            patched.setattr(module, "save_file", of.saved(module.save_file))
        yield of


# ------------------------------------------------------------------------------------------------ kinds of writes


@kept("faults")
def dataset(x: int) -> xr.Dataset:
    return xr.Dataset({"a": ("t", BIG * x)})


@kept("faults")
def table(x: int) -> pd.DataFrame:
    return pd.DataFrame({"a": BIG * x})


@kept("faults")
def tensors(x: int) -> dict:
    return {"a": torch.tensor(BIG * x), "b": torch.arange(x + 3)}


@kept("faults")
def plain(x: int) -> dict:
    return {"a": (BIG * x).tolist()}


KEPT = {"dataset": dataset, "table": table, "tensors": tensors, "plain value": plain}


def same(one, other) -> bool:
    if isinstance(one, dict) and all(isinstance(of, torch.Tensor) for of in one.values()):
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return bool(getattr(one, "identical", getattr(one, "equals", one.__eq__))(other))


def stored(function):
    """A stored result, made or read."""
    folder = results.folder_of("faults", function.key(3))
    return (
        lambda place: function(3),
        lambda place: not folder.exists() or results.damage(folder) is None,
        lambda place: same(function(3), function.function(3)),
    )


def file_of(name: str, act, content):
    """A file of a run's reports, of which an older one is there."""
    return (
        act,
        lambda place: (place.cfg.reports / name).read_bytes() in (b"older", content(place)),
        lambda place: (place.cfg.reports / name).read_bytes() == content(place),
    )


def checkpointed(place) -> bool:
    state = checkpoints.load_checkpoint(place.root / "checkpoint")
    return state["losses"] in ([9.0], [1.0, 2.0]) and len(state["model"]["w"]) == len(state["losses"])


def save(place, n: int = 2) -> None:
    state = {"losses": [1.0, 2.0] if n == 2 else [9.0], "model": {"w": torch.ones(n, 50)}}
    checkpoints.save_state(place.root / "checkpoint" / checkpoints.CHECKPOINT, state)


def up_to_date(place) -> bool:
    """Whether the chain takes the notebook for executed; what it takes for that must be whole."""
    commands._heal(place.cfg, ["01_data"])
    stamp, executed = stamps.stamp_of(place.cfg, "01_data"), place.cfg.reports / "01_data.ipynb"
    done = stamp.exists() and executed.exists()
    return done and not stamps.edited(place.cfg, ["01_data"]) and not stamps.outdated(place.cfg, ["01_data"])


def executed_or_not(place) -> bool:
    return not up_to_date(place) or len(read_json(place.cfg.reports / "01_data.ipynb")["cells"]) == 4


def recordings_there(place) -> bool:
    path = place.raw / "example.zip"
    return not path.exists() or path.read_bytes() == place.packed


def published(place) -> bool:
    files = {path.name: path.read_text() for path in place.target.rglob("*") if path.is_file()}
    return files in ({"a.txt": "older", "b.txt": "older"}, {"a.txt": "newer", "c.txt": "newer"})


def newer(place) -> dict[Path, Path]:
    return {path: Path(path.name) for path in (place.root / "source").iterdir()}


#: kind -> what is called, what must hold after it failed, and what after it succeeded
WRITES = {f"artifact: {name}": stored(function) for name, function in KEPT.items()} | {
    "checkpoint": (save, checkpointed, lambda place: checkpointed(place) and len(place.root.joinpath().name) > 0),
    "table": file_of(
        "tables/x.csv",
        lambda place: place.run.table("x", pd.DataFrame({"a": BIG})),
        lambda place: pd.DataFrame({"a": BIG}).to_csv().encode(),
    ),
    "figure": file_of("figures/x.png", lambda place: place.run.figure("x", place.drawn), lambda place: b"drawn" * 999),
    "results.json": file_of(
        "results.json",
        lambda place: write_json(place.cfg.reports / "results.json", {"a": BIG.tolist()}),
        lambda place: (json.dumps({"a": BIG.tolist()}, indent=1) + "\n").encode(),
    ),
    "stamp": (lambda place: execution.run_notebook(place.book, place.cfg), executed_or_not, up_to_date),
    "download": (
        lambda place: archive.load_recordings("example"),
        recordings_there,
        lambda place: recordings_there(place) and len(archive.load_recordings("example").items) == 6,
    ),
    "publish": (
        lambda place: publish._replace(place.target, newer(place)),
        published,
        lambda place: published(place) and (place.target / "c.txt").exists(),
    ),
}
CODES = {"full": errno.ENOSPC, "broken": errno.EIO}


@pytest.fixture
def new_place(monkeypatch, tmp_path, make_recordings):
    """A function that gives a new root with all that the writes need."""
    isolate(monkeypatch, tmp_path)
    register_example(monkeypatch, tmp_path)
    book, mirror = (
        write(tmp_path / "books", "01_data", "1"),
        write_zip(tmp_path / "mirror" / "example.zip", example_files()),
    )
    monkeypatch.setenv("HARVIS_MIRROR", str(mirror.parent))
    monkeypatch.setattr("papermill.execute_notebook", lambda notebook, log, **more: shutil.copyfile(notebook, log))
    monkeypatch.setattr(style, "picture", lambda figure: b"drawn" * 999)
    monkeypatch.setattr(style, "add_caveat", lambda figure, caveat: None)
    made = make_recordings({(1, 0): 30})

    def new(name: str) -> SimpleNamespace:
        root = tmp_path / name
        monkeypatch.setattr("harvis_utils.settings.REPOSITORY", root)
        for variable in ("artifacts", "reports"):
            monkeypatch.setenv(f"HARVIS_{variable.upper()}", str(root / variable))
        for variable in ("WRITTEN", "JOURNAL"):
            monkeypatch.setenv(f"HARVIS_{variable}", str(root / variable))
        run = Run(load_settings())
        run.recordings = made
        about = {"root": root, "run": run, "cfg": run.cfg, "book": book, "raw": root / "data" / "raw"}
        about |= {"target": root / "published", "packed": mirror.read_bytes()}
        place = SimpleNamespace(**about, drawn=SimpleNamespace(get_figwidth=lambda: 5, get_label=lambda: "x"))
        for path in ("tables/x.csv", "figures/x.png", "results.json"):
            write_text(place.cfg.reports / path, "older")
        for path in ("published/a.txt", "published/b.txt"):
            write_text(root / path, "older")
        for path in ("source/a.txt", "source/c.txt"):
            write_text(root / path, "newer")
        save(place, 1)
        for variable in ("WRITTEN", "JOURNAL"):
            (root / variable).write_text("")
        return place

    return new


@pytest.mark.parametrize("name", WRITES)
def test_whichever_operation_of_a_write_fails_nothing_half_written_is_taken_for_whole(name, new_place):
    call, holds, succeeded = WRITES[name]
    place = new_place("counted")
    with failing(place.root, None) as counted:
        call(place)
    assert counted.count >= 2 and succeeded(place), "something is written"
    for at in range(1, counted.count + 1):
        for kind, code in CODES.items():
            place = new_place(f"{kind} {at}")
            with failing(place.root, at, code):
                try:
                    call(place)
                    told = None
                except HarvisError as error:
                    told = str(error)
            assert told is None or (os.strerror(code) in told and str(place.root) in told), told
            assert len((told or "").splitlines()) <= 3, told
            assert holds(place), f"operation {at} of {counted.count}: {told}"
            if told:  # else what failed was not needed
                left = [path for path in place.root.rglob(".*") if path.name.endswith((".part", ".old"))]
                assert not left, f"operation {at} of {counted.count}: {left}"
            call(place)
            assert succeeded(place), f"operation {at} of {counted.count}, then once more: {told}"
            shutil.rmtree(place.root)


# -------------------------------------------------------------------------------------------------- mutated files


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Some bytes with one accident: flipped, lost, doubled, moved, zeroed, or the largest number somewhere."""
    data, at = bytearray(content), rng.randrange(len(content))
    some = rng.choice((1, 2, 4, 30, 500))
    match rng.randrange(8):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            del data[at:]
        case 2:
            del data[at : at + some]
        case 3:
            data[at:at] = data[at : at + some]
        case 4:
            data[at : at + some] = bytes(len(data[at : at + some]))
        case 5:
            data[at : at + some] = b"\xff" * len(data[at : at + some])
        case 6:
            data[at : at + some] = rng.randbytes(len(data[at : at + some]))
        case 7:  # near the end lies a zip file's table of contents
            at = max(0, len(data) - rng.randrange(1, 700))
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\x7f", b"\0\0\0\0", rng.randbytes(4)))
    return bytes(data)


N_ARCHIVES, N_ARTIFACTS, SHARES = 100, 75, range(8)
#: seconds of computing that one of them may take, and MiB that it may need more than the process has
SECONDS, MEMORY = 5.0, 1024


def bounded(act, queue) -> None:
    """In a process of its own with so much memory more; what goes wrong is told."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY * 2**20,) * 2)
    try:
        queue.put(act())
    except BaseException as error:
        queue.put(f"{type(error).__name__}: {error}")


def in_bounds(act):
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    process = fork.Process(target=bounded, args=(act, queue))
    process.start()
    found = queue.get()
    process.join()
    assert isinstance(found, dict), found
    return found


def loaded(share: int, root: Path, expected: list) -> dict:
    """How ``N_ARCHIVES`` mutated archives end, of one name and the other."""
    ends = {"refused": 0, "the same": 0, "approximate": 0}
    for number in range(N_ARCHIVES):
        rng = random.Random(1000 * share + number)
        path = root / "data" / "raw" / "example.zip"
        path.write_bytes(mutated(path.with_name("whole.zip").read_bytes(), rng))
        for name in ("example", "example-approximate"):
            os.environ["HARVIS_ARTIFACTS"] = str(root / "derived" / f"{number}{name}")
            begun = time.process_time()
            try:
                found = archive.load_recordings(name, download=False).items
            except kinds.DataError as error:
                assert str(path) in str(error) and "\n" not in str(error), error
                ends["refused"] += 1
            else:
                equal = len(found) == len(expected) and all(map(np.array_equal, [of.signal for of in found], expected))
                assert equal or name != "example", "other content was verified"
                assert all(np.isfinite(of.signal).all() for of in found)
                ends["the same" if equal else "approximate"] += 1
            assert time.process_time() - begun < SECONDS, number
    return ends


@pytest.mark.parametrize("share", SHARES)
def test_mutated_archives_are_refused_or_harmless(share, tmp_path, monkeypatch):
    """100 archives in each of eight shares, every one as a verified and as an unverified one."""
    raw = isolate(monkeypatch, tmp_path)
    register_example(monkeypatch, tmp_path)
    files = example_files(40)
    described = kinds.registry()["example"]
    digests = {name: archive.hashlib.sha256(content).hexdigest() for name, content in files.items()}
    small = dataclasses.replace(described.archive, digest=archive.members_digest(digests), member_digests=digests)
    small = dataclasses.replace(described, archive=small)
    monkeypatch.setattr(kinds, "registry", lambda *_: {"example": small})
    whole = write_zip(raw / "whole.zip", files | {"notes.txt": b"x" * 300}, compression=8 if share % 2 else 0)
    with archive.opened(whole, small.archive) as open_member:
        expected = [item.signal for item in small.read(open_member)]
    warnings.simplefilter("ignore")
    ends = in_bounds(lambda: loaded(share, tmp_path, expected))
    assert sum(ends.values()) == 2 * N_ARCHIVES and ends["refused"] > N_ARCHIVES / 2, ends


def damaged(folder: Path, rng: random.Random) -> None:
    """A stored result with one accident, in its content or its manifest."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    path, manifest = rng.choice(files), folder / "manifest.json"
    match rng.randrange(8):
        case 0 | 1 | 2:
            path.write_bytes(mutated(path.read_bytes(), rng))
        case 3:
            path.unlink()
        case 4:
            path.unlink()
            path.mkdir()
        case 5:
            (folder / f"more{rng.randrange(99)}").write_bytes(rng.randbytes(50))
        case 6:
            shutil.rmtree(folder)
            folder.write_text("a file")
        case 7:
            about = json.loads(manifest.read_text())
            about[rng.choice(list(about))] = rng.choice((None, [], {}, 3, "x", {"a": "b"}, [["a", "b"]]))
            manifest.write_text(json.dumps(about))


def healed(share: int, name: str) -> dict:
    """How ``N_ARTIFACTS`` damages of one kind of stored result end."""
    function = KEPT[name]
    expected = function.function(3)
    function(3)
    ends = {"made anew": 0, "harmless": 0}
    for number in range(N_ARTIFACTS):
        damaged(results.folder_of("faults", function.key(3)), random.Random(1000 * share + number))
        begun = time.process_time()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            found = function(3)
        assert same(found, expected), number
        ends["made anew" if any("made anew" in str(of.message) for of in heard) else "harmless"] += 1
        assert time.process_time() - begun < SECONDS, number
    return ends


@pytest.mark.parametrize("name", KEPT)
def test_damaged_results_are_made_anew(name):
    """75 damages of each of four kinds of results."""
    ends = in_bounds(lambda: healed(list(KEPT).index(name), name))
    assert ends["made anew"] > 0.6 * N_ARTIFACTS, ends


def resumed(path: Path) -> dict:
    state = {"losses": [0.5, 0.25], "model": {"w": torch.tensor(BIG), "n": torch.arange(9)}, "notes": {"3": [1, None]}}
    checkpoints.save_state(path, state)
    whole, ends = path.read_bytes(), {"refused": 0, "the same": 0}
    for number in range(4 * N_ARTIFACTS):
        path.write_bytes(mutated(whole, random.Random(number)))
        begun = time.process_time()
        try:
            found = checkpoints.load_checkpoint(path.parent)
        except checkpoints.TrainingError as error:
            assert f"{path} is damaged" in str(error) and "delete it" in str(error) and "\n" not in str(error)
            ends["refused"] += 1
        else:
            assert same(found["model"], state["model"]) and found["losses"] == state["losses"], number
            ends["the same"] += 1
        assert time.process_time() - begun < SECONDS, number
    return ends


def test_mutated_checkpoints_are_refused(tmp_path):
    ends = in_bounds(lambda: resumed(tmp_path / checkpoints.CHECKPOINT))
    assert ends["refused"] > 3 * N_ARTIFACTS, ends
