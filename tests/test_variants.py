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
from harvis_utils.metrics.explanation import explained
from harvis_utils.paper import climbing, comparing, explaining, variants
from harvis_utils.paper.variants import BY_NAME, EXPLAINER, EXPLAINING, LIKELIEST_TRIGGER
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
from harvis_utils.training.published import NotPublished

pytestmark = pytest.mark.usefixtures("one_thread")

UNITS = [0, 2, 5]
SMALL = PriorSettings(n_hidden=32, n_code=16, n_steps=100, batch_size=64)
STEPS = VisualSettings(n_steps=30)
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
        nets = supervised.networks(cfg, tiny_windows)
        stats, denoiser = unit_statistics.statistics(cfg, tiny_windows, nets), priors.prior(cfg, tiny_windows)

        def everything():
            return {
                "scores": climbing.reading_scores(cfg, tiny_windows, nets, stats, SOME),
                "visual": climbing.signals(cfg, tiny_windows, nets, stats, EXPLAINING, UNITS, denoiser),
                "likeliest": climbing.likeliest_triggers(cfg, tiny_windows, nets, stats),
            }

        found = everything()
        with results.around_builds(lambda stage, key: pytest.fail(f"a result of {stage} is made again")):
            again = everything()
    return SimpleNamespace(nets=nets, stats=stats, again=again, denoiser=denoiser, **found)


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
    assert len(BY_NAME) == len(EXPLAINING) == 16
    assert variants.tried(load_settings("desk").visual) == list(EXPLAINING)
    quick = {one.name for one in variants.tried(load_settings("quick").visual)}
    assert EXPLAINER in quick < set(BY_NAME) and len(quick) == 7


def test_what_explains_most_is_chosen_and_of_equals_what_does_least():
    accuracy = dict.fromkeys((one.name for one in EXPLAINING), 0.6)
    plain = variants.Visual("plain", "plain")
    assert variants.levers(plain) == 0 and variants.levers(BY_NAME["one position"]) == 1
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
    found = climbing.climb.function(net, th_eap, tiny_windows, alike, TRIED, [0, 3], cfg.maximization)
    found = found.sel(reading=reading.name)
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


def test_every_variant_gives_signals_of_its_own(made):
    assert made.visual["technique"].values.tolist() == [one.name for one in EXPLAINING]
    signal = made.visual["signal"].transpose("technique", ...).values
    assert np.isfinite(signal).all()
    for i in range(1, len(signal)):
        apart = np.abs(signal[i] - signal[:i]).reshape(i, -1).max(1)
        assert (apart > 1e-5).all(), f"{EXPLAINING[i].name} is the same as one before"


def test_the_likeliest_trigger_is_what_was_chosen_and_stands_beside_the_papers_methods(cfg, made, tiny_windows):
    signal = made.likeliest["signal"].sel(technique=LIKELIEST_TRIGGER)
    assert signal.dims == ("seed", "layer", "unit", "time") and list(signal["unit"].values) == list(range(6))
    papers = paper_methods.signals(cfg, made.nets, made.stats, (PROPOSED,), ("calibrated",)).sel(preset="calibrated")
    both = comparing.joined(papers, made.likeliest, "technique")["signal"]
    assert list(both["technique"].values) == [PROPOSED, LIKELIEST_TRIGGER]
    assert np.array_equal(both.sel(technique=LIKELIEST_TRIGGER), signal)
    whole = dataclasses.replace(cfg.visual, n_units=16)
    again = climbing.visual_signals.function(
        made.nets[1],
        made.stats["th_eap"].isel(seed=1, drop=True),
        tiny_windows,
        BY_NAME[EXPLAINER],
        range(6),
        whole,
        None,
    )
    assert np.array_equal(signal[1], again["signal"])


def test_in_the_prior_norm_real_windows_are_short_and_noise_is_long(tiny_windows):
    split = tiny_windows.train
    prior = climbing.window_prior(split)
    assert np.allclose(prior, prior.T) and np.linalg.eigvalsh(prior)[0] > 0
    segments = split.segments.astype(np.float64)
    own = np.einsum("it,ts,is->i", segments, prior, segments).mean()
    assert own == pytest.approx((segments**2).sum(1).mean())
    noise = np.random.default_rng(0).normal(size=segments.shape) * np.sqrt((segments**2).mean())
    assert np.einsum("it,ts,is->i", noise, prior, noise).mean() > 2 * own


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
        net, reading = SimpleNamespace(trunk=trunk), variants.Variant("x", **changes)
        longer = MaximizationSettings(n_steps=1200)
        return climbing.climb.function(net, th_eap, tiny_windows, [reading], method, range(4), longer)["signal"].values

    assert np.abs(climbed(small, th / 100, per_unit=True) - climbed(large, th, per_unit=True)).max() < 0.05
    assert np.abs(climbed(small, th / 100)).max() < 0.01, "the plain weight flattens it"


# ---------------------------------------------------------------------------------------- feature visualization


def test_maps_are_those_of_the_signals_own_units(made, tiny_windows):
    for net in made.nets:
        for layer in net.trunk.layers:
            some = made.visual.sel(seed=net.seed, layer=layer)
            for name in some["technique"].values[::5]:
                x = torch.tensor(some["signal"].sel(technique=name).values.astype(np.float32))
                expected = net.trunk.feature_map(x, layer)[range(3), UNITS].numpy()
                assert np.allclose(some["map"].sel(technique=name), expected, atol=1e-5)


def test_a_plain_variant_is_visualizing_layer_by_layer(made, tiny_windows):
    net, th_eap = made.nets[0], made.stats["th_eap"].isel(seed=0)
    bound = visualization.amplitude_bound(tiny_windows.train)
    start = climbing.noise_starts(tiny_windows, 3 * len(UNITS), net.seed)
    for k, layer in enumerate(net.trunk.layers):
        view = visualization.PerAxis(net.model, layer)
        th = th_eap.sel(layer=layer, unit=UNITS).values
        alone = visualization.visualize(
            view, objectives.neuron(view.tap(layer), UNITS, at_most=np.nan_to_num(th, nan=np.inf).tolist()),
            start[3 * k : 3 * k + 3], coordinates.in_frequency(30, bound), n_steps=STEPS.n_steps,
            step_size=STEPS.step_size,
        )  # fmt: skip
        ours = made.visual["signal"].sel(seed=net.seed, technique="one position", layer=layer).values
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


def test_of_a_network_of_which_only_the_trunk_is_published_the_same_is_made(made, tiny_windows):
    net, th_eap = made.nets[0], made.stats["th_eap"].isel(seed=0, drop=True)
    bare = dataclasses.replace(net, model=NotPublished(net.seed), folded=net.trunk)
    few = VisualSettings(n_steps=4)
    whole, part = (
        climbing.visual_signals.function(of, th_eap, tiny_windows, BY_NAME[EXPLAINER], UNITS, few, None)
        for of in (net, bare)
    )
    assert np.abs(whole["signal"] - part["signal"]).max() < 1e-4


def test_of_several_copies_the_one_with_the_highest_objective_is_kept(made, tiny_windows, monkeypatch):
    net, th_eap, kept = made.nets[0], made.stats["th_eap"].isel(seed=0), []
    whole = visualization.visualize
    monkeypatch.setattr(visualization, "visualize", lambda *a, **k: kept.append(whole(*a, **k)) or kept[-1])
    variant = BY_NAME[EXPLAINER]
    found = climbing.visual_signals.function(net, th_eap, tiny_windows, variant, UNITS, STEPS, None)
    score = kept[0].score.reshape(3, len(UNITS), 4)
    for i, j in np.ndindex(3, len(UNITS)):
        expected = kept[0].signal.reshape(3, len(UNITS), 4, -1)[i, j, score[i, j].argmax()]
        assert np.array_equal(found["signal"].values[i, j], expected)


def test_starts_are_noise_of_one_size(tiny_windows):
    starts = climbing.noise_starts(tiny_windows, 9, 4)
    assert starts.shape == (9, 1, 30) and len(np.unique(starts.round(6), axis=0)) == 9
    sine = MaximizationSettings().start_amplitude_g / 2**0.5
    assert np.sqrt((starts**2).mean(2)) == pytest.approx(np.full((9, 1), sine), rel=1e-5)


def test_a_dead_unit_is_neither_clipped_nor_in_the_way(made, tiny_windows):
    th_eap = made.stats["th_eap"].isel(seed=0).copy(deep=True)
    th_eap.loc[{"layer": "conv2", "unit": 2}] = np.nan
    variant = dataclasses.replace(BY_NAME["spectrum as norm"], unlikely=0.5, copies=2)
    found = climbing.visual_signals.function(made.nets[0], th_eap, tiny_windows, variant, UNITS, STEPS, None)
    assert found["signal"].notnull().all()


def test_variants_are_chosen_by_the_mean_of_means(cfg, made, tiny_windows, monkeypatch, tmp_path):
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path))
    some = [BY_NAME[name] for name in ("one position", "covariance as norm")]
    about = (cfg, tiny_windows, made.nets, made.stats)
    names = [one.name for one in some]
    found = explaining.explanations(*about, made.visual["signal"].sel(technique=names)).sel(technique=names)
    assert set(found["accuracy"].dims) == {"seed", "technique", "layer", "unit"} and found["accuracy"].notnull().any()
    net, own = made.nets[0], {"seed": made.nets[0].seed, "technique": names, "layer": "conv2"}
    th, signals = made.stats["th_eap"].isel(seed=0).sel(layer="conv2"), made.visual["signal"].sel(own)
    direct = explained(net.trunk, "conv2", signals, tiny_windows.test, th, cfg.explanation)["accuracy"]
    assert np.allclose(found["accuracy"].sel(own).transpose(*direct.dims), direct, equal_nan=True), "in test windows"
    values = np.linspace(0, 1, found["accuracy"].size).reshape(found["accuracy"].shape)
    first = found.assign(accuracy=(found["accuracy"].dims, values))
    gaps = first.assign(accuracy=first["accuracy"].where((first["unit"] != 0) | (first["layer"] != "conv1")))
    accuracy = explaining.mean_accuracy([first, gaps], names)
    a, b = (one["accuracy"].transpose("technique", "layer", "seed", "unit").values for one in (first, gaps))
    expected = [(np.mean(p) + np.mean([[np.nanmean(u) for u in s] for s in q])) / 2 for p, q in zip(a, b, strict=True)]
    assert list(accuracy.values()) == pytest.approx(expected) and list(accuracy) == names
