"""Kept functions: an address that follows the code, results that are whole or not there."""

import errno
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from harvis_utils.settings import as_json, load_settings
from harvis_utils.store import code, files, results
from harvis_utils.store.results import KEPT, described, kept

MODULES = {
    "deep": '''
FACTOR = 2

def third(x):
    """Three calls deep."""
    return FACTOR * x

def unused(x):
    return x
''',
    "middle": """
from made.deep import third

class Shape:
    def area(self):
        return third(1)

def second(x):
    return third(x)
""",
    "figures": """
def draw(x):
    return x
""",
    "top": """
from made import middle
from made.figures import draw

def first(x: middle.Shape):
    # why
    return middle.second(x)

def shown(x):
    return draw(first(x))
""",
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A package of four modules; returns a function that edits one and gives the digest of ``top.first``."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest(module="top", before="", after=""):
        for name, source in MODULES.items():
            (folder / f"{name}.py").write_text(source.replace(before, after) if name == module else source)
        importlib.invalidate_caches()
        code.forget()
        return code.code_digest("made.top", "first")

    yield digest
    for name in [m for m in sys.modules if m.partition(".")[0] == "made"]:
        del sys.modules[name]
    code.forget()


@pytest.mark.parametrize(
    ("module", "before", "after", "same"),
    [
        ("top", "middle.second(x)", "middle.second(x) + 1", False),
        ("middle", "return third(x)", "return third(x + 0)", False),
        ("deep", "FACTOR * x", "x * FACTOR", False),
        ("deep", "FACTOR = 2", "FACTOR = 3", False),
        ("deep", "FACTOR = 2", "FACTOR = 1\nFACTOR = 2", False),
        ("deep", "FACTOR = 2", "FACTOR = 2\nFACTOR += 1", False),
        ("middle", "third(1)", "third(2)", False),  # a method of a class that only an annotation names
        ("deep", "Three calls deep.", "Edited.", True),
        ("deep", '    """Three calls deep."""\n', "", True),
        ("top", "# why", "# because", True),
        ("top", "(x):\n    return draw", "(x, y):\n    return draw", True),
        ("figures", "return x", "return -x", True),
        ("deep", "def unused(x):\n    return x", "def unused(x):\n    return 2 * x", True),
        ("middle", "class Shape:", "\n\nclass Shape:", True),
    ],
)
def test_the_address_follows_code_however_deep_but_no_words_nor_what_is_not_reached(made, module, before, after, same):
    assert before in MODULES[module]
    assert (made(module, before, after) == made()) == same


def test_what_is_reached_can_be_listed_and_the_store_is_not_followed(made):
    made()
    names = {"top.first", "middle.Shape", "middle.second", "deep.third", "deep.FACTOR"}
    assert code.reachable("made.top", "first").keys() == {f"made.{name}" for name in names}
    assert not any(name.startswith("harvis_utils.store") for name in code.reachable(__name__, "counted"))


def test_code_counts_as_it_was_imported_whatever_its_file_says_since(tmp_path, monkeypatch):
    """An edited file changes nothing until it is imported again, and then all."""
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "from harvis_utils.store.results import kept\n\nFACTOR = {}\n\n"
    source += "@kept('made')\ndef of(x):\n    return {{'v': FACTOR * x}}\n"
    path = tmp_path / "edited.py"
    path.write_text(source.format(2))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions within a second would be taken for one
    module = importlib.import_module("edited")
    path.write_text(source.format(300))
    before = module.of.key(1)
    assert module.of(1) == {"v": 2}
    module = importlib.reload(module)
    assert module.of(1) == {"v": 300} and module.of.key(1) != before
    path.write_text(source.format(2))
    module = importlib.reload(module)
    assert module.of.key(1) == before
    monkeypatch.delitem(sys.modules, "edited")


# -------------------------------------------------------------------------------------------------- arguments


@dataclass(frozen=True)
class Made:
    size: int = 1
    rate: float = 0.1


@dataclass(frozen=True)
class Grown(Made):
    kind: str = field(default="plain", metadata={"unless": "plain"})


class Data:
    digest = "abc"


X = xr.Dataset({"a": ("x", [1.0])})


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (Made(2), Made(2), True),
        ((1, 2), [1, 2], True),
        (np.arange(3.0), np.arange(3.0), True),
        (torch.arange(3.0), np.arange(3, dtype=np.float32), True),
        (np.float64(0.5), 0.5, True),
        (X, X.copy(), True),
        (Data(), "abc", True),
        (Grown(2), Made(2), True),  # a setting that came later, at the value that results from before stand for
        (Grown(2), Grown(2, kind="other"), False),
        (Made(2), Made(3), False),
        (np.arange(3), np.arange(3.0), False),
        (np.zeros((2, 1)), np.zeros((1, 2)), False),
        (X, X.rename(x="y"), False),
        (X.assign_coords(x=[0]), X.assign_coords(x=[1]), False),
        (as_json, load_settings, False),
        (np.array(["a"], np.dtypes.StringDType()), np.array(["a"]), True),
        (np.array(["a"], np.dtypes.StringDType()), np.array(["b"], np.dtypes.StringDType()), False),
        (np.array(["a" * 40], np.dtypes.StringDType()), np.array(["b" * 40], np.dtypes.StringDType()), False),
        (np.array([1], ">i4"), np.array([1], "<i4"), True),
        (np.array([1], ">i4"), np.array([1 << 24], "<i4"), False),
        (np.array([1], "M8[s]"), np.array([1], "M8[D]"), False),
    ],
)
def test_equal_arguments_and_only_these_are_described_alike(one, other, alike):
    assert (json.dumps(described(one)) == json.dumps(described(other))) == alike


def test_what_has_no_description_is_refused():
    with pytest.raises(TypeError, match="object has neither key nor digest"):
        described(object())


@pytest.mark.parametrize("value", [lambda x: x, np.sin, torch.relu, Made.__eq__, Data().digest.join])
def test_a_function_whose_code_cannot_be_read_is_refused(value):
    with pytest.raises(TypeError, match="cannot be part of an address"):
        described(value)


def test_a_function_of_a_notebook_cannot_be_kept(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(results, "KEPT", [*results.KEPT])  # no other test should find it
    space = {"__name__": "__main__", "kept": kept}
    exec("@kept('cell')\ndef of_a_cell(x: int) -> int:\n    return x", space)
    with pytest.raises(TypeError, match="__main__.of_a_cell cannot be read: move it from the notebook to a module"):
        space["of_a_cell"](1)


# ---------------------------------------------------------------------------------------------------- results

CALLS = []


@kept("counted", apart=("loud",))
def counted(settings: Made, shape: tuple[int, ...] = (2,), *, loud: bool = False) -> xr.Dataset:
    CALLS.append(settings)
    return xr.Dataset({"a": (("x",), np.full(shape, settings.rate))}, {"x": list("ab")})


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def test_a_result_is_computed_once_read_after_that_and_says_what_made_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HARVIS_JOURNAL", str(tmp_path / "journal"))
    first, second = counted(Made()), counted(Made(), (2,), loud=True)
    xr.testing.assert_identical(first, second)
    assert len(CALLS) == 1
    counted(Made(2))
    assert len(CALLS) == 2 and counted in KEPT
    asked = [f"counted/{counted.key(Made(size))}" for size in (1, 1, 2)]
    assert (tmp_path / "journal").read_text().split() == asked, "the chain can note what was asked for"
    manifest = json.loads((results.folder_of("counted", counted.key(Made())) / "manifest.json").read_text())
    assert manifest["provenance"]["arguments"]["settings"] == {"size": 1, "rate": 0.1} and manifest["wall_s"] >= 0


def test_the_key_holds_arguments_code_and_versions_and_not_what_is_apart(monkeypatch):
    key, fixed = counted.key(Made()), [kept("fixed", version=n)(counted.function) for n in (1, 2)]
    assert counted.key(Made(), loud=True) == counted.key(settings=Made()) == key != counted.key(Made(2))
    of_version = [one.key(Made()) for one in fixed]
    assert of_version[0] != of_version[1]
    for name, other in (("code_digest", lambda module, name: "edited"), ("versions", lambda: {"numpy": "0"})):
        with monkeypatch.context() as patched:
            patched.setattr(results, name, other)
            assert counted.key(Made()) != key
            assert (fixed[0].key(Made()) == of_version[0]) == (name == "code_digest"), "a version stands for the code"
    builds = []
    for number in ("2.13.0+cpu", "2.13.0"):
        monkeypatch.setattr(results, "version", lambda library, number=number: number)
        builds.append(counted.key(Made()))
    assert builds[0] == builds[1], "builds of one version are not told apart"


@pytest.mark.parametrize(
    "value",
    [
        xr.Dataset({"a": ("x", [1.0, np.nan], {"units": "G"}), "b": ("x", [True, False])}, {"x": ["short", "longer"]}),
        pd.DataFrame({"name": ["a", "b"], "value": [0.1 + 0.2, np.nan], "n": [1, 2]}),
        pd.DataFrame({"name": ["None", "NA"], "value": ["null", "nan"]}),
        {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor([3])},
        {"nested": [1, 2.5, None, "x"]},
    ],
    ids=["dataset", "table", "words", "tensors", "json"],
)
def test_every_kind_comes_back_as_it_went_in(value, tmp_path):
    results.write_result(tmp_path, value)
    back = results.read_result(tmp_path)
    if isinstance(value, dict) and "w" in value:
        assert back.keys() == value.keys() and all(torch.equal(back[k], value[k]) for k in value)
    else:
        same = getattr(back, "identical", None) or getattr(back, "equals", back.__eq__)
        assert same(value)


def test_seconds_are_added_up_by_stage():
    before = results.seconds_by_stage().get("costly", 0.0)

    @kept("costly")
    def costly(x: int) -> int:
        results.charge(2.5)
        return x

    assert costly(1) == costly(1) == 1
    costly(2)
    assert results.seconds_by_stage()["costly"] - before == 5.0


def test_a_checkpoint_folder_is_given_and_emptied():
    seen = []

    @kept("resumed")
    def resumed(x: int, checkpoint=None) -> int:
        checkpoint.mkdir(exist_ok=True, parents=True)
        seen.append(sorted(p.name for p in checkpoint.iterdir()))
        (checkpoint / "half").touch()
        if len(seen) == 1:
            raise RuntimeError("killed")
        return x

    with pytest.raises(RuntimeError, match="killed"):
        resumed(1)
    assert resumed(1) == 1 and seen == [[], ["half"]]
    assert not list(results.folder_of("resumed", "x").parent.glob("*.checkpoint"))


# ---------------------------------------------------------------------------------------- all, or nothing at all


def stored():
    counted(Made())
    CALLS.clear()
    return results.folder_of("counted", counted.key(Made()))


SPOILED = {
    "truncated": lambda data, manifest: data.write_bytes(data.read_bytes()[:-1]),
    "flipped": lambda data, manifest: data.write_bytes(data.read_bytes()[::-1]),
    "removed": lambda data, manifest: data.unlink(),
    "a folder": lambda data, manifest: (data.unlink(), data.mkdir()),
    "stranger": lambda data, manifest: data.with_name("other.nc").write_bytes(b"x"),
    "another's": lambda data, manifest: manifest.write_text(manifest.read_text().replace(data.parent.name, "x" * 20)),
    "no manifest": lambda data, manifest: manifest.unlink(),
}
for TEXT in ("{}", "null", "[]", '{"files": []}', "[" * 100_000, ""):
    SPOILED[TEXT[:20]] = lambda data, manifest, text=TEXT: manifest.write_text(text)


@pytest.mark.parametrize("how", SPOILED)
def test_a_damaged_result_is_made_anew_and_said(how):
    folder = stored()
    expected = (folder / "result.nc").read_bytes()
    SPOILED[how](folder / "result.nc", folder / "manifest.json")
    with pytest.warns(UserWarning, match="made anew"):
        counted(Made())
    assert len(CALLS) == 1 and (folder / "result.nc").read_bytes() == expected and results.damage(folder) is None


def test_a_damaged_result_behind_a_link_is_made_anew_and_what_the_link_leads_to_stays(tmp_path):
    folder = stored()
    elsewhere = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(elsewhere)
    (elsewhere / "result.nc").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"result.nc is damaged; made anew"):
        counted(Made())
    assert len(CALLS) == 1 and not folder.is_symlink() and (elsewhere / "result.nc").read_bytes() == b"x"


@pytest.mark.parametrize("of", [shutil, results.files])
def test_what_belongs_to_somebody_else_is_one_error(of, monkeypatch):
    """As root may do everything, the system's refusal is made up."""
    folder = stored()

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    if of is shutil:
        (folder / "result.nc").write_bytes(b"x")
    else:
        monkeypatch.setattr(files, "file_digest", refuse)
        assert results.damage(folder) == "result.nc cannot be read (Permission denied)"
    with (
        pytest.warns(UserWarning, match="result.nc"),
        pytest.raises(files.ArtifactError, match=f"{folder}: could not be removed .Permission denied.; remove it"),
    ):
        counted(Made())


def heal_at_once(gate, n: int, failed) -> None:
    for _ in range(n):
        gate.wait()
        with suppress(OSError):
            (results.folder_of("raced", by_many.key(0)) / "result.json").write_text("[]")
        gate.wait()
        try:
            assert by_many(0)["x"][-1] == 1999
        except BaseException as error:
            failed.put(repr(error))


@pytest.mark.filterwarnings("ignore:.*made anew")
def test_processes_that_heal_one_result_do_not_collide():
    by_many(0)
    fork = multiprocessing.get_context("fork")
    failed, gate = fork.SimpleQueue(), fork.Barrier(3)
    processes = [fork.Process(target=heal_at_once, args=(gate, 25, failed)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert failed.empty(), failed.get()


def test_a_file_that_a_computation_lacks_is_not_blamed_on_the_store():
    @kept("lacking")
    def lacking(path: str) -> str:
        return open(path).read()

    with pytest.raises(FileNotFoundError, match="/nowhere/data.txt"):
        lacking("/nowhere/data.txt")


def test_a_failing_computation_leaves_nothing():
    @kept("failing")
    def failing(x: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing(1)
    assert not list(results.folder_of("failing", "x").parent.glob("*"))


def kill_half_way(folder) -> None:
    (folder / "a.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_killed_computations_left_is_swept_but_not_what_living_ones_or_other_machines_write():
    place = results.folder_of("counted", "k").parent
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=results.obtain, args=("counted", "k", kill_half_way, {}))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and [path.suffix for path in place.iterdir()] == [".part"]
    living, elsewhere = f".k.{os.getpid()}@{files.node()}.x.part", f".k.{process.pid}@other.x.part"
    for name in (living, elsewhere):
        (place / name).mkdir()
    (place / f".t.csv.{process.pid}@{files.node()}.part").write_text("a file half written")
    (place / (contained := f".c.{process.pid}@{files.node()}.part")).mkdir()
    with files.owning(place / contained):  # by a process of that number in a container of the same name
        counted(Made())
    assert {path.name for path in place.iterdir()} == {living, elsewhere, contained, counted.key(Made())}


def test_of_several_who_want_a_result_one_makes_it():
    made = []

    @kept("raced")
    def raced(x: int) -> dict:
        made.append(x)
        time.sleep(0.2)
        return {"x": x}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(raced, [1] * 4)) == [{"x": 1}] * 4 and made == [1]
    assert results.damage(results.folder_of("raced", raced.key(1))) is None


@kept("raced")
def by_many(x: int) -> dict:
    return {"x": list(range(2000))}


def many_times(_) -> int:
    return sum(by_many(x)["x"][-1] for x in range(20))


def test_processes_that_make_and_read_the_same_results_never_fail():
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(many_times, range(6), chunksize=1) == [20 * 1999] * 6
    assert not list(results.folder_of("raced", "x").parent.glob(".*"))


def test_where_another_machine_was_faster_its_result_stays():
    """A lock on this machine says nothing to others that share the store."""
    folder = results.folder_of("shared", "k")

    def build(part) -> None:
        (part / "a.txt").write_text("ours")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(results.filelock, "FileLock", lambda *_, **__: SimpleNamespace(acquire=int, release=int))
            results.obtain("shared", "k", lambda other: (other / "a.txt").write_text("theirs"), {})

    assert results.obtain("shared", "k", build, {}) == folder
    assert (folder / "a.txt").read_text() == "theirs" and [p.name for p in folder.parent.iterdir()] == ["k"]


def test_computing_can_be_refused_while_reading_goes_on():
    counted(Made())

    def refuse(stage, key):
        raise LookupError

    with results.around_builds(refuse):
        counted(Made())
        with pytest.raises(LookupError):
            counted(Made(9))
