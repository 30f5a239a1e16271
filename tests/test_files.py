"""Results kept by content, written all or nothing, with their provenance."""

from __future__ import annotations

import json
import multiprocessing
import re
import resource
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from safetensors.numpy import save_file

from harvis_utils.run import Run
from harvis_utils.settings import load_settings
from harvis_utils.store import results
from harvis_utils.store.files import (
    ArtifactError,
    read_json,
    replacing,
    write_dataset,
    write_json,
    write_text,
)


def files(folder: Path) -> list[str]:
    """Everything below a folder, hidden things included."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


# ---------------------------------------------------------------------------------------- all or nothing


def test_replacing_gives_the_name_only_to_the_whole_file(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as part:
        part.write_text("whole")
        assert part.parent == path.parent and not path.exists()
    assert path.read_text() == "whole" and files(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ArtifactError if error is OSError else error), replacing(path) as part:
        part.write_text("ne")
        raise error("half-way")
    assert path.read_text() == "old" and files(tmp_path) == ["a.txt"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "full").write_text("not empty")
    message = rf"{re.escape(str(tmp_path / 'a'))}: could not be written \(.+\); nothing was left behind"
    with pytest.raises(ArtifactError, match=message):
        write_text(tmp_path / "a", "a folder has this name")
    assert files(tmp_path) == ["a", "a/full"]


BIG = np.random.default_rng(0).normal(size=50_000)


def drawn() -> Figure:
    figure = Figure()
    figure.subplots().plot(BIG[:3000])
    return figure


def weights(path: Path) -> None:
    with replacing(path) as part:
        save_file({"a": BIG}, part)


#: what is written into a folder, or by a run into its reports
WRITES = {
    "text": lambda root, run: write_text(root / "x.txt", "x" * 100_000),
    "json": lambda root, run: write_json(root / "x.json", BIG.tolist()),
    "table": lambda root, run: run.table("x", pd.DataFrame({"a": BIG})),
    "figure": lambda root, run: run.figure("x", drawn()),
    "dataset": lambda root, run: write_dataset(root / "x.nc", xr.Dataset({"a": ("t", BIG)})),
    "weights": lambda root, run: weights(root / "x.safetensors"),
    "result": lambda root, run: results.obtain("made", "x", lambda f: np.save(f / "a.npy", BIG), {}),
    "result with weights": lambda root, run: results.obtain(
        "made", "x", lambda f: save_file({"a": BIG}, f / "a.safetensors"), {}
    ),
}


def on_a_full_disk(name: str, root: Path, run: Run, said: Path) -> None:
    """In a process of its own: that write with a limit on the size of files; its error goes to ``said``."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        WRITES[name](root, run)
    except BaseException as error:
        said.write_text(json.dumps([type(error).__name__, str(error)]))


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_is_one_error_that_names_the_file_and_leaves_nothing(name, own_folders, make_recordings, tmp_path):
    run = Run(load_settings())
    run.recordings = make_recordings({(1, 0): 30})
    about = (name, own_folders, run, tmp_path / "said")
    process = multiprocessing.get_context("fork").Process(target=on_a_full_disk, args=about)
    process.start()
    process.join()
    kind, message = json.loads((tmp_path / "said").read_text())
    assert kind == "ArtifactError", message
    why = r"could not be written \(.*(File too large|requested and \d+ written).*\); nothing was left behind"
    assert re.fullmatch(rf"{re.escape(str(own_folders))}/\S*x(\.\w+)?: {why}", message), message
    assert not [p for p in own_folders.rglob("*") if p.is_file() or p.name.startswith(".")]


# ------------------------------------------------------------------------------------------------------ files

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(value=plain)
def test_json_round_trip(tmp_path_factory, value):
    path = write_json(tmp_path_factory.getbasetemp() / "round.json", value)
    assert read_json(path) == value


def test_nan_becomes_null_where_that_is_asked_for(tmp_path):
    path = write_json(tmp_path / "a.json", {"a": [1.5, np.nan], "b": {"c": np.nan, "d": "x"}}, nan_as_null=True)
    assert read_json(path) == {"a": [1.5, None], "b": {"c": None, "d": "x"}}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_refused_in_json(tmp_path, bad):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"score": [1.0, bad]})
    assert files(tmp_path) == []


def test_a_missing_or_broken_json_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"a\.json does not exist"):
        read_json(tmp_path / "a.json")
    for content in (b'{"a": 1', b"", b"\xff\xfe\x00"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"a\.json is not readable as JSON .* delete it and run its notebook"):
            read_json(tmp_path / "a.json")


# ------------------------------------------------------------------------------------------------- provenance


def test_provenance_says_what_made_a_result(monkeypatch):
    monkeypatch.setenv("HARVIS_THREADS", "2")
    about = results.provenance("cpu", seed=3, caveat="made-up data")
    assert set(about["versions"]) == {"python", "numpy", "scipy", "torch", "scikit-learn"}
    assert about["versions"]["numpy"] == np.__version__
    assert re.fullmatch(r"cpu \(.+\)", about["device"])
    assert (about["threads"], about["seed"], about["caveat"]) == (2, 3, "made-up data")
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", about["git"])
    assert json.loads(json.dumps(about)) == about


def test_the_revision_marks_changed_files_and_is_unknown_outside_a_checkout(tmp_path, monkeypatch):
    def revision() -> str:
        results.git_revision.cache_clear()
        return results.git_revision()

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(("git", *who, *words), cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    try:
        assert revision() == "unknown"
        git("init")
        (tmp_path / "a").write_text("1")
        git("add", "a")
        git("commit", "-m", "first")
        assert re.fullmatch(r"[0-9a-f]{12}", revision())
        (tmp_path / "b").write_text("not the project's")
        assert re.fullmatch(r"[0-9a-f]{12}", revision())
        (tmp_path / "a").write_text("2")
        assert re.fullmatch(r"[0-9a-f]{12}\+", revision())
    finally:
        results.git_revision.cache_clear()
