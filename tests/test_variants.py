"""Variants: each list varies what it says, each is climbed as the ascent itself would, and is stored once."""

import dataclasses
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from made_trunks import made_trunk

from harvis_utils.maximization import coordinates, objectives, paper_methods, priors, unit_statistics, visualization
from harvis_utils.maximization.paper_methods import METHODS, PROPOSED
from harvis_utils.maximization.starting import chosen_units, starting_points, starting_signal
from harvis_utils.metrics import motifs, realism
from harvis_utils.metrics.intervals import paired
from harvis_utils.paper import climbing, comparing, variants
from harvis_utils.paper.variants import BY_NAME, EXPLAINING, PAPERS, RECIPES, VISUAL
from harvis_utils.settings import (
    PRESETS,
    PROFILES,
    MaximizationSettings,
    PriorSettings,
    ReadingSettings,
    Step,
    VisualSettings,
    load_settings,
)
from harvis_utils.store import results
from harvis_utils.training import supervised

pytestmark = pytest.mark.usefixtures("one_thread")

UNITS = [0, 2, 5]
SMALL = PriorSettings(n_hidden=32, n_code=16, n_steps=100, batch_size=64)
STEPS = VisualSettings(n_steps=4)
SINE_OF_TWO = variants.reading(PRESETS["literal"], periods=2.0)
TRIED = {name: METHODS[name] for name in (*variants.FREE, *variants.PENALIZED)}
READINGS = variants.readings(ReadingSettings())
SOME = variants.readings(
    ReadingSettings(ascent=(0.3,), adam=(0.1,), weights=(0.1, 0.3), mean_weights=(0.1, 1.0)),
)


@pytest.fixture(scope="module")
def cfg(cfg):
    return dataclasses.replace(cfg, readings=ReadingSettings(seeds=(0, 1), n_units=3), visual=STEPS, prior=SMALL)


@pytest.fixture(scope="module")
def made(cfg, tiny_windows, tmp_path_factory):
    """Everything that two tiny networks are asked for, twice: what is stored is not made again."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("variants")))
        nets, random = supervised.networks(cfg, tiny_windows), supervised.untrained(cfg, tiny_windows)
        stats, random_stats = (unit_statistics.statistics(cfg, tiny_windows, some) for some in (nets, random))
        denoiser = priors.prior(cfg, tiny_windows)
        few = [BY_NAME[name] for name in (PAPERS, *variants.RANDOM)]

        def everything():
            return {
                "scores": climbing.reading_scores(cfg, tiny_windows, nets, stats, SOME),
                "recipes": climbing.signals(cfg, tiny_windows, nets, stats, RECIPES, UNITS),
                "visual": climbing.signals(cfg, tiny_windows, nets, stats, [BY_NAME[PAPERS], *VISUAL], UNITS, denoiser),
                "others": climbing.signals(cfg, tiny_windows, random, random_stats, few, UNITS, denoiser),
            }

        found = everything()
        with results.around_builds(lambda stage, key: pytest.fail(f"a result of {stage} is made again")):
            again = everything()
        beside = comparing.beside(found["visual"], found["others"], tiny_windows, nets, stats)
        measured = realism.realism(cfg, tiny_windows, nets, stats, beside)
    return SimpleNamespace(
        nets=nets, stats=stats, again=again, denoiser=denoiser, beside=beside, measured=measured, **found
    )


def test_what_is_stored_is_read(made):
    for name, again in made.again.items():
        assert again.identical(getattr(made, name)), name


# -------------------------------------------------------------------------------------------------- the lists


def test_readings_vary_every_open_parameter_and_are_named_once():
    assert len(READINGS) == 127 == len({one.name for one in READINGS})
    for name in ("step", "reduction", "per_unit", "weight", "periods"):
        assert len({getattr(one, name) for one in READINGS}) > 1, name
    for profile in PROFILES:
        for preset, step in PRESETS.items():
            own = variants.reading(step).name
            assert own in {one.name for one in variants.readings(load_settings(profile).readings)}, (profile, preset)


def test_readings_depart_by_how_far_they_are_from_what_is_stated():
    literal = PRESETS["literal"]
    assert variants.departures(variants.reading(literal)) == 0 == variants.departures(SINE_OF_TWO)
    by_size = [dataclasses.replace(literal, step_size=size) for size in (1e-5, 1e-3, 0.1)]
    assert [variants.departures(variants.reading(step)) for step in by_size] == pytest.approx([1, 1, 3])
    for change, far in (
        ({"weight": 1.0}, 1),
        ({"weight": 0.01}, 1),
        ({"penalties": variants.MEAN}, 1),
        ({"penalties": variants.SCALED, "weight": 1.0}, 2),
        ({"step": Step("adam", 1e-4, 0.9995)}, 2),
    ):
        assert variants.departures(variants.reading(**{"step": literal} | change)) == pytest.approx(far), change
    for how in (variants.SUM, variants.MEAN, variants.SCALED):
        assert variants.penalties(variants.reading(literal, how)) == how


def test_names_are_used_once_and_profiles_try_what_they_say():
    assert len(BY_NAME) == len(RECIPES) + len(VISUAL) + len(EXPLAINING) == 56
    assert variants.tried(load_settings("desk").visual) == list(VISUAL)
    quick = {one.name for one in variants.tried(load_settings("quick").visual)}
    assert set(variants.RANDOM) <= quick < {one.name for one in VISUAL} and len(quick) == 11


def test_what_explains_most_is_chosen_and_of_equals_what_does_least():
    accuracy = dict.fromkeys((one.name for one in EXPLAINING), 0.6)
    assert variants.EXPLAINER in accuracy
    assert variants.levers(BY_NAME["frequency"]) == 0 and variants.levers(BY_NAME["one position"]) == 1
    assert variants.most_explaining(accuracy) == "one position", "fewest levers, first of the list"
    assert variants.most_explaining(accuracy | {"surroundings": 0.7}) == "surroundings"
    close = accuracy | {"surroundings": 0.7, "covariance as norm": 0.696, "one position": 0.694}
    assert variants.most_explaining(close) == "covariance as norm"


# ---------------------------------------------------------------------------------------------------- readings


@pytest.mark.parametrize("reading", [SOME[1], SOME[-1]], ids=lambda one: one.name)
def test_a_reading_equals_the_ascent_with_its_settings(cfg, made, tiny_windows, reading):
    """Climbed together with others, or by itself with the same weight, reduction, step and start."""
    net, th_eap = made.nets[0], made.stats["th_eap"].isel(seed=0)
    alike = [one for one in SOME if one.step == reading.step]
    found = climbing.climb(net, th_eap, tiny_windows, alike, TRIED, [0, 3], cfg.maximization)
    found = found.sel(variant=reading.name)
    settings = dataclasses.replace(
        cfg.maximization, weight=reading.weight, start_periods=reading.periods, reduction=reading.reduction
    )
    for layer in net.trunk.layers:
        th = th_eap.sel(layer=layer).values
        expected = paper_methods.maximize(
            net.trunk, layer, th, methods=list(TRIED), units=[0, 3], preset=reading.step, settings=settings
        )
        ours = found.sel(layer=layer, technique=list(TRIED))
        assert np.abs(ours["signal"].values - expected["signal"].values).max() < 2e-4
        sine = torch.as_tensor(starting_signal(settings, 30)[None])
        outputs = net.trunk.feature_map(sine, layer)[0].detach().numpy()
        assert np.abs(ours["start_map"].values - outputs[[0, 3]]).max() < 1e-6


def test_means_are_the_sums_over_the_number_of_terms():
    x = np.random.default_rng(0).normal(size=30)
    a, b = (paper_methods.penalty_weights(1.0, r, 30) for r in paper_methods.REDUCTIONS)
    assert np.isclose(b["l2"] * np.sqrt((x**2).sum()), np.sqrt((x**2).mean()))
    assert np.isclose(b["tv"] * np.abs(np.diff(x)).sum(), np.abs(np.diff(x)).mean())
    assert a["eap"] == b["eap"] == a["aap"] == b["aap"] == 1 and a["l2"] == a["tv"] == 1


def test_scores_cover_everything(made):
    sizes = {"seed": 2, "reading": len(SOME), "technique": 6, "layer": 3, "unit": 3}
    assert {k: made.scores.sizes[k] for k in sizes} == sizes
    assert list(made.scores["unit"].values) == chosen_units(6, 3)
    assert list(made.scores["reading"].values) == [one.name for one in SOME]
    free = made.scores["peak_amplitude_g"].sel(technique=list(variants.FREE))
    alike = free.sel(reading=[one.name for one in SOME if one.step == SOME[0].step and one.periods == 1])
    spread = alike.max("reading") - alike.min("reading")
    assert float(spread.max()) == 0, "methods without penalties do not depend on weights"
    assert made.scores["at_rest"].dims == ("seed", "layer", "unit")


def test_a_kill_loses_at_most_one_step_of_one_network(cfg, made, tiny_windows, tmp_path, monkeypatch):
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path))
    calls = []

    @contextmanager
    def dies(stage, key):
        calls.extend([key] if stage == "readings" else [])
        if len(calls) == 3:
            raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt), results.around_builds(dies):
        climbing.reading_scores(cfg, tiny_windows, made.nets, made.stats, SOME)
    with results.around_builds(dies):
        calls.append("killed")
        climbing.reading_scores(cfg, tiny_windows, made.nets, made.stats, SOME)
    assert len(calls) == 2 * len(variants.by_step(SOME)) + 2, "what was finished is not made again"


# ----------------------------------------------------------------------------------------------------- recipes


def test_our_method_is_the_recipe_of_means_and_stands_beside_the_papers(cfg, made):
    ours = climbing.our_signals(cfg, made.nets, made.stats)
    recipe = made.recipes["signal"].sel(recipe=variants.OUR_RECIPE)
    found = ours["signal"].sel(preset="calibrated", technique=variants.OURS, unit=UNITS)
    assert np.abs(found.transpose(*recipe.dims).values - recipe.values).max() < 1e-5
    papers = paper_methods.signals(cfg, made.nets, made.stats, (PROPOSED,), ("calibrated",))
    both = comparing.joined(papers, ours, "technique")["signal"]
    assert list(both["technique"].values) == [PROPOSED, variants.OURS]
    assert np.array_equal(both[:, :, :, 0], papers["signal"][:, :, :, 0])
    assert np.abs(both.diff("technique")).max() > 1e-3, "means pull less than sums"


def test_every_variant_gives_signals_of_its_own(made):
    for found, names in ((made.recipes, RECIPES), (made.visual, (BY_NAME[PAPERS], *VISUAL))):
        assert found["recipe"].values.tolist() == [one.name for one in names]
        signal = found["signal"].transpose("recipe", ...).values
        assert np.isfinite(signal).all()
        for i in range(1, len(signal)):
            apart = np.abs(signal[i] - signal[:i]).reshape(i, -1).max(1)
            assert (apart > 1e-5).all(), f"{names[i].name} is the same as one before"


def test_best_of_several_starts_has_the_highest_objective(cfg, made, tiny_windows):
    net, th_eap = made.nets[0], made.stats["th_eap"].isel(seed=0)
    recipe = BY_NAME["best of 5 starts"]
    starts = starting_points(cfg.maximization, tiny_windows.train, 5)
    found = climbing.climb(net, th_eap, tiny_windows, [recipe], {"own": recipe.method}, [1, 4], cfg.maximization)
    found = found.isel(variant=0, technique=0).sel(layer="conv3")
    each = paper_methods.maximize(
        net.trunk, "conv3", th_eap.sel(layer="conv3").values, methods=[PROPOSED], units=[1, 4],
        settings=cfg.maximization, start=np.broadcast_to(starts[:, None, None], (5, 1, 2, 30)),
    )  # fmt: skip
    objective = each["objective"].isel(technique=0, step=-1).values
    assert np.array_equal(found["start"], objective.argmax(0))
    kept = each["signal"].isel(technique=0).values[objective.argmax(0), [0, 1]]
    assert np.abs(found["signal"].values - kept).max() < 1e-5


def test_in_the_prior_norm_real_windows_are_short_and_noise_is_long(tiny_windows):
    split = tiny_windows.train
    prior = climbing.window_prior(split)
    assert np.allclose(prior, prior.T) and np.linalg.eigvalsh(prior)[0] > 0
    segments = split.segments.astype(np.float64)
    own = np.einsum("it,ts,is->i", segments, prior, segments).mean()
    assert own == pytest.approx((segments**2).sum(1).mean())
    noise = np.random.default_rng(0).normal(size=segments.shape) * np.sqrt((segments**2).mean())
    assert np.einsum("it,ts,is->i", noise, prior, noise).mean() > 2 * own


def test_quantile_thresholds_leave_silent_windows_out():
    outputs = np.array([[0, 0, 1, 2, 3], [0, 0, 0, 0, 0.0]])
    found = climbing.quantile_thresholds(outputs, 0.5)
    assert found[0] == 2 and np.isnan(found[1])


def test_units_are_spread_over_the_layer_and_there_are_five_starts(cfg, tiny_windows):
    assert chosen_units(64, 12)[0] == 0 and chosen_units(64, 12)[-1] == 63 and chosen_units(4, 12) == [0, 1, 2, 3]
    starts = starting_points(cfg.maximization, tiny_windows.train, 5)
    assert np.array_equal(starts[0], starting_signal(cfg.maximization, 30))
    assert len(np.unique(starts.round(6), axis=0)) == 5
    with pytest.raises(ValueError, match="1 to 5"):
        starting_points(cfg.maximization, tiny_windows.train, 6)


def test_penalties_per_unit_make_a_unit_independent_of_its_scale(tiny_windows):
    """A layer whose outputs are a hundredth, thresholds too: the same signal, where the plain weight flattens it."""
    trunk = made_trunk(4, 1)
    small = type(trunk)(tuple(w / 100 ** (i == 0) for i, w in enumerate(trunk.weights[:1])), (trunk.biases[0] / 100,))
    large = type(trunk)(trunk.weights[:1], trunk.biases[:1])
    th, method = np.full(4, 0.8), {"own": METHODS["L2+TV+clip"]}

    def climbed(trunk, th, **changes):
        th_eap = xr.DataArray(th[None], dims=("layer", "unit"), coords={"layer": ["conv1"]})
        net, recipe = SimpleNamespace(trunk=trunk), variants.Variant("x", **changes)
        longer = MaximizationSettings(n_steps=1200)
        return climbing.climb(net, th_eap, tiny_windows, [recipe], method, range(4), longer)["signal"].values

    assert np.abs(climbed(small, th / 100, per_unit=True) - climbed(large, th, per_unit=True)).max() < 0.05
    assert np.abs(climbed(small, th / 100)).max() < 0.01, "the plain weight flattens it"


# ---------------------------------------------------------------------------------------- feature visualization


def test_maps_are_those_of_the_signals_own_units_and_signals_within_the_reach_of_movement(made, tiny_windows):
    reach = visualization.amplitude_bound(tiny_windows.train)
    assert np.abs(made.visual["signal"].drop_sel(recipe=PAPERS)).max() <= reach + 1e-6
    for net in made.nets:
        for layer in net.trunk.layers:
            some = made.visual.sel(seed=net.seed, layer=layer)
            for recipe in some["recipe"].values[::5]:
                x = torch.tensor(some["signal"].sel(recipe=recipe).values.astype(np.float32))
                expected = net.trunk.feature_map(x, layer)[range(3), UNITS].numpy()
                assert np.allclose(some["map"].sel(recipe=recipe), expected, atol=1e-5)


def test_a_plain_recipe_is_visualizing_layer_by_layer(made, tiny_windows):
    net, th_eap = made.nets[0], made.stats["th_eap"].isel(seed=0)
    bound = visualization.amplitude_bound(tiny_windows.train)
    start = climbing.noise_starts(tiny_windows, 3 * len(UNITS), 1, net.seed)
    for k, layer in enumerate(net.trunk.layers):
        view = visualization.PerAxis(net.model, layer)
        th = th_eap.sel(layer=layer, unit=UNITS).values
        alone = visualization.visualize(
            view, objectives.channel(view.tap(layer), UNITS, at_most=np.nan_to_num(th, nan=np.inf).tolist()),
            start[3 * k : 3 * k + 3], coordinates.in_time(bound), n_steps=STEPS.n_steps, step_size=STEPS.step_size,
        )  # fmt: skip
        ours = made.visual["signal"].sel(seed=net.seed, recipe="time", layer=layer).values
        assert np.allclose(ours, alone.signal[:, 0], atol=1e-4)


@pytest.mark.parametrize("variant", EXPLAINING, ids=lambda one: one.name)
def test_what_is_to_explain_keeps_what_it_says(made, tiny_windows, variant):
    net, th_eap, train = made.nets[0], made.stats["th_eap"].isel(seed=0), tiny_windows.train
    denoiser = made.denoiser if variant.prior else None
    x = climbing.visual_signals.function(net, th_eap, tiny_windows, variant, UNITS, STEPS, denoiser)["signal"].values
    assert x.shape == (3, len(UNITS), 30) and (np.ptp(x, axis=-1) > 0).all()
    if variant.space == "phase":
        real = np.abs(np.fft.rfft(train.segments, norm="ortho")).mean(0)
        assert np.allclose(np.abs(np.fft.rfft(x, norm="ortho")), real, atol=1e-5)
    else:
        assert np.abs(x).max() <= visualization.amplitude_bound(train)


def test_of_several_copies_the_one_with_the_highest_objective_is_kept(made, tiny_windows, monkeypatch):
    net, th_eap, kept = made.nets[0], made.stats["th_eap"].isel(seed=0), []
    whole = visualization.visualize
    monkeypatch.setattr(visualization, "visualize", lambda *a, **k: kept.append(whole(*a, **k)) or kept[-1])
    recipe = BY_NAME["best of 3"]
    found = climbing.visual_signals.function(net, th_eap, tiny_windows, recipe, UNITS, STEPS, None)
    score = kept[0].score.reshape(3, len(UNITS), 3)
    for i, j in np.ndindex(3, len(UNITS)):
        expected = kept[0].signal.reshape(3, len(UNITS), 3, -1)[i, j, score[i, j].argmax()]
        assert np.array_equal(found["signal"].values[i, j], expected)


def test_starts_are_noise_of_one_size_and_further_axes_change_nothing(tiny_windows):
    one, three = (climbing.noise_starts(tiny_windows, 9, n, 4) for n in (1, 3))
    assert np.array_equal(one[:, 0], three[:, 0]) and three.shape == (9, 3, 30)
    sine = MaximizationSettings().start_amplitude_g / 2**0.5
    assert np.sqrt((three**2).mean(2)) == pytest.approx(np.full((9, 3), sine), rel=1e-5)


def test_a_dead_unit_is_neither_clipped_nor_in_the_way(made, tiny_windows):
    th_eap = made.stats["th_eap"].isel(seed=0).copy(deep=True)
    th_eap.loc[{"layer": "conv2", "unit": 2}] = np.nan
    recipe = dataclasses.replace(BY_NAME["spectral penalty"], diversity=0.1, copies=2)
    found = climbing.visual_signals.function(made.nets[0], th_eap, tiny_windows, recipe, UNITS, STEPS, None)
    assert found["signal"].notnull().all()


def test_variants_are_chosen_by_the_mean_of_means(cfg, made, tiny_windows, monkeypatch, tmp_path):
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path))
    some = [BY_NAME[name] for name in ("one position", "covariance as norm")]
    found = climbing.explanations(cfg, tiny_windows, made.nets, made.stats, some, UNITS)
    assert set(found["accuracy"].dims) == {"seed", "recipe", "layer", "unit"} and found["accuracy"].notnull().any()
    values = np.linspace(0, 1, found["accuracy"].size).reshape(found["accuracy"].shape)
    first = found.assign(accuracy=(found["accuracy"].dims, values))
    gaps = first.assign(accuracy=first["accuracy"].where((first["unit"] != 0) | (first["layer"] != "conv1")))
    accuracy = climbing.mean_accuracy([first, gaps])
    a, b = (one["accuracy"].transpose("recipe", "layer", "seed", "unit").values for one in (first, gaps))
    expected = [(np.mean(p) + np.mean([[np.nanmean(u) for u in s] for s in q])) / 2 for p, q in zip(a, b, strict=True)]
    assert list(accuracy.values()) == pytest.approx(expected) and list(accuracy) == [one.name for one in some]


# ----------------------------------------------------------------------------------------------------------- judging


def test_controls_and_random_weights_are_judged_by_the_trained_units(made):
    names = made.beside["recipe"].values.tolist()
    for control in comparing.CONTROLS:
        assert control in names
    for net in made.nets:
        name = comparing.RANDOM_PREFIX + "frequency"
        one = made.beside.sel(seed=net.seed, layer="conv2", recipe=name)
        theirs = made.others["signal"].sel(seed=net.seed, layer="conv2", recipe="frequency")
        assert np.array_equal(one["signal"], theirs)
        x = torch.tensor(one["signal"].values.astype(np.float32))
        assert np.allclose(one["map"], net.trunk.feature_map(x, "conv2")[range(3), UNITS], atol=1e-5)
    real = made.measured.sel(recipe="real window")
    assert float(real["displacement_g"].min()) > 0


def test_comparison_is_paired_by_hand(made):
    table = comparing.gains(made.measured)
    assert (table.loc[PAPERS, ["activation difference", "nearness difference"]] == 0).all()
    assert not table.loc[PAPERS, "beats"] and set(table["networks"]) == {2}
    lost, near = made.measured["failed"] & ~made.measured["dead"], 1 / (1 + made.measured["distance_ratio"])
    near = xr.where(lost, 0.0, near).transpose("recipe", "seed", "layer", "unit")
    ours, paper = (near.sel(recipe=n).values.reshape(2, -1) for n in ("frequency", PAPERS))
    expected = paired(ours, paper)
    assert table.loc["frequency", "nearness difference"] == pytest.approx(expected.mean)
    assert table.loc["frequency", "nearness difference low"] == pytest.approx(expected.interval[0])
    trained = comparing.above_random(made.measured)
    assert list(trained.index) == [PAPERS, *variants.RANDOM]
    random = near.sel(recipe=comparing.RANDOM_PREFIX + "frequency").values.reshape(2, -1)
    assert trained.loc["frequency", "nearness"] == pytest.approx(paired(ours, random).mean)


def test_motifs_are_matched_within_the_layers_that_hold_them(made):
    shapes = (np.array([0.0, 1.0, 0.0, -1.0, 0.0]), np.sin(np.arange(9.0)))
    truth = SimpleNamespace(names=("a", "b"), shapes=shapes, layers=("conv1", "conv3"))
    few = made.visual["signal"].sel(recipe=made.others["recipe"].values)
    table = comparing.motif_table(truth, few, made.others["signal"])
    expected = []
    for shape, layers in ((shapes[0], ["conv1", "conv2", "conv3"]), (shapes[1], ["conv3"])):
        for seed in (0, 1):
            some = few.sel(seed=seed, recipe="frequency", layer=layers).values
            expected.append(motifs.best_match([shape], some.reshape(-1, 30)).max())
    row = table.loc["frequency"]
    assert row["trained"] == pytest.approx(np.mean(expected))
    assert row["above random"] == pytest.approx(row["trained"] - row["random weights"])
    assert row["more than the paper's"] == pytest.approx(row["above random"] - table.loc[PAPERS, "above random"])
    with pytest.raises(ValueError, match="other variants"):
        comparing.motif_table(truth, made.visual["signal"], made.others["signal"])
