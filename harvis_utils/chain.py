"""Notebooks turned into executed notebooks, each once, in order, and only those that are not up to date.

Snakemake decides what runs; this module tells it on what each notebook depends (the package, the settings),
executes one notebook per call with papermill, and says in a few lines what happened::

    python -m harvis_utils.chain reproduce --profile quick --dataset synthetic
    python -m harvis_utils.chain run notebooks/02_model.ipynb --profile quick --dataset synthetic

A run lives in ``<reports>/<profile>/<dataset>/``: executed notebooks, ``logs/`` (the same notebooks while they
run and when they fail), ``stamps/`` (what each notebook made, by digest), figures, tables, ``results.json``.

A notebook is executed again when its file, the package, a setting or a library version changed; when the
archive of raw data was replaced; when something it made is missing; or when an earlier notebook's tables came out
differently.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from harvis_utils.data import archive, kinds
from harvis_utils.parallel import threads
from harvis_utils.settings import (
    PROFILES,
    REPOSITORY,
    Settings,
    SettingsError,
    artifact_root,
    data_folders,
    load_settings,
    report_root,
)
from harvis_utils.store import stages
from harvis_utils.store.files import ArtifactError, read_json, write_json, write_text

PACKAGE = Path(__file__).resolve().parent
NOTEBOOKS = REPOSITORY / "notebooks"
SNAKEFILE = REPOSITORY / "Snakefile"

#: keys whose values differ between equal runs
UNSTABLE = frozenset({"provenance", "timings_s", "wall_s", "seconds", "date"})

#: folders of a run that are about the run, not made by a notebook
OWN_FOLDERS = ("logs", "stamps", "html", ".snakemake")

#: names the chain that the notebooks executed under it end with
CHAIN = "HARVIS_CHAIN"

#: what a process that computes must find in its environment when it starts; the package comes too late to say so
BEFORE_STARTING = {
    # idle OpenMP threads sleep
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc keeps freed memory: fetching it again from the system cost a sixth of the training time
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}


class ChainError(RuntimeError):
    """A notebook failed or cannot be run; the message names it, the cell, and the file to look into."""


# --------------------------------------------------------------------------------- what a notebook depends on


def find_notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    """The numbered notebooks ``NN_name.ipynb`` of a folder, in order."""
    found = sorted(p for p in Path(folder).glob("*.ipynb") if re.fullmatch(r"\d\d_\w+", p.stem))
    if not found:
        raise ChainError(f"no numbered notebooks (NN_name.ipynb) in {folder}")
    return found


def package_files() -> list[Path]:
    """Files of the package, code and data: what every notebook depends on.

    Choice: all of them, whichever a notebook imports. Heavy results are stored by the code that they depend on, so that
    executing a notebook again after an edit elsewhere costs little more than its figures.
    """
    return sorted(p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix != ".pyc")


@dataclass(frozen=True)
class Job:
    """One notebook of a run. ``settings`` is a digest; ``earlier`` names the notebooks executed before it."""

    name: str
    notebook: Path
    settings: str
    earlier: tuple[str, ...]


def plan(cfg: Settings, folder: Path = NOTEBOOKS) -> list[Job]:
    """The jobs of a run, in order. Notebook 00 waits for none; each other one for all before it."""
    jobs: list[Job] = []
    versions = ",".join(f"{lib}={version(lib).split('+')[0]}" for lib in stages.VERSIONED)
    for notebook in find_notebooks(folder):
        earlier = tuple(j.name for j in jobs if not j.name.startswith("00_"))
        jobs.append(Job(notebook.stem, notebook, f"{cfg.digest()} {versions}", earlier))
    return jobs


def raw_data(cfg: Settings) -> str | None:
    """Digest of what tells the run's raw archive from another one; None where there is none, and for made-up data.

    Of a zip file its members' names, sizes and checksums, so that a copy counts as the same; of an extracted folder
    its members' sizes and times, because reading them all takes too long to be done before every run.
    """
    described = kinds.check_name(cfg.dataset).archive
    place = archive.locate(cfg.dataset, described) if described else None
    if place is None:
        return None
    if place.is_dir():
        found = [(m, place / m) for m in described.members if (place / m).is_file()]
        parts = [(m, path.stat().st_size, path.stat().st_mtime_ns) for m, path in found]
    else:
        try:
            with zipfile.ZipFile(place) as packed:
                parts = [(m.filename, m.file_size, m.CRC) for m in packed.infolist()]
        except (OSError, zipfile.BadZipFile):  # the notebook that reads it says what is wrong
            parts = [(place.stat().st_size, place.stat().st_mtime_ns)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# ------------------------------------------------------------------------------------------ one notebook, once


def run_notebook(notebook: Path, cfg: Settings, parameters: dict | None = None, earlier: tuple[str, ...] = ()) -> Path:
    """Execute a notebook with papermill and return the executed copy in the run's folder.

    While it runs, and when it fails, the notebook with its outputs is ``logs/<name>.ipynb``. ``parameters`` are
    injected beside PROFILE, DATASET and DEVICE. Raises :class:`ChainError` naming the cell that failed.
    """
    import papermill

    log = cfg.reports / "logs" / f"{notebook.stem}.ipynb"
    journal = log.with_suffix(".results.txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    for old in (log, journal, log.with_suffix(".progress.txt")):
        old.unlink(missing_ok=True)
    before, archived = _made_files(cfg.reports), raw_data(cfg)
    given = {"PROFILE": cfg.profile, "DATASET": cfg.dataset} | ({"DEVICE": cfg.device} if cfg.device else {})
    place = {
        "HARVIS_JOURNAL": str(journal),
        "HARVIS_PROGRESS": str(log.with_suffix(".progress.txt")),  # to be watched with tail -f
        "JUPYTER_PREFER_ENV_PATH": "1",
        **{name: os.environ.get(name, value) for name, value in BEFORE_STARTING.items()},
    }
    place["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        with _environment(place), _stopping_with_the_chain():
            papermill.execute_notebook(
                notebook,
                log,
                parameters=given | (parameters or {}),
                kernel_name="python3",
                language="python",
                cwd=notebook.parent,
                progress_bar=False,
                start_timeout=180,
            )
    except papermill.exceptions.PapermillExecutionError as error:
        raise ChainError(_failure(notebook, log, error)) from None
    except Exception as error:  # the kernel did not start, died, or the notebook cannot be read
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        hint = " (often out of memory)" if "DeadKernel" in type(error).__name__ else ""
        raise ChainError(
            f"notebook {notebook.name} could not be executed to its end\n  {reason}{hint}\n  executed so far: {log}"
        ) from error
    finally:
        if log.exists():
            _write_portable(log, log)
    made = _made_files(cfg.reports)
    changed = {name: stat for name, stat in made.items() if before.get(name) != stat}
    executed = _write_portable(log, cfg.reports / f"{notebook.stem}.ipynb")
    stamp = _describe(cfg, notebook.stem, sorted(changed), journal, earlier)
    stamp["archive"] = archived or raw_data(cfg)  # it may have been downloaded meanwhile
    write_json(_stamp(cfg, notebook.stem), stamp)
    return executed


def _failure(notebook: Path, log: Path, error) -> str:
    """What is said about a failed cell: where, its first line, the error, and where to see all of it."""
    cells = json.loads(log.read_text(encoding="utf-8"))["cells"]
    failed = next(
        (i for i, c in enumerate(cells) if c["metadata"].get("papermill", {}).get("status") == "failed"),
        error.cell_index,
    )
    # papermill's own cells, the parameters it injects and its banners, are not in the reader's notebook
    own = {"injected-parameters", "papermill-error-cell-tag"}
    added = sum(bool(own & set(c["metadata"].get("tags", []))) for c in cells[: failed + 1])
    line = next((text for text in error.source.splitlines() if text.strip()), "")
    what = "\n  ".join(f"{error.ename}: {error.evalue}".strip().splitlines())
    return (
        f"notebook {notebook.name} failed in cell {failed + 1 - added}: {line.strip()}\n  {what}\n"
        f"  executed up to there, with the full traceback: {log}"
    )


@contextlib.contextmanager
def _environment(values: dict[str, str]):
    """Environment variables for the kernel started inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _stopping_with_the_chain():
    """Stop this process and its kernel when Snakemake or the chain above it is killed.

    A kernel has a session of its own, so no signal to a process group reaches it; ipykernel itself ends within a
    second when its parent is gone, and this ends the parent.
    """
    above = [p for p in psutil.Process().parents() if {"snakemake", "harvis_utils.chain"} & set(_words(p))]
    chain = os.environ.get(CHAIN, "")  # also where it was killed before this process could look
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            if all(_alive(p) for p in above) and (not chain or _this_process(chain)):
                continue
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            os._exit(137)

    if above or chain:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _named(process: psutil.Process) -> str:
    """A process by its number and when it began: numbers are used again."""
    return f"{process.pid} {process.create_time()}"


def _this_process(name: str) -> bool:
    """Whether the process that :func:`_named` called so still runs."""
    try:
        process = psutil.Process(int(name.split()[0]))
        return _named(process) == name and _alive(process)
    except psutil.NoSuchProcess:
        return False


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # gone, or not ours to look at
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ------------------------------------------------------------------------------------ notebooks without paths


def portable(text: str) -> str:
    """``text`` with this machine's folders written relative to the project, ``HARVIS_DATA`` and home as ``~``."""
    names = {report_root(): "reports", artifact_root(): "data/derived", REPOSITORY: ""}
    names |= {folder: "HARVIS_DATA" for folder in data_folders()[:-1]} | {Path.home(): "~"}
    for folder, name in sorted(names.items(), key=lambda item: -len(str(item[0]))):
        if len(folder.parts) < 2:
            continue
        start, end = r"(?<![\w.~-])" + re.escape(str(folder)), r"(?![\w-])"
        text = re.sub(start + "/", f"{name}/" if name else "", text)
        text = re.sub(start + end, name or ".", text)
    return text


def _write_portable(source: Path, target: Path) -> Path:
    """Copy an executed notebook, without absolute paths in its metadata and text outputs; images stay untouched."""
    book = json.loads(source.read_text(encoding="utf-8"))
    if "papermill" in book["metadata"]:
        book["metadata"]["papermill"] |= {"input_path": f"notebooks/{source.name}", "output_path": source.name}
    for cell in book["cells"]:
        cell["outputs"] = [_portable_output(o) for o in cell["outputs"]] if "outputs" in cell else None
        if cell["outputs"] is None:
            del cell["outputs"]
    return write_text(target, json.dumps(book, indent=1, ensure_ascii=False) + "\n")


def _portable_output(value, kind: str = "text/plain"):
    if isinstance(value, dict):
        return {k: _portable_output(v, k if "/" in k else kind) for k, v in value.items()}
    if isinstance(value, list):
        return [_portable_output(v, kind) for v in value]
    return portable(value) if isinstance(value, str) and not kind.startswith("image/") else value


# ------------------------------------------------------------------------------- stamps: what a notebook made


def _stamp(cfg: Settings, name: str) -> Path:
    return cfg.reports / "stamps" / f"{name}.json"


def _made_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Files of a run that notebooks made, with inode and time: an atomically replaced file gets a new inode."""
    names = [p for p in folder.rglob("*") if p.is_file()] if folder.exists() else []
    own = [p for p in names if p.relative_to(folder).parts[0] not in OWN_FOLDERS and not p.name.startswith(".")]
    kept = [p for p in own if not (p.parent == folder and p.suffix == ".ipynb")]
    return {p.relative_to(folder).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(kept)}


def _describe(cfg: Settings, name: str, files: list[str], journal: Path, earlier: tuple[str, ...]) -> dict:
    """A notebook's stamp: the files it made, the stored results it answers for, and what it was run after."""
    stored = sorted(set(journal.read_text(encoding="utf-8").split())) if journal.exists() else []
    data = {f: _content_digest(cfg.reports / f) for f in files if Path(f).suffix in (".csv", ".json", ".nc", ".npz")}
    made = {"data": data, "files": files, "stored": stored}
    after = {other: _made_digest(cfg, other) for other in earlier}
    return {"notebook": name, "made": made, "after": after}


def _made_digest(cfg: Settings, name: str) -> str | None:
    """Digest of the data files a notebook made, or None when it has no stamp."""
    path = _stamp(cfg, name)
    if not path.exists():
        return None
    return hashlib.sha256(json.dumps(read_json(path)["made"]["data"], sort_keys=True).encode()).hexdigest()


def _content_digest(path: Path) -> str:
    """SHA-256 of a file; of a JSON file without what differs between equal runs."""
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(stable(read_json(path)), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def stable(value):
    """A JSON value without provenance and times, at any depth: what has to be equal between equal runs."""
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if k not in UNSTABLE}
    return [stable(v) for v in value] if isinstance(value, list) else value


def outdated(cfg: Settings, jobs: list[Job]) -> list[str]:
    """Finished notebooks to execute again.

    Those for which something they made is missing, the raw archive is another one now, or an earlier one's data
    differ. Snakemake sees none of it: stored results are kept by content and are not its outputs, an archive may be
    downloaded while the chain runs, and a notebook that was executed again and made the same data is no reason to
    execute those after it.
    """
    store, archived = artifact_root() / "store", raw_data(cfg)
    names, claimed = [], set()
    for job in jobs:
        if not _stamp(cfg, job.name).exists():
            continue
        stamp = read_json(_stamp(cfg, job.name))
        gone = {s for s in stamp["made"]["stored"] if not (store / s / "manifest.json").exists()} - claimed
        gone |= {f for f in stamp["made"]["files"] if not (cfg.reports / f).exists()}
        differ = any(_made_digest(cfg, other) not in (digest, None) for other, digest in stamp["after"].items())
        replaced = archived is not None and archived != stamp.get("archive")  # without one, what is stored counts
        if gone or differ or replaced:
            names.append(job.name)
            claimed |= gone  # the first notebook that answers for a result makes it again
    return names


# -------------------------------------------------------------------------------------------------- whole runs


@contextlib.contextmanager
def alone(cfg: Settings, wait_s: float = 20.0):
    """Hold the run's lock and yield its file descriptor. The system frees it however its holders end.

    Waits a moment for what a killed run may have left behind to end; then says that another run is in progress.
    """
    cfg.reports.mkdir(parents=True, exist_ok=True)
    with open(cfg.reports / ".lock", "a") as handle:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ChainError(
                        f"another run of profile {cfg.profile} on {cfg.dataset} is in progress; wait for it or stop it"
                    ) from None
                time.sleep(0.2)
        yield handle.fileno()


def snakemake_command(cfg: Settings, folder: Path, force: list[str], *options: str) -> list[str]:
    """The Snakemake call of a run; its own lock is off, because a kill leaves it behind and :func:`alone` guards."""
    names = {"profile": cfg.profile, "dataset": cfg.dataset, "device": cfg.device or "auto", "notebooks": str(folder)}
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--cores", str(threads())]
    command += ["--directory", str(cfg.reports)]
    command += ["--rerun-incomplete", "--nolock", "--rerun-triggers", "mtime", "params", "input"]
    command += options
    command += ["--forcerun", *(f"n{name}" for name in force)] if force else []
    # as they are: Snakemake does not undo escapes
    return [*command, "--config", *(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in names.items())]


def reproduce(cfg: Settings, folder: Path = NOTEBOOKS) -> list[str]:
    """Bring all notebooks of a run up to date; returns the names of those that were executed.

    Raises :class:`ChainError` with the failing notebook's message.
    """
    jobs = plan(cfg, folder)
    logs = cfg.reports / "logs"
    with alone(cfg) as lock:
        logs.mkdir(exist_ok=True)
        _sweep(cfg.reports)
        before = {j.name: _changed_at(cfg, j.name) for j in jobs}
        for error in logs.glob("*.error.txt"):
            error.unlink()
        # one turn is not enough: an executed notebook can make later ones outdated
        for turn in range(2 * len(jobs) + 2):
            force = outdated(cfg, jobs)
            at = {j.name: _changed_at(cfg, j.name) for j in jobs}
            with open(logs / "snakemake.log", "w" if turn == 0 else "a", encoding="utf-8") as log:
                log.write(f"---- {time.strftime('%Y-%m-%d %H:%M:%S')} {cfg.profile} {cfg.dataset} forced: {force}\n")
                log.flush()
                command = snakemake_command(cfg, folder.resolve(), force)
                told = os.environ | {CHAIN: _named(psutil.Process())}
                code = subprocess.run(command, stderr=log, cwd=REPOSITORY, pass_fds=(lock,), env=told).returncode
            if code:
                raise ChainError(_why_it_stopped(logs, code))
            if at == {j.name: _changed_at(cfg, j.name) for j in jobs} and not outdated(cfg, jobs):
                break
        else:
            raise ChainError("the notebooks' data keep changing from one execution to the next; see " + str(logs))
    return [name for name, at in before.items() if _changed_at(cfg, name) != at]


def _sweep(folder: Path) -> None:
    """Remove half-written files whose writer was killed."""
    for part in folder.rglob(".*.part"):
        writer = part.name.split(".")[-2]
        if part.is_file() and writer.isdigit() and not psutil.pid_exists(int(writer)):
            part.unlink()


def _changed_at(cfg: Settings, name: str) -> int:
    path = _stamp(cfg, name)
    return path.stat().st_mtime_ns if path.exists() else 0


def _why_it_stopped(logs: Path, code: int) -> str:
    """The failed notebooks' own messages; without one, the end of Snakemake's log."""
    messages = [p.read_text(encoding="utf-8").strip() for p in sorted(logs.glob("*.error.txt"))]
    if messages:
        return "\n".join(messages)
    if code < 0:
        return f"Snakemake was stopped by signal {-code}; the same command goes on where it stopped"
    tail = "\n  ".join((logs / "snakemake.log").read_text(encoding="utf-8").strip().splitlines()[-12:])
    return f"Snakemake ended with status {code}; the end of {logs / 'snakemake.log'}:\n  {tail}"


def notebook_seconds(executed: Path) -> float | None:
    """How long papermill took for an executed notebook."""
    return read_json(executed)["metadata"].get("papermill", {}).get("duration")


def summary(cfg: Settings, names: list[str], executed: list[str]) -> str:
    """What :func:`reproduce` did: notebooks with their times, and where to look."""
    times = {name: notebook_seconds(cfg.reports / f"{name}.ipynb") or 0.0 for name in names}
    rows = [f"  {n:<22}{t:8.1f} s   {'executed' if n in executed else 'up to date'}" for n, t in times.items()]
    look = {
        "results": cfg.reports / "results.json",
        "figures": cfg.reports / "figures",
        "tables": cfg.reports / "tables",
    }
    rows += [f"  {'all':<22}{sum(times.values()):8.1f} s", ""]
    rows += [f"  {what:<9}{near(path)}" for what, path in look.items() if path.exists()]
    return "\n".join(["", f"profile {cfg.profile}, data set {cfg.dataset}", *rows])


def near(path: Path) -> Path:
    """A path as the reader types it: relative to the repository where it lies inside."""
    return path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path


def clean() -> list[Path]:
    """Remove what runs have made, and nothing else: runs, sweeps, pages, stored results; returns what was removed."""
    reports, store = report_root(), artifact_root()
    folders = [root / profile for root in (reports, store) for profile in (*PROFILES, "sweep")]
    found = [p for p in [*folders, reports / "html", reports / "index.html", store / "store"] if p.exists()]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return found


# -------------------------------------------------------------------------------------------- the command line


def _run_command(words: argparse.Namespace, cfg: Settings) -> None:
    """One notebook, called by its Snakemake rule: a line when it starts, a line when it ends."""
    notebook = Path(words.notebook).resolve()
    if not notebook.exists():
        raise ChainError(f"{notebook} does not exist")
    error = cfg.reports / "logs" / f"{notebook.stem}.error.txt"
    earlier = next((j.earlier for j in plan(cfg, notebook.parent) if j.name == notebook.stem), ())
    print(f"  {notebook.stem:<22} ...", flush=True)
    started = time.perf_counter()
    try:
        run_notebook(notebook, cfg, earlier=earlier)
    except ChainError as failure:
        write_text(error, f"{failure}\n")
        raise
    print(f"  {notebook.stem:<22}{time.perf_counter() - started:8.1f} s", flush=True)


def _reproduce_command(words: argparse.Namespace, cfg: Settings) -> None:
    folder = Path(words.notebooks).resolve()
    executed = reproduce(cfg, folder)
    print(summary(cfg, [j.stem for j in find_notebooks(folder)], executed))


def main(arguments: list[str] | None = None) -> int:
    """``reproduce``, ``run`` or ``clean``; 0 when it worked."""
    parser = argparse.ArgumentParser(prog="python -m harvis_utils.chain", description="Execute the notebooks.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("reproduce", "run", "clean"):
        command = commands.add_parser(name)
        if name == "run":
            command.add_argument("notebook")
        if name in ("reproduce", "run"):
            command.add_argument("--profile", default="quick")
            command.add_argument("--dataset", default="synthetic")
            command.add_argument("--device", default=None)
        if name == "reproduce":
            command.add_argument("--notebooks", default=str(NOTEBOOKS))
    words = parser.parse_args(arguments)
    try:
        cfg = load_settings(words.profile, words.dataset, words.device) if "profile" in words else None
        if words.command == "reproduce":
            _reproduce_command(words, cfg)
        elif words.command == "run":
            _run_command(words, cfg)
        else:
            for path in clean() or [None]:
                print(f"removed {near(path)}" if path else "nothing to remove")
    except (ChainError, SettingsError, ArtifactError, kinds.DataError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
