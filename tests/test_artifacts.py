"""Results kept by content, written all or nothing, with their provenance."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from harvis_utils.settings import as_json, load_settings
from harvis_utils.store import stages
from harvis_utils.store.files import (
    ArtifactError,
    digests,
    read_dataset,
    read_json,
    replacing,
    save_figure,
    save_table,
    write_dataset,
    write_json,
    write_text,
)
from harvis_utils.store.stages import Stage

STAGE = Stage("made", notebook="02_model", modules=("windows", "models.sfhf"))


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


WRITES = {
    "text": "write_text(root / 'x.txt', 'x' * 100_000)",
    "json": "write_json(root / 'x.json', big.tolist())",
    "table": "save_table(load_settings(), pd.DataFrame({'a': big}), 'x')",
    "figure": "save_figure(load_settings(), figure(big), 'x')",
    "dataset": "write_dataset(root / 'x.nc', xr.Dataset({'a': ('t', big)}))",
    "weights": "weights(root / 'x.safetensors')",
    "result": "stage.obtain('x', lambda f: np.save(f / 'a.npy', big), {})",
    "result with weights": "stage.obtain('x', lambda f: save_file({'a': big}, f / 'a.safetensors'), {})",
}


FULL_DISK = """
    import json, os, resource, sys
    from pathlib import Path
    import matplotlib; matplotlib.use("Agg")
    import matplotlib.pyplot as plt, numpy as np, pandas as pd, xarray as xr
    from safetensors.numpy import save_file
    from harvis_utils.settings import load_settings
    from harvis_utils.store import stages
    from harvis_utils.store.files import ArtifactError, replacing, save_figure, save_table
    from harvis_utils.store.files import write_dataset, write_json, write_text

    root, big = Path(sys.argv[1]), np.random.default_rng(0).normal(size=50_000)
    stage = stages.Stage("made", notebook="02_model", modules=("windows",))

    def figure(values):
        made, axes = plt.subplots()
        axes.plot(values[:3000])
        return made

    def weights(path):
        with replacing(path) as part:
            save_file({"a": big}, part)

    for write in json.loads(sys.argv[2]):
        if not os.fork():
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            try:
                eval(write)
            except BaseException as error:
                print(json.dumps([write, type(error).__name__, str(error)]), flush=True)
            os._exit(0)
        os.wait()
"""


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    """Every write with a limit on the size of files standing for the disk: its error, and what was left behind."""
    root = tmp_path_factory.mktemp("full")
    roots = {"HARVIS_ARTIFACTS": str(root / "derived"), "HARVIS_REPORTS": str(root / "reports")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(root), json.dumps(list(WRITES.values()))],
        env=os.environ | roots,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    errors = {write: (kind, message) for write, kind, message in map(json.loads, done.stdout.splitlines())}
    return root, errors, [p for p in root.rglob("*") if p.is_file() or p.name.startswith(".")]


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_is_one_error_that_names_the_file(name, full_disk):
    root, errors, _ = full_disk
    kind, message = errors[WRITES[name]]
    assert kind == "ArtifactError", message
    why = r"could not be written \(.*(File too large|requested and \d+ written).*\); nothing was left behind"
    assert re.fullmatch(rf"{re.escape(str(root))}/\S*x(\.\w+)?: {why}", message), message


def test_a_full_disk_leaves_nothing_half_written(full_disk):
    assert full_disk[2] == []


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_refused_in_json(tmp_path, bad):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"score": [1.0, bad]})
    assert files(tmp_path) == []


def test_a_missing_or_broken_json_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"a\.json does not exist"):
        read_json(tmp_path / "a.json")
    for text in ('{"a": 1', ""):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ArtifactError, match=r"a\.json is not readable as JSON .* delete it and run its notebook"):
            read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="is not readable as JSON"):
        read_json(tmp_path / "a.json")


def test_dataset_round_trip(tmp_path):
    dataset = xr.Dataset(
        {
            "signal": (("layer", "unit", "time"), np.random.default_rng(0).normal(size=(2, 3, 30)).astype(np.float32)),
            "ssim": (("layer", "unit"), np.array([[0.1, np.nan, 2.0], [1, 2, 3]]), {"units": "G^2"}),
            "failed": (("layer", "unit"), np.array([[True, False, True], [False, False, True]])),
        },
        coords={"layer": ["conv1", "conv2"], "unit": np.arange(3)},
        attrs={"caveat": "made-up data"},
    )
    path = write_dataset(tmp_path / "a.nc", dataset)
    again = read_dataset(path)
    xr.testing.assert_identical(again, dataset)
    assert again["signal"].dtype == np.float32 and again["failed"].dtype == bool
    assert files(tmp_path) == ["a.nc"]
    path.unlink()  # read into memory and closed
    assert float(again["signal"].sum()) == float(dataset["signal"].sum())


def test_figures_and_tables_go_to_the_runs_reports(own_folders):
    from matplotlib.figure import Figure

    cfg = load_settings("desk", "dsads")
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    first = save_figure(cfg, figure, "03_gallery")
    assert first == own_folders / "reports" / "desk" / "dsads" / "figures" / "03_gallery.png"
    content = first.read_bytes()
    assert content.startswith(b"\x89PNG")
    save_figure(cfg, figure, "03_gallery")
    assert first.read_bytes() == content, "the same figure gives the same file"
    table = pd.DataFrame({"f1": [0.5, 0.25]}, index=pd.Index(["walking", "sitting"], name="activity"))
    second = save_table(cfg, table, "02_f1")
    assert second == own_folders / "reports" / "desk" / "dsads" / "tables" / "02_f1.csv"
    pd.testing.assert_frame_equal(pd.read_csv(second, index_col=0), table)
    found = digests([first, second])
    assert set(found) == {"03_gallery.png", "02_f1.csv"} and all(len(d) == 64 for d in found.values())


# ------------------------------------------------------------------------------------------------- provenance


def test_provenance_says_what_made_a_result(monkeypatch):
    monkeypatch.setenv("HARVIS_THREADS", "2")
    cfg = load_settings("quick", "synthetic", "cpu")
    about = stages.provenance(cfg, seed=3, caveat="made-up data")
    assert about["settings"] == as_json(load_settings("quick", "synthetic"))
    assert set(about["versions"]) == {"python", "numpy", "scipy", "torch", "scikit-learn"}
    assert about["versions"]["numpy"] == np.__version__
    assert re.fullmatch(r"cpu \(.+\)", about["device"])
    assert (about["threads"], about["seed"], about["caveat"]) == (2, 3, "made-up data")
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", about["git"])
    assert json.loads(json.dumps(about)) == about


def test_the_revision_marks_changed_files_and_is_unknown_outside_a_checkout(tmp_path, monkeypatch):
    def revision() -> str:
        stages.git_revision.cache_clear()
        return stages.git_revision()

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(("git", *who, *words), cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(stages, "REPOSITORY", tmp_path)
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
        stages.git_revision.cache_clear()


# ------------------------------------------------------------------------------------------------- the store


def counting():
    """A build that writes a file and counts how often it was called."""

    def build(folder: Path) -> None:
        build.calls += 1
        (folder / "a.txt").write_text(f"{build.calls}")

    build.calls = 0
    return build


def test_obtain_builds_once_and_reuses(own_folders):
    build = counting()
    first = STAGE.obtain("k", build, {"seed": 1})
    assert first == STAGE.folder("k") == own_folders / "derived" / "store" / "made" / "k"
    assert STAGE.obtain("k", build, {"seed": 2}) == STAGE.require("k") == first
    assert build.calls == 1 and files(first) == ["a.txt", "manifest.json"]
    manifest = STAGE.manifest("k")
    assert manifest["provenance"] == {"seed": 1} and (manifest["stage"], manifest["key"]) == ("made", "k")
    assert manifest["wall_s"] >= 0 and set(manifest["files"]) == {"a.txt"}
    STAGE.obtain("other", build, {})
    assert build.calls == 2 and files(first.parent) == [
        *("k", "k/a.txt", "k/manifest.json", "other", "other/a.txt", "other/manifest.json")
    ]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_build_that_fails_leaves_nothing_and_can_be_tried_again(error):
    def half(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise error("half-way")

    with pytest.raises(ArtifactError if error is OSError else error, match="half-way"):
        STAGE.obtain("k", half, {})
    assert files(STAGE.folder("k").parent) == []
    build = counting()
    STAGE.obtain("k", build, {})
    assert build.calls == 1


def test_a_folder_without_a_manifest_is_no_result():
    STAGE.folder("k").mkdir(parents=True)
    (STAGE.folder("k") / "stale.txt").write_text("left by something else")
    with pytest.raises(ArtifactError, match="run notebook 02_model first"):
        STAGE.require("k")
    assert files(STAGE.obtain("k", counting(), {})) == ["a.txt", "manifest.json"]


def test_the_checkpoint_goes_when_the_result_is_complete():
    checkpoint = STAGE.checkpoint("k")
    assert checkpoint.parent == STAGE.folder("k").parent
    write_text(checkpoint / "epoch.txt", "3")
    with pytest.raises(ZeroDivisionError):
        STAGE.obtain("k", lambda folder: 1 / 0, {})
    assert (checkpoint / "epoch.txt").exists(), "an interrupted computation goes on from it"
    STAGE.obtain("k", counting(), {})
    assert not checkpoint.exists()


def test_what_dead_processes_left_is_swept_and_the_rest_is_not(own_folders):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert not psutil.pid_exists(dead.pid)
    place = STAGE.folder("k").parent
    orphan, own, foreign = (
        place / name for name in (f".a.{dead.pid}.x1.part", f".a.{os.getpid()}.x1.part", ".not-a-pid.part")
    )
    for folder in (orphan, own, foreign):
        write_text(folder / "a.txt", "half")
    other_stage = write_text(place.parent / "other" / f".a.{dead.pid}.x1.part" / "a.txt", "half")
    STAGE.obtain("k", counting(), {})
    assert not orphan.exists()
    assert own.exists() and foreign.exists() and other_stage.exists()


def test_a_killed_build_leaves_only_what_the_next_one_sweeps(own_folders):
    script = """
        import os, signal
        from harvis_utils.artifacts import Stage

        def build(folder):
            (folder / "a.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

        Stage("made", notebook="02_model", modules=("windows",)).obtain("k", build, {})
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)]).returncode == -9
    place = STAGE.folder("k").parent
    assert [re.sub(r"\d.*", "", name) for name in files(place) if "/" not in name] == [".k."]
    with pytest.raises(ArtifactError, match="no result"):
        STAGE.require("k")
    STAGE.obtain("k", counting(), {})
    assert files(place) == ["k", "k/a.txt", "k/manifest.json"]


def test_a_missing_result_says_which_notebook_makes_it():
    with pytest.raises(ArtifactError, match=r"no result of stage 'made' .*run notebook 02_model first \(same PROFILE"):
        STAGE.require("k")


@pytest.mark.parametrize("damage", ["changed", "truncated", "removed"])
def test_a_damaged_file_is_noticed_by_name(damage):
    path = STAGE.obtain("k", counting(), {}) / "a.txt"
    if damage == "removed":
        path.unlink()
    else:
        path.write_text("2" if damage == "changed" else "")
    message = r"made/k/a\.txt is damaged; delete \S+/made/k and run notebook 02_model again"
    for call in (lambda: STAGE.require("k"), lambda: STAGE.obtain("k", counting(), {})):
        with pytest.raises(ArtifactError, match=message):
            call()


def test_the_chain_can_note_which_results_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HARVIS_JOURNAL", str(tmp_path / "journal"))
    STAGE.obtain("k", counting(), {})
    STAGE.obtain("k", counting(), {})
    assert (tmp_path / "journal").read_text() == "made/k\nmade/k\n"


# --------------------------------------------------------------------------------------------------- the key


def test_the_key_depends_on_settings_inputs_name_code_and_versions(monkeypatch):
    cfg = load_settings("quick", "synthetic")
    key = STAGE.key(cfg.model, "data")
    assert re.fullmatch(r"[0-9a-f]{20}", key) and key == STAGE.key(cfg.model, "data")
    others = [
        STAGE.key(load_settings("desk", "synthetic").model, "data"),
        STAGE.key(cfg.model, "other data"),
        STAGE.key(cfg.model, "data", "more"),
        Stage("other", "02_model", STAGE.modules).key(cfg.model, "data"),
        Stage("made", "02_model", STAGE.modules[:1]).key(cfg.model, "data"),
        Stage("made", "02_model", STAGE.modules[::-1]).key(cfg.model, "data"),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(stages, "code_digest", lambda module: f"edited {module}")
        others.append(STAGE.key(cfg.model, "data"))
    with monkeypatch.context() as patched:
        patched.setattr(stages, "version", lambda library: "0.0.1")
        others.append(STAGE.key(cfg.model, "data"))
    assert len({key, *others}) == 1 + len(others)
    assert Stage("made", "03_maximization", STAGE.modules).key(cfg.model, "data") == key, (
        "the notebook computes nothing"
    )


def test_the_key_does_not_tell_builds_of_one_version_apart(monkeypatch):
    monkeypatch.setattr(stages, "version", lambda library: "2.13.0+cpu")
    local = STAGE.key({}, "data")
    monkeypatch.setattr(stages, "version", lambda library: "2.13.0")
    assert STAGE.key({}, "data") == local


CODE = '''"""Turns a into b."""

SIZE = 3  # Choice: small


class Box:
    """Holds things."""

    #: how many
    n: int = 2


def double(x: float) -> float:
    """Twice ``x``."""
    # by addition
    return x + x
'''

PROSE = {
    "module docstring": ("Turns a into b.", "Turns b into a, in more words.\n\nAnd a paragraph."),
    "class docstring": ("Holds things.", "Holds nothing."),
    "function docstring": ("Twice ``x``.", "Two times ``x``."),
    "comment": ("# by addition", "# as fast as any other way\n    # on two lines"),
    "trailing comment": ("# Choice: small", "# Paper: small"),
    "layout": ("return x + x", "return (\n        x\n        + x\n    )"),
}
EDITS = {
    "constant": ("SIZE = 3", "SIZE = 4"),
    "attribute": ("n: int = 2", "n: int = 3"),
    "operator": ("x + x", "x * x"),
    "name": ("def double", "def twice"),
    "string": ("return x + x", "return 'x + x'"),
    "new statement": ("return x + x", "x += 0\n    return x + x"),
}


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
    """Digest of a module with the given source."""

    def digest(source: str) -> str:
        (tmp_path / "module.py").write_text(source, encoding="utf-8")
        origin = SimpleNamespace(origin=str(tmp_path / "module.py"))
        monkeypatch.setattr(stages.importlib.util, "find_spec", lambda name: origin)
        return stages.code_digest("module")

    return digest


@pytest.mark.parametrize("edit", PROSE)
def test_prose_does_not_change_the_code_digest(edit, digest_of):
    before, after = PROSE[edit]
    assert CODE.count(before) == 1
    assert digest_of(CODE.replace(before, after)) == digest_of(CODE)


@pytest.mark.parametrize("edit", EDITS)
def test_code_changes_the_code_digest(edit, digest_of):
    before, after = EDITS[edit]
    assert CODE.count(before) == 1
    assert digest_of(CODE.replace(before, after)) != digest_of(CODE)


def test_every_stage_names_modules_that_exist():
    from harvis_utils.maximization import paper_methods, unit_statistics
    from harvis_utils.metrics import embedding, similarity
    from harvis_utils.training import supervised

    found = [module.STAGE for module in (supervised, unit_statistics, paper_methods, similarity, embedding)]
    assert len({s.name for s in found}) == len(found)
    for stage in found:
        assert all(re.fullmatch(r"[0-9a-f]{64}", stages.code_digest(module)) for module in stage.modules)
