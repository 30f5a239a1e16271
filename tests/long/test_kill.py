"""Runs killed in the middle: whatever is killed when, the same command then ends with the same results.

Takes many runs of the quick profile; not part of the ordinary tests: ``make test-long``. Nothing in the package
knows of these tests: they watch the store from outside and send SIGKILL at the moment asked for. Results are the same
when every file that is stored is, byte for byte, and every JSON and CSV file but for the times in it.
"""

import csv
import hashlib
import json
import os
import random
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

ROOT = Path(__file__).resolve().parents[2]
#: another folder of notebooks can be named to try these tests themselves
NOTEBOOKS = os.environ.get("HARVIS_KILL_NOTEBOOKS", str(ROOT / "notebooks"))
RUN_SECONDS = 1800

SOURCES = " ".join(p.read_text() for p in [*(ROOT / "harvis_utils").rglob("*.py"), *Path(NOTEBOOKS).glob("*.ipynb")])
STAGES = sorted(set(re.findall(r"@kept\(\s*\\?\"(\w+)", SOURCES)))
#: the paper's own chain runs as a whole; the notebooks after it run alone, on what the ones before them stored
PAPER = ("01", "07")
#: what differs between equal runs
TIMES = ("provenance", "timings_s", "cpu_s")

SEED = 0
TARGETS = ("snakemake", "group")


def start(root: Path) -> subprocess.Popen:
    """Start the chain in its own process group, with reports and artifacts under ``root``.

    It runs the notebooks in ``root`` where there are some, else all.
    """
    root.mkdir(parents=True, exist_ok=True)
    place = {"HARVIS_REPORTS": str(root / "reports"), "HARVIS_ARTIFACTS": str(root / "derived")}
    own = root / "notebooks"
    notebooks = str(own) if own.exists() else NOTEBOOKS
    command = [sys.executable, "-m", "harvis_utils.chain", "reproduce", "--notebooks", notebooks]
    with open(root / "output.txt", "a") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=os.environ | place, stdout=output, stderr=output, start_new_session=True
        )


def finish(root: Path) -> dict:
    """Run the chain to its end; returns what it made."""
    process = start(root)
    try:
        code = process.wait(timeout=RUN_SECONDS)
    finally:
        stop(process, "group")
    assert code == 0, (root / "output.txt").read_text()[-3000:]
    return made(root)


def made(root: Path) -> dict:
    """What a run stored and reported: path -> the digest of a file, or what JSON and CSV files say but for times."""
    found = {}
    for path in [*root.glob("derived/store/*/*/**/*"), *root.glob("reports/quick/synthetic/*.json")]:
        name = str(path.relative_to(root))
        if path.is_file() and path.name != "manifest.json" and "/." not in name:  # what is under way has a dot in front
            data = path.read_bytes()
            if path.suffix == ".json":
                found[name] = timeless(json.loads(data))
            elif path.suffix == ".csv":
                found[name] = timeless(list(csv.DictReader(data.decode().splitlines())))
            else:
                found[name] = hashlib.sha256(data).hexdigest()
    return found


def timeless(values):
    """The same nested lists and dictionaries without the entries that say how long something took, where and when."""
    if isinstance(values, dict):
        return {key: timeless(value) for key, value in values.items() if key not in TIMES}
    return [timeless(value) for value in values] if isinstance(values, list) else values


def assert_same(found: dict, undisturbed, stage: str) -> None:
    """A restarted run made nothing that the undisturbed one did not, and its stage's results are there."""
    differing = [name for name, value in found.items() if undisturbed.results.get(name) != value]
    assert not differing, f"made otherwise, or only after the kill: {', '.join(differing)}"
    assert any(name.startswith(f"derived/store/{stage}/") for name in found)


def stop(process: subprocess.Popen, target: str) -> None:
    """SIGKILL Snakemake alone or the whole process group; then no process of the run may stay."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    if target == "snakemake":
        for child in family:
            if child.ppid() == process.pid and "snakemake" in child.cmdline():
                child.kill()
        process.wait(timeout=60)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, f"left running: {alive}"


def store(root: Path, stage: str) -> Path:
    return root / "derived" / "store" / stage


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A run that nothing disturbs: its root, its results, how long it took."""
    root = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    results = finish(root)
    return SimpleNamespace(root=root, results=results, seconds=time.monotonic() - started)


def before(undisturbed, stage: str, root: Path) -> Path:
    """A root that has all results older than those of ``stage``, the notebooks that make these, and nothing else."""
    times = {m.parent: m.stat().st_mtime for m in undisturbed.root.glob("derived/store/*/*/manifest.json")}
    of_stage = [at for folder, at in times.items() if folder.parent.name == stage]
    if not of_stage:
        pytest.skip(f"a quick run on synthetic data stores no {stage}")
    for folder, at in times.items():
        if at < min(of_stage):
            shutil.copytree(folder, root / folder.relative_to(undisturbed.root))
    notebooks = {path.stem: path for path in Path(NOTEBOOKS).glob("*.ipynb")}
    stamps = sorted((undisturbed.root / "reports/quick/synthetic/stamps").glob("*.json"))
    makers = [p.stem for p in stamps if any(s.startswith(f"{stage}/") for s in json.loads(p.read_text())["stored"])]
    if (own := makers[0]) in notebooks:
        paper = PAPER[0] <= own < PAPER[1]
        needed = [p for name, p in notebooks.items() if (PAPER[0] <= name < PAPER[1] if paper else name == own)]
        (root / "notebooks").mkdir(parents=True)
        for path in needed:
            shutil.copy(path, root / "notebooks")
        for path in undisturbed.root.glob("reports/quick/synthetic/*.json"):
            if path.stat().st_mtime < min(of_stage):
                (root / "reports/quick/synthetic").mkdir(parents=True, exist_ok=True)
                shutil.copy(path, root / path.relative_to(undisturbed.root))
    return root


def writer(folder: Path) -> int | None:
    """Process that is writing a result in ``folder``: one whose temporary folder already holds a file."""
    try:
        for entry in os.scandir(folder):
            if entry.name.endswith(".part") and next(os.scandir(entry), None) is not None:
                return int(entry.name.split(".")[2].partition("@")[0])  # process@machine
    except FileNotFoundError:  # not there yet, or renamed between the two looks
        return None
    return None


def computing(folder: Path) -> bool:
    """Whether a result in ``folder`` is under way and not yet written."""
    entries = list(os.scandir(folder)) if folder.exists() else []
    return any(e.name.endswith((".part", ".checkpoint")) for e in entries) and writer(folder) is None


def checkpointed(folder: Path) -> bool:
    """Whether an interrupted computation could go on from a checkpoint that is there now."""
    return any(next(p.iterdir(), None) is not None for p in folder.glob("*.checkpoint"))


def kill_when(root: Path, moment, target: str, delay_s: float = 0.0) -> bool:
    """Start the chain and kill it when ``moment()`` is seen; False when the run ended without it."""
    process = start(root)
    try:
        until = time.monotonic() + RUN_SECONDS
        while process.poll() is None:
            assert time.monotonic() < until, "the moment never came and the run never ended"
            if moment():
                time.sleep(delay_s)
                stop(process, target)
                return process.returncode != 0
            time.sleep(0.0005)  # short beside a write, and leaves the core to the run
    finally:
        stop(process, "group")
    return False


@pytest.mark.parametrize("stage", STAGES)
def test_killed_while_a_stage_is_written(undisturbed, tmp_path, stage):
    for attempt in range(5):  # a write takes milliseconds; it can be over before it is seen
        root = before(undisturbed, stage, tmp_path / str(attempt))
        folder = store(root, stage)

        def kill_writer(folder=folder) -> bool:
            pid = writer(folder)
            if pid:  # first the kernel, inside its write; then what has started it
                os.kill(pid, signal.SIGKILL)
            return bool(pid)

        if kill_when(root, kill_writer, TARGETS[attempt % 2]) and list(folder.glob(".*.part")):
            break
    else:
        pytest.fail(f"five runs, and none could be killed while {stage} was written")
    assert_same(finish(root), undisturbed, stage)
    assert not list(folder.glob(".*.part")), "the half-written result was swept"


@pytest.mark.parametrize("target", TARGETS)
def test_killed_inside_training(undisturbed, tmp_path, target):
    root = before(undisturbed, "networks", tmp_path)
    assert kill_when(root, lambda: checkpointed(store(root, "networks")), target), "training left no checkpoint"
    assert_same(finish(root), undisturbed, "networks")


@pytest.mark.parametrize("target", TARGETS)
def test_killed_inside_maximization(undisturbed, tmp_path, target):
    root = before(undisturbed, "signals", tmp_path)
    assert kill_when(root, lambda: computing(store(root, "signals")), target, delay_s=0.3), "never seen computing"
    assert_same(finish(root), undisturbed, "signals")


@pytest.mark.parametrize("number", range(5))
def test_killed_at_a_random_moment(undisturbed, tmp_path, number):
    at = undisturbed.seconds * random.Random(f"{SEED}-{number}").uniform(0.05, 0.9)
    until = time.monotonic() + at
    assert kill_when(tmp_path, lambda: time.sleep(0.01) or time.monotonic() > until, TARGETS[number % 2])
    assert finish(tmp_path) == undisturbed.results
