"""Where the minutes of a finished run went, notebook by notebook.

    python -m workflow.minutes --profile quick --dataset synthetic

Beginning is what papermill takes around the cells: starting a kernel, reading and writing; setup is the first cell that
imports (``python -X importtime`` says of what). Tests say it themselves: ``pytest --durations=20``.
"""

from __future__ import annotations

import argparse
import sys

import pandas as pd

from harvis_utils.chain.stamps import find_notebooks
from harvis_utils.parallel import command_line
from harvis_utils.settings import Settings, load_settings
from harvis_utils.store.files import ArtifactError, read_json, reading


def of_notebooks(cfg: Settings) -> pd.DataFrame:
    """Seconds of each executed notebook: all, beginning, setup, the longest cell and its first line.

    Raises :class:`ArtifactError` where none has been executed, or one not by the chain.
    """
    rows = []
    for path in (cfg.reports / book.name for book in find_notebooks() if (cfg.reports / book.name).exists()):
        with reading(path):
            book = read_json(path)
            code = [(c, "".join(c["source"]).strip()) for c in book["cells"] if c["cell_type"] == "code"]
            cells = [(c["metadata"]["papermill"]["duration"] or 0.0, text) for c, text in code if text]
            setup = next(cell for cell in cells if "import " in cell[1])
            longest = max(cell for cell in cells if cell is not setup)
            whole = book["metadata"]["papermill"]["duration"]
            row = {"notebook": path.stem, "all": whole, "beginning": whole - sum(took for took, _ in cells)}
            row |= {"setup": setup[0], "longest cell": longest[0], "which begins": longest[1].splitlines()[0][:60]}
            rows.append(row)
    if not rows:
        raise ArtifactError(f"{cfg.reports} holds no executed notebook; run `make reproduce` first")
    return pd.DataFrame(rows)


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Print the table; 0 when it worked."""
    parser = argparse.ArgumentParser(prog="python -m workflow.minutes", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--dataset", default="synthetic")
    words = parser.parse_args(arguments)
    table = of_notebooks(load_settings(words.profile, words.dataset))
    print(table.round(1).to_string(index=False))
    print(f"\nall notebooks, one after the other: {table['all'].sum() / 60:.1f} min")


if __name__ == "__main__":
    sys.exit(main())
