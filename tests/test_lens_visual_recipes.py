"""Recipes of visualization: each does what it says, is stored, and is judged beside its controls."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

from harvis_utils.maximization import coordinates, objectives, priors, unit_statistics, visualization
from harvis_utils.metrics import motifs
from harvis_utils.metrics.intervals import paired
from harvis_utils.paper import recipes, visual_judging, visual_recipes
from harvis_utils.settings import MaximizationSettings
from harvis_utils.training import supervised

pytestmark = pytest.mark.usefixtures("one_thread")

UNITS = [0, 2, 5]
SMALL = priors.PriorSettings(n_hidden=32, n_code=16, n_steps=100, batch_size=64)
STEPS = visual_recipes.VisualSettings(n_steps=4)


@pytest.fixture(scope="module")
def made(cfg, tiny_windows, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("visual")))
        patched.setitem(priors.SETTINGS, "quick", SMALL)
        patched.setitem(visual_recipes.SETTINGS, "quick", STEPS)
        nets, random = supervised.networks(cfg, tiny_windows), supervised.untrained(cfg, tiny_windows)
        stats, random_stats = (unit_statistics.statistics(cfg, tiny_windows, some) for some in (nets, random))
        denoiser = priors.prior(cfg, tiny_windows)
        few = [visual_recipes.BY_NAME[name] for name in visual_recipes.RANDOM]
        signals = visual_recipes.signals(cfg, tiny_windows, nets, stats, visual_recipes.RECIPES, UNITS, denoiser)
        others = visual_recipes.signals(cfg, tiny_windows, random, random_stats, few, UNITS, denoiser)
        patched.setattr(visual_recipes, "climb", None)  # what is stored is not made again
        again = visual_recipes.signals(cfg, tiny_windows, nets, stats, visual_recipes.RECIPES, UNITS, denoiser)
        controls = visual_judging.controls(tiny_windows, nets, stats, signals)
        everything = visual_judging.beside(signals, controls, others, nets)
        measured = recipes.measures(cfg, tiny_windows, nets, stats, everything)
    return SimpleNamespace(
        nets=nets, stats=stats, signals=signals, others=others, again=again, denoiser=denoiser, random=random,
        everything=everything, measured=measured,
    )  # fmt: skip


def test_every_recipe_gives_signals_of_its_own_and_is_stored(made):
    found = made.signals["signal"]
    names = [visual_recipes.PAPERS, *visual_recipes.BY_NAME]
    assert found["recipe"].values.tolist() == names and len(names) == 1 + len(visual_recipes.RECIPES)
    assert made.again.identical(made.signals) and found.notnull().all()
    for i, a in enumerate(names):
        for b in names[:i]:
            apart = np.abs(found.sel(recipe=a) - found.sel(recipe=b)).max()
            assert apart > 1e-5, f"{a} and {b} are the same"


def test_maps_are_those_of_the_signals_own_units(made):
    for net in made.nets:
        for layer in net.trunk.layers:
            some = made.signals.sel(seed=net.seed, layer=layer)
            for recipe in some["recipe"].values[::5]:
                x = torch.tensor(some["signal"].sel(recipe=recipe).values.astype(np.float32))
                expected = net.trunk.feature_map(x, layer)[range(3), UNITS].numpy()
                assert np.allclose(some["map"].sel(recipe=recipe), expected, atol=1e-5)


def test_a_plain_recipe_is_visualizing_layer_by_layer(made, tiny_windows):
    net, stats = made.nets[0], made.stats.isel(seed=0)
    bound = visualization.amplitude_bound(tiny_windows.train)
    start = visual_recipes.starts(tiny_windows, 3 * len(UNITS), 1, net.seed)
    for k, layer in enumerate(net.trunk.layers):
        view = visualization.PerAxis(net.model, layer)
        th = stats["th_eap"].sel(layer=layer, unit=UNITS).values
        alone = visualization.visualize(
            view, objectives.channel(view.tap(layer), UNITS, at_most=np.nan_to_num(th, nan=np.inf).tolist()),
            start[3 * k : 3 * k + 3], coordinates.in_time(bound), n_steps=STEPS.n_steps, step_size=STEPS.step_size,
        )  # fmt: skip
        ours = made.signals["signal"].sel(seed=net.seed, recipe="time", layer=layer).values
        assert np.allclose(ours, alone.signal[:, 0], atol=1e-4)


def test_signals_stay_within_the_reach_of_real_movement(made, tiny_windows):
    ours = made.signals["signal"].drop_sel(recipe=visual_recipes.PAPERS)
    assert np.abs(ours).max() <= visualization.amplitude_bound(tiny_windows.train) + 1e-6


def test_of_several_copies_the_one_with_the_highest_objective_is_kept(made, tiny_windows, monkeypatch):
    net, kept = made.nets[0], []
    whole = visualization.visualize
    monkeypatch.setattr(visualization, "visualize", lambda *a, **k: kept.append(whole(*a, **k)) or kept[-1])
    recipe = visual_recipes.BY_NAME["best of 3"]
    found = visual_recipes.climb(net, made.stats.isel(seed=0), tiny_windows, recipe, UNITS, STEPS, made.denoiser)
    score = kept[0].score.reshape(3, len(UNITS), 3)
    for i, j in np.ndindex(3, len(UNITS)):
        expected = kept[0].signal.reshape(3, len(UNITS), 3, -1)[i, j, score[i, j].argmax()]
        assert np.array_equal(found["signal"].values[i, j], expected)


def test_starts_are_noise_of_one_size_and_further_axes_change_nothing(tiny_windows):
    one, three = (visual_recipes.starts(tiny_windows, 9, n, 4) for n in (1, 3))
    assert np.array_equal(one[:, 0], three[:, 0]) and three.shape == (9, 3, 30)
    sine = MaximizationSettings().start_amplitude_g / 2**0.5
    assert np.sqrt((three**2).mean(2)) == pytest.approx(np.full((9, 3), sine), rel=1e-5)


def test_a_dead_unit_is_neither_clipped_nor_in_the_way(made, tiny_windows):
    stats = made.stats.isel(seed=0).copy(deep=True)
    stats["th_eap"].loc[{"layer": "conv2", "unit": 2}] = np.nan
    recipe = dataclasses.replace(visual_recipes.BY_NAME["spectral penalty"], diversity=0.1, copies=2)
    found = visual_recipes.climb(made.nets[0], stats, tiny_windows, recipe, UNITS, STEPS, made.denoiser)
    assert found["signal"].notnull().all()


def test_profiles_try_what_they_say():
    assert [r.name for r in visual_recipes.of_profile("desk")] == list(visual_recipes.BY_NAME)
    quick = [r.name for r in visual_recipes.of_profile("quick")]
    assert set(visual_recipes.RANDOM) <= set(quick) < set(visual_recipes.BY_NAME)


# ----------------------------------------------------------------------------------------------------------- judging


def test_controls_and_random_weights_are_judged_by_the_trained_units(made):
    names = made.everything["recipe"].values.tolist()
    for control in visual_judging.CONTROLS:
        assert control in names
    for net in made.nets:
        name = visual_judging.RANDOM_PREFIX + "frequency"
        one = made.everything.sel(seed=net.seed, layer="conv2", recipe=name)
        assert np.array_equal(
            one["signal"], made.others["signal"].sel(seed=net.seed, layer="conv2", recipe="frequency")
        )
        x = torch.tensor(one["signal"].values.astype(np.float32))
        assert np.allclose(one["map"], net.trunk.feature_map(x, "conv2")[range(3), UNITS], atol=1e-5)
    real = made.measured.sel(recipe="real window")
    assert float(real["displacement_g"].min()) > 0


def test_comparison_is_paired_by_hand(made):
    table = visual_judging.compare(made.measured)
    assert (table.loc[visual_recipes.PAPERS, ["activation difference", "nearness difference"]] == 0).all()
    assert not table.loc[visual_recipes.PAPERS, "beats"] and set(table["networks"]) == {2}
    near = 1 / (1 + made.measured["distance_ratio"])
    near = xr.where(made.measured["failed"] & ~made.measured["dead"], 0.0, near).transpose(
        "recipe", "seed", "layer", "unit"
    )
    ours, paper = (near.sel(recipe=n).values.reshape(2, -1) for n in ("frequency", visual_recipes.PAPERS))
    expected = paired(ours, paper)
    assert table.loc["frequency", "nearness difference"] == pytest.approx(expected.mean)
    assert table.loc["frequency", "nearness difference low"] == pytest.approx(expected.interval[0])
    trained = visual_judging.above_random(made.measured)
    assert list(trained.index) == [visual_recipes.PAPERS, *visual_recipes.RANDOM]
    random = near.sel(recipe=visual_judging.RANDOM_PREFIX + "frequency").values.reshape(2, -1)
    assert trained.loc["frequency", "nearness"] == pytest.approx(paired(ours, random).mean)


def test_motifs_are_matched_within_the_layers_that_hold_them(made):
    shapes = (np.array([0.0, 1.0, 0.0, -1.0, 0.0]), np.sin(np.arange(9.0)))
    truth = SimpleNamespace(names=("a", "b"), shapes=shapes, layers=("conv1", "conv3"))
    found = visual_judging.motif_matches(truth, made.signals["signal"])
    for name, shape, layers in (("a", shapes[0], ["conv1", "conv2", "conv3"]), ("b", shapes[1], ["conv3"])):
        some = made.signals["signal"].sel(seed=1, recipe="frequency", layer=layers).values
        expected = max(motifs.ncc(shape, x) for x in some.reshape(-1, 30))
        assert float(found.sel(recipe="frequency", seed=1, motif=name)) == pytest.approx(expected)
    few = made.others["recipe"].values
    random = visual_judging.motif_matches(truth, made.others["signal"])
    table = visual_judging.motif_table(found.sel(recipe=few), random)
    row = table.loc["frequency"]
    assert row["above random"] == pytest.approx(row["trained"] - row["random weights"])
    base = table.loc[visual_recipes.PAPERS]
    assert row["more than the paper's"] == pytest.approx(row["above random"] - base["above random"])
    with pytest.raises(ValueError, match="other recipes"):
        visual_judging.motif_table(found, random)
