"""Recipes: the paper's own is the ascent unchanged, each ingredient does what it says, and the choice is a rule."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from made_trunks import made_trunk

from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.starting import starting_points, starting_signal
from harvis_utils.metrics import realism
from harvis_utils.paper import evidence, recipes
from harvis_utils.settings import MaximizationSettings
from harvis_utils.training import supervised

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(cfg, tiny_windows, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("recipes")))
        nets = supervised.networks(cfg, tiny_windows)
        stats = unit_statistics.statistics(cfg, tiny_windows, nets)
        signals = recipes.signals(cfg, tiny_windows, nets, stats, recipes.RECIPES, [0, 2, 5])
        measured = recipes.measures(cfg, tiny_windows, nets, stats, signals)
        patched.setattr(recipes, "climb", None)  # what is stored is not made again
        again = recipes.signals(cfg, tiny_windows, nets, stats, recipes.RECIPES, [0, 2, 5])
    return {"nets": nets, "stats": stats, "signals": signals, "measured": measured, "again": again}


def test_the_papers_recipe_is_the_papers_method(cfg, made):
    net, stats = made["nets"][0], made["stats"].isel(seed=0)
    for layer in net.trunk.layers:
        expected = paper_methods.maximize(
            net.trunk, layer, stats["th_eap"].sel(layer=layer).values, methods=["L2+TV+EAP+clip"], units=[0, 2, 5],
            settings=cfg.maximization,
        )  # fmt: skip
        ours = made["signals"]["signal"].sel(seed=net.seed, recipe=recipes.PAPERS, layer=layer)
        assert np.abs(ours.values - expected["signal"].values[0]).max() < 1e-5


def test_our_method_is_the_recipe_of_means_and_stands_beside_the_papers(cfg, made, tiny_windows, monkeypatch, tmp_path):
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path))
    ours = evidence.our_signals(cfg, tiny_windows, made["nets"], made["stats"])
    recipe = made["signals"]["signal"].sel(recipe=evidence.OUR_RECIPE)
    found = ours["signal"].sel(preset="calibrated", technique=evidence.OURS).sel(unit=[0, 2, 5])
    assert np.abs(found.transpose(*recipe.dims).values - recipe.values).max() < 1e-5
    papers = paper_methods.signals(cfg, made["nets"], made["stats"], ("L2+TV+EAP+clip",), ("calibrated",))
    both = evidence.joined(papers, ours, "technique")
    assert list(both["technique"].values) == ["L2+TV+EAP+clip", evidence.OURS]
    for name, of in (("L2+TV+EAP+clip", papers), (evidence.OURS, ours)):
        assert np.array_equal(both["signal"].sel(technique=name), of["signal"].isel(technique=0))
    assert np.abs(both["signal"].diff("technique")).max() > 1e-3, "means pull less than sums"
    before = set(tmp_path.rglob("signals.nc"))
    assert evidence.our_signals(cfg, tiny_windows, made["nets"], made["stats"]).identical(ours)
    assert set(tmp_path.rglob("signals.nc")) == before


def test_every_recipe_gives_signals_of_its_own_and_is_stored(made):
    found = made["signals"]["signal"]
    assert found.sizes["recipe"] == len(recipes.RECIPES) and found.notnull().all()
    assert made["again"].identical(made["signals"])
    assert len({r.name for r in recipes.RECIPES}) == len(recipes.RECIPES)
    other = found.drop_sel(recipe=recipes.PAPERS) - found.sel(recipe=recipes.PAPERS)
    assert (np.abs(other).max(("seed", "layer", "unit", "time")) > 1e-4).all(), "each changes something"


def test_best_of_several_starts_has_the_highest_objective(cfg, made, tiny_windows):
    net, stats = made["nets"][0], made["stats"].isel(seed=0)
    recipe = recipes.BY_NAME["best of 5 starts"]
    starts = starting_points(cfg.maximization, tiny_windows.train, 5)
    found = recipes.climb(net, stats, tiny_windows.train, recipe, [1, 4], cfg)
    th = stats["th_eap"].sel(layer="conv3").values
    each = paper_methods.maximize(
        net.trunk, "conv3", th, methods=["L2+TV+EAP+clip"], units=[1, 4], settings=cfg.maximization,
        start=np.broadcast_to(starts[:, None, None], (5, 1, 2, 30)),
    )  # fmt: skip
    objective = each["objective"].isel(technique=0, step=-1).values
    assert np.array_equal(found["start"].sel(layer="conv3"), objective.argmax(0))
    kept = each["signal"].isel(technique=0).values[objective.argmax(0), [0, 1]]
    assert np.abs(found["signal"].sel(layer="conv3").values - kept).max() < 1e-5


def test_in_the_prior_norm_real_windows_are_short_and_noise_is_long(tiny_windows):
    split = tiny_windows.train
    prior = recipes.window_prior(split)
    assert np.allclose(prior, prior.T) and np.linalg.eigvalsh(prior)[0] > 0
    segments = split.segments.astype(np.float64)
    own = np.einsum("it,ts,is->i", segments, prior, segments).mean()
    assert own == pytest.approx((segments**2).sum(1).mean())
    noise = np.random.default_rng(0).normal(size=segments.shape) * np.sqrt((segments**2).mean())
    assert np.einsum("it,ts,is->i", noise, prior, noise).mean() > 2 * own


def test_quantile_thresholds_leave_silent_windows_out():
    outputs = np.array([[0, 0, 1, 2, 3], [0, 0, 0, 0, 0.0]])
    found = recipes.quantile_thresholds(outputs, 0.5)
    assert found[0] == 2 and np.isnan(found[1])


def test_there_are_five_starts(cfg, tiny_windows):
    starts = starting_points(cfg.maximization, tiny_windows.train, 5)
    assert np.array_equal(starts[0], starting_signal(cfg.maximization, 30))
    assert len(np.unique(starts.round(6), axis=0)) == 5
    with pytest.raises(ValueError, match="1 to 5"):
        starting_points(cfg.maximization, tiny_windows.train, 6)


def test_penalties_per_unit_make_a_unit_independent_of_its_scale(cfg, tiny_windows):
    """A layer whose outputs are a hundredth, thresholds too: the same signal, where the plain weight flattens it."""
    trunk = made_trunk(4, 1)
    small = type(trunk)(tuple(w / 100 ** (i == 0) for i, w in enumerate(trunk.weights[:1])), (trunk.biases[0] / 100,))
    large = type(trunk)(trunk.weights[:1], trunk.biases[:1])
    th = np.full(4, 0.8)

    def climbed(trunk, th, **changes):
        recipe = recipes.Recipe("x", "x", paper_methods.METHODS["L2+TV+clip"], **changes)
        stats = xr.Dataset({"th_eap": (("layer", "unit"), th[None])}, {"layer": ["conv1"]})
        net = supervised.Network(0, None, {}, 0, {}, {}, "", 0.0)
        fake = type("Fake", (), {"trunk": trunk, "seed": net.seed})()
        longer = dataclasses.replace(cfg, maximization=MaximizationSettings(n_steps=1200))
        return recipes.climb(fake, stats, tiny_windows.train, recipe, range(4), longer)["signal"].values

    assert np.abs(climbed(small, th / 100, per_unit=True) - climbed(large, th, per_unit=True)).max() < 0.05
    assert np.abs(climbed(small, th / 100)).max() < 0.01, "the plain weight flattens it"
    assert torch.is_tensor(small.weights[0])


# ------------------------------------------------------------------------------------------------- the choice


def measured(**gains):
    """Made-up measures: each recipe's gain on (activation, nearness) over the paper's method."""
    rng = np.random.default_rng(0)
    names = [recipes.PAPERS, *gains]
    size = (5, len(names), 3, 12)
    dims = ("seed", "recipe", "layer", "unit")
    level = rng.uniform(0.3, 0.6, (5, 1, 3, 12))
    reached, near = np.broadcast_to(level, size).copy(), np.broadcast_to(level, size).copy()
    for k, (up, closer) in enumerate(gains.values(), start=1):
        reached[:, k] += up + 0.02 * rng.normal(size=(5, 3, 12))
        near[:, k] += closer + 0.02 * rng.normal(size=(5, 3, 12))
    off = (dims, np.zeros(size, bool))
    return xr.Dataset(
        {"reached": (dims, reached), "distance_ratio": (dims, 1 / near - 1), "failed": off, "dead": off},
        {"recipe": names},
    ).copy(deep=True)


def test_a_recipe_must_be_better_on_both_axes():
    found = recipes.compare(measured(**{"means": (0.1, -0.05), "jitter 2": (0.05, 0.05), "jitter 5": (0.3, 0.0)}))
    assert list(found.index[found["beats"]]) == ["jitter 2"] and recipes.choose(found) == "jitter 2"
    assert found.loc["means", "activation dominance"] == 1 and found.loc["means", "nearness dominance"] < -0.9
    assert found.loc["jitter 2", "networks"] == 5 and found.loc["jitter 2", "pairs"] == 5 * 36


def test_activation_beyond_the_threshold_is_no_merit_and_failure_is_no_gap():
    made = measured(means=(0.0, 0.0))
    made["reached"][:, 1, 0] = 7.0
    made["failed"][:, 1, 1] = True
    made["distance_ratio"][:, 1, 1] = np.nan
    assert float(realism.activation(made).max()) == 1
    near = realism.nearness(made)
    assert float(near.isel(recipe=1, layer=1).max()) == 0 and near.notnull().all()
    made["dead"][:, :, 2, 0] = True
    made["reached"][:, :, 2, 0] = np.nan
    made["distance_ratio"][:, :, 2, 0] = np.nan
    assert realism.nearness(made).isel(layer=2, unit=0).isnull().all()
