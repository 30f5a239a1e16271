"""The one ascent: equal to the fast one on per-axis trunks, and right on networks that mix the sensor axes."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_trunks import made_trunk

from harvis_utils.fast import ascent
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.ascent import climb
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.settings import PRESETS, MaximizationSettings, Step

LENGTH = 30
FEW = MaximizationSettings(n_steps=120)
STEPS = PRESETS | {"momentum": Step("momentum", 0.02, 0.995)}


def both(trunk, layer, recipes, start, step, *, prior=None, **how):
    """What the fast ascent and this one find for units 0 to 2, each from ``start`` (time,)."""
    th = np.linspace(0.2, 0.8, len(trunk.biases[0]))
    weights = dict.fromkeys(paper_methods.PENALTIES, FEW.weight)
    rows = paper_methods.climbing_rows(recipes, [0, 1, 2], th, weights)
    x = np.tile(start, (len(rows), 1))
    how = {"n_steps": 120, "record": (0, 7, 120), "prior": prior} | how
    how["lowpass"] = paper_methods.lowpass_matrix(LENGTH, FEW.lowpass_hz, FEW.lowpass_order, 30.0)
    fast = ascent.climb(trunk, layer, rows, x, step, dtype=torch.float64, **how)
    plain = climb(
        lambda seen: trunk.feature_map(seen[:, 0], layer)[:, :, None],
        rows,
        torch.tensor(x, dtype=torch.float64)[:, None],
        step,
        gradient=ascent.steepest(trunk, layer, rows, LENGTH, prior),
        chunk=10,
        **how,
    )
    return fast, plain


@pytest.mark.parametrize("preset", STEPS)
@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3"])
def test_it_ends_where_the_fast_ascent_ends(layer, preset):
    """All eight methods in float64, also for a unit that is silent, at every recorded step."""
    trunk = made_trunk(dtype=torch.float64)
    trunk.biases[2][1] = -100.0
    recipes = list(paper_methods.METHODS.values())
    fast, plain = both(trunk, layer, recipes, starting_signal(FEW, LENGTH), STEPS[preset])
    assert np.abs(plain.signal[:, 0] - fast.signal).max() < 1e-12
    assert np.abs(plain.map[:, 0] - fast.map).max() < 1e-11
    assert all(np.abs(plain.history[name] - fast.history[name]).max() < 1e-11 for name in ascent.TERMS)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    layer=st.sampled_from(["conv1", "conv2", "conv3"]),
    step=st.sampled_from(list(STEPS)),
    tolerance_g=st.sampled_from([0.0, 1e-2]),
)
def test_any_trunk_start_and_prior_climb_as_in_the_fast_ascent(seed, layer, step, tolerance_g):
    trunk, random = made_trunk(3, seed, torch.float64), np.random.default_rng(seed)
    mixed = random.normal(size=(LENGTH, LENGTH))
    prior = mixed @ mixed.T / LENGTH + np.eye(LENGTH)
    recipes = [*paper_methods.METHODS.values(), paper_methods.Method(tv=True, clip=True, prior=True)]
    quick = dataclasses.replace(STEPS[step], decay=0.9)
    start = random.normal(size=LENGTH)
    fast, plain = both(trunk, layer, recipes, start, quick, n_steps=40, prior=prior, tolerance_g=tolerance_g)
    assert np.array_equal(fast.steps, plain.steps)
    assert np.abs(plain.signal[:, 0] - fast.signal).max() < 1e-11
    assert all(np.abs(plain.history[name] - fast.history[name]).max() < 1e-10 for name in ascent.TERMS)
