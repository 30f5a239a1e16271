"""A whole run brought up to date by Snakemake, and the command line."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from harvis_utils.chain.execution import CHAIN, notebook_seconds, run_notebook, watched
from harvis_utils.chain.stamps import (
    NOTEBOOKS,
    PARTS,
    ChainError,
    NotebookError,
    edited,
    find_notebooks,
    outdated,
    stamp_of,
)
from harvis_utils.data import kinds
from harvis_utils.parallel import check_device, command_line, threads
from harvis_utils.settings import (
    APPROXIMATE,
    PROFILES,
    REPOSITORY,
    Settings,
    artifact_root,
    load_settings,
    report_root,
)
from harvis_utils.store.files import ArtifactError, read_json, remove, sweep, write_text, writing

SNAKEFILE = REPOSITORY / "Snakefile"

#: notebooks executed at once. Choice: one computes while another imports or draws; more would share the same cores
AT_ONCE = 2


@contextlib.contextmanager
def alone(cfg: Settings, wait_s: float = 20.0, how: int = fcntl.LOCK_EX):
    """Hold the run's lock, alone or shared, and yield its file descriptor. The system frees it however its holders end.

    Waits a moment for what a killed run may have left behind to end; then says that another run is in progress.
    """
    with writing(cfg.reports):
        cfg.reports.mkdir(parents=True, exist_ok=True)
        handle = open(cfg.reports / ".lock", "a")  # noqa: SIM115
    with handle:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, how | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ChainError(
                        f"another run of profile {cfg.profile} on {cfg.dataset} is in progress; wait for it or stop it"
                    ) from None
                time.sleep(0.2)
        yield handle.fileno()


def snakemake_command(cfg: Settings, folder: Path, part: str | None, force: list[str]) -> list[str]:
    """The Snakemake call of a run; its own lock is off, because a kill leaves it behind and :func:`alone` guards.

    After a failure everything else goes on: notebooks do not need each other.
    """
    names = {"profile": cfg.profile, "dataset": cfg.dataset, "device": cfg.device or "auto"}
    names |= {"weights": cfg.weights, "part": part or "all"}
    names |= {"notebooks": str(folder)} if folder != NOTEBOOKS else {}
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    command += ["--cores", str(AT_ONCE * threads()), "--keep-going", "--directory", str(cfg.reports)]
    command += ["--rerun-incomplete", "--nolock", "--rerun-triggers", "mtime", "params", "input"]
    command += ["--forcerun", *(f"n{name}" for name in force)] if force else []
    # as they are: Snakemake does not undo escapes
    return [*command, "--config", *(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in names.items())]


def reproduce(cfg: Settings, folder: Path = NOTEBOOKS, part: str | None = None) -> list[str]:
    """Bring the notebooks of a run, or of a part of it, up to date; returns the names of those that were executed.

    Raises :class:`NotebookError` with the messages of those that failed, once all others are done.
    """
    names, logs = [book.stem for book in find_notebooks(folder, part)], cfg.reports / "logs"
    with alone(cfg) as lock:
        with writing(logs):
            logs.mkdir(exist_ok=True)
        sweep(cfg.reports.rglob(".*.part"))
        _heal(cfg, names)
        before, force = _stamped(cfg, names), sorted({*outdated(cfg, names), *edited(cfg, names).values()})
        for name in names:
            remove(logs / f"{name}.error.txt")
        with open(logs / "snakemake.log", "w", encoding="utf-8") as log:
            log.write(f"---- {time.strftime('%Y-%m-%d %H:%M:%S')} {cfg.profile} {cfg.dataset} forced: {force}\n")
            log.flush()
            command = snakemake_command(cfg, folder.resolve(), part, force)
            # a profile of the user's is for other workflows
            told = {k: v for k, v in os.environ.items() if k != "SNAKEMAKE_PROFILE"} | {CHAIN: watched()}
            began = time.time()
            code = subprocess.run(command, stderr=log, cwd=REPOSITORY, pass_fds=(lock,), env=told).returncode
        if code:
            failed = [said for name in names if (said := _failure(cfg, name, began if code > 0 else None))]
            raise NotebookError("\n".join(failed)) if failed else ChainError(_why_it_stopped(logs, code))
    return [name for name, at in _stamped(cfg, names).items() if before[name] != at]


def _heal(cfg: Settings, names: list[str]) -> None:
    """Remove stamps and executed notebooks that cannot be read, and say so: they are made anew."""
    for path in (p for name in names for p in (stamp_of(cfg, name), cfg.reports / f"{name}.ipynb") if p.exists()):
        try:
            whole = isinstance(read_json(path), dict)
        except ArtifactError:
            whole = False
        if not whole:
            print(f"{near(path)}: cannot be read; made anew", file=sys.stderr)
            remove(path)


def _stamped(cfg: Settings, names: list[str]) -> dict[str, int]:
    """When each notebook was stamped, 0 where it has no stamp."""
    paths = {name: stamp_of(cfg, name) for name in names}
    return {name: path.stat().st_mtime_ns if path.exists() else 0 for name, path in paths.items()}


def _failure(cfg: Settings, name: str, since: float | None) -> str | None:
    """Why a notebook did not end well, or None; one whose process was killed alone, after ``since``, cannot say so."""
    log, error = (cfg.reports / "logs" / f"{name}.{ending}" for ending in ("ipynb", "error.txt"))
    here = since and log.exists() and log.stat().st_mtime >= since
    if here and not (error.exists() or stamp_of(cfg, name).exists()):
        why = "its process was killed, as by a system without memory left"
        write_text(error, f"notebook {log.name} was not executed to its end: {why}\n  executed so far: {log}\n")
    return error.read_text(encoding="utf-8").strip() if error.exists() else None


def _why_it_stopped(logs: Path, code: int) -> str:
    """The end of Snakemake's log, where no notebook failed."""
    if code < 0:
        return f"Snakemake was stopped by signal {-code}; the same command goes on where it stopped"
    tail = "\n  ".join((logs / "snakemake.log").read_text(encoding="utf-8").strip().splitlines()[-12:])
    return f"Snakemake ended with status {code}; the end of {logs / 'snakemake.log'}:\n  {tail}"


def summary(cfg: Settings, names: list[str], executed: list[str]) -> str:
    """What :func:`reproduce` did: notebooks with their times, and where to look."""
    times = {name: notebook_seconds(cfg.reports / f"{name}.ipynb") for name in names}
    rows = [f"  {n:<22}{t:8.1f} s   {'executed' if n in executed else 'up to date'}" for n, t in times.items()]
    rows += [f"  {'all':<22}{sum(times.values()):8.1f} s", ""]
    look = [cfg.reports / name for name in ("results.json", "figures", "tables")]
    rows += [f"  {path.stem:<9}{near(path)}" for path in look if path.exists()]
    return "\n".join(["", f"profile {cfg.profile}, data set {cfg.dataset}", *rows])


def near(path: Path) -> Path:
    """A path as the reader types it: relative to the repository where it lies inside."""
    return path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path


def clean() -> list[Path]:
    """Remove what runs have made, and nothing else: runs, sweeps, pages, stored results; returns what was removed.

    A run bears its lock, or the name of a data set and what notebooks leave; a result its address.
    Raises :class:`ChainError` where a run is in progress, and :class:`ArtifactError` where something cannot be removed.
    """
    reports, store = report_root(), artifact_root() / "store"

    def of_a_run(place: Path) -> bool:
        left = any((place / name).exists() for name in ("stamps", "logs", "figures", "tables", "results.json"))
        return (place / ".lock").is_file() or left and place.name.removesuffix(APPROXIMATE) in kinds.registry()

    runs = [p for name in (*PROFILES, "sweep") for p in sorted((reports / name).glob("*")) if of_a_run(p)]
    pages, index = sorted((reports / "html").glob("*/*/[0-9][0-9]*_*.html")), reports / "index.html"
    ours = index.is_file() and "<title>harvis: results</title>" in index.read_text(encoding="utf-8", errors="replace")
    results = [path for path in store.glob("*/*") if re.match(r"\.?[0-9a-f]{20}\b", path.name)]
    with contextlib.ExitStack() as held:
        for place in runs:
            held.enter_context(alone(Settings(place.parent.name, place.name), wait_s=0))
        for path in (*runs, *pages, *[index] * ours, *results):
            remove(path)
            for folder in itertools.takewhile(lambda parent: parent not in (reports, store.parent), path.parents):
                with contextlib.suppress(OSError):  # where something else is left in it
                    folder.rmdir()
    return [*runs, *[reports / "html"] * bool(pages), *[index] * ours, *[store] * bool(results)]


def _run_command(words: argparse.Namespace, cfg: Settings) -> None:
    """One notebook, called by its Snakemake rule: a line when it starts, a line when it ends."""
    notebook = Path(words.notebook).resolve()
    if not notebook.exists():
        raise ChainError(f"{notebook} does not exist")
    error = cfg.reports / "logs" / f"{notebook.stem}.error.txt"
    print(f"  {notebook.stem:<22} ...", flush=True)
    remove(error)
    started = time.perf_counter()
    try:
        run_notebook(notebook, cfg)
    except ChainError as failure:
        write_text(error, f"{failure}\n")
        raise
    print(f"  {notebook.stem:<22}{time.perf_counter() - started:8.1f} s", flush=True)


@contextlib.contextmanager
def _told_when_stopped():
    """Say what a termination means, as an interrupt does."""

    def stopped(*_) -> None:
        print("\nstopped; the same command goes on where it stopped", file=sys.stderr, flush=True)
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stopped)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@command_line
def main(arguments: list[str] | None = None) -> None:
    """``reproduce``, ``run`` or ``clean``; 0 when it worked, 3 where notebooks failed and all others are done."""
    parser = argparse.ArgumentParser(prog="python -m harvis_utils.chain", description="Execute the notebooks.")
    commands = parser.add_subparsers(dest="command", required=True)
    of_run = argparse.ArgumentParser(add_help=False)
    options = {"--profile": "quick", "--dataset": "synthetic", "--device": None, "--weights": "trained"}
    for option, default in options.items():
        of_run.add_argument(option, default=default)
    reproducing = commands.add_parser("reproduce", parents=[of_run])
    reproducing.add_argument("--notebooks", default=str(NOTEBOOKS))
    reproducing.add_argument("--part", help=f"only one of {', '.join(PARTS)}")
    commands.add_parser("run", parents=[of_run]).add_argument("notebook")
    commands.add_parser("clean")
    words = parser.parse_args(arguments)
    check_device(getattr(words, "device", None))
    cfg = load_settings(words.profile, words.dataset, words.device, words.weights) if "profile" in words else None
    if cfg:
        kinds.check_name(cfg.dataset)  # before it names a folder
    if words.command == "reproduce":
        folder = Path(words.notebooks).resolve()
        with _told_when_stopped():
            executed = reproduce(cfg, folder, words.part)
        print(summary(cfg, [j.stem for j in find_notebooks(folder, words.part)], executed))
    elif words.command == "run":
        # the chain holds the lock for its own notebooks
        with contextlib.nullcontext() if CHAIN in os.environ else alone(cfg, how=fcntl.LOCK_SH):
            _run_command(words, cfg)
    else:
        for path in clean() or [None]:
            print(f"removed {near(path)}" if path else "nothing to remove")
