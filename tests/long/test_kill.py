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
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from harvis_utils.chain.execution import notebook_seconds

ROOT = Path(__file__).resolve().parents[2]
#: another folder of notebooks can be named to try these tests themselves
NOTEBOOKS = os.environ.get("HARVIS_KILL_NOTEBOOKS", str(ROOT / "notebooks"))
RUN_SECONDS = 1800

#: what differs between equal runs
TIMES = ("provenance", "timings_s", "cpu_s")

SEED = 0
TARGETS = ("snakemake", "group")
KILLS = 50
RUN = Path("reports/quick/synthetic")


def start(root: Path) -> subprocess.Popen:
    """Start the chain in its own process group, with reports and artifacts under ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    place = {"HARVIS_REPORTS": str(root / "reports"), "HARVIS_ARTIFACTS": str(root / "derived")}
    command = [sys.executable, "-m", "harvis_utils.chain", "reproduce", "--notebooks", NOTEBOOKS]
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
    for path in [*root.glob("derived/store/*/*/**/*"), *(root / RUN).glob("*.json")]:
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


def stages(root: Path) -> set[str]:
    """Names of the stages that have a result under ``root``."""
    return {manifest.parts[-3] for manifest in root.glob("derived/store/*/*/manifest.json")}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A run that nothing disturbs: its root and its results."""
    root = tmp_path_factory.mktemp("undisturbed")
    return SimpleNamespace(root=root, results=finish(root))


def written(folder: Path) -> int | None:
    """Process that is writing a result in ``folder``: one whose temporary folder already holds a file."""
    try:
        for entry in os.scandir(folder):
            if entry.name.endswith(".part") and next(os.scandir(entry), None) is not None:
                return int(entry.name.split(".")[2].partition("@")[0])  # process@machine
    except FileNotFoundError:  # not there yet, or renamed between the two looks
        return None
    return None


def kill_when(root: Path, moment, target: str):
    """Start the chain and kill it when ``moment()`` is seen, which is returned; None when the run ended without it."""
    process = start(root)
    try:
        until = time.monotonic() + RUN_SECONDS
        while process.poll() is None:
            assert time.monotonic() < until, "the moment never came and the run never ended"
            if seen := moment():
                stop(process, target)
                return seen
            time.sleep(0.001)  # short beside a write, and leaves the core to the run
    finally:
        stop(process, "group")
    assert process.returncode == 0, (root / "output.txt").read_text()[-3000:]
    return None


def forget(root: Path, names: set[str]) -> None:
    """Remove the results of these stages, and what says that their notebooks are up to date."""
    for name in names:
        shutil.rmtree(root / "derived/store" / name)
    for stamp in (root / RUN).glob("stamps/*.json"):
        if {address.split("/")[0] for address in json.loads(stamp.read_text())["stored"]} & names:
            stamp.unlink()


def test_killed_while_each_stage_is_written(undisturbed, tmp_path):
    """One run, killed inside a write of every stage, and started again each time."""
    left = stages(undisturbed.root)

    def kill_writer() -> str | None:
        for stage in left:
            if pid := written(tmp_path / "derived/store" / stage):
                with suppress(ProcessLookupError):  # just ended
                    os.kill(pid, signal.SIGKILL)  # first the kernel, inside its write; then what has started it
                return stage
        return None

    for _ in range(5):  # a write takes milliseconds; it can be over before it is seen
        while stage := kill_when(tmp_path, kill_writer, TARGETS[len(left) % 2]):
            if list((tmp_path / "derived/store" / stage).glob(".*.part")):
                left.remove(stage)
        forget(tmp_path, left)
    assert not left, f"never killed while these were written: {', '.join(sorted(left))}"
    assert finish(tmp_path) == undisturbed.results
    assert not list(tmp_path.glob("derived/store/*/.*.part")), "half-written results are swept"


def test_killed_at_a_random_moment_of_every_notebook(undisturbed, tmp_path):
    """One run, killed while each notebook runs, the longest ones twice; what a start needs to go on is in the store."""
    moments = random.Random(SEED)
    took = {path.stem: notebook_seconds(path) for path in (undisturbed.root / RUN).glob("*.ipynb")}
    longest = sorted(took, key=lambda name: -took[name])
    for number, name in enumerate(sorted(longest[i % len(longest)] for i in range(KILLS))):
        moment = moment_of(tmp_path, name, moments.uniform(0, took[name]))
        assert kill_when(tmp_path, moment, TARGETS[number % 2]) == name
    assert finish(tmp_path) == undisturbed.results


def moment_of(root: Path, notebook: str, after: float):
    """When ``notebook`` has run for ``after`` seconds, or has ended sooner; it runs even where it had ended before."""
    log, stamp = root / RUN / "logs" / f"{notebook}.ipynb", root / RUN / "stamps" / f"{notebook}.json"
    log.unlink(missing_ok=True)
    stamp.unlink(missing_ok=True)
    begun = []

    def moment() -> str | None:
        if not begun and log.exists():
            begun.append(time.monotonic())
        return notebook if begun and (time.monotonic() >= begun[0] + after or stamp.exists()) else None

    return moment
