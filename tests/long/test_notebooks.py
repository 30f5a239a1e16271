"""Any notebook runs alone where nothing was made before, and a second time in the same kernel."""

import copy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_alone_in_an_empty_root_and_twice_in_one_kernel(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("HARVIS_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path / "derived"))
    book = nbformat.read(notebook, 4)
    again = copy.deepcopy(book.cells)
    for cell in again:
        cell.id = f"{cell.id}-again"
    book.cells += again
    client = NotebookClient(
        book, timeout=1800, kernel_name="python3", resources={"metadata": {"path": notebook.parent}}
    )
    client.execute()
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code" and cell.source.strip())
