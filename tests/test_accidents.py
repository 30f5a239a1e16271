"""Places that cannot be written, files changed behind the chain's back, and environments that steer its tools."""

import json
import os
import shutil
import signal
import subprocess
from types import SimpleNamespace

import pytest
import torch
from sample_notebooks import write

from benchmarks import __main__ as benchmarks
from harvis_utils.chain import commands, execution, stamps
from harvis_utils.parallel import command_line, threads, workers
from harvis_utils.settings import load_settings
from harvis_utils.store import results
from harvis_utils.store.files import ArtifactError, file_digest, read_json, remove, write_json, write_text
from harvis_utils.training.checkpoints import save_state
from workflow import readme


@pytest.fixture
def below_a_file(tmp_path, monkeypatch):
    """Reports and artifacts in places that cannot be made."""
    (tmp_path / "file").write_text("x")
    for variable in ("HARVIS_REPORTS", "HARVIS_ARTIFACTS"):
        monkeypatch.setenv(variable, str(tmp_path / "file" / "below"))


def test_places_that_cannot_be_made_are_one_error(below_a_file, capsys):
    said = r"could not be written \(Not a directory\); nothing was left behind"
    with pytest.raises(ArtifactError, match=said):
        write_text(load_settings().reports / "a.txt", "x")
    with pytest.raises(ArtifactError, match=said):
        results.obtain("made", "k", lambda folder: None, {})
    assert commands.main(["reproduce"]) == 1
    assert "could not be written (Not a directory)" in capsys.readouterr().err


def test_a_temporary_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(ArtifactError, match=r"harvis-\w+\.lock: could not be written"):
        results.obtain("made", "k", lambda folder: None, {})


def test_others_may_read_what_is_stored():
    before = os.umask(0o027)
    try:
        folder = results.obtain("made", "k", lambda folder: results.write_result(folder, {"a": torch.ones(1)}), {})
        save_state(folder / "state.safetensors", {"a": torch.ones(1)})
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


# ------------------------------------------------------------------------------------------- changed by others


@pytest.fixture
def finished():
    """A run that executed two notebooks, of which both wrote ``shared`` and each one more file; made by hand."""
    cfg, names = load_settings(), ["01_data", "02_model"]
    for number, name in enumerate(names):
        write_json(cfg.reports / f"{name}.ipynb", {"cells": [], "metadata": {}})
        results.obtain("made", name, lambda folder: (folder / "a.txt").write_text("1"), {})
        files = ["shared.json", f"{name}.json"]
        for file in files:
            write_json(cfg.reports / file, number)
        about = {"files": files, "stored": [f"made/{name}"], "archive": None}
        stamp = write_json(
            stamps.stamp_of(cfg, name), about | {"digests": {f: file_digest(cfg.reports / f) for f in files}}
        )
        os.utime(stamp, (number, number))
    return SimpleNamespace(cfg=cfg, names=names, reports=cfg.reports)


def needed(run) -> list[str]:
    return sorted({*stamps.outdated(run.cfg, run.names), *stamps.edited(run.cfg, run.names).values()})


def test_a_file_changed_by_hand_is_made_anew_by_who_wrote_it_last(finished):
    assert needed(finished) == []
    for file, name in (("01_data.json", "01_data"), ("shared.json", "02_model")):
        kept = (finished.reports / file).read_text()
        write_json(finished.reports / file, {"macro_f1": 1.0})
        assert needed(finished) == [name]
        write_text(finished.reports / file, kept)
    assert needed(finished) == []


def test_an_executed_notebook_changed_by_hand_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("papermill.execute_notebook", lambda notebook, log, **more: shutil.copy(notebook, log))
    cfg = load_settings()
    execution.run_notebook(write(tmp_path, "01_data", "1"), cfg)
    assert stamps.edited(cfg, ["01_data"]) == {}
    executed = cfg.reports / "01_data.ipynb"
    executed.write_text(executed.read_text().replace("Some prose", "Better prose"))
    assert stamps.edited(cfg, ["01_data"]) == {"01_data.ipynb": "01_data"}


def test_damaged_results_are_not_up_to_date(finished):
    (results.folder_of("made", "02_model") / "a.txt").write_text("2")
    assert needed(finished) == ["02_model"]


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "[" * 100_000])
def test_what_cannot_be_read_is_removed_and_said(finished, content, capsys):
    broken = [stamps.stamp_of(finished.cfg, "01_data"), finished.reports / "02_model.ipynb"]
    for path in broken:
        path.write_text(content)
    commands._heal(finished.cfg, finished.names)
    assert not any(path.exists() for path in broken) and needed(finished) == []
    assert stamps.stamp_of(finished.cfg, "02_model").exists() and (finished.reports / "01_data.ipynb").exists()
    assert capsys.readouterr().err.count("cannot be read; made anew") == 2


ODD = (
    {"stored": []},
    {"stored": None, "files": []},
    {"stored": [], "files": [1]},
    {"stored": [], "files": [], "digests": []},
)


@pytest.mark.parametrize("about", ODD)
def test_a_stamp_of_another_form_says_nothing(finished, about):
    write_json(stamps.stamp_of(finished.cfg, "01_data"), about)
    assert needed(finished) == ["01_data"]


@pytest.mark.parametrize("place", ["stamps/01_data.json", "01_data.ipynb", "logs/01_data.error.txt", "01_data.json"])
def test_a_folder_in_the_place_of_a_file_is_made_anew(finished, place, monkeypatch):
    seen = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: seen.append(command) or SimpleNamespace(returncode=0))
    path = finished.reports / place
    remove(path)
    path.mkdir(parents=True)
    commands.reproduce(finished.cfg)
    assert not path.exists() or "n01_data" in seen[0]


def test_logs_that_are_no_folder_are_named(finished, capsys):
    (finished.reports / "logs").write_text("x")
    assert commands.main(["reproduce"]) == 1
    assert "logs: could not be written (File exists)" in capsys.readouterr().err


def test_nothing_is_removed_under_a_run(finished, capsys):
    with commands.alone(finished.cfg):
        assert commands.main(["clean"]) == 1
        assert "another run of profile quick on synthetic is in progress" in capsys.readouterr().err
        assert (finished.reports / "shared.json").exists()
    assert commands.main(["clean"]) == 0 and not finished.reports.exists()


# -------------------------------------------------------------------------------------------------- environments


def test_a_snakemake_profile_of_the_user_has_no_say_and_no_path_is_told_that_need_not_be(monkeypatch, tmp_path):
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "cluster")
    seen = []

    def run(command, env, **_):
        seen.append((command, env))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    other = write(tmp_path / 'a "b" #c $d', "01_a", "1").parent
    for folder in (stamps.NOTEBOOKS, other):
        commands.reproduce(load_settings(), folder)
    assert not any("SNAKEMAKE_PROFILE" in env for _, env in seen)
    told = [[word for word in command if word.startswith("notebooks=")] for command, _ in seen]
    assert told == [[], [f"notebooks={json.dumps(str(other))}"]]


def test_a_termination_is_told(capsys):
    with pytest.raises(SystemExit) as ended, commands._told_when_stopped():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert ended.value.code == 143 and "stopped; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_every_command_tells_an_error_in_words(monkeypatch, capsys):
    monkeypatch.setattr(readme, "rewritten", lambda text: read_json("nowhere.json"))
    assert readme.main() == 1 and benchmarks.main(["--device", "gpu"]) == 1
    said = capsys.readouterr().err
    assert "nowhere.json does not exist" in said and "unknown device 'gpu'" in said
    assert command_line(lambda _: 3)() == 3


def test_what_an_interrupt_waits_for_is_told(capsys):
    with pytest.raises(KeyboardInterrupt), workers(1) as pool:
        pool.submit(int)
        raise KeyboardInterrupt
    assert "interrupted: what is not begun is left out" in capsys.readouterr().err


def test_threads_without_affinity(monkeypatch):
    """As on macOS and Windows."""
    monkeypatch.delenv("HARVIS_THREADS")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert threads() == os.cpu_count()


def test_an_unknown_device_is_refused_at_once(capsys):
    for device in ("gpu", "cuda:x", ""):
        assert commands.main(["run", "01_a.ipynb", "--device", device or "0"]) == 1
        assert "valid: cpu, cuda, cuda:1, mps" in capsys.readouterr().err


def test_neither_start_up_files_of_the_user_nor_optimizing_change_a_notebook(tmp_path, monkeypatch):
    write_text(tmp_path / "profile_default" / "startup" / "00.py", "strange = 1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    notebook = write(tmp_path, "01_data", 'print("strange" in globals())', "assert False, 'checked'")
    with pytest.raises(stamps.ChainError, match="failed in cell 5.*\n.*checked"):
        execution.run_notebook(notebook, load_settings())
    assert "False" in (load_settings().reports / "logs/01_data.ipynb").read_text().split("strange")[1]


def test_a_notebook_with_a_shell_cell_runs_quietly_in_a_folder_of_any_name(tmp_path, monkeypatch, capfd):
    root = tmp_path / "a {x} 'b' \"c\" #d $e"
    monkeypatch.setenv("HARVIS_REPORTS", str(root / "reports"))
    notebook = write(root, "01_data", "%%bash\necho from a shell")
    executed = execution.run_notebook(notebook, load_settings())
    assert "from a shell" in executed.read_text() and "encryption" not in "".join(capfd.readouterr())
