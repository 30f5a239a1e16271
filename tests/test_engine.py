"""Activation Maximization of trunks: equal to the readable loop, to itself however it is cut, within its bounds, and
what comes back of it."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_trunks import made_trunk, naive

from harvis_utils.fast import ascent, gradients
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.paper_methods import METHODS, Method, maximize
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.settings import PRESETS, MaximizationSettings, Step

LENGTH, LAYERS = 30, ["conv1", "conv2", "conv3"]
FEW, ONE = MaximizationSettings(n_steps=40), MaximizationSettings(n_steps=1)
STEPS = PRESETS | {"momentum": Step("momentum", 0.02, 0.995)}
SINE, DOUBLE = starting_signal(FEW, LENGTH), torch.float64
WEIGHTS = dict.fromkeys(paper_methods.PENALTIES, FEW.weight)


def by_hand(trunk, layer, unit, th, method, step, few, start=SINE):
    """The signal (time,) of the readable loop."""
    recipe = METHODS[method] if isinstance(method, str) else method
    return naive(lambda x: trunk.feature_map(x, layer)[0, unit], th, recipe, step, few, start[None])[0]


# ------------------------------------------------------------------------------------------- the penalties


def test_penalties_by_hand():
    x = torch.tensor([[0.0, 3.0, -4.0], [0.0, 0.0, 0.0]])
    assert gradients.l2_norm(x).tolist() == [5.0, 0.0]
    assert gradients.total_variation(x).tolist() == [10.0, 0.0]
    # excess over 1.5: 1.5 and 2.5, mean 2.0; none in the second signal
    assert gradients.aap(x, 1.5).tolist() == [2.0, 0.0]
    maps = torch.tensor([[0.0, 1.0, 5.0, 3.0], [0.0, 1.0, 2.0, 2.0]], requires_grad=True)
    th = torch.tensor([2.0, 2.0])
    assert gradients.eap(maps, th).tolist() == [2.0, 0.0]  # excess 3 and 1; an output equal to th is not beyond it
    clipped = gradients.clipped(maps, th)
    assert clipped.tolist() == [[0.0, 1.0, 2.0, 2.0], [0.0, 1.0, 2.0, 2.0]]
    clipped.sum().backward()
    assert maps.grad.tolist() == [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]


PENALTIES = {
    "l2": gradients.l2_norm,
    "tv": gradients.total_variation,
    "aap": lambda x: gradients.aap(x, 0.5),
    "eap": lambda x: gradients.eap(x, torch.full((len(x),), 0.5, dtype=x.dtype)),
}


@pytest.mark.parametrize("name", PENALTIES)
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_gradients_of_penalties_match_finite_differences(name, seed):
    x = torch.randn((3, 8), generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    edges = torch.cat([x.diff(dim=1).abs().flatten(), (x.abs() - 0.5).abs().flatten()])
    if edges.min() > 1e-4:  # at a kink there is no derivative to compare with
        assert torch.autograd.gradcheck(PENALTIES[name], x.requires_grad_(), eps=1e-6)


# ---------------------------------------------------------------------------------- the engine and its twin


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("layer", LAYERS)
def test_batch_equals_the_readable_loop_in_float64(layer, step):
    """Unit 2 is silent in the last layer: only the penalties move its signal, which stays symmetric, so that ties and
    zeros have to be kept as what they are."""
    trunk, th = made_trunk(dtype=DOUBLE), np.array([0.3, 0.5, 0.4, 0.6])
    trunk.biases[2][2] -= 100
    made = MaximizationSettings(n_steps=120)
    found = maximize(trunk, layer, th, units=[0, 2], preset=STEPS[step], settings=made, dtype=DOUBLE)["signal"]
    for method in METHODS:
        for unit in (0, 2):
            expected = by_hand(trunk, layer, unit, th[unit], method, STEPS[step], made)
            assert np.abs(found.sel(technique=method, unit=unit).values - expected).max() < 1e-8


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    n_layers=st.integers(1, 4),
    kernel=st.sampled_from([1, 3, 5, 7]),
    step=st.sampled_from(list(STEPS)),
)
def test_any_trunk_and_start_climb_as_in_the_readable_loop(seed, n_layers, kernel, step):
    trunk, layer = made_trunk(3, seed, DOUBLE, n_layers, kernel), f"conv{n_layers}"
    random = np.random.default_rng(seed)
    start, th = random.normal(size=LENGTH), random.uniform(0.1, 2, 3)
    recipes = [Method(tv=True, eap=True), Method(clip=True), METHODS["L2+TV+AAP"]]
    rows = paper_methods.climbing_rows(recipes, [0, 2], th, WEIGHTS)
    how = {"n_steps": 15, "dtype": DOUBLE}
    found = ascent.climb(trunk, layer, rows, np.tile(start, (6, 1)), STEPS[step], **how).signal
    few = MaximizationSettings(n_steps=15)
    for k, (recipe, unit) in enumerate((r, u) for r in recipes for u in (0, 2)):
        expected = by_hand(trunk, layer, unit, th[unit], recipe, STEPS[step], few, start)
        assert np.abs(found[k] - expected).max() < 1e-9


def test_weights_and_thresholds_may_differ_by_method_and_unit():
    trunk, recipe, start = made_trunk(dtype=DOUBLE), METHODS["L2+TV+EAP+clip"], np.tile(SINE, (4, 1))
    th = np.array([[0.3, 0.5, 0.4, 0.6], [0.6, 0.2, 0.8, 0.4]])
    weights = dict.fromkeys(paper_methods.PENALTIES, np.array([[0.1, 0.3], [0.01, 0.05]]))
    rows = paper_methods.climbing_rows([recipe, recipe], [1, 3], th, weights)
    found = ascent.climb(trunk, "conv2", rows, start, STEPS["calibrated"], n_steps=40, dtype=DOUBLE)
    for k, (row, unit, column) in enumerate([(0, 1, 0), (0, 3, 1), (1, 1, 0), (1, 3, 1)]):
        own = dataclasses.replace(FEW, weight=weights["l2"][row, column])
        expected = by_hand(trunk, "conv2", unit, th[row, unit], recipe, STEPS["calibrated"], own)
        assert np.abs(found.signal[k] - expected).max() < 1e-9


def test_one_step_in_float32_equals_float64():
    th = np.full(6, 0.5)
    for layer in LAYERS:
        for preset in PRESETS:
            found = [
                maximize(made_trunk(6, dtype=d), layer, th, preset=preset, settings=ONE, dtype=d)["signal"]
                for d in (torch.float32, DOUBLE)
            ]
            assert np.abs(found[0] - found[1]).max() < 1e-5


# ----------------------------------------------------------------------------------------- chunks and workers


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), layer=st.sampled_from(LAYERS), rows=st.integers(1, 40))
@example(seed=88, layer="conv2", rows=1)
def test_float64_results_do_not_depend_on_blocks_or_workers(seed, layer, rows):
    trunk, th = made_trunk(seed=seed, dtype=DOUBLE), np.full(4, 0.5)
    per_row = int(8e9 / ascent.block_rows(trunk, layer, LENGTH, DOUBLE, int(8e9)))
    # not the sine: two of its samples are equal, and there the last bit, which does depend on the block, decides
    start = 0.3 * np.random.default_rng(seed).normal(size=LENGTH)
    whole, cut = (
        maximize(trunk, layer, th, settings=FEW, dtype=DOUBLE, start=start, **how)
        for how in ({"block_bytes": 10**9, "workers": 1}, {"block_bytes": rows * (per_row + 1), "workers": 2})
    )
    for name in whole.data_vars:
        assert np.abs(whole[name] - cut[name]).max() < 1e-10, name


def test_blocks_keep_to_their_budget_and_threads_are_left_as_they_were():
    trunk, before = made_trunk(64), torch.get_num_threads()
    for layer in trunk.layers:
        for budget in (1, 10**5, 10**7):
            rows = ascent.block_rows(trunk, layer, LENGTH, torch.float32, budget)
            assert rows == 1 or rows * LENGTH * 4 * (2 * 64 * (trunk.depth(layer) - 1) + 16) <= budget
    maximize(made_trunk(), "conv2", np.ones(4), settings=FEW, block_bytes=1, workers=2)
    assert torch.get_num_threads() == before


def test_an_interrupt_stops_all_workers():
    running, ticks = threading.active_count(), []

    def tick(n):
        ticks.append(n)
        raise KeyboardInterrupt

    rows = paper_methods.climbing_rows(list(METHODS.values()), [0, 1, 2, 3], np.ones(4), WEIGHTS)
    about = {"n_steps": 10**6, "block_bytes": 1, "workers": 2, "tick": tick}
    with pytest.raises(KeyboardInterrupt):
        ascent.climb(made_trunk(), "conv3", rows, np.zeros((len(rows), LENGTH)), PRESETS["calibrated"], **about)
    assert threading.active_count() == running and len(ticks) <= 3


def test_several_starts_and_parts_of_a_batch_are_what_each_is_alone():
    trunk, starts = made_trunk(dtype=DOUBLE), np.random.default_rng(0).normal(size=(3, 1, 1, LENGTH))
    made = {"methods": ["naive", "L2+TV"], "settings": FEW, "dtype": DOUBLE}
    found = maximize(trunk, "conv2", np.ones(4), start=starts, units=[1, 3], **made)["signal"]
    assert dict(found.sizes) == {"start": 3, "technique": 2, "unit": 2, "time": LENGTH}
    for i in range(3):
        alone = maximize(trunk, "conv2", np.ones(4), start=starts[i, 0, 0], units=[3], **made)["signal"]
        assert np.abs(found.isel(start=i).sel(unit=[3]) - alone).max() < 1e-10
    runs = [maximize(made_trunk(), "conv3", np.ones(4), settings=FEW) for _ in range(2)]
    assert runs[0].equals(runs[1]), "bit for bit"


# -------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("layer", ["conv1", "conv3"])
def test_a_signal_that_stops_would_not_have_moved(layer, step):
    trunk, tolerance = made_trunk(dtype=DOUBLE), 1e-4
    quick = dataclasses.replace(STEPS[step], decay=0.95)  # a fast decay, so that few steps show it
    stopped, whole = (
        maximize(trunk, layer, np.full(4, 0.5), preset=quick, dtype=DOUBLE, settings=settings)
        for settings in (MaximizationSettings(n_steps=600, tolerance_g=t) for t in (tolerance, 0.0))
    )
    others = stopped["steps"].drop_sel(technique=["lowpass"])
    assert (whole["steps"] == 600).all()
    assert (stopped["steps"].sel(technique="lowpass") == 600).all(), "the filter goes on moving a signal"
    assert int(others.min()) > 0 and int(others.max()) < 600
    assert np.abs(stopped["signal"] - whole["signal"]).max() < tolerance
    # what is recorded after the stop is what was reached
    late = stopped["step"].values[stopped["step"].values >= int(others.max())]
    assert (stopped["objective"].sel(step=late).drop_sel(technique=["lowpass"]).std("step") < 1e-13).all()


@settings(max_examples=6)
@given(seed=st.integers(0, 10_000), step=st.sampled_from(list(STEPS)))
def test_no_step_is_longer_than_its_bound(seed, step):
    """Ascent on a random trunk, one step at a time: each moves a sample by at most what the bound allows."""
    trunk, random = made_trunk(4, seed, DOUBLE), np.random.default_rng(seed)
    x = random.normal(size=(1, 1, LENGTH)) * random.choice([0.1, 3])
    th, one = random.uniform(0.1, 2, 4), dataclasses.replace(STEPS[step], decay=1.0)
    methods = sorted(set(METHODS) - {"lowpass"})
    about = {"methods": methods, "units": [2], "preset": one, "dtype": DOUBLE, "start": x}
    path = [maximize(trunk, "conv3", th, settings=MaximizationSettings(n_steps=n), **about)["signal"] for n in range(6)]
    for k, method in enumerate(methods):
        reach = reach_of(trunk, "conv3", paper_methods.climbing_rows([METHODS[method]], [2], th, WEIGHTS), one)
        assert np.abs(np.diff([x[k] for x in path], axis=0)).max() <= reach * (1 + 1e-9)


def reach_of(trunk, layer, rows, step):
    """Smallest tolerance at which one remaining step, a late one, is no longer taken."""
    gradient = ascent.steepest(trunk, layer, rows, LENGTH)
    low, high = 1e-9, 1e9
    for _ in range(100):
        middle = (low * high) ** 0.5
        taken = ascent.stopping_step(rows, step, 1, LENGTH, middle, gradient)[0]
        low, high = (middle, high) if taken else (low, middle)
    return high


def test_adam_cannot_outrun_its_bound():
    """The steepest history: each gradient b1 / b2 times the one after it, the one that Cauchy-Schwarz names."""
    first = second = 0.0
    for k in reversed(range(4000)):
        g = (ascent.BETA1 / ascent.BETA2) ** k
        first = ascent.BETA1 * first + (1 - ascent.BETA1) * g
        second = ascent.BETA2 * second + (1 - ascent.BETA2) * g**2
    bound = (1 - ascent.BETA1) / np.sqrt((1 - ascent.BETA2) * (1 - ascent.BETA1**2 / ascent.BETA2))
    assert 0.999 * bound < first / np.sqrt(second) <= bound * (1 + 1e-9)


# --------------------------------------------------------------------------------------------- what comes back


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), layer=st.sampled_from(LAYERS))
def test_unit_maps_equal_the_full_feature_map(seed, layer):
    trunk, generator = made_trunk(seed=seed, dtype=DOUBLE), torch.Generator().manual_seed(seed)
    x = torch.randn((6, LENGTH), generator=generator, dtype=DOUBLE)
    unit = torch.randint(0, 4, (6,), generator=generator)
    full = trunk.feature_map(x, layer)[torch.arange(6), unit]
    assert torch.allclose(paper_methods.unit_maps(trunk, layer, unit, x), full, atol=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_objective_rises(preset):
    """Lucent's rule: a few steps must raise the objective, for every method."""
    # small steps: a projection may undo part of a large one, and Adam overshoots near kinks
    gentle = dataclasses.replace(PRESETS[preset], step_size=min(PRESETS[preset].step_size, 1e-2))
    few = MaximizationSettings(n_steps=5)
    every = maximize(made_trunk(n_units=6, seed=3), "conv2", np.full(6, 5.0), preset=gentle, settings=few)
    for method in METHODS:
        found = every.sel(technique=method)
        moving = found["activation"].values[:, 0] > 0  # a unit that is silent at the start has nothing to climb
        assert moving.any()
        rise = (found["objective"].values[:, -1] - found["objective"].values[:, 0])[moving]
        assert (rise > 0).mean() >= 0.8 if method == "lowpass" else (rise > -1e-7).all() and rise.max() > 0


def test_methods_do_what_their_names_say():
    th = np.array([0.2, np.nan, 0.2, 0.2])
    found = maximize(made_trunk(), "conv1", th, settings=MaximizationSettings(n_steps=300))
    signal, top = found["signal"], found["map"].max("time").drop_sel(unit=1)
    assert np.allclose(np.linalg.norm(signal.sel(technique="unit-norm"), axis=-1), 1, atol=1e-5)
    power = np.abs(np.fft.rfft(signal.sel(technique=["lowpass", "naive"]), axis=-1)) ** 2
    high = power[..., 11:].sum(-1) / power[..., 1:].sum(-1)
    assert high[0].max() < 0.1 < high[1].max()
    assert float(top.sel(technique="naive").max()) > 5 * float(top.sel(technique="L2+TV+EAP+clip").max())
    dead = signal.sel(unit=1)  # which has no threshold
    assert np.isfinite(signal).all() and np.allclose(dead.sel(technique="L2+TV"), dead.sel(technique="L2+TV+clip"))


def test_history_is_kept_at_recorded_steps():
    found = maximize(made_trunk(), "conv1", np.ones(4), settings=FEW)
    assert list(found["step"].values) == paper_methods.recorded_steps(FEW.n_steps)
    assert found["step"].values[0] == 0 and found["step"].values[-1] == FEW.n_steps
    last = found.isel(step=-1)
    assert np.allclose(last["amplitude_g"], np.abs(found["signal"]).max("time"), atol=1e-6)
    plain, own = last.sel(technique="naive"), found["map"].sel(technique="naive").mean("time")
    assert np.allclose(plain["objective"], plain["activation"]) and np.allclose(plain["activation"], own, atol=1e-6)


def test_the_sine_and_other_starts_are_what_is_begun_with():
    assert SINE[15] == 0, "a node is no rounding error"
    assert SINE[0] == 0 and abs(np.abs(SINE).max() - 0.3) < 2e-3 and SINE[:15].min() >= -1e-7 and SINE[16:].max() < 0
    twice = starting_signal(MaximizationSettings(start_periods=2.0), LENGTH)
    assert np.allclose(twice[:15], SINE[::2], atol=1e-6)
    other = np.random.default_rng(0).normal(size=(1, 4, LENGTH)).astype(np.float32)
    for start in (SINE, other):
        about = {"methods": ["naive"], "preset": "literal", "start": start, "settings": ONE}
        found = maximize(made_trunk(), "conv1", np.ones(4), **about)["signal"].values
        assert 0 < np.abs(found - start).max() < 1e-3, "literal steps cannot move far"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": "conv9"}, "unknown layer 'conv9'; valid layers: conv1, conv2, conv3"),
        ({"methods": ["L3"]}, "unknown method 'L3'; valid methods: naive, L2.TV"),
        ({"units": [4]}, "conv1 has units 0 to 3; units should be"),
        ({"preset": "guess"}, "unknown preset 'guess'; valid presets: literal, calibrated"),
        ({"preset": Step("newton", 0.1, 0.9)}, "unknown optimizer 'newton'; valid optimizers: ascent, momentum, adam"),
    ],
)
def test_unknown_names_list_the_valid_ones(wrong, message):
    about = {"layer": "conv1", "methods": ["naive"], "settings": FEW, "th_eap": np.ones(4)} | wrong
    with pytest.raises(ValueError, match=message):
        maximize(made_trunk(), **about)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_takes_the_same_step():
    cpu, gpu = (maximize(made_trunk(), "conv3", np.ones(4), settings=ONE, device=d) for d in ("cpu", "cuda"))
    assert np.abs(cpu["signal"] - gpu["signal"]).max() < 1e-5


def test_what_no_signal_can_begin_with_is_refused_and_lost_ones_are_told():
    trunk = made_trunk()
    th = np.full(len(trunk.biases[0]), 1.0)
    for start in (np.where(SINE > 0, np.nan, SINE), SINE[:-1]):
        with pytest.raises(ValueError, match="start should be finite signals of 30 samples"):
            maximize(trunk, "conv1", th, methods=["naive"], settings=ONE, start=start)
    for wrong in ({"dtype": torch.float16}, {"settings": dataclasses.replace(ONE, weight=np.nan)}):
        with pytest.raises(ValueError, match="signals need a finite weight and float32 or float64"):
            maximize(trunk, "conv1", th, methods=["naive"], **({"settings": ONE} | wrong))
    with pytest.raises(ValueError, match="a low-pass filter at 5 Hz needs a rate above 10 Hz, not 8"):
        maximize(trunk, "conv1", th, methods=["lowpass"], settings=ONE, rate_hz=8.0)

    class Standardizing(torch.nn.Module):
        def forward(self, x):
            return ((x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)).relu()

    network = torch.nn.Sequential(Standardizing(), torch.nn.Conv1d(1, 2, 3))
    about = {"methods": ["naive"], "settings": ONE, "n_axes": 1, "length": LENGTH}
    with pytest.warns(UserWarning, match="2 of 2 signals are NaN"):
        maximize(network, "1", np.ones(2), start=np.zeros((1, LENGTH)), **about)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 3, 5, 9]), st.booleans())
def test_a_convolution_by_products_is_the_same(n, channels, units, kernel, biased):
    generator = torch.Generator().manual_seed(n + channels + units + kernel)
    h = torch.randn(n, 30, channels, generator=generator, dtype=torch.float64)
    w = torch.randn(units, channels, 1, kernel, generator=generator, dtype=torch.float64)
    b = torch.randn(units, generator=generator, dtype=torch.float64) if biased else None
    same = torch.nn.functional.conv1d(h.transpose(1, 2), w[:, :, 0], b, padding=kernel // 2).transpose(1, 2)
    for way in (gradients._convolve, gradients._by_products):
        assert torch.allclose(way(h, w.contiguous(memory_format=torch.channels_last), b), same, atol=1e-12)
