"""Tiny notebooks for testing the chain; they import nothing slow."""

from pathlib import Path

import nbformat

PARAMETERS = 'PROFILE = "quick"  # settings\nDATASET = "synthetic"  # data\nDEVICE = None  # chosen automatically'
SETUP = """from harvis_utils.settings import load_settings
from harvis_utils.store.files import write_json, write_text
cfg = load_settings(PROFILE, DATASET)"""


def write(folder: Path, name: str, *cells: str, prose: str = "Some prose.") -> Path:
    """Write ``<folder>/<name>.ipynb``: prose, the parameters, the setup, then ``cells``."""
    new = nbformat.v4
    tagged = new.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    book = new.new_notebook(cells=[new.new_markdown_cell(prose), tagged, *map(new.new_code_cell, (SETUP, *cells))])
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(book, path)
    return path
