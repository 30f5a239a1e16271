"""Agreement of networks: against plain loops, known answers and its own nulls."""

from __future__ import annotations

import dataclasses
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_motifs import naive_ncc
from test_recovery import FEW

from harvis_utils.metrics import agreement
from harvis_utils.settings import SimilaritySettings

SIMILARITY = SimilaritySettings(piece=10)


def layers_of(values, maps=None, dead=None, seeds=None):
    """Dataset of (seed, layer, unit, time) values with maps that are largest under a known piece."""
    values = np.asarray(values, dtype=float)
    maps = np.abs(np.random.default_rng(0).normal(size=values.shape)) if maps is None else maps
    dims = ("seed", "layer", "unit", "time")
    dead = np.zeros(values.shape[:3], bool) if dead is None else dead
    coords = {"seed": list(range(len(values))) if seeds is None else list(seeds)}
    coords["layer"] = [f"conv{k + 1}" for k in range(values.shape[1])]
    return xr.Dataset({"signal": (dims, values), "map": (dims, maps), "dead": (dims[:3], dead)}, coords=coords)


def smooth(seed, *shape):
    """Signals with no steps from sample to sample, as a maximized signal has; two of them are seldom equal."""
    x = np.random.default_rng(seed).normal(size=(*shape, 36))
    return np.lib.stride_tricks.sliding_window_view(x, 7, axis=-1).mean(-1)


def naive_similarity(x, first_x, y, first_y, length):
    one = naive_ncc(x[first_x : first_x + length], y)
    return (one + naive_ncc(y[first_y : first_y + length], x)) / 2


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), n_a=st.integers(1, 4), n_b=st.integers(1, 4), length=st.integers(3, 12))
def test_similarity_and_matching_equal_plain_loops(seed, n_a, n_b, length):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n_a, 14)), rng.normal(size=(n_b, 14))
    b[0, :8] = 1.0  # constant pieces match nothing
    first_a, first_b = rng.integers(0, 14 - length + 1, n_a), rng.integers(0, 14 - length + 1, n_b)
    if length <= 8:
        first_b[0] = max(first_b[0], 9 - length)  # but no unit's own piece is constant
    ours = [agreement.units_of(x, first, length) for x, first in ((a, first_a), (b, first_b))]
    found = agreement.unit_similarity(*ours)
    expected = np.array(
        [
            [naive_similarity(x, i, y, j, length) for y, j in zip(b, first_b, strict=True)]
            for x, i in zip(a, first_a, strict=True)
        ]
    )
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(agreement.unit_similarity(*ours[::-1]), expected.T, atol=1e-9)
    mine, yours, values = agreement.matched(*ours)
    assert len(set(mine)) == len(set(yours)) == len(values) == min(n_a, n_b)
    np.testing.assert_allclose(values, expected[mine, yours], atol=1e-9)
    small, large = (expected, n_b) if n_a <= n_b else (expected.T, n_a)
    best = max(sum(small[i, j] for i, j in enumerate(p)) for p in permutations(range(large), len(small)))
    assert values.sum() == pytest.approx(best)


def test_a_permuted_copy_agrees_fully_and_its_permutation_is_found():
    x, order = smooth(0, 1, 1, 12), np.random.default_rng(1).permutation(12)
    one = layers_of(x)
    both = xr.concat([one, one.isel(unit=order).assign_coords(seed=[1])], "seed")
    table = agreement.agreement(both, layers_of(smooth(2, 20, 1, 12), seeds=range(100, 120)), SIMILARITY, FEW)
    row = table.iloc[0]
    assert len(table) == 1 and row["agreement"] == pytest.approx(1) and row["share_above"] == 1
    assert row["random_agreement"] < 0.95 and row["n_matched"] == 12 and row["threshold"] < 1
    first = agreement.status(both, SIMILARITY)["first"].values[:, 0]
    units = [agreement.units_of(both["signal"].values[k, 0], first[k], 10) for k in (0, 1)]
    mine, yours, values = agreement.matched(*units)
    np.testing.assert_array_equal(order[yours], mine)
    np.testing.assert_allclose(values, 1)


def test_independent_noise_agrees_as_its_nulls_do():
    made, random = layers_of(smooth(3, 4, 2, 16)), layers_of(smooth(4, 20, 2, 16), seeds=range(100, 120))
    table = agreement.agreement(made, random, SIMILARITY, dataclasses.replace(FEW, n_matchings=20))
    assert len(table) == 2 * 6 and set(table["threshold_from"]) <= {"random weights", "phase-scrambled"}
    for name in ("random_agreement", "scrambled_agreement"):
        assert (table["agreement"] - table[name]).abs().max() < 0.06
    assert table["share_above"].mean() < 0.12
    nulls = table[["random_share_above", "scrambled_share_above"]]
    assert nulls.max(axis=1).between(0.03, 0.06).all() and (nulls.min(axis=1) <= nulls.max(axis=1)).all()
    pd.testing.assert_frame_equal(
        table, agreement.agreement(made, random, SIMILARITY, dataclasses.replace(FEW, n_matchings=20))
    )


def test_units_that_show_nothing_are_left_out_and_counted():
    x = smooth(5, 2, 1, 8)
    maps = np.ones_like(x)
    dead = np.zeros(x.shape[:3], bool)
    x[0, 0, 0] = 0.3  # flat
    x[0, 0, 1, 4] = 11.0  # failed
    x[0, 0, 2, 4] = np.nan  # failed
    maps[0, 0, 3] = 0.0  # silent
    dead[0, 0, 4] = True
    dead[0, 0, 0] = False
    maps[0, 0, 4] = 0.0  # dead before silent
    made = layers_of(x, maps, dead)
    names = agreement.status(made, SIMILARITY)["status"].values[0, 0]
    assert list(names) == ["flat", "failed", "failed", "silent", "dead", "used", "used", "used"]
    counts = agreement.left_out(made, SIMILARITY)
    assert counts.loc[(0, "conv1")].to_dict() == {"used": 3, "dead": 1, "failed": 2, "silent": 1, "flat": 1}
    assert counts.loc[(1, "conv1"), "used"] == 8
    with pytest.raises(ValueError, match="two networks or more, not 1"):
        agreement.agreement(made.isel(seed=[0]), made, SIMILARITY, FEW)
    row = agreement.agreement(made, layers_of(smooth(6, 2, 1, 8), seeds=(7, 8)), SIMILARITY, FEW).iloc[0]
    assert (row["n_used_a"], row["n_used_b"], row["left_out_a"], row["left_out_b"]) == (3, 8, 5, 0)
    assert row["n_matched"] == 3 and np.isfinite(row["agreement"])


def test_a_network_without_units_has_no_agreement():
    x = smooth(7, 3, 1, 4)
    x[1] = 0.0
    table = agreement.agreement(layers_of(x), layers_of(smooth(8, 2, 1, 4), seeds=(7, 8)), SIMILARITY, FEW)
    one = table.set_index(["seed_a", "seed_b"])
    assert one.loc[(0, 1), "n_matched"] == 0 and np.isnan(one.loc[(0, 1), "agreement"])
    assert np.isfinite(one.loc[(0, 2), "agreement"])
    found = agreement.summarize_agreement(table).set_index("measure")
    assert found.loc["agreement", "n_pairs"] == 1 and np.isnan(found.loc["agreement", "low"])
    assert found.loc["agreement", "n_networks"] == 3


def test_too_few_units_with_random_weights_are_no_null():
    """The other null counts alone, and the table says how many units there were."""
    made, random = layers_of(smooth(11, 3, 1, 5)), layers_of(smooth(9, 1, 1, 3), seeds=(9,))
    table = agreement.agreement(made, random, SIMILARITY, FEW)
    assert set(table["n_random"]) == {3} and set(table["threshold_from"]) == {"phase-scrambled"}
    assert table[["random_agreement", "random_share_above"]].isna().all(axis=None)
    assert table[["agreement", "share_above", "threshold", "scrambled_agreement"]].notna().all(axis=None)
    summary = agreement.summarize_agreement(table).set_index("measure")
    above = (table["agreement"] - table["scrambled_agreement"]).mean()
    assert summary.loc["above null", "mean"] == pytest.approx(above)
    enough = agreement.agreement(made, layers_of(smooth(9, 1, 1, 5), seeds=(9,)), SIMILARITY, FEW)
    assert enough["random_agreement"].notna().all()


def test_summary_of_agreement_is_over_pairs():
    made, random = layers_of(smooth(11, 4, 2, 6)), layers_of(smooth(12, 4, 2, 6), seeds=range(100, 104))
    table = agreement.agreement(made, random, SIMILARITY, FEW)
    found = agreement.summarize_agreement(table)
    assert list(found["measure"]) == ["agreement", "above null", "share above"] * 2
    one = found.set_index(["layer", "measure"])
    own = table[table["layer"] == "conv2"]
    above = own["agreement"] - own[["random_agreement", "scrambled_agreement"]].max(axis=1)
    assert one.loc[("conv2", "agreement"), "mean"] == pytest.approx(own["agreement"].mean())
    assert one.loc[("conv2", "above null"), "mean"] == pytest.approx(above.mean())
    assert one.loc[("conv2", "share above"), "mean"] == pytest.approx(own["share_above"].mean())
    assert (found["low"] <= found["mean"]).all() and (found["mean"] <= found["high"]).all()
    assert (found["n_pairs"] == 6).all() and (found["n_networks"] == 4).all()
