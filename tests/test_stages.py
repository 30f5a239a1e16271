"""The stages one after another on tiny networks: what each keeps, what the next needs, what the report says."""

import dataclasses

import numpy as np
import pytest
import torch

from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.metrics import embedding, similarity
from harvis_utils.paper import report
from harvis_utils.store.results import around_builds
from harvis_utils.training import supervised

pytestmark = pytest.mark.usefixtures("one_thread")

PROPOSED = paper_methods.CONTROL_METHODS[0]


@pytest.fixture(scope="module")
def cfg(cfg):
    return dataclasses.replace(cfg, training=dataclasses.replace(cfg.training, epochs=2))


@pytest.fixture(scope="module")
def stages(cfg, tiny_windows, tmp_path_factory):
    """All results of a tiny run and the folder they are kept in."""
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(folder))
        nets = supervised.networks(cfg, tiny_windows)
        random = supervised.untrained(cfg, tiny_windows)
        stats, random_stats = (unit_statistics.statistics(cfg, tiny_windows, n) for n in (nets, random))
        made = paper_methods.signals(cfg, nets, stats)
        random_made = paper_methods.signals(cfg, random, random_stats, paper_methods.CONTROL_METHODS, ("calibrated",))
        scores = similarity.scores(cfg, tiny_windows, nets, stats, made)
        one = random_made.sel(preset="calibrated", technique=PROPOSED, drop=True)
        controls = similarity.controls(cfg, tiny_windows, nets, stats, random, random_stats, one)
        measures = embedding.measures(tiny_windows, scores, made)
        results = report.assemble(cfg, tiny_windows, nets, scores, controls, measures, None)
    return {
        "folder": folder,
        "nets": nets,
        "random": random,
        "stats": stats,
        "signals": made,
        "random_signals": random_made,
        "scores": scores,
        "controls": controls,
        "results": results,
    }


def test_signals_cover_everything_and_score_dimensions_follow(stages, cfg):
    sizes = {"seed": 2, "layer": 3, "preset": 2, "technique": 8, "unit": 6}
    assert {k: stages["signals"].sizes[k] for k in sizes} == sizes
    assert {k: stages["scores"].sizes[k] for k in sizes} == sizes
    assert stages["scores"].sizes["neighbour"] == 5 and stages["controls"].sizes["control"] == len(similarity.CONTROLS)


def test_stored_signals_are_those_of_one_direct_call(stages, cfg):
    net = stages["nets"][1]
    th = stages["stats"]["th_eap"].sel(seed=1, layer="conv2").values
    direct = paper_methods.maximize(net.trunk, "conv2", th, preset="literal", settings=cfg.maximization)
    kept = stages["signals"]["signal"].sel(seed=1, layer="conv2", preset="literal")
    assert np.array_equal(kept.transpose("technique", "unit", "time").values, direct["signal"].values)


def test_everything_is_read_back_and_nothing_is_computed_again(stages, cfg, tiny_windows, monkeypatch):
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(stages["folder"]))
    with around_builds(lambda stage, key: pytest.fail(f"{stage} computed again")):
        nets, random = supervised.networks(cfg, tiny_windows), stages["random"]
        stats = unit_statistics.statistics(cfg, tiny_windows, nets)
        assert stats.equals(stages["stats"])
        assert paper_methods.signals(cfg, nets, stats).equals(stages["signals"])
        assert similarity.scores(cfg, tiny_windows, nets, stats, stages["signals"]).equals(stages["scores"])
        random_stats = unit_statistics.statistics(cfg, tiny_windows, random)
        one = stages["random_signals"].sel(preset="calibrated", technique=PROPOSED, drop=True)
        controls = similarity.controls(cfg, tiny_windows, nets, stats, random, random_stats, one)
    assert controls.equals(stages["controls"])


def test_controls_are_what_they_say(stages, cfg, tiny_windows):
    controls = stages["controls"]
    start = starting_signal(cfg.maximization, 30)
    still, zero, random = (controls.sel(control=c) for c in ("starting-sine", "flat-zero", "random-weights"))
    assert np.allclose(still["peak_amplitude_g"], np.abs(start).max()) and np.allclose(still["displacement_g"], 0)
    assert (zero["peak_amplitude_g"] == 0).all() and np.allclose(zero["displacement_g"], np.sqrt((start**2).mean()))
    made = stages["random_signals"].sel(preset="calibrated", technique=PROPOSED)
    assert np.allclose(random["max_output"], made["map"].max("time").transpose("seed", "layer", "unit"))
    # the strongest real window: no test segment has a larger mean output
    net, held_out = stages["nets"][0], tiny_windows.test.segments
    best = unit_statistics.collect(net.trunk, held_out, n_top=1)["top_segment"].sel(layer="conv2").values[:, 0]
    maps = net.trunk.feature_map(torch.tensor(held_out), "conv2").detach().numpy()
    expected = maps[best, np.arange(6)].max(1)
    assert np.allclose(controls["max_output"].sel(seed=0, layer="conv2", control="held-out-strongest"), expected)


def test_scores_of_the_start_itself_are_those_of_the_sine_control(stages):
    """Method and control go through the same code: a method that did not move scores as the sine does."""
    literal = stages["scores"].sel(preset="literal", technique="naive")
    sine = stages["controls"].sel(control="starting-sine")
    unmoved = literal["displacement_g"] < 1e-6
    assert np.allclose(literal["s_u"].where(unmoved), sine["s_u"].where(unmoved), atol=1e-6, equal_nan=True)
    assert (literal["inactive_at_start"] == sine["inactive_at_start"]).all()


def test_the_report_follows_its_schema_and_counts_its_time(stages):
    results = stages["results"]
    report.validate(results)
    assert results["n_seeds"] == 2 and set(results["timings_s"]) >= {"networks", "statistics", "signals", "scores"}
    assert all(seconds >= 0 for seconds in results["timings_s"].values()) and results["timings_s"]["networks"] > 0
    assert results["caveat"] == "made-up data" and not results["verified_data"]
    assert "chosen on validation: batch_norm True" in results["claims"][0]["why"]
    assert len(results["training"]["macro_f1"]["per_seed"]) == 2
