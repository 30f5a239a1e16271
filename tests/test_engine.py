"""The engine against a readable loop, autograd, finite differences and what its bounds promise.

``naive`` is its specification: one unit, one method, the whole network, autograd, nothing else.
"""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_trunks import made_trunk

from harvis_utils.fast import ascent, gradients
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.settings import PRESETS, MaximizationSettings, Step

LENGTH = 30
FEW = MaximizationSettings(n_steps=40)
STEPS = PRESETS | {"momentum": Step("momentum", 0.02, 0.995)}


# ------------------------------------------------------------------------------------------- the penalties


def test_penalties_by_hand():
    x = torch.tensor([[0.0, 3.0, -4.0], [0.0, 0.0, 0.0]])
    assert gradients.l2_norm(x).tolist() == [5.0, 0.0]
    assert gradients.total_variation(x).tolist() == [10.0, 0.0]
    # excess over 1.5: 1.5 and 2.5, mean 2.0; none in the second signal
    assert gradients.aap(x, 1.5).tolist() == [2.0, 0.0]
    maps = torch.tensor([[0.0, 1.0, 5.0, 3.0], [0.0, 1.0, 2.0, 2.0]])
    th = torch.tensor([2.0, 2.0])
    assert gradients.eap(maps, th).tolist() == [2.0, 0.0]  # excess 3 and 1; an output equal to th is not beyond it
    assert gradients.clipped(maps, th).tolist() == [[0.0, 1.0, 2.0, 2.0], [0.0, 1.0, 2.0, 2.0]]


def test_no_gradient_flows_through_clipped_outputs():
    maps = torch.tensor([[1.0, 5.0]], requires_grad=True)
    gradients.clipped(maps, torch.tensor([2.0])).sum().backward()
    assert maps.grad.tolist() == [[1.0, 0.0]]


PENALTIES = {
    "l2": gradients.l2_norm,
    "tv": gradients.total_variation,
    "aap": lambda x: gradients.aap(x, 0.5),
    "eap": lambda x: gradients.eap(x, torch.full((len(x),), 0.5, dtype=x.dtype)),
}


@pytest.mark.parametrize("name", PENALTIES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_gradients_of_penalties_match_finite_differences(name, seed):
    x = torch.randn((3, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    edges = torch.cat([x.diff(dim=1).abs().flatten(), (x.abs() - 0.5).abs().flatten(), (x - 0.5).abs().flatten()])
    if edges.min() < 1e-4:  # a kink: no derivative to compare with
        return
    x.requires_grad_()
    PENALTIES[name](x).sum().backward()
    step = 1e-6
    for i in range(3):
        for t in range(8):
            nudge = torch.zeros_like(x)
            nudge[i, t] = step
            with torch.no_grad():
                slope = (PENALTIES[name](x + nudge).sum() - PENALTIES[name](x - nudge).sum()) / (2 * step)
            assert abs(slope - x.grad[i, t]) < 1e-6


# ---------------------------------------------------------------------------------- the engine and its twin


def naive(trunk, layer, unit, th, method, step, settings, start=None, prior=None, shifts=None):
    """One unit, one method, the whole network, a plain loop: what the batch must equal."""
    recipe = paper_methods.METHODS[method] if isinstance(method, str) else method
    lowpass = torch.tensor(
        paper_methods.lowpass_matrix(LENGTH, settings.lowpass_hz, settings.lowpass_order, 30.0).copy(),
        dtype=torch.float64,
    )

    def project(x):
        if recipe.after == "lowpass":
            return lowpass @ x
        return x / x.norm() if recipe.after == "unit-norm" else x

    start = starting_signal(settings, LENGTH) if start is None else start
    x = project(torch.tensor(start, dtype=torch.float64))
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    eta = step.step_size
    for number in range(1, settings.n_steps + 1):
        x.requires_grad_()
        seen = x if shifts is None else x.roll(shifts[number - 1])
        a = trunk.feature_map(seen[None], layer)[0, unit]
        f = torch.minimum(a, torch.tensor(th)).mean() if recipe.clip else a.mean()
        penalty = torch.zeros((), dtype=torch.float64)
        if recipe.l2:
            penalty = penalty + (x**2).sum().sqrt()
        if recipe.tv:
            penalty = penalty + (x[1:] - x[:-1]).abs().sum()
        if recipe.aap and (x.abs() > settings.th_aap_g).any():
            penalty = penalty + (x.abs()[x.abs() > settings.th_aap_g] - settings.th_aap_g).mean()
        if recipe.eap and (a > th).any():
            penalty = penalty + (a[a > th] - th).mean()
        if recipe.prior:
            penalty = penalty + (x @ prior @ x).sqrt()
        (gradient,) = torch.autograd.grad(f - settings.weight * penalty, x)
        x = x.detach()
        if step.optimizer == "ascent":
            x = x + eta * gradient
        elif step.optimizer == "momentum":
            first = 0.9 * first + gradient
            x = x + eta * first
        else:
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            x = x + eta * (first / (1 - 0.9**number)) / ((second / (1 - 0.999**number)).sqrt() + 1e-8)
        x = project(x)
        eta *= step.decay
    return x.numpy()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3"])
def test_batch_equals_the_naive_loop_in_float64(layer, step):
    trunk = made_trunk(dtype=torch.float64)
    th = np.array([0.3, 0.5, 0.4, 0.6])
    units = [0, 2]
    made = dataclasses.replace(FEW, n_steps=200)
    found = paper_methods.maximize(
        trunk, layer, th, units=units, preset=STEPS[step], settings=made, dtype=torch.float64
    )
    for method in paper_methods.METHODS:
        for unit in units:
            expected = naive(trunk, layer, unit, th[unit], method, STEPS[step], made)
            assert np.abs(found["signal"].sel(technique=method, unit=unit).values - expected).max() < 1e-8


@pytest.mark.parametrize("preset", PRESETS)
def test_a_silent_unit_equals_the_naive_loop_too(preset):
    """Only the penalties move its signal, which stays symmetric: ties and zeros have to be kept as what they are."""
    trunk = made_trunk(dtype=torch.float64)
    silent = Trunk(trunk.weights, (*trunk.biases[:2], trunk.biases[2] - 100))
    made = dataclasses.replace(FEW, n_steps=200)
    found = paper_methods.maximize(
        silent, "conv3", np.full(4, 0.5), units=[1], preset=preset, settings=made, dtype=torch.float64
    )
    for method in paper_methods.METHODS:
        expected = naive(silent, "conv3", 1, 0.5, method, PRESETS[preset], made)
        assert np.abs(found["signal"].sel(technique=method, unit=1).values - expected).max() < 1e-8


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_layers=st.integers(1, 4),
    kernel=st.sampled_from([1, 3, 5, 7]),
    method=st.sampled_from(list(paper_methods.METHODS)),
    step=st.sampled_from(list(STEPS)),
)
def test_any_trunk_and_start_climb_as_in_the_naive_loop(seed, n_layers, kernel, method, step):
    trunk = made_trunk(3, seed, torch.float64, n_layers, kernel)
    random = np.random.default_rng(seed)
    start, th = random.normal(size=LENGTH), random.uniform(0.1, 2, 3)
    few = MaximizationSettings(n_steps=15, tolerance_g=0)
    layer = f"conv{n_layers}"
    made = {"settings": few, "preset": STEPS[step], "dtype": torch.float64, "start": start}
    found = paper_methods.maximize(trunk, layer, th, methods=[method], units=[1], **made)
    expected = naive(trunk, layer, 1, th[1], method, STEPS[step], few, start=start)
    assert np.abs(found["signal"].values[0, 0] - expected).max() < 1e-9


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    layer=st.sampled_from(["conv1", "conv2", "conv3"]),
    step=st.sampled_from(list(STEPS)),
    jitter=st.integers(0, 3),
)
def test_prior_and_jitter_climb_as_in_the_naive_loop(seed, layer, step, jitter):
    """A norm of one's own, and a network that sees the signal moved a little, another way in every step."""
    trunk = made_trunk(3, seed, torch.float64)
    random = np.random.default_rng(seed)
    start, th = random.normal(size=LENGTH), random.uniform(0.1, 2, 3)
    mixed = random.normal(size=(LENGTH, LENGTH))
    prior = mixed @ mixed.T / LENGTH + np.eye(LENGTH)
    recipes = [
        paper_methods.Method(tv=True, eap=True, prior=True),
        paper_methods.Method(clip=True, prior=True),
        paper_methods.METHODS["L2+TV"],
    ]
    rows = paper_methods.climbing_rows(recipes, [0, 2], th, dict.fromkeys(paper_methods.PENALTIES, FEW.weight))
    found = ascent.climb(
        trunk, layer, rows, np.tile(start, (6, 1)), STEPS[step], n_steps=15, prior=prior, jitter=jitter,
        dtype=torch.float64,
    )  # fmt: skip
    shifts = np.random.default_rng(0).integers(-jitter, jitter + 1, 15).tolist()
    few = dataclasses.replace(FEW, n_steps=15)
    for k, (recipe, unit) in enumerate((r, u) for r in recipes for u in (0, 2)):
        given = {"start": start, "prior": torch.tensor(prior), "shifts": shifts}
        expected = naive(trunk, layer, unit, th[unit], recipe, STEPS[step], few, **given)
        assert np.abs(found.signal[k] - expected).max() < 1e-9


def test_rows_that_want_a_prior_need_one():
    rows = paper_methods.climbing_rows(
        [paper_methods.Method(prior=True)], [0], np.ones(1), dict.fromkeys(paper_methods.PENALTIES, 0.1)
    )
    with pytest.raises(ValueError, match="no prior matrix"):
        ascent.climb(made_trunk(), "conv1", rows, np.zeros((1, LENGTH)), STEPS["momentum"], n_steps=1)


def test_weights_and_thresholds_may_differ_by_method_and_unit():
    trunk = made_trunk(dtype=torch.float64)
    recipe, th = paper_methods.METHODS["L2+TV+EAP+clip"], np.array([[0.3, 0.5, 0.4, 0.6], [0.6, 0.2, 0.8, 0.4]])
    weights = dict.fromkeys(paper_methods.PENALTIES, np.array([[0.1, 0.3], [0.01, 0.05]]))
    rows = paper_methods.climbing_rows([recipe, recipe], [1, 3], th, weights)
    start = starting_signal(FEW, LENGTH)
    found = ascent.climb(
        trunk, "conv2", rows, np.tile(start, (4, 1)), STEPS["calibrated"], n_steps=40, dtype=torch.float64
    )
    for k, (row, unit, column) in enumerate([(0, 1, 0), (0, 3, 1), (1, 1, 0), (1, 3, 1)]):
        own = dataclasses.replace(FEW, weight=weights["l2"][row, column])
        expected = naive(trunk, "conv2", unit, th[row, unit], recipe, STEPS["calibrated"], own)
        assert np.abs(found.signal[k] - expected).max() < 1e-9


def test_one_step_in_float32_equals_float64():
    th, one = np.full(6, 0.5), dataclasses.replace(FEW, n_steps=1)
    for layer in ("conv1", "conv2", "conv3"):
        for preset in PRESETS:
            found = [
                paper_methods.maximize(made_trunk(6, dtype=d), layer, th, preset=preset, settings=one, dtype=d)[
                    "signal"
                ]
                for d in (torch.float32, torch.float64)
            ]
            assert np.abs(found[0] - found[1]).max() < 1e-5


# ----------------------------------------------------------------------------------------- chunks and workers


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), layer=st.sampled_from(["conv1", "conv2", "conv3"]), rows=st.integers(1, 40))
@example(seed=88, layer="conv2", rows=1)
def test_float64_results_do_not_depend_on_blocks_or_workers(seed, layer, rows):
    trunk, th = made_trunk(seed=seed, dtype=torch.float64), np.full(4, 0.5)
    per_row = int(8e9 / ascent.block_rows(trunk, layer, LENGTH, torch.float64, int(8e9)))
    # not the sine: two of its samples are equal, and there the last bit, which does depend on the block, decides
    start = 0.3 * np.random.default_rng(seed).normal(size=LENGTH)
    whole, cut = (
        paper_methods.maximize(trunk, layer, th, settings=FEW, dtype=torch.float64, start=start, **how)
        for how in ({"block_bytes": 10**9, "workers": 1}, {"block_bytes": rows * (per_row + 1), "workers": 2})
    )
    for name in whole.data_vars:
        assert np.abs(whole[name] - cut[name]).max() < 1e-10, name


def test_blocks_keep_to_their_budget():
    trunk = made_trunk(64)
    for layer in trunk.layers:
        for budget in (1, 10**5, 10**7):
            rows = ascent.block_rows(trunk, layer, LENGTH, torch.float32, budget)
            hidden = 64 * (trunk.depth(layer) - 1)
            assert rows == 1 or rows * LENGTH * 4 * (2 * hidden + 16) <= budget


def test_workers_leave_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    paper_methods.maximize(made_trunk(), "conv2", np.ones(4), settings=FEW, block_bytes=1, workers=2)
    assert torch.get_num_threads() == before


def test_an_interrupt_stops_all_workers():
    running = threading.active_count()
    ticks = []

    def tick(n):
        ticks.append(n)
        raise KeyboardInterrupt

    rows = paper_methods.climbing_rows(
        list(paper_methods.METHODS.values()), [0, 1, 2, 3], np.ones(4), dict.fromkeys(paper_methods.PENALTIES, 0.1)
    )
    start = np.zeros((len(rows), LENGTH), np.float32)
    step = PRESETS["calibrated"]
    with pytest.raises(KeyboardInterrupt):
        ascent.climb(made_trunk(), "conv3", rows, start, step, n_steps=10**6, block_bytes=1, workers=2, tick=tick)
    assert threading.active_count() == running and len(ticks) <= 3


# -------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("layer", ["conv1", "conv3"])
def test_a_signal_that_stops_would_not_have_moved(layer, step):
    trunk, th = made_trunk(dtype=torch.float64), np.full(4, 0.5)
    tolerance = 1e-4
    # a fast decay, so that few steps show it
    quick = dataclasses.replace(STEPS[step], decay=0.95)
    made = [
        paper_methods.maximize(
            trunk,
            layer,
            th,
            preset=quick,
            dtype=torch.float64,
            settings=MaximizationSettings(n_steps=600, tolerance_g=tolerance if stops else 0.0),
        )
        for stops in (True, False)
    ]
    taken = made[0]["steps"]
    assert (made[1]["steps"] == 600).all()
    assert (taken.sel(technique="lowpass") == 600).all(), "the filter goes on moving a signal"
    others = taken.drop_sel(technique=["lowpass"])
    assert int(others.min()) > 0 and int(others.max()) < 600
    assert np.abs(made[0]["signal"] - made[1]["signal"]).max() < tolerance
    # what is recorded after the stop is what was reached
    late = made[0]["step"].values[made[0]["step"].values >= int(others.max())]
    assert (made[0]["objective"].sel(step=late).drop_sel(technique=["lowpass"]).std("step") < 1e-13).all()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), step=st.sampled_from(list(STEPS)))
def test_no_step_is_longer_than_its_bound(seed, step):
    """Ascent on a random trunk, one step at a time: each moves a sample by at most what the bound allows."""
    trunk = made_trunk(4, seed, torch.float64)
    random = np.random.default_rng(seed)
    x = random.normal(size=(1, 1, LENGTH)) * random.choice([0.1, 3])
    th = random.uniform(0.1, 2, 4)
    for method in set(paper_methods.METHODS) - {"lowpass"}:
        rows = paper_methods.climbing_rows(
            [paper_methods.METHODS[method]], [2], th, dict.fromkeys(paper_methods.PENALTIES, 0.1)
        )
        one = dataclasses.replace(STEPS[step], decay=1.0)
        reach = reach_of(trunk, "conv3", rows, one)
        made = {"methods": [method], "units": [2], "preset": one, "dtype": torch.float64, "start": x}
        path = [
            paper_methods.maximize(trunk, "conv3", th, settings=MaximizationSettings(n_steps=n), **made)[
                "signal"
            ].values
            for n in range(6)
        ]
        assert np.abs(np.diff(path, axis=0)).max() <= reach * (1 + 1e-9)


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


def test_unknown_optimizers_are_refused():
    with pytest.raises(ValueError, match="unknown optimizer 'newton'; valid optimizers: ascent, momentum, adam"):
        paper_methods.maximize(made_trunk(), "conv1", np.ones(4), preset=Step("newton", 0.1, 0.9), settings=FEW)


def test_several_starting_points():
    starts = np.random.default_rng(0).normal(size=(3, 1, 1, LENGTH))
    made = {"methods": ["naive", "L2+TV"], "units": [1, 3], "settings": FEW, "dtype": torch.float64}
    found = paper_methods.maximize(made_trunk(dtype=torch.float64), "conv2", np.ones(4), start=starts, **made)
    assert dict(found["signal"].sizes) == {"start": 3, "technique": 2, "unit": 2, "time": LENGTH}
    for i in range(3):
        alone = paper_methods.maximize(
            made_trunk(dtype=torch.float64), "conv2", np.ones(4), start=starts[i, 0, 0], **made
        )
        assert np.abs(found["signal"].isel(start=i) - alone["signal"]).max() < 1e-12
