"""A run of tiny networks: it makes what is missing, reads what is there, and its stages and its report agree."""

import base64
import copy
import dataclasses
import functools
import inspect
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure

from harvis_utils.data import archive
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.paper_methods import PROPOSED
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.metrics import embedding, similarity
from harvis_utils.paper import claims, report
from harvis_utils.run import Run
from harvis_utils.settings import load_settings
from harvis_utils.store.results import around_builds

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = ("statistics", "random_statistics", "signals", "random_signals", "scores", "controls")


@pytest.fixture(scope="module")
def cfg(cfg):
    return dataclasses.replace(cfg, training=dataclasses.replace(cfg.training, epochs=2))


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_recordings):
    """Where the runs of this module store what they make, and the data sets that they opened."""
    made, opened = make_recordings({(s, a): 30 + 15 * 7 for s in (1, 2, 3, 4) for a in range(3)}), []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(archive, "load_recordings", lambda name: opened.append(name) or made)
        yield tmp_path_factory.mktemp("run"), opened


@pytest.fixture
def run(cfg, place, monkeypatch):
    """A run that has read nothing yet."""
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(place[0]))
    place[1].clear()
    run = Run(cfg)
    run.motifs = None  # none were planted
    return run


@pytest.fixture(scope="module")
def done(cfg, place):
    """A run of which everything was asked for."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(place[0]))
        run = Run(cfg)
        run.motifs = run.widths = run.people = None  # none were planted, and others are not trained here
        run.shares = pd.DataFrame({"yes in": [0.25], "no in": [0.5]}, index=["C3"])
        assert run.results and run.untrained
    return run


def test_nothing_is_read_before_it_is_asked_for_and_nothing_twice(run, place, cfg):
    assert place[1] == []
    assert run.data is run.data and run.recordings is run.recordings and place[1] == [cfg.dataset]
    assert run.choosing.recordings is run.recordings and place[1] == [cfg.dataset]
    assert [n.seed for n in run.choosing.networks] == list(cfg.readings.seeds)
    assert set(cfg.readings.seeds).isdisjoint(cfg.training.seeds)


def test_no_person_whom_judging_networks_learn_from_trains_or_chooses(run):
    judging = set(run.data.train.subject)
    others = run.choosing.data
    assert np.array_equal(others.train.x, run.data.test.x) and others.activities == run.data.activities
    for split in (others.train, others.val, others.test):
        assert len(split) and judging.isdisjoint(split.subject)
    for net, own in zip(run.choosing.networks, run.choosing.statistics["top_segment"], strict=True):
        assert len(net.predicted["test"]) == len(run.data.val)
        assert int(own.max()) < len(run.data.test.segments), "units are known by the windows trained on"


def test_what_one_run_stored_is_read_by_the_next_and_not_made_again(done, run, cfg):
    with around_builds(lambda stage, key: pytest.fail(f"{stage} computed again")):
        for stage in STAGES:
            assert getattr(run, stage).identical(getattr(done, stage)), stage
    assert [n.seed for n in run.networks] == [n.seed for n in run.untrained] == list(cfg.training.seeds)
    assert run.layers == ["conv1", "conv2", "conv3"]
    caveat = run.data.caveat.capitalize()
    assert caveat and run.headline() == f"**{cfg.dataset}**, profile {cfg.profile}, 2 networks. {caveat}"
    assert run.headline("one thing").startswith(f"**{cfg.dataset}**, profile {cfg.profile}, one thing.")


def test_signals_cover_everything_and_score_dimensions_follow(done):
    sizes = {"seed": 2, "layer": 3, "preset": 2, "technique": 8, "unit": 6}
    assert {k: done.signals.sizes[k] for k in sizes} == {k: done.scores.sizes[k] for k in sizes} == sizes
    assert done.scores.sizes["neighbour"] == 5 and done.controls.sizes["control"] == len(similarity.CONTROLS)


def test_no_dimension_has_the_name_of_a_parameter_of_sel(done):
    """``.sel(method="naive")`` would choose how to look up, and return everything."""
    own = inspect.signature(xr.Dataset.sel).parameters
    assert "method" in own
    for stage in STAGES:
        assert not set(getattr(done, stage).dims) & set(own), stage


def test_stored_signals_are_those_of_one_direct_call(done, cfg):
    th = done.statistics["th_eap"].sel(seed=1, layer="conv2").values
    direct = paper_methods.maximize(done.networks[1].trunk, "conv2", th, preset="literal", settings=cfg.maximization)
    kept = done.signals["signal"].sel(seed=1, layer="conv2", preset="literal")
    assert np.array_equal(kept.transpose("technique", "unit", "time").values, direct["signal"].values)


def test_controls_are_what_they_say(done, cfg):
    controls, start = done.controls, starting_signal(cfg.maximization, 30)
    still, zero, random = (controls.sel(control=c) for c in ("starting-sine", "flat-zero", "random-weights"))
    assert np.allclose(still["peak_amplitude_g"], np.abs(start).max()) and np.allclose(still["displacement_g"], 0)
    assert (zero["peak_amplitude_g"] == 0).all() and np.allclose(zero["displacement_g"], np.sqrt((start**2).mean()))
    made = done.random_signals.sel(preset="calibrated", technique=PROPOSED)
    assert np.allclose(random["max_output"], made["map"].max("time").transpose("seed", "layer", "unit"))
    # the strongest real window: no test segment has a larger mean output
    net, held_out = done.networks[0], done.data.test.segments
    best = unit_statistics.collect(net.trunk, held_out, n_top=1)["top_segment"].sel(layer="conv2").values[:, 0]
    maps = net.trunk.feature_map(torch.tensor(held_out), "conv2").detach().numpy()
    expected = maps[best, np.arange(6)].max(1)
    assert np.allclose(controls["max_output"].sel(seed=0, layer="conv2", control="held-out-strongest"), expected)


def test_scores_of_the_start_itself_are_those_of_the_sine_control(done):
    """Method and control go through the same code: a method that did not move scores as the sine does."""
    literal = done.scores.sel(preset="literal", technique="naive")
    sine = done.controls.sel(control="starting-sine")
    unmoved = literal["displacement_g"] < 1e-6
    assert np.allclose(literal["s_u"].where(unmoved), sine["s_u"].where(unmoved), atol=1e-6, equal_nan=True)
    assert (literal["inactive_at_start"] == sine["inactive_at_start"]).all()


def test_what_is_shown_is_what_is_written(run, cfg):
    figure, again, of_others = (Figure(figsize=(2, 1), layout="constrained", label="A line goes up") for _ in range(3))
    for of in (figure, again, of_others):
        of.subplots().plot([1, 2])
    shown, picture = run.figure("03_gallery", figure), cfg.reports / "figures" / "03_gallery.png"
    assert shown.data == picture.read_bytes() and shown.data.startswith(b"\x89PNG")
    data, about = shown._repr_mimebundle_()
    assert about["image/png"] == {"width": 200, "alt": f"A line goes up. {run.data.caveat}"}
    assert base64.b64decode(data["image/png"]) == shown.data
    assert figure.get_supxlabel() == run.data.caveat != ""
    assert run.figure("03_gallery", again).data == shown.data, "the same figure gives the same file"
    run.figure("00_published", of_others, caveat="")
    assert not of_others.get_supxlabel(), "the data are real, whatever the run's own are"
    table = pd.DataFrame({"f1": [0.5, 0.25]}, index=pd.Index(["walking", "sitting"], name="activity"))
    assert run.table("02_f1", table) is table
    pd.testing.assert_frame_equal(pd.read_csv(cfg.reports / "tables" / "02_f1.csv", index_col=0), table)
    found = run.findings("found", {"f1": 0.5, "none": float("nan")})
    written = json.loads((cfg.reports / "found.json").read_text(encoding="utf-8"))
    about = {"dataset": cfg.dataset, "profile": cfg.profile, "caveat": run.data.caveat}
    assert written == about | {"f1": 0.5, "none": None} and found["f1"] == 0.5


# --------------------------------------------------------------------------------------------------- the report


def test_the_report_follows_its_schema_and_counts_its_time(done):
    results = done.results
    report.validate(results)
    assert results["n_seeds"] == 2 and set(results["timings_s"]) >= {"networks", "statistics", "signals", "scores"}
    assert all(seconds >= 0 for seconds in results["timings_s"].values()) and results["timings_s"]["networks"] > 0
    assert results["caveat"] == "made-up data" and not results["verified_data"]
    assert "chosen on validation: batch_norm True" in results["claims"][0]["why"]
    assert len(results["training"]["macro_f1"]["per_seed"]) == 2


def changed(results, path, value):
    """A copy of results with one place changed; ``None`` as value removes it."""
    results = copy.deepcopy(results)
    place = functools.reduce(lambda inside, step: inside[step], path[:-1], results)
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return results


SSIM = ("methods", "calibrated", "naive", "conv1", "ssim")
MISSING = dict.fromkeys(("mean", "min", "max", "interval"))


def test_what_is_missing_has_a_reason(done):
    report.validate(changed(done.results, SSIM, MISSING | {"reason": "no unit is left"}))
    report.validate(changed(done.results, ("motifs",), [{"motif": "a", "proposed": 0.9}]))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((*SSIM, "mean"), float("nan"), "value that JSON has not"),
        (("data", "amplitude_threshold_g"), np.float32(1), "value that JSON has not"),
        (("methods", "literal", "L2+TV"), None, r"methods/literal: must contain \['L2\+TV'\]"),
        (("methods", "literal", "L3"), {}, "methods/literal.*L3"),
        (("methods", "calibrated"), None, "methods: must contain .'calibrated'"),
        (("controls", "flat-zero"), None, "controls: must contain .'flat-zero'"),
        (SSIM, MISSING, "conv1/ssim: must contain .'reason'"),
        (("methods", "calibrated", "naive", "conv2", "failed_units"), None, "conv2: must contain .'failed_units'"),
        (("claims", 3, "direction"), "partly", "claims/3/direction: must be one of .*, not 'partly'"),
        (("claims", 11), None, "claims: must contain at least 12 items"),
        (("atlas", "conv1", "hopkins"), 0.5, "atlas/conv1/hopkins"),
        (("atlas", "conv1", "spread"), None, "atlas/conv1: must contain .'spread'"),
        (("training", "macro_f1", "per_seed"), [73.7], "per_seed/0: must be smaller .*, not 73.7"),
        (("extra",), 1, "top level.*extra"),
    ],
)
def test_what_must_not_be_in_it_is_refused_by_name(done, path, value, message):
    with pytest.raises(report.ResultsError, match=message):
        report.validate(changed(done.results, path, value))


def test_one_network_has_no_spread():
    one = {"per_seed": [0.7], "mean": 0.7, "std": None, "reason": "one network has no spread"}
    assert report.over_seeds([0.7]) == one
    assert report.over_seeds([0.6, 0.8])["std"] == pytest.approx(np.sqrt(0.02))


def test_tables_hold_every_claim_criterion_method_and_control(done):
    results = changed(done.results, (*SSIM, "mean"), 4.5)
    untested = {
        "value": None,
        "interval": None,
        "unit": "",
        "robust": None,
        "direction": "not testable",
        "criteria": [],
    }
    tested = {"value": 0.5, "interval": [0.4, 0.6], "unit": "share", "robust": 0.25}
    tested |= {"criteria": results["claims"][5]["criteria"]}
    results["claims"] = [claim | (untested if i == 0 else tested) for i, claim in enumerate(results["claims"])]
    table, criteria = report.claims_table(results), report.criteria_table(results)
    assert list(table.index) == [c.id for c in claims.CLAIMS]
    assert tuple(table.loc["C1", ["is it so", "number", "readings that agree"]]) == ("not testable", "", "")
    assert tuple(table.loc["C2", ["number", "readings that agree"]]) == ("50 % (40 to 60)", "25%")
    assert list(criteria.index.unique()) == [c.id for c in claims.CLAIMS][1:]
    assert report.criteria_table({"claims": results["claims"][:1]}).empty
    scores = report.scores_table(results)
    assert len(scores) == (len(paper_methods.METHODS) + len(similarity.CONTROLS)) * 3
    assert scores.loc[("technique", "naive", "conv1"), "ssim"] == 4.5
    assert scores.loc[("control", "flat-zero", "conv1"), "failed_units"] == 0


def test_choices_table_covers_every_setting_and_says_who_fixed_it():
    cfg = load_settings()
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


def test_an_average_over_layers_is_of_all_of_them_or_none():
    values = {"conv1": (0.5, 0.45, 0.55), "conv2": (None, None, None), "conv3": (0.2, 0.1, 0.3)}
    by_layer = {la: {"ssim": dict(zip(("mean", "min", "max"), of, strict=True))} for la, of in values.items()}
    found = report.triples(by_layer, "ssim")
    assert found[0].tolist() == [0.5, 0.45, 0.55] and np.isnan(found[1]).all()
    assert np.isnan(report.average(by_layer, "ssim")) and np.isnan(report.average({"conv2": by_layer["conv2"]}, "ssim"))
    del by_layer["conv2"]
    assert report.average(by_layer, "ssim") == pytest.approx(0.35)


def test_results_of_published_networks_leave_out_what_takes_networks_that_are_not_published(monkeypatch):
    monkeypatch.setattr(report, "assemble", lambda *about, **others: others)
    monkeypatch.setattr(embedding, "measures", lambda *about: {})
    shares = pd.DataFrame({"yes in": [0.5], "no in": [0.0]}, index=["C5"])
    made = {name: None for name in ("motifs", "data", "networks", "signals", "scores", "controls")}
    for weights, more in (("published", {}), ("trained", {"shares": shares, "widths": "wide", "people": "others"})):
        of = object.__new__(Run)
        of.__dict__.update(made | more, cfg=SimpleNamespace(weights=weights))
        robust = {"robust": {"C5": {"yes": 0.5, "no": 0.0}}, "widths": "wide", "people": "others"}
        assert of.results == (robust if more else {})
