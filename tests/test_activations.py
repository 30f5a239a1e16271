"""Unit statistics against plain numpy on the whole feature map."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harvis_utils.maximization import unit_statistics
from harvis_utils.networks.sfhf import Trunk


def made_trunk(seed: int, n_units: int = 3) -> Trunk:
    generator = torch.Generator().manual_seed(seed)
    weights = (
        torch.randn((n_units, 1, 5), generator=generator),
        torch.randn((n_units, n_units, 5), generator=generator) * 0.4,
    )
    return Trunk(weights, tuple(torch.randn(n_units, generator=generator) * 0.3 for _ in weights))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), chunk=st.sampled_from([1, 7, 16, 4096]))
def test_statistics_equal_plain_numpy(seed, n, chunk):
    segments = np.random.default_rng(seed).normal(size=(n, 12)).astype(np.float32)
    trunk = made_trunk(seed)
    before, unit_statistics.CHUNK = unit_statistics.CHUNK, chunk
    try:
        found = unit_statistics.collect(trunk, segments, n_top=4)
    finally:
        unit_statistics.CHUNK = before
    for layer in trunk.layers:
        maps = trunk.feature_map(torch.tensor(segments), layer).numpy()
        for unit in range(3):
            outputs = maps[:, unit].astype(np.float64).ravel()
            active = outputs[outputs > 0]
            one = found.sel(layer=layer, unit=unit)
            assert bool(one["dead"]) == (len(active) == 0)
            assert np.isclose(one["nonzero"], len(active) / outputs.size)
            assert np.isclose(one["p95"], np.quantile(outputs, 0.95), rtol=1e-6, atol=1e-9)
            assert np.isclose(one["maximum"], outputs.max())
            if len(active):
                assert np.isclose(one["th_eap"], active.mean() + 2 * active.std(), rtol=1e-5)
            else:
                assert np.isnan(one["th_eap"])
            means = maps[:, unit].mean(1)
            top = one["top_segment"].values[: min(4, n)]
            assert np.allclose(means[top], np.sort(means)[::-1][:4], atol=1e-6)


def test_a_unit_that_never_answers_is_dead_and_has_no_threshold():
    trunk = made_trunk(0)
    trunk.biases[0][1] = -100.0
    found = unit_statistics.collect(trunk, np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32))
    one = found.sel(layer="conv1", unit=1)
    assert bool(one["dead"]) and np.isnan(one["th_eap"]) and one["p95"] == 0 and one["nonzero"] == 0


@pytest.mark.parametrize("q", [0.5, 0.95, 1.0])
def test_quantiles_with_many_equal_outputs(q):
    """Zeros and repeated values are where counting by bit patterns could go wrong."""
    values = np.repeat(np.array([0.0, 1e-30, 0.5, 0.5, 2.0], np.float32), 12)[None].repeat(3, 0)
    segments = np.random.default_rng(0).permutation(values.ravel()).reshape(-1, 12)
    trunk = Trunk((torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]]),), (torch.zeros(1),))  # the output is the input
    histogram = unit_statistics._histogram(unit_statistics._bits(torch.tensor(segments.reshape(1, -1))) >> 16, 1)
    found = unit_statistics._quantile(q, histogram, trunk, "conv1", segments, "cpu")
    assert np.isclose(found[0], np.quantile(segments.astype(np.float64), q), rtol=1e-7)
