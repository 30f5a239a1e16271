"""Published results turned into the tables of README.md, so that no number there is typed by hand.

python -m harvis_utils.readme            # rewrites the blocks between the markers; `make publish` does it too
"""

from __future__ import annotations

import sys
from pathlib import Path

from harvis_utils import artifacts, config
from harvis_utils.claims import BASELINE, PROPOSED

#: notebook -> its question, and where the paper asks it
NOTEBOOKS = {
    "00_start_here": ("What is this, and does it run here?", ""),
    "01_data": ("What do the networks get to see?", "§4.1, C2"),
    "02_model": ("How well do they recognize activities, and what does that depend on?", "§4.2, Fig. 2, C1"),
    "03_maximization": ("Which signal excites a unit most?", "§3, Figs. 1, 6, 7, C3, C4, C7, C8"),
    "04_similarity": ("Do the signals look like real ones, and what can Ssim not see?", "§4.5, Figs. 3-5, C5, C6, C9"),
    "05_atlas": ("What do all units together look like?", "§6, Fig. 8, C10-C12"),
    "06_paper_vs_ours": ("Which claims hold?", "all"),
}


def published(root: Path | None = None) -> dict[str, dict]:
    """Published ``results.json`` by "<profile>/<data set>", real data first."""
    root = root or config.REPOSITORY / "reports" / "published"
    found = {
        p.parent.relative_to(root).as_posix(): artifacts.read_json(p) for p in sorted(root.glob("*/*/results.json"))
    }
    return dict(sorted(found.items(), key=lambda item: (not item[1]["verified_data"], item[0])))


def seconds(run: str, notebook: str, root: Path | None = None) -> float | None:
    """How long a published notebook took to execute; ``None`` where it is not published."""
    root = root or config.REPOSITORY / "reports" / "published"
    path = root / run / f"{notebook}.ipynb"
    if not path.exists():
        return None
    return artifacts.read_json(path)["metadata"]["papermill"]["duration"]


def notebooks_block(runs: list[str], root: Path | None = None) -> str:
    """The table of notebooks as Markdown: question, place in the paper, and runtime of every published run."""
    rows = []
    for name, (question, where) in NOTEBOOKS.items():
        times = (_duration(seconds(run, name, root)) for run in runs)
        rows.append(f"| [{name}](notebooks/{name}.ipynb) | {question} | {where} | {' | '.join(times)} |")
    head = f"| notebook | question | paper | {' | '.join(runs)} |"
    return "\n".join([head, f"|---|---|---|{'---|' * len(runs)}", *rows])


def _duration(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f} s" if value < 100 else f"{value / 60:.0f} min"


def results_block(runs: dict[str, dict]) -> str:
    """The tables as Markdown: key numbers and verdicts, one column per published run."""
    if not runs:
        return "No results are published yet."
    names = list(runs)
    head = [f"| | paper | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    rows = [
        ("data", "DSADS, MHEALTH", lambda r: r["caveat"] or "verified"),
        ("networks x epochs", "5 x 200", lambda r: f"{r['n_seeds']} x {r['training']['epochs']}"),
        ("computing, all stages", "", lambda r: _duration(sum(r["timings_s"].values()))),
        ("macro F1, test subjects", "0.737, 0.955", lambda r: _with_spread(r["training"]["macro_f1"])),
        ("2-sigma amplitude [G]", "1.37, 1.57", lambda r: f"{r['data']['amplitude_threshold_g']:.3f}"),
        *(
            (f"{layer}: Ssim, {BASELINE} / proposed [G²]", "(bars)", lambda r, la=layer: _pair(r, la, "ssim"))
            for layer in ("conv1", "conv2", "conv3")
        ),
        *(
            (f"{layer}: max output / th, {BASELINE} / proposed", "-, about 1", lambda r, la=layer: _pair(r, la))
            for layer in ("conv1", "conv2", "conv3")
        ),
        (
            "conv3 Ssim of the untouched sine [G²]",
            "-",
            lambda r: _number(r["controls"]["starting-sine"]["conv3"]["ssim"]),
        ),
    ]
    rows = [f"| {what} | {paper} | {' | '.join(read(r) for r in runs.values())} |" for what, paper, read in rows]
    claims = {name: {c["id"]: c for c in run["claims"]} for name, run in runs.items()}
    first = claims[names[0]]
    verdicts = [f"| {k} | {first[k]['paper']} | {' | '.join(claims[n][k]['verdict'] for n in names)} |" for k in first]
    head_claims = [f"| claim | paper | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    return "\n".join([*head, *rows, "", *head_claims, *verdicts])


def _with_spread(values: dict) -> str:
    spread = "" if values["std"] is None else f" ± {values['std']:.3f}"
    return f"{values['mean']:.3f}{spread}"


def _number(value: dict) -> str:
    return "-" if value["mean"] is None else f"{value['mean']:.3g}"


def _pair(run: dict, layer: str, quantity: str = "activation_ratio") -> str:
    table = run["methods"]["calibrated"]
    return " / ".join(_number(table[m][layer][quantity]) for m in (BASELINE, PROPOSED))


def updated(text: str, name: str, content: str) -> str:
    """``text`` with the block ``name`` replaced; raises ``ValueError`` where its markers are missing."""
    begin, end = f"<!-- {name}: made by harvis_utils.readme from reports/published -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"README.md lacks the lines {begin!r} and {end!r}")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end, 1)[1]}"


def rewritten(text: str) -> str:
    """README.md with both blocks as the published files have them."""
    runs = published()
    return updated(updated(text, "notebooks", notebooks_block(list(runs))), "results", results_block(runs))


def main() -> int:
    """Rewrite the blocks in README.md."""
    path = config.REPOSITORY / "README.md"
    artifacts.write_text(path, rewritten(path.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
