"""Published results turned into the tables of README.md and of the card of the networks, so that no number is typed.

python -m workflow.readme            # rewrites the blocks between the markers; `make publish` does it too
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import generators, tables
from harvis_utils.chain.execution import notebook_seconds
from harvis_utils.data import kinds
from harvis_utils.maximization.paper_methods import BASELINE, PROPOSED
from harvis_utils.metrics import intervals
from harvis_utils.metrics.signal_measures import FLAT_G
from harvis_utils.paper import claims, comparing
from harvis_utils.paper.variants import LIKELIEST_TRIGGER
from harvis_utils.parallel import command_line
from harvis_utils.settings import REPOSITORY
from harvis_utils.store.files import read_json, write_text
from harvis_utils.training.published import Published, judging
from workflow import pages, sweep

PUBLISHED = REPOSITORY / "reports" / "published"
#: the column of :func:`comparing.protocols` with the paper's macro F1
PAPER_S = "the paper's"

#: notebook -> where the paper asks its question
PAPER = {
    "01_data": "§4.1, C2",
    "02_model": "§4.2, Fig. 2, C1",
    "03_maximization": "§3, Figs. 1, 6, 7, C3, C4, C7, C8",
    "04_similarity": "§4.5, Figs. 3-5, C5, C6, C9",
    "05_atlas": "§6, Fig. 8, C10-C12",
    "06_paper_vs_ours": "all",
    "07_readings": "§4.3, C3-C8",
}


def published(root: Path = PUBLISHED) -> dict[str, dict[str, dict]]:
    """Published runs, real data first: "<profile>/<data set>" -> file ("results", "evidence" ...) -> content."""
    found = {
        path.parent.relative_to(root).as_posix(): {
            p.stem: read_json(p) for p in (*path.parent.glob("*.json"), *path.parent.glob("networks/networks.json"))
        }
        for path in sorted(root.glob("*/*/results.json"))
    }
    return dict(sorted(found.items(), key=lambda item: (not item[1]["results"]["verified_data"], item[0])))


def notebooks(runs: list[str], root: Path = PUBLISHED) -> str:
    """The table of notebooks: title, place in the paper, and runtime in every published run."""
    rows = []
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        title = "".join(read_json(path)["cells"][0]["source"]).splitlines()[0]
        executed = [root / run / path.name for run in runs]
        times = [pages.duration(notebook_seconds(p)) if p.exists() else "-" for p in executed]
        link = f"[{path.stem}](notebooks/{path.name})"
        rows.append([link, title.removeprefix("# ").split(" · ")[-1], PAPER.get(path.stem, ""), *times])
    return tables.markdown(pd.DataFrame(rows, columns=["notebook", "question", "paper", *runs]))


def findings(runs: dict[str, dict], root: Path = PUBLISHED) -> str:
    """What the published runs say of the method: a sentence each, of the first run that can say it, real data first."""
    flat = intervals.listed([f"{_flat(run['results']):.0%} on {name}" for name, run in runs.items()])
    lines = [f"**Many signals are flat.** Of the proposed method's signals {flat} range over less than {FLAT_G:g} G."]
    beside = {name: root / name / "tables" / "08_differences.csv" for name in runs}
    nearer = {name: _nearer(pd.read_csv(path)) for name, path in beside.items() if path.exists()}
    if nearer:
        name, less = next(iter(nearer.items()))
        layers = {run: [layer for layer, (_, high) in of.items() if high < 0] for run, of in nearer.items()}
        same = [run for run in nearer if run != name and layers[run] == layers[name]]
        lines.append(
            f"**Noise is nearer to real windows in {intervals.listed(layers[name], ' and ', 'no layer')}.** The noise "
            "has the training windows' spectrum and knows nothing of the unit; nearness is that to the real windows "
            f"that excite it. The proposed method minus noise on {name}: "
            f"{', '.join(f'{layer} {value:+.3f}' for layer, (value, _) in less.items())}"
            f"{f'; the same layers on {intervals.listed(same)}' if same else ''}."
        )
    for name, run in runs.items():
        if recall := run.get("evidence", {}).get("recall"):
            mine, scrambled, real = (recall[n] for n in (PROPOSED, "phase-scrambled", "real windows"))
            apart = max(mine["low"], scrambled["low"]) > min(mine["high"], scrambled["high"])
            how = "more {} than" if scrambled["recall"] > mine["recall"] else "fewer {} than"
            how = (how if apart else "as many {} as").format("planted motifs")
            lines.append(
                f"**Signals with scrambled phases recover {how} the method.** Where the truth is known ({name}), the "
                f"proposed method recovers {mine['recall']:.2f} of the motifs, the same signals with scrambled phases "
                f"{scrambled['recall']:.2f}, real windows {real['recall']:.2f}."
            )
    told = [name for name, run in runs.items() if "likeliest" in run]
    if told:
        means = runs[told[0]]["likeliest"]["means"]
        asked = (PROPOSED, LIKELIEST_TRIGGER, "strongest real window", "starting sine")
        mine, ours, real, sine = (means[n]["accuracy"] for n in asked)
        lines.append(
            f"**What a unit prefers is told better by an ascent made for it.** From a signal alone, which of two real "
            f"windows excites the unit more is guessed right in {mine:.0%} of pairs by the proposed method, {ours:.0%} "
            f"by the {LIKELIEST_TRIGGER} ([09](notebooks/09_explaining.ipynb)), {real:.0%} by the unit's strongest "
            f"real window, {sine:.0%} by the sine that ascent starts from ({told[0]}; chance is a half)."
        )
    name, claims = next((name, run["results"]["claims"]) for name, run in runs.items())
    by = {of: [claim["id"] for claim in claims if claim["direction"] == of] for of in ("yes", "no", "undecided")}
    sized = [claim["id"] for claim in claims if claim["direction"] == "yes" and claim["size"] == "as stated"]
    lines.append(
        f"**Of the paper's claims, on {name}**, so in direction: {intervals.listed(by['yes'])}; in size as well: "
        f"{intervals.listed(sized)}; not so: {intervals.listed(by['no'])}; undecided: "
        f"{intervals.listed(by['undecided'])}. The table of claims below says why.{_long(root)}"
    )
    return "\n".join(f"- {line}" for line in lines)


def _long(root: Path) -> str:
    """Claim C1 by the networks that were trained for as long as the paper's."""
    said = []
    for folder in sorted(path.parent for path in root.glob("paper/*/networks")):
        of = comparing.protocols(folder.name).loc["paper"]
        much = f"{of['is it so']}, as much as the paper's {of[PAPER_S]:.3f} {of['how much']}"
        said.append(f"{folder.name}, above guessing: {much}, macro F1 {intervals.said(of, 'macro F1', '.3f')}")
    after = f" C1, by networks of the paper's {claims.PAPER_EPOCHS} epochs ([which](reports/published/NETWORKS.md)): "
    return f"{after}{'; '.join(said)}." if said else ""


def _nearer(differences: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Nearness of the proposed method minus that of noise, and the upper end of its interval, by layer."""
    of = differences.query(f"first == '{PROPOSED}' and second == 'spectrum-noise' and measure == 'nearness'")
    return {row.layer.capitalize(): (row.difference, row.high) for row in of.itertuples()}


def _flat(results: dict) -> float:
    """Share of the proposed method's signals that are flat; failed and dead units are not."""
    flat, signals = 0, 0
    for layer, of in results["atlas"].items():
        # the atlas leaves out constant signals, and failed and dead units
        scores = results["methods"]["calibrated"][PROPOSED][layer]
        other = round((scores["failed_units"] + scores["dead_units"]) * results["n_seeds"])
        flat += sum(of["n_flat"]) + sum(of["n_excluded"]) - other
        signals += sum(of["n_units"]) + sum(of["n_excluded"])
    return flat / signals


def _interval(of: Mapping, name: str = "recall", form: str = ".2f") -> str:
    return f"{of[name]:{form}} ({of['low']:{form}} to {of['high']:{form}})"


def _size(results: dict) -> str:
    epochs, timings = results["training"]["epochs"], results["timings_s"]
    apart = "" if "networks" in timings else " without training"  # of a run that took published networks
    return f"{results['n_seeds']} x {epochs}, {pages.duration(sum(timings.values()))}{apart}"


def _devices(about: dict) -> str:
    return intervals.listed(sorted({of["device"] for of in about["provenance"]}))


def _number(value: dict) -> str:
    return "-" if value["mean"] is None else f"{value['mean']:.3g}"


def _layers(quantity: str, results: dict) -> str:
    of = [results["methods"]["calibrated"][name] for name in (BASELINE, PROPOSED)]
    return ", ".join(" / ".join(_number(m[la][quantity]) for m in of) for la in ("conv1", "conv2", "conv3"))


def _readings(readings: dict) -> str:
    return f"{len(readings['admissible'])} of {readings['readings']}; winner: {readings['winner']}"


def _axes(evidence: dict) -> str:
    shown = [f"method/{PROPOSED}", f"method/{LIKELIEST_TRIGGER}"]
    shown += [f"control/{name}" for name in ("held-out-strong", "starting-sine", "flat-zero")]
    found = (evidence["measures"].get(name) for name in shown)  # runs published earlier lack some
    return ", ".join(f"{of['activation']:.2f} / {of['nearness']:.2f}" if of else "-" for of in found)


def _motifs(evidence: dict) -> str:
    if evidence["recall"] is None:
        return "nothing planted"
    names = (PROPOSED, "naive", BASELINE, LIKELIEST_TRIGGER, "random weights", "phase-scrambled")
    found = (evidence["recall"].get(name) for name in names)
    return ", ".join(_interval(of) if of else "-" for of in found)


def _explains(judged: dict) -> str:
    """What the likeliest trigger has more than others, by layer."""
    than = (judged["more than"][name] for name in (PROPOSED, "strongest real window"))
    return "; ".join(", ".join(f"{value[0]:+.2f}" for value in of["accuracy"].values()) for of in than)


#: a row of the table: what it is, what the paper says, the file that knows it, and how that is read
ROWS: list[tuple[str, str, str, Callable[[dict], str]]] = [
    ("data", "DSADS, MHEALTH", "results", lambda r: r["caveat"] or "verified"),
    ("networks x epochs, computing of all stages", "5 x 200", "results", _size),
    ("training, hours a network", "-", "networks", lambda n: f"{np.mean(n['wall_s']) / 3600:.2f} on {_devices(n)}"),
    ("macro F1, test subjects", "0.737, 0.955", "results", lambda r: pages.spread(r["training"]["macro_f1"])),
    ("2-sigma amplitude [G]", "1.37, 1.57", "results", lambda r: f"{r['data']['amplitude_threshold_g']:.3f}"),
    (f"Ssim, {BASELINE} / proposed, Conv1, 2, 3 [G²]", "(bars)", "results", partial(_layers, "ssim")),
    (
        f"max output / th, {BASELINE} / proposed, Conv1, 2, 3",
        "-, about 1",
        "results",
        partial(_layers, "activation_ratio"),
    ),
    (
        "conv3 Ssim of the untouched sine [G²]",
        "-",
        "results",
        lambda r: _number(r["controls"]["starting-sine"]["conv3"]["ssim"]),
    ),
    ("readings that fit the paper's results as well as the best", "-", "readings", _readings),
    (
        f"activation / nearness to real: proposed, {LIKELIEST_TRIGGER}, real windows, sine, flat zero",
        "-",
        "evidence",
        _axes,
    ),
    (
        f"planted motifs recovered: proposed, naive, L2+TV, {LIKELIEST_TRIGGER}, random weights, proposed with "
        "scrambled phases",
        "-",
        "evidence",
        _motifs,
    ),
    (
        f"share of right answers from the {LIKELIEST_TRIGGER} minus that from the proposed method; minus that from the "
        "strongest real window, Conv1, 2, 3",
        "-",
        "likeliest",
        _explains,
    ),
]


def _verdict(claim: dict) -> str:
    """Direction, size where one is stated, and in how many admissible readings the direction is the same."""
    size = "" if claim["size"] == "not stated" or claim["direction"] == "not testable" else f", {claim['size']}"
    robust = "" if claim["robust"] is None else f" ({claim['robust']:.0%} of readings)"
    return claim["direction"] + size + robust


def results(runs: dict[str, dict]) -> str:
    """Key numbers and evidence, then the verdicts, one column per published run."""
    if not runs:
        return "No results are published yet."
    rows = [
        [what, paper, *(read(run[file]) if file in run else "-" for run in runs.values())]
        for what, paper, file, read in ROWS
    ]
    claims = [run["results"]["claims"] for run in runs.values()]
    verdicts = [
        [
            of[0]["id"],
            f"{of[0]['paper']} ({of[0]['where']})" if "where" in of[0] else of[0]["paper"],
            *map(_verdict, of),
            of[0]["why"],
        ]
        for of in zip(*claims, strict=True)
    ]
    heads = {"": rows, "claim": verdicts}
    columns = {"": ["paper", *runs], "claim": ["paper", *runs, f"why, on {next(iter(runs))}"]}
    parts = [pd.DataFrame(found, columns=[head, *columns[head]]) for head, found in heads.items()]
    return "\n\n".join(map(tables.markdown, parts))


def _benchmarks() -> list[dict]:
    return [read_json(path) for path in sorted((PUBLISHED / "benchmarks").glob("*.json"))]


def benchmarks_page() -> str:
    """All published benchmark tables: reports/published/benchmarks/README.md."""
    made = "Made by workflow.readme from the files beside this one, which hold more: every part of a measurement."
    devices = PUBLISHED / "benchmarks" / "devices.csv"
    said = [tables.devices(pd.read_csv(devices))] if devices.exists() else []
    return "\n\n".join(["# Benchmarks", made, *map(tables.page, _benchmarks()), *said]) + "\n"


CARD = """# Published networks

Made by workflow.readme from the files of each run, as `desk/dsads/networks/`: weights, learning curves, unit statistics
and signals of SF-HF networks (shared filters for all sensor axes, which are mixed afterwards). In three lines, without
any data, to the picture of a unit:

```python
from harvis_utils.figures import waves
from harvis_utils.training import published
figure = waves.unit_methods(*published.network("dsads", seed=0).unit("conv1", 53))
```

`make verify` compares every file with its digest, computes the published scores again from these files, and climbs some
units again.

## Data

{data}

Of recorded data two accelerometers, on an arm and a leg: six axes in G, 30 Hz, windows of one second that overlap by
half. No person is in two splits. Where an archive could not be verified ("approximate"), numbers may differ from those
of the original. The files hold no recordings; they were learned from them, and stand under the licence of their data,
CC BY 4.0 with the citations in [data/README.md](../../data/README.md#licence-and-attribution).

## How they do

Macro F1 is that on the test people, at the epoch with the best one on the validation people; the interval is over
networks, not over people.

{protocols}

{networks}

{longer}

{kept}
Training: Adam on cross entropy; what the paper leaves open (batch norm, a dense layer of 128, dropout 0.5, batches of
64) was chosen on DSADS. "desk" is no protocol of the paper, but one that two cores can run.

## What they are for, and what not

- For looking inside: activation maximization, dissection, comparisons of units, and tests of tools that do this.
- Not for telling what a person does: they know a few volunteers, who performed set activities with sensors at set
  places.
- Not for claims about the paper's own networks, which are not public. Seeds, splits and all that the paper does not
  state are ours.
- What a signal shows of a unit is limited: see *What we found* in [README](../../README.md).
"""


def longer(runs: dict[str, dict]) -> str:
    """What changes with training: headline numbers, then verdicts that differ, of data published in both profiles."""
    found = {name: run["results"] for name, run in runs.items()}
    names = [name for name in found if name.replace("desk/", "paper/") in found and name.startswith("desk/")]
    names = [name for desk in names for name in (desk, desk.replace("desk/", "paper/"))]
    if not names:
        return "How results change with longer training is not published yet."
    asked = [(what, read) for what, _, file, read in ROWS if file == "results" and what != "data"]
    asked += [("flat signals of the proposed method", lambda r: f"{_flat(r):.0%}")]
    rows = [[what, *(read(found[name]) for name in names)] for what, read in asked]
    for of in zip(*(found[name]["claims"] for name in names), strict=True):
        said = [_verdict(claim | {"robust": None}) for claim in of]
        tested = all(claim["direction"] != "not testable" for claim in of[1::2])
        rows += [[of[0]["id"], *said]] if said[::2] != said[1::2] and tested else []
    table = tables.markdown(pd.DataFrame(rows, columns=["what changes with training", *names]))
    return (
        f"{table}\n\nClaims that are not in this table have the same verdicts in both profiles, or are not testable in "
        "the longer one. Learning rates differ as well as epochs."
    )


def networks_page() -> str:
    """The card of all published networks: reports/published/NETWORKS.md."""
    data, reached, rows = [], [], []
    runs = [path.parent for path in sorted(PUBLISHED.glob("*/*/networks"))]
    for name in dict.fromkeys(run.name for run in runs):
        of = kinds.check_name(name)
        people = [", ".join(map(str, of.split[split])) for split in ("train", "val", "test")]
        data.append([name, of.title, f"{of.source}; {of.licence}", *people])
        for profile, row in comparing.protocols(name).iterrows():
            verdict = row["is it so"] + (f", {row['how much']}" if row["is it so"] != "not testable" else "")
            paper = f"{row[PAPER_S]:.3f}" if row[PAPER_S] else "-"
            about = [f"{row['networks']} x {row['epochs']}", intervals.said(row, "macro F1", ".3f"), paper, verdict]
            reached.append([f"{profile}/{name}", *about])
    others: dict[str, list[str]] = {"the test people": [], "the same people as the others": []}
    for run in runs:
        name, judges = f"{run.parent.name}/{run.name}", judging(run / "networks")
        rows += [[name, *_network(one)] for one in judges]
        each = [of["arguments"]["windows"] for of in read_json(run / "networks" / "networks.json")["provenance"]]
        if len(each) > len(judges):
            same = len(set(each)) == 1
            others["the same people as the others" if same else "the test people"].append(name)
    trained = [f"those of {intervals.listed(of, ' and ')} on {people}" for people, of in others.items() if of]
    kept = f"Networks kept for choosing open settings judge nothing; trained were {'; '.join(trained)}."
    heads = {
        "data": ["data", "title", "source and licence", "training people", "validation", "test"],
        "protocols": ["run", "networks x epochs", "macro F1", "paper", "claim C1"],
        "networks": ["run", "seed", "learning rate", "chosen epoch", "macro F1", "validation", "device", "minutes"],
    }
    tables_of = zip(heads.items(), (data, reached, rows), strict=True)
    told = {name: tables.markdown(pd.DataFrame(of, columns=head)) for (name, head), of in tables_of}
    return CARD.format(**told, longer=longer(published()), kept=kept)


def _network(one: Published) -> list[str]:
    """A row of the card's table of networks."""
    net, how = one.network, one.provenance["arguments"]["training"]
    f1 = [f"{net.history[split][net.best_epoch]:.3f}" for split in ("test_f1", "val_f1")]
    chosen = f"{net.best_epoch + 1} of {how['epochs']}"
    minutes = f"{net.wall_s / 60:.1f}"
    return [str(net.seed), f"{how['learning_rate']:g}", chosen, *f1, one.provenance["device"], minutes]


def updated(text: str, name: str, content: str) -> str:
    """``text`` with the block ``name`` replaced; raises ``ValueError`` where its markers are missing."""
    begin, end = f"<!-- {name}: made by workflow.readme from reports/published -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"README.md lacks the lines {begin!r} and {end!r}")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end, 1)[1]}"


def rewritten(text: str) -> str:
    """README.md with all blocks as the published files have them."""
    runs = published()
    measured = "\n\n".join(map(tables.summary, _benchmarks())) or "No benchmark is published yet."
    cost = sweep.cost(sweep.load(REPOSITORY / "workflow" / "two_hundred.toml"), measured=False)
    if generators.PLACE.exists():
        cost = cost.replace("\n\n", f" {generators.told(pd.read_csv(generators.PLACE))}\n\n", 1)
    blocks = {
        "findings": findings(runs),
        "notebooks": notebooks(list(runs)),
        "results": results(runs),
        "benchmarks": measured,
        "cost": cost.split("\n\n")[0],  # its parts are what the command says
    }
    for name, content in blocks.items():
        text = updated(text, name, content)
    return text


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Rewrite the blocks in README.md, the page of benchmarks and the card of the networks."""
    path = REPOSITORY / "README.md"
    write_text(path, rewritten(path.read_text(encoding="utf-8")))
    write_text(PUBLISHED / "benchmarks" / "README.md", benchmarks_page())
    write_text(PUBLISHED / "NETWORKS.md", networks_page())


if __name__ == "__main__":
    sys.exit(main())
