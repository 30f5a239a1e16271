"""Published results turned into the tables of README.md, so that no number there is typed by hand.

python -m workflow.readme            # rewrites the blocks between the markers; `make publish` does it too
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import pandas as pd

from harvis_utils.maximization.paper_methods import BASELINE, PROPOSED
from harvis_utils.metrics import intervals
from harvis_utils.metrics.clustering import FLAT_G
from harvis_utils.paper.evidence import OURS
from harvis_utils.settings import REPOSITORY
from harvis_utils.store.files import read_json, write_text
from workflow import sweep_cost, sweep_plan

#: notebook -> its question, and where the paper asks it
NOTEBOOKS = {
    "00_start_here": ("What is this, and does it run here?", ""),
    "01_data": ("What do the networks get to see?", "§4.1, C2"),
    "02_model": ("How well do they recognize activities, and what does that depend on?", "§4.2, Fig. 2, C1"),
    "03_maximization": ("Which signal excites a unit most?", "§3, Figs. 1, 6, 7, C3, C4, C7, C8"),
    "04_similarity": ("Do the signals look like real ones, and what can Ssim not see?", "§4.5, Figs. 3-5, C5, C6, C9"),
    "05_atlas": ("What do all units together look like?", "§6, Fig. 8, C10-C12"),
    "06_paper_vs_ours": ("Which claims hold?", "all"),
    "07_readings": ("Which reading of the open hyper-parameters gives the paper's results?", "§4.3, C3-C8"),
    "08_evidence": ("Does the method find what is there, and is it real?", "beyond"),
    "09_recipes": ("Can it be done better on both axes?", "beyond"),
    "10_visualization": ("What does feature visualization show, and a network's dream?", "other lens"),
    "11_dissection": ("What do single units detect, and what is lost without them?", "other lens"),
    "12_deconvnet": ("Which part of a window does a unit, or a class, speak of?", "other lens"),
    "13_slopes": ("Does a backward slope climb higher?", "other lens"),
    "14_cards": ("What do all lenses together say about one unit?", "all lenses"),
}

#: contenders that stand on the page of benchmarks alone
NOT_IN_SUMMARY = ("scikit-learn brute", "scikit-learn ball tree", "scikit-learn k-d tree", "stumpy mass_absolute")
NOT_IN_SUMMARY += ("batch to the layer, all its units, autograd",)


def published(root: Path | None = None) -> dict[str, dict]:
    """Published ``results.json`` by "<profile>/<data set>", real data first."""
    root = root or REPOSITORY / "reports" / "published"
    found = {p.parent.relative_to(root).as_posix(): read_json(p) for p in sorted(root.glob("*/*/results.json"))}
    return dict(sorted(found.items(), key=lambda item: (not item[1]["verified_data"], item[0])))


def seconds(run: str, notebook: str, root: Path | None = None) -> float | None:
    """How long a published notebook took to execute; ``None`` where it is not published."""
    root = root or REPOSITORY / "reports" / "published"
    path = root / run / f"{notebook}.ipynb"
    if not path.exists():
        return None
    return read_json(path)["metadata"]["papermill"]["duration"]


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


def findings_block(runs: dict[str, dict], root: Path | None = None) -> str:
    """What the published runs say against the method, as Markdown: flat signals, noise beside it, planted motifs."""
    root = root or REPOSITORY / "reports" / "published"
    flat = "; ".join(f"{name} {_flat(run)}" for name, run in runs.items())
    lines = [f"**Many signals are flat.** Of the proposed method's signals, range below {FLAT_G:g} G: {flat}."]
    tables = {name: root / name / "tables" / "08_differences.csv" for name in runs}
    beside = {name: _beside_noise(pd.read_csv(path)) for name, path in tables.items() if path.exists()}
    if beside:
        nearer = sorted({layer for of in beside.values() for layer, row in of.iterrows() if row["nearness high"] < 0})
        rows = {name: [_two_axes(layer, row) for layer, row in of.iterrows()] for name, of in beside.items()}
        each = ". ".join(f"{name}: {'; '.join(of)}" for name, of in rows.items())
        lines.append(
            f"**Noise is nearer to real windows in {intervals.listed(nearer, ' and ', 'no layer')}.** The noise has "
            "the training windows' spectrum and knows nothing of the unit; nearness is that to the real windows that "
            f"excite it. The proposed method minus noise, {each}."
        )
    for name in runs:
        recall = _evidence(root / name).get("evidence", {}).get("recall")
        if recall:
            mine, scrambled, real = (recall[n] for n in (PROPOSED, "phase-scrambled", "real windows"))
            apart = max(mine["low"], scrambled["low"]) > min(mine["high"], scrambled["high"])
            how = "more {} than" if scrambled["recall"] > mine["recall"] else "fewer {} than"
            how = (how if apart else "as many {} as").format("planted motifs")
            lines.append(
                f"**Signals with scrambled phases recover {how} the method.** Where the truth is known ({name}), the "
                f"proposed method recovers {_interval(mine)} of the motifs, the same signals with scrambled phases "
                f"{_interval(scrambled)}, real windows {_interval(real)}."
            )
    return "\n".join(f"- {line}" for line in lines)


def _flat(run: dict) -> str:
    """Share of the proposed method's signals that are flat, in all layers and each; failed and dead units are not."""
    flat, signals = {}, {}
    for layer, of in run["atlas"].items():
        # the atlas leaves out constant signals, and failed and dead units
        scores = run["methods"]["calibrated"][PROPOSED][layer]
        other = round((scores["failed_units"] + scores["dead_units"]) * run["n_seeds"])
        flat[layer] = sum(of["n_flat"]) + sum(of["n_excluded"]) - other
        signals[layer] = sum(of["n_units"]) + sum(of["n_excluded"])
    each = ", ".join(f"{layer.capitalize()} {100 * flat[layer] / signals[layer]:.0f} %" for layer in flat)
    return f"**{100 * sum(flat.values()) / sum(signals.values()):.0f} %** ({each})"


def _beside_noise(differences: pd.DataFrame) -> pd.DataFrame:
    """By layer the proposed method minus noise: "nearness" and "activation", each with the ends of its interval."""
    rows = differences[(differences["first"] == PROPOSED) & (differences["second"] == "spectrum-noise")]
    parts = {}
    for name in ("nearness", "activation"):
        part = rows[rows["measure"] == name].set_index("layer")
        parts |= {name: part["difference"], f"{name} low": part["low"], f"{name} high": part["high"]}
    return pd.DataFrame(parts).rename(index=str.capitalize)


def _two_axes(layer: str, row: pd.Series) -> str:
    return f"{layer} nearness {intervals.said(row, 'nearness', '+.3f')}, activation {row['activation']:+.2f}"


def _interval(recall: dict) -> str:
    return f"{recall['recall']:.2f} ({recall['low']:.2f} to {recall['high']:.2f})"


def results_block(runs: dict[str, dict], root: Path | None = None) -> str:
    """The tables as Markdown: key numbers, evidence and verdicts, one column per published run."""
    if not runs:
        return "No results are published yet."
    root = root or REPOSITORY / "reports" / "published"
    names = list(runs)
    head = [f"| | paper | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    rows = [
        ("data", "DSADS, MHEALTH", lambda r: r["caveat"] or "verified"),
        (
            "networks x epochs, computing of all stages",
            "5 x 200",
            lambda r: f"{r['n_seeds']} x {r['training']['epochs']}, {_duration(sum(r['timings_s'].values()))}",
        ),
        ("macro F1, test subjects", "0.737, 0.955", lambda r: _with_spread(r["training"]["macro_f1"])),
        ("2-sigma amplitude [G]", "1.37, 1.57", lambda r: f"{r['data']['amplitude_threshold_g']:.3f}"),
        (f"Ssim, {BASELINE} / proposed, Conv1, 2, 3 [G²]", "(bars)", lambda r: _layers(r, "ssim")),
        (
            f"max output / th, {BASELINE} / proposed, Conv1, 2, 3",
            "-, about 1",
            lambda r: _layers(r, "activation_ratio"),
        ),
        (
            "conv3 Ssim of the untouched sine [G²]",
            "-",
            lambda r: _number(r["controls"]["starting-sine"]["conv3"]["ssim"]),
        ),
    ]
    rows = [f"| {what} | {paper} | {' | '.join(read(r) for r in runs.values())} |" for what, paper, read in rows]
    found = {name: _evidence(root / name) for name in names}
    rows += [
        f"| {what} | - | {' | '.join(read(found[n][file]) if file in found[n] else '-' for n in names)} |"
        for what, (file, read) in EVIDENCE.items()
    ]
    claims = {name: {c["id"]: c for c in run["claims"]} for name, run in runs.items()}
    first = claims[names[0]]
    verdicts = [f"| {k} | {first[k]['paper']} | {' | '.join(claims[n][k]['verdict'] for n in names)} |" for k in first]
    head_claims = [f"| claim | paper | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    return "\n".join([*head, *rows, "", *head_claims, *verdicts])


def _evidence(folder: Path) -> dict:
    """What notebooks 07 to 09 wrote of a run, by file: "readings", "evidence", "recipes"; what is there of it."""
    files = (folder / f"{name}.json" for name in ("readings", "evidence", "recipes"))
    return {path.stem: read_json(path) for path in files if path.exists()}


def _axes(evidence: dict) -> str:
    measures = evidence["measures"]
    shown = (
        f"method/{PROPOSED}",
        f"method/{OURS}",
        *(f"control/{n}" for n in ("held-out-strong", "starting-sine", "flat-zero")),
    )
    return ", ".join(f"{measures[k]['activation']:.2f} / {measures[k]['nearness']:.2f}" for k in shown)


def _motifs(evidence: dict) -> str:
    recall = evidence["recall"]
    if recall is None:
        return "nothing planted"
    names = (PROPOSED, "naive", BASELINE, OURS, "random weights", "phase-scrambled")
    return ", ".join(_interval(recall[n]) for n in names)


def _recipe(recipes: dict) -> str:
    judged = recipes["judged"]
    return (
        f"{recipes['chosen']}: {judged['activation difference']:+.2f}, {judged['nearness difference']:+.2f}"
        f" ({'beats it' if judged['beats'] else 'does not beat it on both'})"
    )


#: what notebooks 07 to 09 add: row -> the file they wrote and how it is read
EVIDENCE: dict[str, tuple[str, Callable[[dict], str]]] = {
    "readings that fit the paper's results as well as the best": (
        "readings",
        lambda r: f"{len(r['admissible'])} of {r['readings']}; winner: {r['winner']}",
    ),
    f"activation / nearness to real: proposed, {OURS}, real windows, sine, flat zero": ("evidence", _axes),
    f"planted motifs recovered: proposed, naive, L2+TV, {OURS}, random weights, proposed with scrambled phases": (
        "evidence",
        _motifs,
    ),
    "best recipe against the paper's: activation, nearness": ("recipes", _recipe),
}


def _with_spread(values: dict) -> str:
    spread = "" if values["std"] is None else f" ± {values['std']:.3f}"
    return f"{values['mean']:.3f}{spread}"


def _number(value: dict) -> str:
    return "-" if value["mean"] is None else f"{value['mean']:.3g}"


def _layers(run: dict, quantity: str = "activation_ratio") -> str:
    return ", ".join(_pair(run, layer, quantity) for layer in ("conv1", "conv2", "conv3"))


def _pair(run: dict, layer: str, quantity: str) -> str:
    table = run["methods"]["calibrated"]
    return " / ".join(_number(table[m][layer][quantity]) for m in (BASELINE, PROPOSED))


def _benchmarks(root: Path | None) -> list[dict]:
    root = root or REPOSITORY / "reports" / "published"
    return [read_json(p) for p in sorted((root / "benchmarks").glob("*.json"))]


def benchmarks_block(root: Path | None = None) -> str:
    """What the published benchmarks say in short, device by device."""
    return "\n\n".join(benchmark_summary(r) for r in _benchmarks(root)) or "No benchmark is published yet."


def benchmark_pages(root: Path | None = None) -> str:
    """All published benchmark tables: reports/published/benchmarks/README.md."""
    made = "Made by workflow.readme from the files beside this one, which hold more: every part of a measurement."
    return "\n\n".join(["# Benchmarks", made, *(benchmark_tables(r) for r in _benchmarks(root))]) + "\n"


def _of_benchmarks(table: Callable[[dict], str]) -> Callable[[dict], str]:
    """Makes a table say what to do about a file of benchmarks that lacks a part: ``ValueError``."""

    @wraps(table)
    def told(result: dict) -> str:
        try:
            return table(result)
        except KeyError as error:
            run = f"PROFILE={result['profile']} DATASET={result['dataset']}"
            raise ValueError(
                f"the benchmarks of {run} have no {error}: another version wrote them, or only a part of them; "
                f"run `make bench {run}`"
            ) from error

    return told


@_of_benchmarks
def benchmark_summary(result: dict) -> str:
    """One table: everybody's time, and by how much ours is faster."""
    climbed = result["maximization"]
    mine = climbed["ours"]["us_per_signal_step"]["mean"]
    rows = [
        [
            f"Activation Maximization: {name}",
            f"{entry['us_per_signal_step']['mean']:.1f} µs a signal and step",
            f"{entry['us_per_signal_step']['mean'] / mine:.1f}",
            f"{entry['peak_mib']:.0f}",
        ]
        for name, entry in climbed.items()
        if "left_out" not in entry and name not in NOT_IN_SUMMARY
    ]
    rows += [
        [
            f"Ssim search: {name}",
            f"{_seconds(entry['all_pieces_s'])} s for {result['search']['ours']['pieces']:,} pieces",
            f"{entry['times_slower_than_ours']:.1f}",
            f"{entry['peak_mib']:.0f}",
        ]
        for name, entry in result["search"].items()
        if "all_pieces_s" in entry and name not in NOT_IN_SUMMARY
    ]
    head = ["what", "time", "ours is faster by", "peak MiB"]
    return f"{_bench_machine(result)} {_bench_grid(result)}\n\n{_table(head, rows)}"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


@_of_benchmarks
def benchmark_tables(result: dict) -> str:
    """A file that `make bench` wrote, as Markdown tables."""
    parts = [_bench_machine(result)]
    for name, table in (
        ("maximization", _bench_maximization),
        ("grid", _bench_grid),
        ("search", _bench_search),
        ("training", _bench_training),
    ):
        if name in result:
            parts.append(table(result))
    return "\n\n".join([*parts, _bench_notes(result)])


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _bench_machine(result: dict) -> str:
    m = result["machine"]
    caveat = f" **{result['caveat']}**" if result["caveat"] else ""
    return (
        f"Measured on {m['device']}, {m['threads']} threads ({m['product_gflops']:.0f} GFLOP/s in matrix products, "
        f"{m['convolution_gflops']:.0f} in SF-HF's convolutions, {m['copy_gb_s']:.0f} GB/s), medians of "
        f"{result['rounds']} rounds, {result['dataset']}, profile {result['profile']}.{caveat}"
    )


def _bench_maximization(result: dict) -> str:
    layers = ("conv1", "conv2", "conv3")
    rows = [
        [
            name,
            *(f"{entry['us_per_signal_step'][la]:.1f}" for la in layers),
            f"{entry['times_faster_than_one_at_a_time']:.1f}",
            f"{entry['peak_mib']:.0f}",
        ]
        if "left_out" not in entry
        else [name, "-", "-", "-", "-", entry["left_out"]]
        for name, entry in result["maximization"].items()
    ]
    floor = result["floors"]
    rows.append(["*floor: operations / matrix rate*", *(f"{floor[la]['us_by_products']:.1f}" for la in layers), "", ""])
    head = ["maximization, µs per signal and step", "Conv1", "Conv2", "Conv3", "times faster", "peak MiB"]
    return _table(head, rows)


def _bench_grid(result: dict) -> str:
    g = result["grid"]
    return (
        f"The paper's grid for one data set ({g['networks']} networks, {g['signals']:,} signals, {g['steps']} steps, "
        f"stopping at {g['tolerance_g']:g} G{g.get('calibrated', '')}): **{g['seconds'] / 60:.1f} minutes**."
    )


def _bench_search(result: dict) -> str:
    rows = []
    for name, entry in result["search"].items():
        if "left_out" in entry:
            rows.append([name, "-", "-", "-", "-", entry["left_out"]])
            continue
        rows.append(
            [
                name,
                f"{entry['prepare_s']:.1f}",
                f"{entry['ms_per_piece']:.2f}",
                f"{_seconds(entry['all_pieces_s'])}",
                f"{entry['times_slower_than_ours']:.0f}",
                f"{entry['peak_mib']:.0f}",
            ]
        )
    n = result["search"]["ours"]["pieces"]
    head = ["Ssim search", "prepare s", "ms per piece", f"all {n:,} pieces s", "times slower", "peak MiB"]
    return _table(head, rows)


def _bench_training(result: dict) -> str:
    t = result["training"]
    rows = [
        [name, f"{e['ms_per_batch']:.1f}", f"{e['gflops']:.0f}", f"{100 * e['share_of_convolution_rate']:.0f} %"]
        for name, e in t["contenders"].items()
    ]
    head = [f"training {t['networks']} networks", "ms per batch", "GFLOP/s", "of the convolution rate"]
    return _table(head, rows)


def _bench_notes(result: dict) -> str:
    """The rest, a line each: agreement, floors, ideas one by one, scaling."""
    lines = []
    if "agreement" in result:
        a = result["agreement"]
        names = {"whole_network_one_step_g": "one unit at a time", "lucent_one_step_g": "lucent"}
        others = ", ".join(f"{said} {a[key]:.0e} G" for key, said in names.items() if key in a)
        lines.append(
            f"Compared before timed: engine and plain loop differ by at most {a['float64_200_steps_g']:.0e} G "
            f"after 200 steps in float64, by {a['float32_one_step_g']:.0e} G after one in float32; engine and "
            f"others on the whole network after one in float32: {others}."
        )
    if "agreement_by_method" in result:
        a = result["agreement_by_method"]
        each = ", ".join(f"{n} {v['engine']:.0e} ({v['reordered']:.0e})" for n, v in a["methods"].items())
        lines.append(
            f"Every method, both presets, all layers, {a['n_units']} units, {a['n_steps']} steps in float64: largest "
            f"difference in G between engine and plain loop, and in parentheses between that loop and itself with the "
            f"units of its hidden layers in another order, which is what rounding alone does: {each}. Each of these "
            f"steps by itself, taken by the loop from where the engine stands: at most "
            f"{max(v['step'] for v in a['methods'].values()):.0e} G apart."
        )
    for layer, both in result.get("full_runs", {}).items():
        e, g = both["engine"], both["autograd"]
        lines.append(
            f"{layer}, full runs in float32: mean objective {e['mean_objective']:.4f} (engine), "
            f"{g['mean_objective']:.4f} (autograd); failed units {e['failed']}, {g['failed']}."
        )
    if "floors" in result:
        over = result["floors"]["conv3"]
        lines.append(
            f"Conv3 takes {over['ours_over_products']:.2f} times the floor of its operations over the matrix rate, "
            f"which is {over['us_by_products']:.1f} µs; its bytes over the copy rate are {over['us_by_copies']:.1f} µs."
        )
    if "ideas" in result:
        ideas = result["ideas"]
        each = ", ".join(f"{name} {value:.1f}" for name, value in ideas["us_per_signal_step"].items())
        five = ", ".join(f"{name} {value:.1f} ms" for name, value in ideas["five_networks"].items())
        taken = ", ".join(f"{name} {100 * value:.0f} %" for name, value in ideas["share_of_steps_taken"].items())
        lines += [
            f"Conv3 with one thing changed, µs per signal and step: {each}.",
            f"One convolution for five networks: {five}.",
            f"Steps taken before nothing can move any more: {taken}.",
        ]
    for name, curve in result.get("scaling", {}).items():
        lines.append(f"Time grows with the number of {name} to the power {curve['exponent']:.2f}.")
    if "search_scaling" in result:
        curve = result["search_scaling"]
        lines.append(
            f"With the number of windows, preparing the search grows to the power {curve['prepare_exponent']:.2f}, "
            f"searching to the power {curve['search_exponent']:.2f}."
        )
    if "search_by_distance" in result:
        parts = (
            f"{e['rms_from_g']:g}-{e['rms_to_g']:g} G {e['ms_per_piece']:.1f}" for e in result["search_by_distance"]
        )
        lines.append(f"Search by the size of the piece (rms), ms per piece: {', '.join(parts)}.")
    if "training" in result:
        t = result["training"]
        lines.append(
            f"Training side by side is {t['side_by_side_is_faster_by']:.2f} times as fast as one after the other. At "
            f"the rate of its convolutions alone, all else free, it could be {t['ceiling_is_faster_by']:.2f} times "
            "as fast."
        )
        if "account" in t:
            parts = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in t["account"]["shares"].items())
            lines.append(
                f"Where training's time goes on one thread: {parts}. Convolutions and dense products are the same work "
                f"in any schedule; at their rate, all else free, it would be "
                f"{t['account']['products_alone_are_faster_by']:.2f} times as fast."
            )
    return "\n".join(f"- {line}" for line in lines)


def updated(text: str, name: str, content: str) -> str:
    """``text`` with the block ``name`` replaced; raises ``ValueError`` where its markers are missing."""
    begin, end = f"<!-- {name}: made by workflow.readme from reports/published -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"README.md lacks the lines {begin!r} and {end!r}")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end, 1)[1]}"


def cost_block(root: Path | None = None) -> str:
    """What 200 networks would cost on a cluster, projected from published times."""
    known = list(sweep_cost.from_results(root or sweep_cost.PUBLISHED))
    whole = sweep_cost.describe(sweep_plan.load(REPOSITORY / "workflow" / "two_hundred.toml"), known)
    return whole.split("\n\n")[0]  # its parts are what the command says


def rewritten(text: str) -> str:
    """README.md with all blocks as the published files have them."""
    runs = published()
    blocks = {
        "findings": findings_block(runs),
        "notebooks": notebooks_block(list(runs)),
        "results": results_block(runs),
        "benchmarks": benchmarks_block(),
        "cost": cost_block(),
    }
    for name, content in blocks.items():
        text = updated(text, name, content)
    return text


def main() -> int:
    """Rewrite the blocks in README.md."""
    path = REPOSITORY / "README.md"
    write_text(path, rewritten(path.read_text(encoding="utf-8")))
    if _benchmarks(None):
        write_text(REPOSITORY / "reports/published/benchmarks/README.md", benchmark_pages())
    return 0


if __name__ == "__main__":
    sys.exit(main())
