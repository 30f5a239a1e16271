"""The chain on tiny notebooks: what they depend on, what is executed again, how failures and kills end."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_archives import example_files, isolate, register_example, write_folder, write_zip
from sample_notebooks import write

from harvis_utils.chain import commands, execution, stamps
from harvis_utils.settings import REPOSITORY, data_folders, load_settings
from harvis_utils.store import results
from harvis_utils.store.files import read_json


def use(root: Path, patched) -> None:
    """Make ``root`` the place of reports and artifacts."""
    for variable, folder in (("HARVIS_REPORTS", "reports"), ("HARVIS_ARTIFACTS", "derived")):
        patched.setenv(variable, str(root / folder))
    patched.delenv("HARVIS_DATA", raising=False)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty root for reports and artifacts."""
    use(tmp_path, monkeypatch)
    return tmp_path


# --------------------------------------------------------------------------------- what a notebook depends on


def test_every_notebook_depends_on_the_package_and_on_the_settings():
    files = {p.relative_to(stamps.PACKAGE).as_posix() for p in stamps.package_files()}
    assert {"__init__.py", "settings.py", "data/dsads.py", "data/dsads_digests.txt"} <= files
    assert stamps.settings_digest(load_settings("quick")) != stamps.settings_digest(load_settings("desk"))


def test_the_chain_starts_without_what_only_notebooks_need():
    heavy = "import sys, harvis_utils.chain.commands; print({'torch', 'pandas', 'snakemake'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout.strip() == "set()"


def test_a_part_is_some_of_the_notebooks(root):
    with pytest.raises(stamps.ChainError, match="no numbered notebooks"):
        stamps.find_notebooks(root)
    write(root, "01_a", "1"), write(root, "08_b", "2"), write(root, "15_c", "3"), write(root, "19_d", "4")
    parts = {part: [p.stem for p in stamps.find_notebooks(root, part)] for part in (None, *stamps.PARTS)}
    assert parts.pop(None) == ["01_a", "08_b", "15_c", "19_d"]
    assert parts == {"paper": ["01_a"], "lenses": ["08_b"], "systems": ["15_c"], "practice": ["19_d"]}
    with pytest.raises(stamps.ChainError, match="unknown part 'all'; valid parts: paper, lenses, systems, practice"):
        stamps.find_notebooks(root, "all")
    (root / "08_b.ipynb").unlink()
    with pytest.raises(stamps.ChainError, match="no numbered notebooks .* for 'lenses'"):
        stamps.find_notebooks(root, "lenses")


@pytest.mark.parametrize("packed", [True, False])
def test_a_replaced_archive_makes_every_notebook_outdated(root, monkeypatch, packed):
    raw = isolate(monkeypatch, root)
    register_example(monkeypatch, root)

    def put(n_rows: int) -> None:
        write_zip(raw / "example.zip", example_files(n_rows)) if packed else write_folder(raw, example_files(n_rows))

    names, cfg = ["01_data", "02_model"], load_settings("quick", "example-approximate")
    books = [write(root / "books", name, "1") for name in names]
    # executed as an archive of 50 rows was there; the kernels would not know of this registry
    monkeypatch.setattr("papermill.execute_notebook", lambda notebook, log, **more: shutil.copy(notebook, log))
    put(50)
    for book in books:
        execution.run_notebook(book, cfg)
    assert stamps.outdated(cfg, names) == []
    put(60)
    assert stamps.outdated(cfg, names) == names
    execution.run_notebook(books[0], cfg)
    assert stamps.outdated(cfg, names) == ["02_model"]
    shutil.rmtree(raw)  # what is stored counts
    assert stamps.outdated(cfg, names) == []


def test_an_archive_that_is_downloaded_or_copied_is_not_a_replaced_one(root, monkeypatch):
    raw = isolate(monkeypatch, root)
    register_example(monkeypatch, root)
    cfg, book = load_settings("quick", "example"), write(root / "books", "01_data", "1")
    assert stamps.raw_data(cfg) is None and stamps.raw_data(load_settings()) is None

    def executed(notebook, log, **more):
        write_zip(raw / "example.zip", example_files(50))
        shutil.copy(notebook, log)

    monkeypatch.setattr("papermill.execute_notebook", executed)
    execution.run_notebook(book, cfg)
    os.utime(raw / "example.zip", (1, 1))
    assert stamps.outdated(cfg, ["01_data"]) == []
    (raw / "example.zip").write_bytes(b"no archive")
    assert stamps.outdated(cfg, ["01_data"]) == ["01_data"]


# --------------------------------------------------------------------------------------------------- whole runs

STORED = """from harvis_utils.store.results import obtain
obtain("made", "k", lambda folder: (folder / "a.txt").write_text("1"), {})"""
BOOKS = {
    "01_data": (STORED, 'write_json(cfg.reports / "tables" / "data.json", {"value": 1})', "print(cfg.reports)"),
    "02_model": (STORED, 'write_text(cfg.reports / "tables" / "model.txt", "1")'),
    "03_broken": ('print("so far")', "\n# why\nassert DEVICE == 'cpu'\nraise ValueError('too dark')"),
    "06_report": ('write_json(cfg.reports / "results.json", {"n_seeds": 2})',),
}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of four notebooks, of which one fails, in a folder of any letters: its root, exit code and last words."""
    root, said = tmp_path_factory.mktemp("日本 é"), io.StringIO()
    for name, cells in BOOKS.items():
        write(root / "books", name, *cells)
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stderr(said):
        use(root, patched)
        code = commands.main(["reproduce", "--notebooks", str(root / "books"), "--device", "cpu"])
    return SimpleNamespace(root=root, reports=root / "reports/quick/synthetic", code=code, said=said.getvalue())


def test_after_a_failure_all_others_are_executed_and_the_failed_one_is_kept_and_named(first):
    assert first.code == 3, "which tells make to make the pages all the same"
    # cells of the file: prose, parameters, setup, print, the failing one
    assert "notebook 03_broken.ipynb failed in cell 5: raise ValueError('too dark')" in first.said
    log = first.reports / "logs/03_broken.ipynb"
    assert "ValueError: too dark" in first.said and str(log) in first.said and "so far" in log.read_text()
    for folder, suffix in ((first.reports, "ipynb"), (first.reports / "stamps", "json")):
        assert sorted(p.stem for p in folder.glob(f"*.{suffix}") if p.stem[0] == "0") == [
            "01_data", "02_model", "06_report",
        ]  # fmt: skip


def test_a_stamp_says_what_a_notebook_made_and_its_copy_holds_no_path(first):
    made = {name: read_json(first.reports / "stamps" / f"{name}.json") for name in ("01_data", "02_model")}
    assert [one["files"] for one in made.values()] == [["tables/data.json"], ["tables/model.txt"]]
    assert [one["stored"] for one in made.values()] == [["made/k"]] * 2
    copy = (first.reports / "01_data.ipynb").read_text()
    assert json.dumps(str(first.root)) not in copy and str(first.root) not in copy and "reports/quick" in copy


def made_by(cfg, name: str) -> dict:
    """What a notebook's stamp says, apart from the executed notebook, which holds times."""
    stamp = read_json(stamps.stamp_of(cfg, name))
    assert stamp["digests"].pop(f"{name}.ipynb")
    return stamp


def test_only_what_is_needed_is_executed_again_even_where_the_run_was_moved(first, monkeypatch, capsys):
    root = shutil.copytree(first.root, first.root.with_name("moved"))
    use(root, monkeypatch)
    cfg, books, names = load_settings(device="cpu"), root / "books", list(BOOKS)
    assert stamps.outdated(cfg, names) == []
    shutil.rmtree(root / "derived/store/made")
    assert stamps.outdated(cfg, names) == ["01_data"], "the first of those that need a result makes it"
    (cfg.reports / "results.json").unlink()
    assert stamps.outdated(cfg, names) == ["01_data", "06_report"]
    older = stamps.stamp_of(cfg, "02_model")
    kept = older.read_text()
    older.write_text(json.dumps({"made": {}}))
    assert stamps.outdated(cfg, names) == ["01_data", "02_model", "06_report"], "a stamp of another form says nothing"
    older.write_text(kept)
    before = made_by(cfg, "01_data")
    write(books, "01_data", *BOOKS["01_data"], prose="Better prose.")
    write(books, "03_broken", "1")
    assert commands.main(["reproduce", "--notebooks", str(books), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^  (\w+) .*executed$", shown, re.M) == ["01_data", "03_broken", "06_report"]
    assert re.findall(r"^  (\w+) .*up to date$", shown, re.M) == ["02_model"]
    assert f"results  {cfg.reports}/results.json" in shown and not list(cfg.reports.glob("logs/*.error.txt"))
    assert made_by(cfg, "01_data") == before, "the same was made"


def test_what_was_saved_while_it_ran_or_has_an_older_time_is_executed_again(root, capsys):
    book = root / "books/01_data.ipynb"
    write(
        root / "books", "01_data", f"p = {str(book)!r}\ns = open(p).read()\nopen(p, 'w').write(s.replace('Some', 'x'))"
    )

    def executed() -> bool:
        assert commands.main(["reproduce", "--notebooks", str(root / "books")]) == 0
        return "01_data" in re.findall(r"^  (\w+) .*executed$", capsys.readouterr().out, re.M)

    assert [executed() for _ in range(3)] == [True, True, False]
    write(root / "books", "01_data", "1")
    os.utime(book, (1, 1))
    assert executed() and not executed()


def test_the_content_of_files_is_told_by_their_bytes(root):
    (root / "a").write_text("1")
    before = stamps.content([root / "a"])
    os.utime(root / "a", (1, 1))
    assert stamps.content([root / "a"]) == before
    (root / "a").write_text("2")
    assert stamps.content([root / "a"]) != before


def test_run_says_when_it_starts_and_ends(root, capsys):
    notebook = write(root, "01_data", "assert DEVICE == 'cpu'")
    assert commands.main(["run", str(notebook), "--device", "cpu"]) == 0
    assert re.search(r"01_data +\.\.\.\n +01_data +\d+\.\d s", capsys.readouterr().out)


def test_a_notebook_whose_process_was_killed_alone_is_named(root, capsys):
    """As by a system without memory: nobody is left to say why."""
    write(root / "books", "01_data", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    write(root / "books", "02_model", "1")
    assert commands.main(["reproduce", "--notebooks", str(root / "books")]) == 3
    said = capsys.readouterr().err
    assert "notebook 01_data.ipynb was not executed to its end: its process was killed" in said and "02" not in said


def test_a_kernel_that_dies_is_said(root):
    notebook = write(root, "01_data", "import os\nos._exit(1)")
    with pytest.raises(stamps.ChainError, match="01_data.ipynb could not be executed to its end"):
        execution.run_notebook(notebook, load_settings())


def test_unknown_names_and_missing_files_end_with_one_message(root, capsys):
    assert commands.main(["run", str(root / "01_no.ipynb")]) == 1
    assert "01_no.ipynb does not exist" in capsys.readouterr().err
    assert commands.main(["reproduce", "--profile", "quik"]) == 1
    assert "valid profiles: quick, desk, paper" in capsys.readouterr().err
    assert commands.main(["reproduce", "--dataset", "../../../escaped"]) == 1
    assert "unknown data set '../../../escaped'" in capsys.readouterr().err and not list(root.rglob("escaped"))


# -------------------------------------------------------------------------------------------------------- kills


def wait_for(condition, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def test_a_notebook_ends_with_its_chain_even_one_that_was_killed_before_it_began(root, monkeypatch):
    """A kill in the seconds in which a job starts: Snakemake lives on, and who was above can be asked no more."""
    gone = subprocess.Popen(["sleep", "60"])
    began = execution.began(gone.pid)
    with monkeypatch.context() as patched:
        moved = psutil.Process(gone.pid).create_time() + 3600  # which is reckoned from the clock
        patched.setattr(psutil.Process, "create_time", lambda process: moved)
        assert execution.runs(f"{gone.pid}@{began}"), "the clock was set right"
    assert execution.runs(f"{gone.pid}@{began}") and not execution.runs(f"{gone.pid}@1.5")
    gone.kill()
    wait_for(lambda: not execution.runs(f"{gone.pid}@{began}"))  # a zombie does not run
    gone.wait()
    monkeypatch.setenv(execution.CHAIN, f"{gone.pid}@{began}")
    assert execution.watched().split()[0] == f"{gone.pid}@{began}" and execution.runs(execution.watched().split()[1])
    notebook = write(root, "01_data", "import time\ntime.sleep(120)")
    run = subprocess.run([sys.executable, "-m", "harvis_utils.chain", "run", str(notebook)], timeout=110)
    assert run.returncode == 137 and not (load_settings().reports / "01_data.ipynb").exists()


@pytest.mark.parametrize("victim", ["snakemake", "chain"])
def test_a_kill_leaves_no_process_and_no_lock(root, victim):
    sign = load_settings().reports / "pid"
    write(root / "books", "01_data", f"import os, time\nwrite_text({str(sign)!r}, str(os.getpid()))\ntime.sleep(120)")
    command = [sys.executable, "-m", "harvis_utils.chain", "reproduce", "--notebooks", str(root / "books")]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(sign.exists, 100)
        kernel = psutil.Process(int(sign.read_text()))
        with (
            pytest.raises(stamps.ChainError, match="another run of profile quick on synthetic"),
            commands.alone(load_settings(), 0.1),
        ):
            pass
        if victim == "snakemake":
            next(p for p in psutil.Process(process.pid).children() if "snakemake" in p.cmdline()).kill()
            said = process.communicate(timeout=60)[1]
            assert "Snakemake was stopped by signal 9; the same command goes on" in said
        else:
            process.terminate()
            process.wait(60)
        wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)
    finally:
        with contextlib.suppress(ProcessLookupError):  # all of them are gone already
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    with commands.alone(load_settings(), wait_s=5):
        pass


def test_clean_waits_for_a_notebook_executed_alone(root, monkeypatch, capsys):
    book = write(root, "01_data", "1")
    monkeypatch.setattr(commands, "run_notebook", lambda *_: said.append(commands.main(["clean"])))
    said = []
    assert commands.main(["run", str(book)]) == 0 and said == [1]
    assert "another run of profile quick on synthetic is in progress" in capsys.readouterr().err


@pytest.mark.parametrize("together", ["derived", "reports"])
def test_clean_removes_runs_and_nothing_else(root, monkeypatch, capsys, together):
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(root / together))
    kept = {"reports/published/desk/x", f"{together}/notes", "reports/paper/mine", "reports/html/mine/a", "elsewhere"}
    kept |= {f"{together}/store/own/things"}
    key = f"{together}/store/networks/0123456789abcdef0123"
    for name in ("reports/quick/synthetic/stamps", f"{key}.checkpoint", "reports/html/desk/dsads", *kept):
        (root / name).mkdir(parents=True)
    results.obtain("made", "0" * 20, lambda folder: None, {})
    (root / "far/synthetic/stamps").mkdir(parents=True)
    (root / "reports/desk").symlink_to(root / "far")
    (root / f"{together}/store/linked").symlink_to(root / "elsewhere")
    (root / "reports/html/desk/dsads/01_data.html").write_text("x")
    (root / "reports/index.html").write_text("<title>harvis: results</title>")
    assert commands.main(["clean"]) == 0
    assert capsys.readouterr().out.count("removed") == 5
    (root / "reports/desk").unlink(), (root / "far").rmdir(), (root / f"{together}/store/linked").unlink()
    assert {p.relative_to(root).as_posix() for p in root.rglob("*") if not any(p.iterdir())} == kept
    (root / "reports/index.html").write_text("of the user's own")
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
    # one beside it may be in another folder that has a name of its own
    assert execution.portable(f"{REPOSITORY}-other/y").endswith(f"/{REPOSITORY.name}-other/y")
    assert execution.portable(f"x{REPOSITORY}/y") == f"x{REPOSITORY}/y"
