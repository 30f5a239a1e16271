"""Activation Maximization: what is climbed, from where, and what comes back. The climbing itself: test_engine."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_trunks import made_trunk
from torch.nn import functional as F

from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.settings import PRESETS, MaximizationSettings

LENGTH = 30
FEW = MaximizationSettings(n_steps=40)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), layer=st.sampled_from(["conv1", "conv2", "conv3"]))
def test_unit_maps_equal_the_full_feature_map(seed, layer):
    trunk = made_trunk(seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((6, LENGTH), generator=generator, dtype=torch.float64)
    unit = torch.randint(0, 4, (6,), generator=generator)
    full = trunk.feature_map(x, layer)[torch.arange(6), unit]
    assert torch.allclose(paper_methods.unit_maps(trunk, layer, unit, x), full, atol=1e-12)


def test_float64_results_do_not_depend_on_the_batch():
    trunk, th = made_trunk(dtype=torch.float64), np.full(4, 0.5)
    whole = paper_methods.maximize(trunk, "conv2", th, settings=FEW, dtype=torch.float64)
    for method in ("naive", "L2+TV+EAP+clip"):
        alone = paper_methods.maximize(
            trunk, "conv2", th, methods=[method], units=[3], settings=FEW, dtype=torch.float64
        )
        expected = whole["signal"].sel(technique=method, unit=3)
        assert np.abs(alone["signal"].values[0, 0] - expected.values).max() < 1e-10


def test_same_input_gives_bit_equal_arrays():
    runs = [paper_methods.maximize(made_trunk(), "conv3", np.ones(4), settings=FEW) for _ in range(2)]
    assert all(runs[0][v].equals(runs[1][v]) for v in runs[0].data_vars)


@pytest.mark.parametrize("method", paper_methods.METHODS)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_objective_rises(method, preset):
    """Lucent's rule: a few steps must raise the objective, for every method."""
    trunk = made_trunk(n_units=6, seed=3)
    # small steps: a projection may undo part of a large one, and Adam overshoots near kinks
    gentle = dataclasses.replace(PRESETS[preset], step_size=min(PRESETS[preset].step_size, 1e-2))
    found = paper_methods.maximize(
        trunk, "conv2", np.full(6, 5.0), methods=[method], preset=gentle, settings=MaximizationSettings(n_steps=5)
    )
    objective = found["objective"].values[0]
    moving = found["activation"].values[0, :, 0] > 0  # a unit that is silent at the start has nothing to climb
    assert moving.any()
    rise = objective[moving, -1] - objective[moving, 0]
    assert (rise > 0).mean() >= 0.8 if method == "lowpass" else (rise > -1e-7).all() and rise.max() > 0


def test_unit_norm_keeps_the_norm_and_lowpass_removes_high_frequencies():
    found = paper_methods.maximize(
        made_trunk(), "conv1", np.ones(4), methods=["unit-norm", "lowpass", "naive"], settings=FEW
    )
    signal = found["signal"]
    assert np.allclose(np.linalg.norm(signal.sel(technique="unit-norm"), axis=-1), 1, atol=1e-5)
    power = np.abs(np.fft.rfft(signal.values, axis=-1)) ** 2
    high = power[..., 11:].sum(-1) / power[..., 1:].sum(-1)
    assert high[1].max() < 0.05 < high[2].max()


def test_clipping_bounds_what_a_unit_is_paid_for():
    found = paper_methods.maximize(made_trunk(), "conv1", np.full(4, 0.2), settings=MaximizationSettings(n_steps=300))
    top = found["map"].max("time")
    assert float(top.sel(technique="naive").max()) > 5 * float(top.sel(technique="L2+TV+EAP+clip").max())


def test_a_dead_unit_has_no_threshold():
    th = np.array([0.5, np.nan, 0.5, 0.5])
    found = paper_methods.maximize(made_trunk(), "conv1", th, settings=FEW)
    assert np.isfinite(found["signal"]).all()
    free, clip = (found["signal"].sel(technique=name, unit=1) for name in ("L2+TV", "L2+TV+clip"))
    assert np.allclose(free, clip)


def test_literal_steps_cannot_move_far():
    found = paper_methods.maximize(made_trunk(), "conv2", np.ones(4), methods=["naive"], preset="literal", settings=FEW)
    start = starting_signal(FEW, LENGTH)
    assert 0 < np.abs(found["signal"].values - start).max() < 0.02


def test_history_is_kept_at_recorded_steps():
    found = paper_methods.maximize(made_trunk(), "conv1", np.ones(4), settings=FEW)
    assert list(found["step"].values) == paper_methods.recorded_steps(FEW.n_steps)
    assert found["step"].values[0] == 0 and found["step"].values[-1] == FEW.n_steps
    last = found.isel(step=-1)
    assert np.allclose(last["amplitude_g"], np.abs(found["signal"]).max("time"), atol=1e-6)
    naive = last.sel(technique="naive")
    assert np.allclose(naive["objective"], naive["activation"]) and np.allclose(
        naive["activation"], found["map"].sel(technique="naive").mean("time"), atol=1e-6
    )


def test_other_starts():
    start = np.random.default_rng(0).normal(size=(1, 4, LENGTH)).astype(np.float32)
    one = MaximizationSettings(n_steps=1)
    found = paper_methods.maximize(
        made_trunk(), "conv1", np.ones(4), methods=["naive"], preset="literal", start=start, settings=one
    )
    assert 0 < np.abs(found["signal"].values - start).max() < 1e-3


def test_the_sine_and_its_period():
    start = starting_signal(MaximizationSettings(), LENGTH)
    assert start[15] == 0, "a node is no rounding error"
    assert (
        start[0] == 0 and abs(np.abs(start).max() - 0.3) < 2e-3 and start[:15].min() >= -1e-7 and start[16:].max() < 0
    )
    twice = starting_signal(MaximizationSettings(start_periods=2.0), LENGTH)
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
        paper_methods.maximize(made_trunk(), arguments.pop("layer"), np.ones(4), **arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_takes_the_same_step():
    one = MaximizationSettings(n_steps=1)
    cpu, gpu = (
        paper_methods.maximize(made_trunk(), "conv3", np.ones(4), settings=one, device=d) for d in ("cpu", "cuda")
    )
    assert np.abs(cpu["signal"] - gpu["signal"]).max() < 1e-5


def test_the_feature_map_of_a_trunk_is_rectified_and_keeps_its_length():
    maps = made_trunk().feature_map(torch.randn(2, LENGTH), "conv3")
    assert maps.shape == (2, 4, LENGTH) and (maps >= 0).all()
    assert torch.equal(maps, F.relu(maps))
