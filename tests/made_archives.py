"""Small archives in the data sets' formats, made by the tests, and the example data set put into the registry."""

from __future__ import annotations

import importlib
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np

from harvis_utils import data
from harvis_utils.data import kinds

EXAMPLE = Path(__file__).with_name("example_dataset.py")


def example_files(n_rows: int = 200) -> dict[str, bytes]:
    """Content of the example data set's six files; whole-number arithmetic, so that it never changes."""
    files = {}
    for subject in (1, 2, 3):
        for activity, word in enumerate(("walking", "sitting")):
            rows = (
                ",".join(f"{(7 * row + 13 * subject + 29 * activity + 5 * axis) % 41 - 20}.5" for axis in range(6))
                for row in range(n_rows)
            )
            files[f"subject{subject}_{word}.csv"] = ("\n".join(rows) + "\n").encode()
    return files


def table(rng: np.random.Generator, n_rows: int, n_columns: int, delimiter: str = ",") -> bytes:
    """Random numbers as a text table."""
    values = rng.normal(0, 10, (n_rows, n_columns))
    return "".join(delimiter.join(f"{value:.5g}" for value in row) + "\n" for row in values).encode()


def write_zip(path: Path, files: dict[str, bytes], prefix: str = "", compression=zipfile.ZIP_DEFLATED) -> Path:
    """A zip file with ``prefix`` before every name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return path


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """The same files, extracted."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def isolate(monkeypatch, root: Path) -> Path:
    """Make ``root`` the repository's place for data and artifacts; returns its ``data/raw``."""
    for variable in ("HARVIS_DATA", "HARVIS_ARTIFACTS", "HARVIS_MIRROR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("harvis_utils.settings.REPOSITORY", root)
    return root / "data" / "raw"


def register_example(monkeypatch, root: Path) -> kinds.Dataset:
    """Put the example module into the package's search path, as a file in its folder would be."""
    folder = root / "more_datasets"
    folder.mkdir()
    shutil.copy(EXAMPLE, folder / "example.py")
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "harvis_utils.data.example", raising=False)
    importlib.invalidate_caches()
    return kinds.registry()["example"]


def left_over(root: Path) -> list[str]:
    """Every file or unfinished folder below ``root``; the example module itself aside."""
    found = (p for p in root.rglob("*") if p.is_file() or p.name.endswith(".part"))
    return sorted(p.name for p in found if "more_datasets" not in p.parts)
