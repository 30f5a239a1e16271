"""results.json: its schema takes a plausible result and refuses what must not be in it; the tables follow the code."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from harvis_utils.maximization.paper_methods import METHODS
from harvis_utils.metrics.similarity import CONTROLS
from harvis_utils.paper import claims, report
from harvis_utils.settings import PRESETS, as_json, load_settings
from harvis_utils.store.results import provenance

LAYERS = ("conv1", "conv2", "conv3")


def spread(mean=0.5):
    return {"mean": mean, "min": mean * 0.9, "max": mean * 1.1}


def scores_entry(ssim=0.5):
    fields = ("ssim", "ssim_without_inactive", "activation_ratio", "activation_ratio_p95", "peak_amplitude_g")
    counts = ("failed_units", "dead_units", "inactive_at_start", "silent_units")
    return {f: spread(ssim) for f in (*fields, "displacement_g")} | {c: 0.5 for c in counts}


def measures():
    names = ("hopkins", "spread", "clusters_p", "n_frequencies", "near_duplicates", "n_units")
    return {n: [0.5, None] for n in names} | {"reason": [None, "4 of 16 units have a signal"]}


def plausible():
    """A made result of two networks, as notebook 06 would write it."""
    cfg = load_settings("quick", "synthetic")
    by_layer = {layer: scores_entry() for layer in LAYERS}
    claim = {"paper": "x", "ours": 0.5, "interval": [0.4, 0.6], "verdict": claims.PARTLY, "why": "1 of 1 criteria met"}
    criterion = {"what": "a", "ours": 0.5, "interval": [0.4, 0.6], "range": [0.3, None], "standing": "met"}
    result = {
        "dataset": "synthetic",
        "profile": "quick",
        "verified_data": False,
        "caveat": "made-up data",
        "provenance": provenance(cfg.device, settings=as_json(cfg), data="abc", rule=claims.rule()),
        "data": {"n_windows": {"train": 9, "val": 3, "test": 3}, "amplitude_threshold_g": 1.2},
        "training": {
            "macro_f1": report.over_seeds([0.5, 0.6]),
            "macro_f1_last_epoch": report.over_seeds([0.5, 0.6]),
            "epochs": 6,
            "best_epoch": [5, 6],
        },
        "n_seeds": 2,
        "methods": {preset: {method: by_layer for method in METHODS} for preset in PRESETS},
        "controls": {control: by_layer for control in CONTROLS},
        "atlas": {layer: measures() for layer in LAYERS},
        "motifs": [{"motif": "a", "proposed": 0.9}],
        "claims": [claim | {"id": c.id, "criteria": [criterion]} for c in claims.CLAIMS],
        "timings_s": {"networks": 12.5},
    }
    return json.loads(json.dumps(result))  # no entry is shared with another


def changed(path, value):
    """The plausible result with one place changed; ``None`` as value removes it."""
    result = plausible()
    place = functools.reduce(lambda inside, step: inside[step], path[:-1], result)
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return result


def test_a_plausible_result_is_valid():
    report.validate(plausible())
    report.validate(changed(SSIM, dict.fromkeys(("mean", "min", "max")) | {"reason": "no unit is left"}))
    report.validate(plausible() | {"motifs": None})


SSIM = ("methods", "calibrated", "naive", "conv1", "ssim")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((*SSIM, "mean"), float("nan"), "value that JSON has not"),
        (("data", "amplitude_threshold_g"), np.float32(1), "value that JSON has not"),
        (("methods", "literal", "L2+TV"), None, "methods/literal: 'L2\\+TV' is a required"),
        (("methods", "literal", "L3"), {}, "methods/literal.*L3"),
        (("methods", "calibrated"), None, "methods: 'calibrated'"),
        (("controls", "flat-zero"), None, "controls: 'flat-zero'"),
        (SSIM, {"mean": None, "min": None, "max": None}, "conv1/ssim: 'reason' is a required"),
        (("methods", "calibrated", "naive", "conv2", "failed_units"), None, "'failed_units' is a required"),
        (("claims", 3, "verdict"), "perhaps", "claims/3/verdict: 'perhaps'"),
        (("claims", 11), None, "claims: .* too short"),
        (("atlas", "conv1", "hopkins"), 0.5, "atlas/conv1/hopkins"),
        (("atlas", "conv1", "spread"), None, "atlas/conv1: 'spread'"),
        (("training", "macro_f1", "per_seed"), [73.7], "per_seed/0: 73.7"),
        (("extra",), 1, "top level.*extra"),
    ],
)
def test_what_must_not_be_in_it_is_refused_by_name(path, value, message):
    with pytest.raises(report.ResultsError, match=message):
        report.validate(changed(path, value))


def test_one_network_has_no_spread():
    one = {"per_seed": [0.7], "mean": 0.7, "std": None, "reason": "one network has no spread"}
    assert report.over_seeds([0.7]) == one
    assert report.over_seeds([0.6, 0.8])["std"] == pytest.approx(np.sqrt(0.02))


# -------------------------------------------------------------------------------------------------- the tables


def test_claims_and_criteria_tables_hold_every_entry():
    results = plausible()
    results["claims"][0] |= {"ours": None, "interval": None, "verdict": claims.UNTESTABLE, "criteria": []}
    table, criteria = report.claims_table(results), report.criteria_table(results)
    assert list(table.index) == [c.id for c in claims.CLAIMS]
    assert tuple(table.loc["C1", ["ours", "interval", "verdict"]]) == ("", "", claims.UNTESTABLE)
    assert tuple(table.loc["C2", ["ours", "interval"]]) == ("0.5", "0.4 to 0.6")
    assert list(criteria.index) == [c.id for c in claims.CLAIMS][1:]
    assert criteria.loc["C2", "low"] == 0.4 and np.isnan(float(criteria.loc["C2", "range to"] or "nan"))
    assert report.criteria_table({"claims": [results["claims"][0]]}).empty


def test_scores_table_has_a_row_for_every_method_control_and_layer():
    results = plausible()
    results["methods"]["calibrated"]["naive"]["conv2"]["ssim"]["mean"] = 4.5
    table = report.scores_table(results)
    assert len(table) == (len(METHODS) + len(CONTROLS)) * len(LAYERS)
    assert table.loc[("technique", "naive", "conv2"), "ssim"] == 4.5
    assert table.loc[("control", "flat-zero", "conv1"), "failed_units"] == 0.5


def test_choices_table_covers_every_setting_and_says_who_fixed_it():
    cfg = load_settings("quick", "synthetic")
    table = report.choices_table(cfg)
    sections = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)}
    sections = {name: section for name, section in sections.items() if dataclasses.is_dataclass(section)}
    assert list(table.index) == [f"{n}.{f.name}" for n, of in sections.items() for f in dataclasses.fields(of)]
    assert set(table["fixed by"]) == {"the paper", "us"}
    assert table.loc["maximization.weight", "fixed by"] == "the paper"
    assert table.loc["model.batch_norm", "fixed by"] == "us"
    assert tuple(table.loc["training.epochs", ["default", "here", "changed here"]]) == ("200", "6", "yes")
    assert table.loc["windows.length", "changed here"] == ""
    assert "start" in table.loc["maximization.start_amplitude_g", "note"]


def test_triples_and_averages_leave_out_what_is_missing():
    missing = {"ssim": dict.fromkeys(("mean", "min", "max"))}
    by_layer = {"conv1": scores_entry(0.5), "conv2": missing, "conv3": scores_entry(0.2)}
    found = report.triples(by_layer, "ssim")
    assert found.shape == (3, 3) and found[0].tolist() == [0.5, 0.45, pytest.approx(0.55)] and np.isnan(found[1]).all()
    assert report.average(by_layer, "ssim") == pytest.approx(0.35)
    assert np.isnan(report.average({"conv2": missing}, "ssim"))
