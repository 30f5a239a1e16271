"""Readings of the hyper-parameters: each climbed as the ascent itself would, on its own, and stored once."""

import dataclasses

import numpy as np
import pytest
import torch

from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.starting import chosen_units
from harvis_utils.paper import readings
from harvis_utils.settings import PRESETS, ReadingSettings
from harvis_utils.training import supervised

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = readings.grid()
SOME = [
    r
    for r in GRID
    if (r.optimizer, r.step_size) in {("adam", 0.1), ("ascent", 0.3)} and r.weight != 0.01 and r.decay == 0.995
]


@pytest.fixture(scope="module")
def cfg(cfg):
    return dataclasses.replace(cfg, readings=ReadingSettings(seeds=(0, 1), n_units=3))


@pytest.fixture(scope="module")
def made(cfg, tiny_windows, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("readings")))
        nets = supervised.networks(cfg, tiny_windows)
        stats = unit_statistics.statistics(cfg, tiny_windows, nets)
        scored = readings.scores(cfg, tiny_windows, nets, stats, SOME)
        real = readings.real_windows(cfg, tiny_windows, nets, stats)
        with pytest.MonkeyPatch.context() as forbidden:  # what is stored is not made again
            forbidden.setattr(readings, "_scored", None)
            again = readings.scores(cfg, tiny_windows, nets, stats, SOME)
    return {"nets": nets, "stats": stats, "scores": scored, "real": real, "again": again}


def test_the_grid_varies_every_open_parameter_and_names_each_reading_once():
    assert len(GRID) >= 60 and len({r.label for r in GRID}) == len(GRID) == len(set(GRID))
    for name in ("optimizer", "step_size", "decay", "reduction", "weight", "periods"):
        assert len({getattr(r, name) for r in GRID}) > 1, name
    stated = [r for r in GRID if r.departures == 0]
    assert {r.step_size for r in stated} == {1e-4} and {r.reduction for r in stated} == {"sum"}
    for preset, step in PRESETS.items():
        assert any(r.step == step for r in GRID), f"the preset {preset} is one of the readings"


@pytest.mark.parametrize("reading", SOME[:: max(1, len(SOME) // 4)], ids=lambda r: r.label)
def test_a_reading_equals_the_ascent_with_its_settings(cfg, made, reading):
    """Climbed together with others, or by itself with the same weight, reduction, step and start."""
    net, stats = made["nets"][0], made["stats"].isel(seed=0)
    alike = [r for r in SOME if r.step == reading.step]
    found = readings.climb_step(net, stats, reading.step, alike, [0, 3], cfg).sel(reading=reading.label)
    settings = dataclasses.replace(
        cfg.maximization, weight=reading.weight, start_periods=reading.periods, reduction=reading.reduction
    )
    for layer in net.trunk.layers:
        th = stats["th_eap"].sel(layer=layer).values
        expected = paper_methods.maximize(
            net.trunk, layer, th, methods=readings.METHODS, units=[0, 3], preset=reading.step, settings=settings
        )
        ours = found.sel(layer=layer, technique=list(readings.METHODS))
        assert np.abs(ours["signal"].values - expected["signal"].values).max() < 2e-4
        sine = torch.as_tensor(readings.start_of(settings, reading, 30)[None])
        outputs = net.trunk.feature_map(sine, layer)[0].detach().numpy()
        assert np.abs(ours["start_map"].values - outputs[[0, 3]]).max() < 1e-6


def test_means_are_the_sums_over_the_number_of_terms():
    x = np.random.default_rng(0).normal(size=30)
    a, b = (paper_methods.penalty_weights(1.0, r, 30) for r in paper_methods.REDUCTIONS)
    assert np.isclose(b["l2"] * np.sqrt((x**2).sum()), np.sqrt((x**2).mean()))
    assert np.isclose(b["tv"] * np.abs(np.diff(x)).sum(), np.abs(np.diff(x)).mean())
    assert a["eap"] == b["eap"] == a["aap"] == b["aap"] == 1 and a["l2"] == a["tv"] == 1


def test_scores_cover_everything_and_are_stored(cfg, made):
    sizes = {"seed": 2, "reading": len(SOME), "technique": 6, "layer": 3, "unit": 3}
    assert {k: made["scores"].sizes[k] for k in sizes} == sizes
    assert list(made["scores"]["unit"].values) == chosen_units(6, 3)
    assert made["again"].identical(made["scores"])
    free = made["scores"].sel(technique=list(readings.FREE))
    same = [r.label for r in SOME if r.step == SOME[0].step and r.periods == 1]
    alike = free["peak_amplitude_g"].sel(reading=same)
    spread = alike.max("reading") - alike.min("reading")
    assert float(spread.max()) == 0, "methods without penalties do not depend on weights"
    assert set(made["real"].dims) == {"control", "seed", "layer", "unit"}


def test_units_are_spread_over_the_layer():
    assert chosen_units(64, 12)[0] == 0 and chosen_units(64, 12)[-1] == 63
    assert chosen_units(4, 12) == [0, 1, 2, 3]


def test_a_kill_loses_at_most_one_step_of_one_network(cfg, made, tiny_windows, tmp_path, monkeypatch):
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path))
    calls = []
    climb = readings.climb_step

    def dies(*given):
        calls.append(given[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return climb(*given)

    monkeypatch.setattr(readings, "climb_step", dies)
    with pytest.raises(KeyboardInterrupt):
        readings.scores(cfg, tiny_windows, made["nets"], made["stats"], SOME)
    readings.scores(cfg, tiny_windows, made["nets"], made["stats"], SOME)
    steps = len({r.step for r in SOME})
    assert len(calls) == 2 * steps + 1, "what was finished is not made again"
