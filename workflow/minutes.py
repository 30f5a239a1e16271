"""Where the minutes of a finished run went: notebook by notebook, and what importing costs.

    python -m workflow.minutes --profile quick --dataset synthetic

Beginning is what papermill takes around the cells: starting a kernel, reading and writing; setup is the first cell that
imports. Tests say it themselves: ``pytest --durations=20``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import pandas as pd

from harvis_utils.chain.stamps import find_notebooks
from harvis_utils.parallel import command_line
from harvis_utils.settings import Settings, load_settings
from harvis_utils.store.files import ArtifactError, read_json

#: imported alone, each in a process of its own; what it costs beyond Python itself counts
IMPORTED = ("numpy", "pandas", "xarray", "torch", "matplotlib.pyplot", "seaborn", "scipy.stats", "sklearn.manifold")


def of_notebooks(cfg: Settings) -> pd.DataFrame:
    """Seconds of each executed notebook: all, beginning, setup, the longest cell and its first line.

    Raises :class:`ArtifactError` where none has been executed.
    """
    rows = {}
    for path in (cfg.reports / book.name for book in find_notebooks()):
        if path.exists():
            book = read_json(path)
            cells = [c for c in book["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]
            took = [c["metadata"]["papermill"]["duration"] or 0.0 for c in cells]
            whole = book["metadata"]["papermill"]["duration"]
            setup = next(i for i, c in enumerate(cells) if "import " in "".join(c["source"]))
            longest = max((i for i in range(len(cells)) if i != setup), key=took.__getitem__)
            said = "".join(cells[longest]["source"]).strip().splitlines()[0][:60]
            rows[path.stem] = whole, whole - sum(took), took[setup], took[longest], said
    if not rows:
        raise ArtifactError(f"{cfg.reports} holds no executed notebook; run `make reproduce` first")
    return pd.DataFrame.from_dict(rows, "index", columns=["all", "beginning", "setup", "longest cell", "which begins"])


def of_imports() -> pd.Series:
    """Seconds that importing costs, each in a fresh process, Python's own start taken off."""

    def seconds(code: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - begin

    bare = seconds("")
    return pd.Series({name: seconds(f"import {name}") - bare for name in (*IMPORTED, "harvis_utils.run")})


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Print both tables; 0 when it worked."""
    parser = argparse.ArgumentParser(prog="python -m workflow.minutes", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--dataset", default="synthetic")
    words = parser.parse_args(arguments)
    table = of_notebooks(load_settings(words.profile, words.dataset))
    print(table.round(1).to_string(), f"\n\nall notebooks, one after the other: {table['all'].sum() / 60:.1f} min\n")
    print(of_imports().round(1).to_string())


if __name__ == "__main__":
    sys.exit(main())
