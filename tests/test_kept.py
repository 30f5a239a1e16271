"""Kept functions: an address that follows the code, results that are whole or not there."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from harvis_utils.store import code, files, results
from harvis_utils.store.files import ArtifactError
from harvis_utils.store.results import KEPT, described, kept

DEEP = '''
FACTOR = 2


def third(x):
    """Three calls deep."""
    return FACTOR * x


def unused(x):
    return x
'''
MIDDLE = """
from made.deep import third


class Shape:
    def area(self):
        return third(1)


def second(x):
    return third(x)
"""
TOP = """
from made import middle
from made.figures import draw


def first(x: middle.Shape):
    # why
    return middle.second(x)


def shown(x):
    return draw(first(x))
"""
MODULES = {"deep": DEEP, "middle": MIDDLE, "figures": "def draw(x):\n    return x\n", "top": TOP}


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
        code._definitions.cache_clear()
        code.code_digest.cache_clear()
        return code.code_digest("made.top", "first")

    yield digest
    for name in [m for m in sys.modules if m.partition(".")[0] == "made"]:
        del sys.modules[name]
    code._definitions.cache_clear()
    code.code_digest.cache_clear()


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("top", "middle.second(x)", "middle.second(x) + 1"),
        ("middle", "return third(x)", "return third(x + 0)"),
        ("deep", "FACTOR * x", "x * FACTOR"),
        ("deep", "FACTOR = 2", "FACTOR = 3"),
        ("middle", "third(1)", "third(2)"),  # a method of a class that only an annotation names
    ],
)
def test_an_edit_however_deep_changes_the_address(made, module, before, after):
    assert before in MODULES[module]
    assert made(module, before, after) != made()


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("deep", "Three calls deep.", "Edited."),
        ("deep", '    """Three calls deep."""\n', ""),
        ("top", "# why", "# because"),
        ("top", "(x):\n    return draw", "(x, y):\n    return draw"),
        ("figures", "return x", "return -x"),
        ("deep", "def unused(x):\n    return x", "def unused(x):\n    return 2 * x"),
        ("middle", "class Shape:", "\n\nclass Shape:"),
    ],
)
def test_docstrings_comments_figures_and_what_is_not_reached_do_not(made, module, before, after):
    assert before in MODULES[module]
    assert made(module, before, after) == made()


def test_what_is_reached_can_be_listed(made):
    made()
    names = code.reachable("made.top", "first")
    assert names.keys() == {
        "made.top.first",
        "made.middle.Shape",
        "made.middle.second",
        "made.deep.third",
        "made.deep.FACTOR",
    }


def test_the_store_itself_is_not_followed():
    assert not any(name.startswith("harvis_utils.store") for name in code.reachable(__name__, "counted"))


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


@pytest.mark.parametrize(
    ("one", "same"),
    [
        (Made(2), Made(2)),
        ((1, 2), [1, 2]),
        (np.arange(3.0), np.arange(3.0)),
        (torch.arange(3.0), np.arange(3, dtype=np.float32)),
        (np.float64(0.5), 0.5),
        (xr.Dataset({"a": ("x", [1.0])}), xr.Dataset({"a": ("x", [1.0])})),
        (Data(), "abc"),
        (Grown(2), Made(2)),  # a setting that came later, at the value that results from before stand for
    ],
)
def test_equal_arguments_are_described_alike(one, same):
    assert json.dumps(described(one)) == json.dumps(described(same))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Made(2), Made(3)),
        (np.arange(3), np.arange(3.0)),
        (np.zeros((2, 1)), np.zeros((1, 2))),
        (xr.Dataset({"a": ("x", [1.0])}), xr.Dataset({"a": ("y", [1.0])})),
        (xr.Dataset({"a": ("x", [1.0])}, {"x": [0]}), xr.Dataset({"a": ("x", [1.0])}, {"x": [1]})),
        (Grown(2), Grown(2, kind="other")),
        (test_equal_arguments_are_described_alike, test_the_store_itself_is_not_followed),
    ],
)
def test_other_arguments_are_not(one, other):
    assert json.dumps(described(one)) != json.dumps(described(other))


def test_what_has_no_description_is_refused():
    with pytest.raises(TypeError, match="object has neither key nor digest"):
        described(object())


# ---------------------------------------------------------------------------------------------------- results

CALLS = []


@kept("counted", apart=("loud",))
def counted(settings: Made, shape: tuple[int, ...] = (2,), *, loud: bool = False) -> xr.Dataset:
    CALLS.append(settings)
    return xr.Dataset({"a": (("x",), np.full(shape, settings.rate))}, {"x": list("ab")})


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def test_a_result_is_computed_once_and_read_after_that():
    first, second = counted(Made()), counted(Made(), (2,), loud=True)
    xr.testing.assert_identical(first, second)
    assert len(CALLS) == 1
    counted(Made(2))
    assert len(CALLS) == 2 and counted in KEPT


def test_the_key_holds_arguments_code_and_versions_and_not_what_is_apart(monkeypatch):
    key = counted.key(Made())
    assert counted.key(Made(), loud=True) == counted.key(settings=Made()) == key != counted.key(Made(2))
    with monkeypatch.context() as patched:
        patched.setattr(results, "versions", lambda: {"numpy": "0"})
        assert counted.key(Made()) != key
    with monkeypatch.context() as patched:
        patched.setattr(results, "code_digest", lambda module, name: "edited")
        assert counted.key(Made()) != key


def test_an_explicit_version_stands_for_the_code(monkeypatch):
    def function(x: int) -> int:
        return x

    one, two = (kept("versioned", version=n)(function) for n in (1, 2))
    key = one.key(3)
    monkeypatch.setattr(results, "code_digest", lambda module, name: "edited")
    assert one.key(3) == key != two.key(3)


@pytest.mark.parametrize(
    "value",
    [
        xr.Dataset({"a": ("x", [1.0, np.nan])}, {"x": ["short", "longer"]}),
        pd.DataFrame({"name": ["a", "b"], "value": [0.1 + 0.2, np.nan], "n": [1, 2]}),
        {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor([3])},
        {"nested": [1, 2.5, None, "x"]},
    ],
    ids=["dataset", "table", "tensors", "json"],
)
def test_every_kind_comes_back_as_it_went_in(value, tmp_path):
    results.write_result(tmp_path, value)
    back = results.read_result(tmp_path)
    if isinstance(value, xr.Dataset):
        xr.testing.assert_identical(back, value)
    elif isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(back, value)
    elif "w" in value:
        assert back.keys() == value.keys() and all(torch.equal(back[k], value[k]) for k in value)
    else:
        assert back == value


def test_provenance_says_what_made_it():
    counted(Made())
    manifest = json.loads((results.folder_of("counted", counted.key(Made())) / "manifest.json").read_text())
    about = manifest["provenance"]
    assert about["arguments"]["settings"] == {"size": 1, "rate": 0.1}
    assert {"versions", "git", "device", "threads"} <= about.keys() and manifest["wall_s"] >= 0


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


def spoil(folder, how):
    data, manifest = folder / "result.nc", folder / "manifest.json"
    if how == "truncated":
        data.write_bytes(data.read_bytes()[:-1])
    elif how == "flipped":
        data.write_bytes(data.read_bytes()[::-1])
    elif how == "removed":
        data.unlink()
    elif how == "a folder":
        data.unlink()
        data.mkdir()
    elif how == "stranger":
        (folder / "other.nc").write_bytes(b"x")
    elif how == "another's manifest":
        manifest.write_text(manifest.read_text().replace(folder.name, "x" * 20))
    elif how == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(how)


SPOILED = ["truncated", "flipped", "removed", "a folder", "stranger", "another's manifest", "no manifest"]
SPOILED += ["{}", "null", "[]", '{"files": []}', "[" * 100_000, ""]


@pytest.mark.parametrize("how", SPOILED, ids=lambda how: how[:20])
def test_a_damaged_result_is_made_anew_and_said(how):
    folder = stored()
    expected = (folder / "result.nc").read_bytes()
    spoil(folder, how)
    with pytest.warns(UserWarning, match="made anew"):
        counted(Made())
    assert len(CALLS) == 1 and (folder / "result.nc").read_bytes() == expected and results.damage(folder) is None


def test_a_failing_computation_leaves_nothing():
    @kept("failing")
    def failing(x: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing(1)
    assert not list(results.folder_of("failing", "x").parent.glob("*"))


def test_a_killed_computation_leaves_only_what_the_next_one_sweeps(own_folders):
    script = """
        import os, signal
        from harvis_utils.store.results import obtain

        def build(folder):
            (folder / "a.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

        obtain("counted", "k", build, {})
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)]).returncode == -signal.SIGKILL
    place = results.folder_of("counted", "k").parent
    assert [path.suffix for path in place.iterdir()] == [".part"]
    counted(Made())
    assert [path.name for path in place.iterdir()] == [counted.key(Made())]


def test_builds_of_one_version_are_not_told_apart(monkeypatch):
    found = []
    for number in ("2.13.0+cpu", "2.13.0"):
        monkeypatch.setattr(results, "version", lambda library, number=number: number)
        found.append(counted.key(Made()))
    assert found[0] == found[1]


def test_a_full_disk_is_one_clear_error(monkeypatch):
    def full(path, dataset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.files, "write_dataset", full)
    with pytest.raises(ArtifactError, match="could not be written .No space left on device.; nothing was left behind"):
        counted(Made(7))
    assert not results.folder_of("counted", counted.key(Made(7))).exists()


def test_what_killed_processes_left_is_swept_but_not_that_of_living_ones_or_other_machines():
    place = results.folder_of("counted", "x").parent
    place.mkdir(parents=True)
    nobody, here = 2**22 + 1, files.node()
    dead, living, elsewhere = (
        f".k.{nobody}@{here}.x.part",
        f".k.{os.getpid()}@{here}.x.part",
        f".k.{nobody}@other.x.part",
    )
    for name in (dead, living, elsewhere):
        (place / name).mkdir()
    counted(Made(3))
    assert {p.name for p in place.glob(".*.part")} == {living, elsewhere}


def test_of_several_who_want_a_result_one_makes_it():
    barrier, made = threading.Barrier(4), []

    @kept("raced")
    def raced(x: int) -> dict:
        made.append(x)
        time.sleep(0.2)
        return {"x": x}

    def want() -> None:
        barrier.wait(60)
        found.append(raced(1))

    found = []
    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{"x": 1}] * 4 and made == [1]
    assert results.damage(results.folder_of("raced", raced.key(1))) is None


def test_the_chain_can_note_which_results_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HARVIS_JOURNAL", str(tmp_path / "journal"))
    counted(Made())
    counted(Made())
    assert (tmp_path / "journal").read_text().split() == [f"counted/{counted.key(Made())}"] * 2


def test_computing_can_be_refused_while_reading_goes_on():
    counted(Made())

    class Refused(Exception):
        pass

    def refuse(stage, key):
        raise Refused

    with results.around_builds(refuse):
        counted(Made())
        with pytest.raises(Refused):
            counted(Made(9))
    assert dataclasses.is_dataclass(CALLS[0])
