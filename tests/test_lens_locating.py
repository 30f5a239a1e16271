"""Spans, decoys and rates: equal to their naive twins, and by hand."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from harvis_utils.data import archive, windowing
from harvis_utils.lenses import locating
from harvis_utils.lenses.locating import PLANTINGS


@pytest.fixture(scope="module")
def made():
    recordings = archive.load_recordings("synthetic")
    return windowing.cut(recordings).val, recordings.dataset.motifs()


def test_spans_are_where_the_table_says(made):
    split, truth = made
    found = locating.spans(split, truth)
    length = {name: len(shape) for name, shape in zip(truth.names, truth.shapes, strict=True)}
    for i in np.random.default_rng(0).integers(len(split), size=25):
        expected = np.zeros((6, 30), bool)
        here = truth.occurrences.query(f"subject == {split.subject[i]} and activity == {split.activity[i]}")
        for row in here.itertuples():
            for sample in range(row.start, row.start + length[row.motif]):
                if 0 <= sample - split.offset[i] < 30:
                    expected[row.axis, sample - split.offset[i]] = True
        assert np.array_equal(found[i], expected)
    moving = np.abs(np.diff(split.x, axis=2))
    inside = found[:, :, 1:] & found[:, :, :-1]
    assert moving[inside].mean() > 3 * moving[~found[:, :, 1:] & ~found[:, :, :-1]].mean()


def test_decoys_are_motifs_backwards_where_nothing_was(made):
    split, truth = made
    chosen = np.arange(0, len(split), 37)
    there = locating.spans(split, truth)[chosen]
    x, planted = locating.with_decoys(split, chosen, truth)
    assert planted.any((1, 2)).mean() > 0.9 and not (planted & there).any()
    added = x - split.x[chosen]
    assert np.array_equal(added != 0, planted & (added != 0)) and x.dtype == np.float32
    motif = dict(zip(truth.names, truth.shapes, strict=True))
    on = {
        (a, x): m
        for a, x, m in truth.occurrences[["activity", "axis", "motif"]].drop_duplicates().itertuples(index=False)
    }
    for i, window in enumerate(chosen):
        for axis in np.flatnonzero(planted[i].any(1)):
            shape = motif[on[split.activity[window], axis]][::-1]
            at = np.flatnonzero(planted[i, axis])
            assert len(at) == len(shape) == at[-1] - at[0] + 1
            assert np.allclose(added[i, axis, at], shape, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=30))
def test_longest_run_is_the_longest(flags):
    runs = [(b, e - b) for b in range(len(flags)) for e in range(b + 1, len(flags) + 1) if all(flags[b:e])]
    longest = max((n for _, n in runs), default=0)
    first = min((b for b, n in runs if n == longest), default=0)
    assert locating.longest_run(np.array(flags, bool)) == (first, longest)


def pointing(axis, time, right=(1, 1)):
    """Two windows of 2 axes x 10 samples: a motif at axis 0, 2 to 4, a decoy at axis 1, 6 to 7."""
    motif, decoy = np.zeros((2, 2, 2, 10), np.int8), np.zeros((2, 2, 2, 10), np.int8)
    motif[:, :, 0, 2:5], decoy[1, :, 1, 6:8] = 1, 1
    return xr.Dataset(
        {
            "axis": (("lens", "planting", "window"), np.array(axis).reshape(1, 2, 2)),
            "time": (("lens", "planting", "window"), np.array(time).reshape(1, 2, 2)),
            "right": (("planting", "window"), np.array([(1, 1), right], np.int8)),
            "motif": (("planting", "window", "a", "t"), motif),
            "decoy": (("planting", "window", "a", "t"), decoy),
        },
        coords={"lens": ["occlusion, x"], "planting": list(PLANTINGS), "window": [3, 9]},
    )


def test_hits_by_hand_with_and_without_tolerance():
    found = pointing([[0, 0], [1, 1]], [[4, 5], [7, 8]])
    assert locating.hits(found).values.tolist() == [[[1, 0], [0, 0]]]
    assert locating.hits(found, tolerance=1).values.tolist() == [[[1, 1], [0, 0]]]
    assert locating.hits(found, "decoy").values.tolist() == [[[0, 0], [1, 0]]]
    wrong = locating.hits(pointing([[0, 0], [1, 1]], [[4, 5], [7, 8]], right=(0, 1)), "decoy").values[0, 1]
    assert np.isnan(wrong[0]) and wrong[1] == 0
    edge = pointing([[1, 1], [1, 1]], [[9, 0], [9, 0]])
    assert not locating.hits(edge, "decoy", tolerance=1).values.any(), "a tolerance does not wrap around"


def test_rates_by_hand():
    trained = [pointing([[0, 0], [0, 1]], [[2, 3], [4, 6]]), pointing([[0, 1], [0, 0]], [[2, 3], [4, 3]])]
    random = [pointing([[1, 0], [1, 1]], [[2, 3], [7, 6]])] * 2
    row = locating.rates(trained, random).loc["occlusion, x"]
    assert row["trained"] == 0.75 and row["lowest network"] == 0.5 and row["random"] == 0.5 and row["gain"] == 0.25
    assert row["trained motif"] == 0.75 and row["trained decoy"] == 0.25 and row["trained preference"] == 0.5
    assert row["random preference"] == -1 and row["chance"] == pytest.approx(3 / 20) and row["networks"] == 2
    alone = locating.rates(trained)
    assert alone.loc["occlusion, x", "trained"] == 0.75 and "gain" not in alone


def test_the_choice_is_made_among_the_nearly_best_by_preference():
    table = pd.DataFrame(
        {"trained": [0.99, 0.98, 0.9, 1.0, 1.0], "trained preference": [0.1, 0.5, 0.9, 1.0, 1.0]},
        index=["occlusion, a", "occlusion, b", "occlusion, c", "deconvnet, conv1", "deconvnet, class score"],
    )
    assert locating.choose(table, "occlusion") == "occlusion, b"
    assert locating.choose(table, "deconvnet") == "deconvnet, conv1"
    with pytest.raises(ValueError, match="no lens of the family 'guided'"):
        locating.choose(table, "guided")
