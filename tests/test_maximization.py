"""Activation Maximization against hand-computed values, finite differences and a readable loop."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from harvis_utils import maximization as m
from harvis_utils.config import MaximizationSettings
from harvis_utils.models import Trunk

LENGTH = 30
FEW = MaximizationSettings(n_steps=40)


def made_trunk(n_units: int = 4, seed: int = 0, dtype=torch.float32) -> Trunk:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = (normal(n_units, 1, 5), *(normal(n_units, n_units, 5) * (0.4 / n_units) ** 0.5 for _ in range(2)))
    return Trunk(weights, tuple(0.1 * normal(n_units) for _ in range(3)))


# ------------------------------------------------------------------------------------------- the penalties


def test_penalties_by_hand():
    x = torch.tensor([[0.0, 3.0, -4.0], [0.0, 0.0, 0.0]])
    assert m.l2_norm(x).tolist() == [5.0, 0.0]
    assert m.total_variation(x).tolist() == [10.0, 0.0]
    # excess over 1.5: 1.5 and 2.5, mean 2.0; none in the second signal
    assert m.aap(x, 1.5).tolist() == [2.0, 0.0]
    maps = torch.tensor([[0.0, 1.0, 5.0, 3.0], [0.0, 1.0, 2.0, 2.0]])
    th = torch.tensor([2.0, 2.0])
    assert m.eap(maps, th).tolist() == [2.0, 0.0]  # excess 3 and 1; an output equal to th is not beyond it
    assert m.clipped(maps, th).tolist() == [[0.0, 1.0, 2.0, 2.0], [0.0, 1.0, 2.0, 2.0]]


def test_no_gradient_flows_through_clipped_outputs():
    maps = torch.tensor([[1.0, 5.0]], requires_grad=True)
    m.clipped(maps, torch.tensor([2.0])).sum().backward()
    assert maps.grad.tolist() == [[1.0, 0.0]]


PENALTIES = {
    "l2": m.l2_norm,
    "tv": m.total_variation,
    "aap": lambda x: m.aap(x, 0.5),
    "eap": lambda x: m.eap(x, torch.full((len(x),), 0.5, dtype=x.dtype)),
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


def naive(trunk, layer, unit, th, method, preset, settings, length=LENGTH):
    """One unit, one method, the whole network, a plain loop: what the batch must equal."""
    recipe, preset = m.METHODS[method], m.PRESETS[preset]
    lowpass = torch.tensor(
        m.lowpass_matrix(length, settings.lowpass_hz, settings.lowpass_order, 30.0).copy(), dtype=torch.float64
    )

    def project(x):
        if recipe.after == "lowpass":
            return lowpass @ x
        return x / x.norm() if recipe.after == "unit-norm" else x

    x = project(torch.tensor(m.starting_signal(settings, length), dtype=torch.float64))
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    eta = preset.step_size
    for step in range(1, settings.n_steps + 1):
        x.requires_grad_()
        a = trunk.feature_map(x[None], layer)[0, unit]
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
        (gradient,) = torch.autograd.grad(f - settings.weight * penalty, x)
        x = x.detach()
        if preset.optimizer == "ascent":
            x = x + eta * gradient
        else:
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            x = x + eta * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        x = project(x)
        eta *= preset.decay
    return x.numpy()


@pytest.mark.parametrize("preset", m.PRESETS)
@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3"])
def test_batch_equals_the_naive_loop_in_float64(layer, preset):
    trunk = made_trunk(dtype=torch.float64)
    th = np.array([0.3, 0.5, 0.4, 0.6])
    units = [0, 2]
    found = m.maximize(trunk, layer, th, units=units, preset=preset, settings=FEW, dtype=torch.float64)
    for method in m.METHODS:
        for unit in units:
            expected = naive(trunk, layer, unit, th[unit], method, preset, FEW)
            assert np.abs(found["signal"].sel({"method": method, "unit": unit}).values - expected).max() < 1e-8


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), layer=st.sampled_from(["conv1", "conv2", "conv3"]))
def test_unit_maps_equal_the_full_feature_map(seed, layer):
    trunk = made_trunk(seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((6, LENGTH), generator=generator, dtype=torch.float64)
    unit = torch.randint(0, 4, (6,), generator=generator)
    full = trunk.feature_map(x, layer)[torch.arange(6), unit]
    assert torch.allclose(m.unit_maps(trunk, layer, unit, x), full, atol=1e-12)


def test_float64_results_do_not_depend_on_the_batch():
    trunk, th = made_trunk(dtype=torch.float64), np.full(4, 0.5)
    whole = m.maximize(trunk, "conv2", th, settings=FEW, dtype=torch.float64)
    for method in ("naive", "L2+TV+EAP+clip"):
        alone = m.maximize(trunk, "conv2", th, methods=[method], units=[3], settings=FEW, dtype=torch.float64)
        expected = whole["signal"].sel({"method": method, "unit": 3})
        assert np.abs(alone["signal"].values[0, 0] - expected.values).max() < 1e-10


def test_same_input_gives_bit_equal_arrays():
    runs = [m.maximize(made_trunk(), "conv3", np.ones(4), settings=FEW) for _ in range(2)]
    assert all(runs[0][v].equals(runs[1][v]) for v in runs[0].data_vars)


@pytest.mark.parametrize("method", m.METHODS)
@pytest.mark.parametrize("preset", m.PRESETS)
def test_the_objective_rises(method, preset):
    """Lucent's rule: a few steps must raise the objective, for every method."""
    trunk = made_trunk(n_units=6, seed=3)
    # small steps: a projection may undo part of a large one, and Adam overshoots near kinks
    gentle = dataclasses.replace(m.PRESETS[preset], step_size=min(m.PRESETS[preset].step_size, 1e-2))
    found = m.maximize(
        trunk, "conv2", np.full(6, 5.0), methods=[method], preset=gentle, settings=MaximizationSettings(n_steps=5)
    )
    objective = found["objective"].values[0]
    moving = found["activation"].values[0, :, 0] > 0  # a unit that is silent at the start has nothing to climb
    assert moving.any()
    rise = objective[moving, -1] - objective[moving, 0]
    assert (rise > 0).mean() >= 0.8 if method == "lowpass" else (rise > -1e-7).all() and rise.max() > 0


def test_unit_norm_keeps_the_norm_and_lowpass_removes_high_frequencies():
    found = m.maximize(made_trunk(), "conv1", np.ones(4), methods=["unit-norm", "lowpass", "naive"], settings=FEW)
    signal = found["signal"]
    assert np.allclose(np.linalg.norm(signal.sel({"method": "unit-norm"}), axis=-1), 1, atol=1e-5)
    power = np.abs(np.fft.rfft(signal.values, axis=-1)) ** 2
    high = power[..., 11:].sum(-1) / power[..., 1:].sum(-1)
    assert high[1].max() < 0.05 < high[2].max()


def test_clipping_bounds_what_a_unit_is_paid_for():
    found = m.maximize(made_trunk(), "conv1", np.full(4, 0.2), settings=MaximizationSettings(n_steps=300))
    top = found["map"].max("time")
    assert float(top.sel({"method": "naive"}).max()) > 5 * float(top.sel({"method": "L2+TV+EAP+clip"}).max())


def test_a_dead_unit_has_no_threshold():
    th = np.array([0.5, np.nan, 0.5, 0.5])
    found = m.maximize(made_trunk(), "conv1", th, settings=FEW)
    assert np.isfinite(found["signal"]).all()
    free, clip = (found["signal"].sel({"method": name, "unit": 1}) for name in ("L2+TV", "L2+TV+clip"))
    assert np.allclose(free, clip)


def test_literal_steps_cannot_move_far():
    found = m.maximize(made_trunk(), "conv2", np.ones(4), methods=["naive"], preset="literal", settings=FEW)
    start = m.starting_signal(FEW, LENGTH)
    assert 0 < np.abs(found["signal"].values - start).max() < 0.02


def test_history_is_kept_at_recorded_steps():
    found = m.maximize(made_trunk(), "conv1", np.ones(4), settings=FEW)
    assert list(found["step"].values) == m.recorded_steps(FEW.n_steps)
    assert found["step"].values[0] == 0 and found["step"].values[-1] == FEW.n_steps
    last = found.isel(step=-1)
    assert np.allclose(last["amplitude_g"], np.abs(found["signal"]).max("time"), atol=1e-6)
    naive = last.sel({"method": "naive"})
    assert np.allclose(naive["objective"], naive["activation"]) and np.allclose(
        naive["activation"], found["map"].sel({"method": "naive"}).mean("time"), atol=1e-6
    )


def test_other_starts():
    start = np.random.default_rng(0).normal(size=(1, 4, LENGTH)).astype(np.float32)
    one = MaximizationSettings(n_steps=1)
    found = m.maximize(
        made_trunk(), "conv1", np.ones(4), methods=["naive"], preset="literal", start=start, settings=one
    )
    assert 0 < np.abs(found["signal"].values - start).max() < 1e-3


def test_the_sine_and_its_period():
    start = m.starting_signal(MaximizationSettings(), LENGTH)
    assert (
        start[0] == 0 and abs(np.abs(start).max() - 0.3) < 2e-3 and start[:15].min() >= -1e-7 and start[16:].max() < 0
    )
    twice = m.starting_signal(MaximizationSettings(start_periods=2.0), LENGTH)
    assert np.allclose(twice[:15], start[::2], atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": "conv9"}, "unknown layer 'conv9'; valid layers: conv1, conv2, conv3"),
        ({"methods": ["L3"]}, "unknown method 'L3'; valid methods: naive, L2.TV"),
        ({"units": [4]}, "unknown unit 4; valid units: 0, 1, 2, 3"),
        ({"preset": "guess"}, "unknown preset 'guess'; valid presets: literal, calibrated"),
    ],
)
def test_unknown_names_list_the_valid_ones(wrong, message):
    arguments = {"layer": "conv1", "methods": ["naive"], "settings": FEW} | wrong
    with pytest.raises(ValueError, match=message):
        m.maximize(made_trunk(), arguments.pop("layer"), np.ones(4), **arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_takes_the_same_step():
    one = MaximizationSettings(n_steps=1)
    cpu, gpu = (m.maximize(made_trunk(), "conv3", np.ones(4), settings=one, device=d) for d in ("cpu", "cuda"))
    assert np.abs(cpu["signal"] - gpu["signal"]).max() < 1e-5


def test_the_feature_map_of_a_trunk_is_rectified_and_keeps_its_length():
    maps = made_trunk().feature_map(torch.randn(2, LENGTH), "conv3")
    assert maps.shape == (2, 4, LENGTH) and (maps >= 0).all()
    assert torch.equal(maps, F.relu(maps))
