"""The chain on tiny notebooks: what they depend on, what is executed again, how failures and kills end."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_archives import example_files, isolate, register_example, write_folder, write_zip
from sample_notebooks import write

from harvis_utils.chain import commands, execution, stamps
from harvis_utils.settings import REPOSITORY, data_folders, load_settings
from harvis_utils.store.files import read_json


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty root for reports and artifacts, and one thread."""
    monkeypatch.setenv("HARVIS_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path / "derived"))
    monkeypatch.setenv("HARVIS_THREADS", "1")
    monkeypatch.delenv("HARVIS_DATA", raising=False)
    return tmp_path


TABLE = 'write_json(cfg.reports / "tables" / "table.json", {"value": %d, "wall_s": cfg.windows.step})'
REPORT = 'write_json(cfg.reports / "results.json", {"n_seeds": 2})'


# --------------------------------------------------------------------------------- what a notebook depends on


def test_every_notebook_depends_on_the_package_and_on_the_settings(root):
    write(root, "01_a", "1"), write(root, "05_b", "2")
    files = {p.relative_to(stamps.PACKAGE).as_posix() for p in stamps.package_files()}
    assert {"__init__.py", "settings.py", "data/dsads.py", "data/dsads_digests.txt"} <= files
    quick, desk = (stamps.plan(load_settings(p), root) for p in ("quick", "desk"))
    assert [j.settings for j in quick] != [j.settings for j in desk]
    assert [j.name for j in quick] == ["01_a", "05_b"]


def test_a_part_is_some_of_the_notebooks(root):
    write(root, "01_a", "1"), write(root, "08_b", "2")
    parts = {part: [p.stem for p in stamps.find_notebooks(root, part)] for part in (None, *stamps.PARTS)}
    assert parts == {None: ["01_a", "08_b"], "paper": ["01_a"], "lenses": ["08_b"]}
    with pytest.raises(stamps.ChainError, match="unknown part 'all'; valid parts: paper, lenses"):
        stamps.find_notebooks(root, "all")
    (root / "08_b.ipynb").unlink()
    with pytest.raises(stamps.ChainError, match="no numbered notebooks .* for 'lenses'"):
        stamps.find_notebooks(root, "lenses")


def test_a_folder_without_notebooks_is_said(root):
    with pytest.raises(stamps.ChainError, match="no numbered notebooks"):
        stamps.find_notebooks(root)


# --------------------------------------------------------------------------------------------------- whole runs


def test_only_what_is_needed_is_executed_again(root, capsys):
    books = root / "books"
    stage = 'obtain("made", "k", lambda f: (f / "a.txt").write_text("1"), {})'
    write(books, "01_data", TABLE % 1, "print(cfg.reports)", stage)
    write(books, "06_report", REPORT)
    cfg = load_settings()
    assert commands.main(["reproduce", "--notebooks", str(books)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("executed") == 2 and f"results  {root}/reports/quick/synthetic/results.json" in shown

    copy = (cfg.reports / "01_data.ipynb").read_text()
    assert str(root) not in copy and "reports/quick/synthetic" in copy

    jobs = stamps.plan(cfg, books)
    written = [(cfg.reports / "stamps" / f"{j.name}.json").read_text() for j in jobs]
    assert commands.reproduce(cfg, books) == [] and stamps.outdated(cfg, jobs) == []

    write(books, "01_data", TABLE % 1, "print(cfg.reports)", stage, prose="Better prose.")
    assert commands.reproduce(cfg, books) == ["01_data"]
    assert [(cfg.reports / "stamps" / f"{j.name}.json").read_text() for j in jobs] == written, "the same was made"

    (cfg.reports / "results.json").unlink()
    assert stamps.outdated(cfg, jobs) == ["06_report"]
    shutil.rmtree(root / "derived" / "store" / "made")
    assert stamps.outdated(cfg, jobs) == ["01_data", "06_report"]

    write(books, "01_data", TABLE % 2, prose="Better prose.")
    assert commands.reproduce(cfg, books) == ["01_data", "06_report"]
    write(books, "01_data", TABLE % 3, prose="Better prose.")
    assert commands.reproduce(cfg, books) == ["01_data"], "no other notebook is made of it"


def test_what_two_notebooks_need_is_made_once_and_files_belong_to_who_wrote_them(root):
    books, cfg = root / "books", load_settings()
    slow = f"""
from pathlib import Path
def build(folder):
    with open({str(root / "built")!r}, "a") as lines:
        lines.write("once\\n")
    import time; time.sleep(3)
    (folder / "a.txt").write_text("1")
obtain("made", "k", build, {{}})"""
    for name in ("01_data", "02_model"):
        write(books, name, slow, f'write_text(cfg.reports / "tables" / "{name}.txt", "1")')
    assert commands.reproduce(cfg, books) == ["01_data", "02_model"]
    assert (root / "built").read_text() == "once\n"
    about = [read_json(stamps.stamp_of(cfg, name)) for name in ("01_data", "02_model")]
    assert [one["files"] for one in about] == [["tables/01_data.txt"], ["tables/02_model.txt"]]
    assert [one["stored"] for one in about] == [["made/k"]] * 2
    assert [p.name for p in (root / "derived/store/made").iterdir()] == ["k"]


def test_after_a_failure_all_others_are_executed(root, capsys):
    books = root / "books"
    for name, code in (("01_data", "1"), ("02_model", "assert True\nassert False"), ("03_maximization", "2")):
        write(books, name, code)
    assert commands.main(["reproduce", "--notebooks", str(books)]) == 1
    assert "notebook 02_model.ipynb failed in cell 4: assert False" in capsys.readouterr().err
    made = sorted(p.name for p in load_settings().reports.glob("*.ipynb"))
    assert made == ["01_data.ipynb", "03_maximization.ipynb"]


def test_notebooks_may_lie_in_a_folder_of_any_letters(root):
    books = root / "日本 é"
    write(books, "01_data", "print(cfg.profile)")
    assert commands.reproduce(load_settings(), books) == ["01_data"]


@pytest.mark.parametrize("packed", [True, False])
def test_a_replaced_archive_makes_every_notebook_outdated(root, monkeypatch, packed):
    raw = isolate(monkeypatch, root)
    register_example(monkeypatch, root)

    def put(n_rows: int) -> None:
        write_zip(raw / "example.zip", example_files(n_rows)) if packed else write_folder(raw, example_files(n_rows))

    books = root / "books"
    for name in ("01_data", "02_model"):
        write(books, name, "1")
    cfg = load_settings("quick", "example-approximate")
    jobs = stamps.plan(cfg, books)
    # executed as an archive of 50 rows was there; the kernels would not know of this registry
    monkeypatch.setattr("papermill.execute_notebook", lambda notebook, log, **more: shutil.copy(notebook, log))
    put(50)
    for job in jobs:
        execution.run_notebook(job.notebook, cfg)
    assert stamps.outdated(cfg, jobs) == []
    put(60)
    assert stamps.outdated(cfg, jobs) == ["01_data", "02_model"]
    execution.run_notebook(books / "01_data.ipynb", cfg)
    assert stamps.outdated(cfg, jobs) == ["02_model"]
    shutil.rmtree(raw)  # what is stored counts
    assert stamps.outdated(cfg, jobs) == []


def test_an_archive_that_is_downloaded_or_copied_is_not_a_replaced_one(root, monkeypatch):
    raw = isolate(monkeypatch, root)
    register_example(monkeypatch, root)
    cfg = load_settings("quick", "example")
    jobs = stamps.plan(cfg, write(root / "books", "01_data", "1").parent)
    assert stamps.raw_data(cfg) is None and stamps.raw_data(load_settings()) is None

    def executed(notebook, log, **more):
        write_zip(raw / "example.zip", example_files(50))
        shutil.copy(notebook, log)

    monkeypatch.setattr("papermill.execute_notebook", executed)
    execution.run_notebook(jobs[0].notebook, cfg)
    os.utime(raw / "example.zip", (1, 1))
    assert stamps.outdated(cfg, jobs) == []
    (raw / "example.zip").write_bytes(b"no archive")
    assert stamps.outdated(cfg, jobs) == ["01_data"]


def test_a_failing_notebook_is_kept_and_named(root, capsys):
    books = root / "books"
    write(books, "01_data", 'print("so far")', "\n# why\nraise ValueError('too dark')")
    assert commands.main(["reproduce", "--notebooks", str(books)]) == 1
    said = capsys.readouterr().err
    log = root / "reports/quick/synthetic/logs/01_data.ipynb"
    # cells of the file: prose, parameters, setup, print, the failing one
    assert "notebook 01_data.ipynb failed in cell 5: raise ValueError('too dark')" in said
    assert "ValueError: too dark" in said and str(log) in said
    assert "so far" in log.read_text()
    assert not (log.parents[1] / "01_data.ipynb").exists() and not (log.parents[1] / "stamps/01_data.json").exists()


def test_a_mistyped_parameter_is_an_error(root):
    notebook = write(root, "01_data", "1")
    with pytest.raises(stamps.ChainError, match=r"failed in cell 3.*\n.*unknown notebook parameter 'PROFLE'"):
        execution.run_notebook(notebook, load_settings(), {"PROFLE": "desk"})
    with pytest.raises(stamps.ChainError, match="PROFILE = 3 should be str"):
        execution.run_notebook(notebook, load_settings(), {"PROFILE": 3})


def test_a_kernel_that_dies_is_said(root):
    notebook = write(root, "01_data", "import os\nos._exit(1)")
    with pytest.raises(stamps.ChainError, match="01_data.ipynb could not be executed to its end"):
        execution.run_notebook(notebook, load_settings())


def test_unknown_names_and_missing_files_end_with_one_message(root, capsys):
    assert commands.main(["run", str(root / "01_no.ipynb")]) == 1
    assert "01_no.ipynb does not exist" in capsys.readouterr().err
    assert commands.main(["reproduce", "--profile", "quik"]) == 1
    assert "valid profiles: quick, desk, paper" in capsys.readouterr().err


def test_run_says_when_it_starts_and_ends_and_passes_the_device(root, capsys):
    notebook = write(root, "01_data", "assert DEVICE == 'cpu'")
    assert commands.main(["run", str(notebook), "--device", "cpu"]) == 0
    assert re.search(r"01_data +\.\.\.\n +01_data +\d+\.\d s", capsys.readouterr().out)
    broken = write(root, "02_model", "assert DEVICE == 'cuda'")
    assert commands.main(["run", str(broken), "--device", "cpu"]) == 1
    assert "02_model.ipynb failed in cell 4" in (load_settings().reports / "logs/02_model.error.txt").read_text()


def test_a_notebook_ends_with_its_chain_even_one_that_was_killed_before_it_began(root):
    """A kill in the seconds in which a job starts: Snakemake lives on, and who was above can be asked no more."""
    gone = subprocess.Popen(["sleep", "60"])
    name = execution.named(psutil.Process(gone.pid))
    began = psutil.Process(gone.pid).create_time()
    assert execution._this_process(name) and not execution._this_process(f"{gone.pid} 1.5")
    assert execution._this_process(f"{gone.pid} {began + 1}"), "the clock was set right"
    gone.kill()
    gone.wait()
    assert not execution._this_process(name)
    notebook = write(root, "01_data", "import time\ntime.sleep(120)")
    begun = time.monotonic()
    told = os.environ | {execution.CHAIN: name}
    run = subprocess.run([sys.executable, "-m", "harvis_utils.chain", "run", str(notebook)], env=told, timeout=110)
    assert run.returncode == 137 and time.monotonic() - begun < 110
    assert not (load_settings().reports / "01_data.ipynb").exists()


@pytest.mark.parametrize("victim", ["snakemake", "chain", "group"])
def test_a_kill_leaves_no_process_and_no_lock(root, victim):
    books = root / "books"
    signs = 'import os, time\n(cfg.reports / "pid").write_text(str(os.getpid()))\ntime.sleep(120)'
    write(books, "01_data", "cfg.reports.mkdir(parents=True, exist_ok=True)", signs)
    command = [sys.executable, "-m", "harvis_utils.chain", "reproduce", "--notebooks", str(books)]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    sign = root / "reports/quick/synthetic/pid"
    try:
        wait_for(lambda: sign.exists() and sign.read_text(), 100)
        kernel = psutil.Process(int(sign.read_text()))
        if victim == "snakemake":
            next(p for p in psutil.Process(process.pid).children() if "snakemake" in p.cmdline()).kill()
            said = process.communicate(timeout=60)[1]
        elif victim == "chain":
            process.terminate()
            process.wait(60)
            wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE, 60)
    finally:
        with contextlib.suppress(ProcessLookupError):  # all of them are gone already
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE, 60)
    with commands.alone(load_settings(), wait_s=5):
        if victim == "snakemake":
            assert "Snakemake was stopped by signal 9; the same command goes on" in said
        with (
            pytest.raises(stamps.ChainError, match="another run of profile quick on synthetic"),
            commands.alone(load_settings(), 0.1),
        ):
            pass


def wait_for(condition, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def test_half_written_files_of_dead_writers_are_swept(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, living = (tmp_path / f".t.csv.{pid}.part" for pid in (gone.pid, os.getpid()))
    for path in (dead, living):
        path.write_text("half")
    commands._sweep(tmp_path)
    assert not dead.exists() and living.exists()


def test_clean_removes_runs_and_nothing_else(root, capsys):
    for name in ("reports/quick/synthetic/a", "reports/published/desk/x", "derived/store/networks/k", "derived/notes"):
        (root / name).mkdir(parents=True)
    (root / "reports/index.html").write_text("x")
    assert commands.main(["clean"]) == 0
    assert capsys.readouterr().out.count("removed") == 3
    left = {p.relative_to(root).as_posix() for p in root.rglob("*")}
    assert left == {
        "reports",
        "derived",
        "reports/published",
        "reports/published/desk",
        "reports/published/desk/x",
        "derived/notes",
    }
    assert commands.main(["clean"]) == 0 and "nothing to remove" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- paths


@given(st.text())
def test_text_without_paths_stays_as_it_is(text):
    known = [str(REPOSITORY), str(Path.home()), *map(str, data_folders())]
    if not any(k in text for k in known):
        assert execution.portable(text) == text


def test_paths_are_written_relative(root, monkeypatch):
    monkeypatch.setenv("HARVIS_DATA", str(root / "archives"))
    text = f"{REPOSITORY}/Makefile {root}/reports/quick {root}/derived/x {root}/archives/a.zip {REPOSITORY}"
    assert execution.portable(text) == "Makefile reports/quick data/derived/x HARVIS_DATA/a.zip ."
    assert execution.portable(f"{REPOSITORY}-other x{REPOSITORY}/y").count(str(REPOSITORY)) == 2
