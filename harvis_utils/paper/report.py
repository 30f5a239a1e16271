"""Everything a run found, as one checked file: ``results.json``, and the tables that notebook 06 shows of it."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.windowing import Windows, amplitude_threshold
from harvis_utils.metrics import similarity
from harvis_utils.metrics.intervals import interval
from harvis_utils.paper import claims
from harvis_utils.settings import REPOSITORY, Settings, __file__
from harvis_utils.store import stages
from harvis_utils.store.results import seconds_by_stage
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network


class ResultsError(ValueError):
    """``results.json`` does not follow its schema; the message names the place and what is wrong there."""


@lru_cache
def schema() -> dict:
    """The JSON Schema that defines ``results.json``."""
    return json.loads(resources.files("harvis_utils.paper").joinpath("results.schema.json").read_text(encoding="utf-8"))


def validate(results: dict) -> None:
    """Raise :class:`ResultsError` unless ``results`` follows the schema and holds no NaN."""
    import jsonschema

    try:
        json.dumps(results, allow_nan=False)
        jsonschema.validate(results, schema(), cls=jsonschema.Draft202012Validator)
    except jsonschema.ValidationError as error:
        where = "/".join(map(str, error.absolute_path)) or "the top level"
        said = error.message if len(error.message) <= 300 else f"{error.message[:120]} ... {error.message[-160:]}"
        raise ResultsError(f"results.json is not valid at {where}: {said}") from None
    except (TypeError, ValueError) as error:
        raise ResultsError(f"results.json holds a value that JSON has not ({error}); use null and a reason") from None


def results_path(cfg: Settings) -> Path:
    """Where a run's ``results.json`` is."""
    return cfg.reports / "results.json"


def over_seeds(values) -> dict:
    """Per-seed values with their mean and standard deviation (n - 1)."""
    values = [float(v) for v in values]
    if len(values) == 1:
        return {"per_seed": values, "mean": values[0], "std": None, "reason": "one network has no spread"}
    return {"per_seed": values, "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}


def test_f1(windows: Windows, networks: list[Network]) -> tuple[list[float], list[float]]:
    """Macro F1 on the test subjects per network: at the epoch chosen on validation, and at the last epoch."""
    split = windows.test
    return (
        [supervised.macro_f1(split, n.predicted["test"]) for n in networks],
        [supervised.macro_f1(split, n.predicted_last["test"]) for n in networks],
    )


def assemble(
    cfg: Settings,
    windows: Windows,
    networks: list[Network],
    scores: xr.Dataset,
    controls: xr.Dataset,
    atlas: dict[str, dict],
    motifs: list[dict] | None,
) -> dict:
    """The content of ``results.json``; checked against the schema before it is returned.

    ``atlas`` maps layers to measures, each a list with one value per seed; ``motifs`` is the recovery table of a
    data set with planted motifs, else ``None``.
    """
    chosen, last = test_f1(windows, networks)
    threshold = amplitude_threshold(windows.train)
    layers = [str(layer) for layer in scores["layer"].values]
    evidence = claims.Evidence(
        dataset=cfg.dataset,
        epochs=cfg.training.epochs,
        macro_f1=np.array(chosen),
        amplitude_threshold_g=threshold,
        scores=scores,
        controls=controls,
        atlas=atlas,
    )
    results = {
        "dataset": cfg.dataset,
        "profile": cfg.profile,
        "verified_data": windows.caveat == "",
        "caveat": windows.caveat,
        "provenance": stages.provenance(cfg, data=windows.digest),
        "data": {"n_windows": windows.counts(), "amplitude_threshold_g": threshold},
        "training": {
            "macro_f1": over_seeds(chosen),
            "macro_f1_last_epoch": over_seeds(last),
            "epochs": cfg.training.epochs,
            "best_epoch": [n.best_epoch + 1 for n in networks],
        },
        "n_seeds": len(networks),
        "methods": {
            str(preset): {
                str(method): {
                    layer: with_intervals(scores.sel(preset=preset, technique=method, layer=layer)) for layer in layers
                }
                for method in scores["technique"].values
            }
            for preset in scores["preset"].values
        },
        "controls": {
            str(control): {
                layer: with_intervals(controls.sel({"control": control, "layer": layer})) for layer in layers
            }
            for control in controls["control"].values
        },
        "atlas": atlas,
        "motifs": motifs,
        "claims": [_with_tuning(c, cfg) if c["id"] == "C1" else c for c in claims.judge_all(evidence)],
        "timings_s": timings(),
    }
    validate(results)
    return results


def with_intervals(values: xr.Dataset) -> dict:
    """:func:`similarity.summarize`, and the 95 % bootstrap interval over networks and units of each of its means.

    The interval is that of the mean over all units; it is null where the mean is.
    """
    found = similarity.summarize(values)
    for name in similarity.AVERAGED:
        found[name]["interval"] = interval(similarity.averaged(values, name).values)[1]
    return found


def _with_tuning(claim: dict, cfg: Settings) -> dict:
    """The verdict on F1 with the settings that the paper leaves open, which were chosen, on validation alone."""
    table = choices_table(cfg)
    ours = table[(table["fixed by"] == "us") & table.index.str.startswith(("model.", "training."))]
    tuned = ", ".join(f"{name.partition('.')[2]} {value}" for name, value in ours["here"].items())
    return claim | {"why": f"{claim['why']}; not stated by the paper and chosen on validation: {tuned}"}


def timings() -> dict[str, float]:
    """Seconds spent on each stage's results that were opened; a reused result counts what it once took."""
    known = ("networks", "statistics", "signals", "scores", "atlas")
    return {stage: round(seconds, 1) for stage, seconds in seconds_by_stage().items() if stage in known}


# ------------------------------------------------------------------------------------------------- the tables


def claims_table(results: dict) -> pd.DataFrame:
    """Paper, ours, interval, verdict and why, one row per claim."""

    def number(value) -> str:
        return "" if value is None else f"{value:.3g}"

    rows = [
        {
            "claim": c["id"],
            "paper": c["paper"],
            "ours": number(c["ours"]),
            "interval": "" if c["interval"] is None else " to ".join(number(v) for v in c["interval"]),
            "verdict": c["verdict"],
            "why": c["why"],
        }
        for c in results["claims"]
    ]
    return pd.DataFrame(rows).set_index("claim")


def criteria_table(results: dict) -> pd.DataFrame:
    """Every criterion behind every verdict, with its interval and its range."""
    rows = [
        {
            "claim": c["id"],
            "criterion": k["what"],
            "ours": k["ours"],
            "low": k["interval"][0] if k["interval"] else None,
            "high": k["interval"][1] if k["interval"] else None,
            "range from": k["range"][0],
            "range to": k["range"][1],
            "standing": k["standing"],
        }
        for c in results["claims"]
        for k in c["criteria"]
    ]
    columns = ["claim", "criterion", "ours", "low", "high", "range from", "range to", "standing"]
    return pd.DataFrame(rows, columns=columns).set_index("claim")


def triples(by_layer: Mapping[str, dict], quantity: str) -> np.ndarray:
    """Mean, smallest and largest over networks of one quantity, (layer, 3); NaN where there is none.

    ``by_layer`` maps layers to summaries, as :func:`harvis_utils.metrics.similarity.summarize` makes them.
    """
    return np.array([[of[quantity][k] for k in ("mean", "min", "max")] for of in by_layer.values()], dtype=float)


def average(by_layer: Mapping[str, dict], quantity: str) -> float:
    """Mean over layers of a quantity's means, of the layers that have one; NaN where none has."""
    means = triples(by_layer, quantity)[:, 0]
    return float(np.nanmean(means)) if np.isfinite(means).any() else float("nan")


def scores_table(results: dict, preset: str = "calibrated") -> pd.DataFrame:
    """Means over the seeds for every method of a preset and every control, one row per layer."""
    named = [("technique", results["methods"][preset]), ("control", results["controls"])]
    rows = [
        {
            "kind": kind,
            "name": name,
            "layer": layer,
            **{
                column: value
                for f in ("ssim", "activation_ratio", "activation_ratio_p95", "peak_amplitude_g")
                for column, value in (
                    (f, s[f]["mean"]),
                    (f"{f} low", (s[f].get("interval") or [None, None])[0]),
                    (f"{f} high", (s[f].get("interval") or [None, None])[1]),
                )
            },
            **{f: s[f] for f in ("failed_units", "dead_units", "inactive_at_start", "silent_units")},
        }
        for kind, table in named
        for name, layers in table.items()
        for layer, s in layers.items()
    ]
    return pd.DataFrame(rows).set_index(["kind", "name", "layer"])


def choices_table(cfg: Settings) -> pd.DataFrame:
    """Every setting with its value in this run, who fixes it, the paper or us, and what the profile changes.

    Read from the comments beside the settings themselves, so the table cannot disagree with the code.
    """
    source = Path(__file__).read_text(encoding="utf-8")
    lines = source.splitlines()
    sections = {type(getattr(cfg, f.name)).__name__: f.name for f in dataclasses.fields(cfg)}
    rows = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef) or node.name not in sections or not node.name.endswith("Settings"):
            continue
        for item in node.body:
            if not isinstance(item, ast.AnnAssign):
                continue
            _, _, comment = lines[item.end_lineno - 1].partition("  # ")
            by, _, text = comment.partition(": ") if ": " in comment else (comment, "", "")
            section, name = sections[node.name], item.target.id
            here, default = (str(getattr(of, name)) for of in (getattr(cfg, section), type(getattr(cfg, section))()))
            rows.append(
                {
                    "setting": f"{section}.{name}",
                    "here": here,
                    "default": default,
                    "fixed by": "the paper" if by == "Paper" else "us",
                    "changed here": "yes" if here != default else "",
                    "note": text,
                }
            )
    return pd.DataFrame(rows).set_index("setting")


def code_choices() -> pd.DataFrame:
    """The other choices, made in the code: every ``Choice:`` in the package outside the settings, with its place."""
    rows = []
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        if path.name in ("config.py", "report.py"):
            continue
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines()
        for number, line in enumerate(lines):
            if "Choice: " in line:
                where = f"{path.relative_to(REPOSITORY).as_posix()}{_named_place(source, number + 1)}"
                rows.append({"where": where, "choice": _sentence(lines, number)})
    return pd.DataFrame(rows, columns=["where", "choice"]).set_index("where")


def _named_place(source: str, line: int) -> str:
    """ ", name" of the innermost function or class around a line; empty at the top of a module."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    around = [n for n in ast.walk(ast.parse(source)) if isinstance(n, kinds) and n.lineno <= line <= n.end_lineno]
    return f", {max(around, key=lambda n: n.lineno).name}" if around else ""


def _sentence(lines: list[str], number: int) -> str:
    """What follows ``Choice:``: in a comment to the end of the comment, in a docstring to the end of the sentence."""
    before, _, text = lines[number].partition("Choice: ")
    comment = "#" in before
    alone = before.strip(" #:") == ""  # a comment on a line of its own may go on below; one behind code does not
    for line in lines[number + 1 :]:
        more = line.strip()
        if comment and not (alone and more.startswith("#")):
            break
        if not comment and (". " in text or text.endswith((".", '"""')) or not more or more.startswith('"""')):
            break
        text += " " + more.lstrip("#: ")
    if not comment:
        text = text.split('"""')[0].split("Choice: ")[0].split(". ")[0]
    return text.strip().rstrip(".")
