"""Unit statistics against plain numpy on the whole feature map."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
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


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), chunk=st.sampled_from([1, 7, 16, 4096]))
@example(seed=476, n=9, chunk=1)
def test_statistics_equal_plain_numpy(seed, n, chunk):
    segments = np.random.default_rng(seed).normal(size=(n, 12)).astype(np.float32)
    trunk = made_trunk(seed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(unit_statistics, "CHUNK", chunk)
        found = unit_statistics.collect(trunk, segments, n_top=4)
    for layer in trunk.layers:
        # in the same chunks: a convolution's last bits depend on how much it is given at once
        maps = torch.cat([trunk.feature_map(x, layer) for x in torch.tensor(segments).split(chunk)]).numpy()
        for unit in range(3):
            outputs = maps[:, unit].astype(np.float64).ravel()
            active = outputs[outputs > 0]
            one = found.sel(layer=layer, unit=unit)
            assert bool(one["dead"]) == (len(active) == 0)
            assert np.isclose(one["nonzero"], len(active) / outputs.size)
            assert np.isclose(one["p95"], np.quantile(outputs, 0.95), rtol=1e-12, atol=0)
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


values = st.one_of(st.floats(-4, 4, width=32), st.sampled_from([0.0, -0.0, 0.5, 1.0]))  # ties and zeros


@settings(max_examples=80)
@given(stream=st.lists(st.lists(values, min_size=1, max_size=9), min_size=1, max_size=8), k=st.integers(1, 80))
@pytest.mark.parametrize("floor", [0.0, -np.inf])
def test_largest_of_a_stream(floor, stream, k):
    """Two rows, one the other upside down, in blocks of any width; what is below the floor counts as the floor."""
    whole = np.concatenate([np.array(block, np.float32) for block in stream])
    largest = unit_statistics.Largest(2, k, floor)
    for block in stream:
        largest.add(np.array([block, [-v for v in block]], np.float32))
    padded = np.concatenate([np.stack([whole, -whole]), np.full((2, k), floor, np.float32)], 1)
    expected = np.sort(np.maximum(padded, np.float32(floor)), 1)[:, -k:]
    np.testing.assert_array_equal(largest.smallest(min(k, 2)), expected[:, : min(k, 2)])


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), chunk=st.sampled_from([1, 7, 4096]))
def test_the_upper_quantile_lies_exactly_between_its_neighbours(seed, n, chunk):
    """With many equal outputs, and to the last bit: numpy's own neighbours, and the straight line between them."""
    rng = np.random.default_rng(seed)
    segments = rng.choice(np.array([0.0, 1e-30, 0.5, 0.5, 2.0, 3.0], np.float32), size=(n, 12))
    trunk = Trunk((torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]]),), (torch.zeros(1),))  # the output is the input
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(unit_statistics, "CHUNK", chunk)
        found = unit_statistics.collect(trunk, segments)["p95"].item()
    low, high = (float(np.quantile(segments.astype(float), 0.95, method=m)) for m in ("lower", "higher"))
    at = 0.95 * (segments.size - 1)
    assert found == low + (high - low) * (at - np.floor(at))


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_what_no_linear_filter_explains_equals_a_regression_of_every_output(layer):
    segments, trunk = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32), made_trunk(3)
    found = unit_statistics.unexplained(trunk, segments).sel(layer=layer).values
    maps, reach = trunk.feature_map(torch.tensor(segments), layer).double().numpy(), trunk.receptive_field(layer)
    places = range(12 - reach + 1)
    seen = np.array([[1.0, *segment[at : at + reach]] for segment in segments for at in places])
    for unit in range(3):
        output = np.array([own[unit, at + reach // 2] for own in maps for at in places])
        left = output - seen @ np.linalg.lstsq(seen, output, rcond=None)[0]
        assert found[unit] == pytest.approx(left.var() / output.var(), abs=1e-6)


def test_a_unit_that_is_never_rectified_is_linear_and_a_dead_one_has_no_share():
    trunk, segments = made_trunk(1), np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)
    bias = torch.tensor([100.0, 0.0, -1e3])
    found = unit_statistics.unexplained(Trunk(trunk.weights[:1], (bias,)), segments).values[0]
    assert found[0] < 1e-6 and 0.1 < found[1] < 1 and np.isnan(found[2])


def test_segments_come_in_any_form_of_numbers_and_are_refused_where_they_are_none():
    trunk = Trunk((torch.randn(2, 1, 3),), (torch.zeros(2),))
    segments = np.random.default_rng(0).normal(size=(9, 12)).astype("float32")
    plain = unit_statistics.collect(trunk, segments)
    for other in (segments.astype(">f4"), segments.astype(float), torch.tensor(segments), segments[::-1].copy()[::-1]):
        assert unit_statistics.collect(trunk, other).equals(plain)
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="segments 0 to 8 hold NaN or infinity"):
            unit_statistics.collect(trunk, np.where(segments == segments[3, 4], wrong, segments))
    uneven = Trunk((torch.randn(2, 1, 3), torch.randn(4, 2, 3)), (torch.zeros(2), torch.zeros(4)))
    with pytest.raises(ValueError, match="layers of this trunk differ in units"):
        unit_statistics.collect(uneven, segments)
    with pytest.raises(ValueError, match="needs a place and windows .window, axis, time., not object"):
        unit_statistics.collect(torch.nn.Conv1d(1, 2, 3), object(), place="")
