"""Everything a run found, as one checked file: ``results.json``, and the tables that notebook 06 shows of it."""

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path

import fastjsonschema
import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.windowing import Windows, amplitude_threshold
from harvis_utils.maximization import unit_statistics
from harvis_utils.metrics import similarity
from harvis_utils.metrics.intervals import interval
from harvis_utils.paper import claims, verdicts
from harvis_utils.paper.evidence import Evidence
from harvis_utils.settings import HarvisError, Settings, as_json
from harvis_utils.store.files import read_json
from harvis_utils.store.results import provenance, seconds_by_stage
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network, of_networks

#: stages whose seconds are told
TIMED = ("networks", "statistics", "signals", "scores", "atlas")


SCHEMA = Path(__file__).with_name("results.schema.json")


class ResultsError(HarvisError, ValueError):
    """``results.json`` does not follow its schema; the message names the place and what is wrong there."""


def validate(results: dict) -> None:
    """Raise :class:`ResultsError` unless ``results`` follows ``results.schema.json`` and holds no NaN."""
    try:
        json.dumps(results, allow_nan=False)
        fastjsonschema.validate(read_json(SCHEMA), results)
    except fastjsonschema.JsonSchemaValueException as error:
        where = "/".join(error.path[1:]) or "the top level"
        said = error.message.removeprefix(f"{error.name} ")
        if not isinstance(error.value, dict | list):
            said = f"{said}, not {error.value!r}"
        said = said if len(said) <= 300 else f"{said[:120]} ... {said[-160:]}"
        raise ResultsError(f"results.json is not valid at {where}: {said}") from None
    except (TypeError, ValueError) as error:
        raise ResultsError(f"results.json holds a value that JSON has not ({error}); use null and a reason") from None


def over_seeds(values) -> dict:
    """Per-seed values with their mean and standard deviation (n - 1)."""
    values = [float(v) for v in values]
    if len(values) == 1:
        return {"per_seed": values, "mean": values[0], "std": None, "reason": "one network has no spread"}
    return {"per_seed": values, "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}


def test_f1(windows: Windows, networks: list[Network]) -> tuple[list[float], list[float]]:
    """Macro F1 on the test subjects per network: at the epoch chosen on validation, and at the last epoch."""
    at = ("predicted", "predicted_last")
    return tuple([supervised.macro_f1(windows.test, getattr(n, which)["test"]) for n in networks] for which in at)


def assemble(
    cfg: Settings,
    windows: Windows,
    networks: list[Network],
    scores: xr.Dataset,
    controls: xr.Dataset,
    atlas: dict[str, dict],
    motifs: list[dict] | None,
    *,
    robust: Mapping[str, Mapping[str, float]] | None = None,
    widths: Mapping[str, np.ndarray] | None = None,
    people: pd.DataFrame | None = None,
) -> dict:
    """The content of ``results.json``; checked against the schema before it is returned.

    ``atlas`` maps layers to measures, each a list with one value per seed; ``motifs`` is the recovery table of a
    data set with planted motifs, else ``None``. ``robust`` maps claims to the shares of admissible readings with the
    direction "yes" and "no"; ``widths`` and ``people`` are as in :class:`Evidence`.
    """
    chosen, last = test_f1(windows, networks)
    threshold = amplitude_threshold(windows.train)
    linear = of_networks(networks, lambda net: unit_statistics.nonlinearity(net, windows, device=cfg.device))
    evidence = Evidence(
        dataset=cfg.dataset,
        epochs=cfg.training.epochs,
        macro_f1=np.array(chosen),
        amplitude_threshold_g=threshold,
        scores=scores.sel(preset="calibrated", drop=True).assign(nonlinearity=linear["nonlinearity"]),
        controls=controls,
        atlas=atlas,
        widths=widths,
        people=people,
    )
    results = {
        "dataset": cfg.dataset,
        "profile": cfg.profile,
        "verified_data": windows.caveat == "",
        "caveat": windows.caveat,
        "provenance": provenance(
            cfg.device, settings=as_json(cfg) | {"device": None}, data=windows.digest, rule=claims.rule()
        ),
        "data": {"n_windows": windows.counts(), "amplitude_threshold_g": threshold},
        "training": {
            "macro_f1": over_seeds(chosen),
            "macro_f1_last_epoch": over_seeds(last),
            "epochs": cfg.training.epochs,
            "best_epoch": [n.best_epoch + 1 for n in networks],
        },
        "n_seeds": len(networks),
        "methods": {
            str(preset): summaries(scores.sel(preset=preset), "technique") for preset in scores["preset"].values
        },
        "controls": summaries(controls, "control"),
        "atlas": atlas,
        "motifs": motifs,
        "claims": [_with_tuning(c, cfg) if c["id"] == "C1" else c for c in claims.judge_all(evidence, robust)],
        "timings_s": {stage: round(s, 1) for stage, s in seconds_by_stage().items() if stage in TIMED},
    }
    validate(results)
    return results


def summaries(values: xr.Dataset, dimension: str) -> dict[str, dict[str, dict]]:
    """:func:`with_intervals` of scores, by name in ``dimension`` and layer."""
    return {
        str(name): {
            str(la): with_intervals(values.sel({dimension: name, "layer": la})) for la in values["layer"].values
        }
        for name in values[dimension].values
    }


def with_intervals(values: xr.Dataset) -> dict:
    """:func:`similarity.summarize` of (seed, unit) scores, and the 95 % interval over networks and units of each mean.

    The interval is of the mean over all units; it is null where the mean is.
    """
    found = similarity.summarize(values)
    for name in similarity.AVERAGED:
        found[name]["interval"] = interval(similarity.averaged(values, name).values)[1]
    return found


def _with_tuning(claim: dict, cfg: Settings) -> dict:
    """The verdict on F1 with the settings that the paper leaves open, which were chosen, on validation alone."""
    table = choices_table(cfg)
    ours = table[(table["fixed by"] == "us") & table.index.str.startswith(("model.", "training."))]
    ours = ours.drop("training.evaluate_every")  # how often it is looked at, not tuned
    tuned = ", ".join(f"{name.partition('.')[2]} {value}" for name, value in ours["here"].items())
    return claim | {"why": f"{claim['why']} Not stated by the paper and chosen on validation: {tuned}."}


def claims_table(results: dict) -> pd.DataFrame:
    """What the paper says, direction, size, its own statistic here, robustness and control, one row per claim."""
    control = {claim.id: claim.control for claim in claims.CLAIMS}
    rows = {
        c["id"]: {
            "the paper says": f"{c['paper']} ({c['where']})",
            "is it so": c["direction"],
            "how much": c["size"],
            "number": "" if c["value"] is None else verdicts.number(c["value"], c["unit"], c["interval"]),
            "readings that agree": "" if c["robust"] is None else f"{c['robust']:.0%}",
            "could fail against": control[c["id"]],
            "why": c["why"],
        }
        for c in results["claims"]
    }
    return pd.DataFrame(rows).T.rename_axis("claim")


def criteria_table(results: dict) -> pd.DataFrame:
    """Every criterion behind every verdict, with its interval and its range."""
    columns = ["claim", "criterion", "asks for", "value", "value low", "value high", "unit", "range from", "range to"]
    rows = []
    for claim in results["claims"]:
        for k in claim["criteria"]:
            ends = k["interval"] or (None, None)
            rows.append((claim["id"], k["what"], k["kind"], k["value"], *ends, k["unit"], *k["range"], k["standing"]))
    return pd.DataFrame(rows, columns=[*columns, "standing"]).set_index("claim")


def triples(by_layer: Mapping[str, dict], quantity: str) -> np.ndarray:
    """Mean, smallest and largest over networks of one quantity, (layer, 3); NaN where there is none.

    ``by_layer`` maps layers to summaries, as :func:`harvis_utils.metrics.similarity.summarize` makes them.
    """
    return np.array([[of[quantity][k] for k in ("mean", "min", "max")] for of in by_layer.values()], dtype=float)


def average(by_layer: Mapping[str, dict], quantity: str) -> float:
    """Mean over layers of a quantity's means; NaN where a layer has none, as the rest would be other layers' mean."""
    return float(triples(by_layer, quantity)[:, 0].mean())


def scores_table(results: dict, preset: str = "calibrated") -> pd.DataFrame:
    """Means over the seeds for every method of a preset and every control, one row per layer."""
    averaged = ("ssim", "activation_ratio", "activation_ratio_p95", "peak_amplitude_g")
    counted = ("failed_units", "dead_units", "inactive_at_start", "silent_units")
    rows = []
    for kind, by_name in (("technique", results["methods"][preset]), ("control", results["controls"])):
        for name, layer, s in ((n, la, s) for n, layers in by_name.items() for la, s in layers.items()):
            row = {"kind": kind, "name": name, "layer": layer}
            for f in averaged:
                low, high = s[f].get("interval") or (None, None)
                row |= {f: s[f]["mean"], f"{f} low": low, f"{f} high": high}
            rows.append(row | {f: s[f] for f in counted})
    return pd.DataFrame(rows).set_index(["kind", "name", "layer"])


def choices_table(cfg: Settings) -> pd.DataFrame:
    """Every setting with its value in this run, who fixes it, the paper or us, and what the profile changes.

    Read from the comments beside the settings themselves, so the table cannot disagree with the code.
    """
    rows = []
    for section in (f.name for f in dataclasses.fields(cfg) if dataclasses.is_dataclass(getattr(cfg, f.name))):
        own = getattr(cfg, section)
        usual, source = type(own)(), inspect.getsource(type(own))
        for name, by, note in re.findall(r"^    (\w+): .*  # (Paper|Choice)(?:: (.*))?$", source, re.MULTILINE):
            here, default = str(getattr(own, name)), str(getattr(usual, name))
            who, changed = "the paper" if by == "Paper" else "us", "yes" if here != default else ""
            rows.append((f"{section}.{name}", here, default, who, changed, note))
    columns = ["setting", "here", "default", "fixed by", "changed here", "note"]
    return pd.DataFrame(rows, columns=columns).set_index("setting")
