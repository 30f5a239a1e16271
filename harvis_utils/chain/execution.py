"""One notebook executed once by papermill, stopped with the chain, and stored without paths of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import threading
from pathlib import Path
from unittest import mock

import psutil

from harvis_utils.chain.stamps import ChainError, raw_data, stamp_of
from harvis_utils.settings import REPOSITORY, Settings, artifact_root, data_folders, report_root
from harvis_utils.store.files import ArtifactError, file_digest, read_json, remove, write_json, write_text, writing

#: names the processes, the chain and its Snakemake, that the notebooks executed under them end with
CHAIN = "HARVIS_CHAIN"

#: what a process that computes must find in its environment when it starts; the package comes too late to say so
BEFORE_STARTING = {
    # idle OpenMP threads sleep
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc keeps freed memory: fetching it again from the system cost a sixth of the training time
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}


def run_notebook(notebook: Path, cfg: Settings) -> Path:
    """Execute a notebook with papermill and return the executed copy in the run's folder.

    While it runs, and when it fails, the notebook with its outputs is ``logs/<name>.ipynb``. Raises
    :class:`ChainError` naming the cell that failed.
    """
    import papermill

    log = cfg.reports / "logs" / f"{notebook.stem}.ipynb"
    journal, written, progress = (log.with_suffix(f".{what}.txt") for what in ("results", "files", "progress"))
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        for old in (log, journal, written, progress):
            remove(old)
    archived = raw_data(cfg)
    given = {"PROFILE": cfg.profile, "DATASET": cfg.dataset} | ({"DEVICE": cfg.device} if cfg.device else {})
    given |= {"WEIGHTS": cfg.weights} if cfg.weights != "trained" else {}
    # progress is to be watched with tail -f
    noted = {"HARVIS_JOURNAL": journal, "HARVIS_WRITTEN": written, "HARVIS_PROGRESS": progress}
    place = BEFORE_STARTING | os.environ | {name: str(path) for name, path in noted.items()}
    # without it no `assert` of a notebook would check anything
    place |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONOPTIMIZE": ""}
    place["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    how = {"kernel_name": "python3", "language": "python", "progress_bar": False, "start_timeout": 180}
    # kernels warn of every connection without encryption, here of those inside this machine
    how["extra_arguments"] = ["--IPKernelApp.log_level=ERROR"]
    # papermill takes braces in a path for a template
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, log)]
    try:
        # for the kernel, and put back afterwards
        with (
            # start-up files of the user are for other notebooks
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty,
            mock.patch.dict(os.environ, place | {"IPYTHONDIR": empty}),
            _stopping_with_the_chain(),
        ):
            papermill.execute_notebook(*paths, parameters=given, cwd=notebook.parent, **how)
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
            with contextlib.suppress(ArtifactError):  # cut short; what cut it is told
                _write_portable(log, log)
    executed, reports = _write_portable(log, cfg.reports / f"{notebook.stem}.ipynb"), cfg.reports.resolve()
    files = [p.relative_to(reports).as_posix() for p in map(Path, _lines(written)) if p.is_relative_to(reports)]
    archived = archived or raw_data(cfg)  # it may have been downloaded meanwhile
    about = {"files": files, "stored": _lines(journal), "archive": archived}
    made = [name for name in (*files, executed.name) if (reports / name).is_file()]
    about["digests"] = {name: file_digest(reports / name) for name in made}
    write_json(stamp_of(cfg, notebook.stem), about)
    return executed


def _lines(path: Path) -> list[str]:
    """The lines of a file, each once and sorted; none where it does not exist."""
    return sorted(set(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def _failure(notebook: Path, log: Path, error) -> str:
    """What is said about a failed cell: where, the line that failed, the error, and where to see all of it."""
    # papermill's own cells, the parameters it injects and its banners, are not in the reader's notebook
    own = {"injected-parameters", "papermill-error-cell-tag"}
    cells = [cell["metadata"] for cell in read_json(log)["cells"]]
    cells = [cell.get("papermill", {}) for cell in cells if not own & set(cell.get("tags", []))]
    failed = next((i for i, cell in enumerate(cells, 1) if cell.get("status") == "failed"), error.cell_index)
    # IPython marks the line that it was executing in each frame, the cell's own first
    marked = re.findall(r"-+> *\d+ (.*)", re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback)))
    line = marked[0] if marked else next((text for text in error.source.splitlines() if text.strip()), "")
    what = "\n  ".join(f"{error.ename}: {error.evalue}".strip().splitlines())
    return (
        f"notebook {notebook.name} failed in cell {failed}: {line.strip()}\n  {what}\n"
        f"  executed up to there, with the full traceback: {log}"
    )


@contextlib.contextmanager
def _stopping_with_the_chain():
    """Stop this process and its kernel when one of the processes that :data:`CHAIN` names is killed.

    A kernel has a session of its own, so no signal to a process group reaches it; ipykernel itself ends within a
    second when its parent is gone, and this ends the parent.
    """
    above, done = os.environ.get(CHAIN, "").split(), threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            if all(map(runs, above)):
                continue
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            os._exit(137)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def watched() -> str:
    """The value of :data:`CHAIN` for what this process starts: what stands there already, and this process."""
    return f"{os.environ.get(CHAIN, '')} {os.getpid()}@{began(os.getpid())}"  # numbers of processes are used again


def began(pid: int) -> str | None:
    """When a process began, None where it runs no more; since the start of the machine, as clocks are set right."""
    try:
        process, stat = psutil.Process(pid), Path(f"/proc/{pid}/stat")
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        # its name, in brackets, may hold anything
        return (
            stat.read_bytes().rpartition(b")")[2].split()[19].decode() if stat.exists() else str(process.create_time())
        )
    except (psutil.NoSuchProcess, OSError):
        return None


def runs(name: str) -> bool:
    """Whether the process that :func:`watched` called so, by its number and when it began, still runs."""
    pid, _, when = name.partition("@")
    return began(int(pid)) == when


def portable(text: str) -> str:
    """``text`` with this machine's folders written relative to the project, or by names of their own: home as ``~``."""
    names = {report_root(): "reports", artifact_root(): "data/derived", REPOSITORY: ""}
    names |= {folder: "HARVIS_DATA" for folder in data_folders()[:-1]} | {Path.home(): "~"}
    names |= {Path(sys.prefix): ".venv", Path(tempfile.gettempdir()): "tmp"}  # warnings name the file that they are of
    for folder, name in sorted(names.items(), key=lambda item: -len(str(item[0]))):
        if len(folder.parts) < 2:
            continue
        start, end = r"(?<![\w.~-])" + re.escape(str(folder)), r"(?![\w-])"
        text = re.sub(start + "/", f"{name}/" if name else "", text)
        text = re.sub(start + end, name or ".", text)
    return text


def _write_portable(source: Path, target: Path) -> Path:
    """Copy an executed notebook, without absolute paths in its metadata and text outputs; images stay untouched."""
    book = read_json(source)
    if "papermill" in book["metadata"]:
        book["metadata"]["papermill"] |= {"input_path": f"notebooks/{source.name}", "output_path": source.name}
    for cell in book["cells"]:
        if "outputs" in cell:
            cell["outputs"] = _portable_output(cell["outputs"])
    return write_text(target, json.dumps(book, indent=1, ensure_ascii=False) + "\n")


def _portable_output(value, kind: str = "text/plain"):
    if isinstance(value, dict):
        return {k: _portable_output(v, k if "/" in k else kind) for k, v in value.items()}
    if isinstance(value, list):
        return [_portable_output(v, kind) for v in value]
    return portable(value) if isinstance(value, str) and not kind.startswith("image/") else value


def notebook_seconds(executed: Path) -> float:
    """How long papermill took for an executed notebook, 0 where it does not say."""
    return read_json(executed)["metadata"].get("papermill", {}).get("duration") or 0.0
