"""Long tests go on where they were interrupted: what passed on this very state of the project is not run again."""

import hashlib
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def passed_here() -> Path:
    """The file with the names of the tests that passed on this state of the tracked files."""
    git = [
        subprocess.run(["git", *words], cwd=ROOT, capture_output=True).stdout
        for words in (["rev-parse", "HEAD"], ["diff", "HEAD"])
    ]
    return ROOT / "data" / "derived" / "long" / f"{hashlib.sha256(b''.join(git)).hexdigest()[:12]}.txt"


def pytest_collection_modifyitems(items):
    path = passed_here()
    done = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
    for item in items:
        if item.nodeid in done:
            item.add_marker(pytest.mark.skip(reason="passed on this state already"))


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        path = passed_here()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as lines:
            lines.write(f"{report.nodeid}\n")
