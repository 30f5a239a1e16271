"""Spans, decoys and rates: equal to their naive twins, and by hand."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from harvis_utils.data import archive, windowing
from harvis_utils.lenses import locating
from harvis_utils.lenses.locating import NO_NETWORK, PLANTINGS


@pytest.fixture(scope="module")
def made():
    """Every 37th validation window of the made-up data, where its motifs are, and all that is planted."""
    recordings = archive.load_recordings("synthetic")
    split, truth = windowing.cut(recordings).val.every(37), recordings.dataset.motifs()
    return split, locating.spans(split, truth), truth


def test_spans_are_where_the_table_says(made):
    split, found, truth = made
    length = {name: len(shape) for name, shape in zip(truth.names, truth.shapes, strict=True)}
    for i in range(0, len(split), 5):
        expected = np.zeros((6, 30), bool)
        here = truth.occurrences.query(f"subject == {split.subject[i]} and activity == {split.activity[i]}")
        for row in here.itertuples():
            first = row.start - split.offset[i]
            expected[row.axis, max(first, 0) : max(first + length[row.motif], 0)] = True
        assert np.array_equal(found[i], expected)
    moving = np.abs(np.diff(split.x, axis=2))
    inside, outside = found[:, :, 1:] & found[:, :, :-1], ~found[:, :, 1:] & ~found[:, :, :-1]
    assert moving[inside].mean() > 3 * moving[outside].mean()


def test_decoys_are_motifs_backwards_where_nothing_was(made):
    split, there, truth = made
    x, planted = locating.with_decoys(split, np.arange(len(split)), truth)
    assert planted.any((1, 2)).mean() > 0.9 and not (planted & there).any()
    added = x - split.x
    assert not added[~planted].any() and x.dtype == np.float32
    motif = dict(zip(truth.names, truth.shapes, strict=True))
    on = truth.occurrences.drop_duplicates(["activity", "axis"]).set_index(["activity", "axis"])["motif"]
    for i, axis in np.argwhere(planted.any(2)):
        shape, at = motif[on[split.activity[i], axis]][::-1], np.flatnonzero(planted[i, axis])
        assert len(at) == len(shape) == at[-1] - at[0] + 1
        assert np.allclose(added[i, axis, at], shape, atol=1e-6)


@settings(max_examples=40)
@given(st.lists(st.booleans(), max_size=30))
def test_longest_run_is_the_longest(flags):
    runs = [(b, e - b) for b in range(len(flags)) for e in range(b + 1, len(flags) + 1) if all(flags[b:e])]
    longest = max((n for _, n in runs), default=0)
    first = min((b for b, n in runs if n == longest), default=0)
    assert locating.longest_run(np.array(flags, bool)) == (first, longest)


def pointing(axis, time, right=(1, 1), windows=(3, 9)):
    """Two windows of 2 axes x 10 samples: a motif at axis 0, 2 to 4, a decoy at axis 1, 6 to 7."""
    motif, decoy = np.zeros((2, 2, 2, 10), np.int8), np.zeros((2, 2, 2, 10), np.int8)
    motif[:, :, 0, 2:5], decoy[1, :, 1, 6:8] = 1, 1
    at, plane = ("lens", "planting", "window"), ("planting", "window", "a", "t")
    return xr.Dataset(
        {
            "axis": (at, np.array(axis).reshape(1, 2, 2)),
            "time": (at, np.array(time).reshape(1, 2, 2)),
            "right": (at[1:], np.array([(1, 1), right], np.int8)),
            "motif": (plane, motif),
            "decoy": (plane, decoy),
        },
        coords={"lens": ["occlusion, x"], "planting": list(PLANTINGS), "window": list(windows)},
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
    # the second network has windows of its own
    first, second = (
        pointing([[0, 0], [0, 1]], [[2, 3], [4, 6]]),
        pointing([[0, 1], [0, 0]], [[2, 3], [4, 3]], windows=(1, 3)),
    )
    random = [pointing([[1, 0], [1, 1]], [[2, 3], [7, 6]], windows=of["window"].values) for of in (first, second)]
    table = locating.rates([first, second], random)
    row = table.loc["occlusion, x"]
    assert row["trained"] == 0.75 and row["lowest network"] == 0.5 and row["random"] == 0.5 and row["gain"] == 0.25
    assert row["trained motif"] == 0.75 and row["trained decoy"] == 0.25 and row["trained preference"] == 0.5
    assert row["random preference"] == -1 and row["chance"] == pytest.approx(3 / 20) and row["networks"] == 2
    alone = locating.rates([first, second])
    assert alone.loc["occlusion, x", "trained"] == 0.75 and "gain" not in alone
    below = locating.by_weights(pd.concat([table, table.rename({"occlusion, x": NO_NETWORK})]), [NO_NETWORK])
    assert [*below.index] == [(who, of) for who in ("trained", "random weights") for of in (NO_NETWORK, "occlusion, x")]
    assert below.loc[("random weights", NO_NETWORK), ["hits", "motif", "decoy", "elsewhere"]].tolist() == [0.5, 0, 1, 0]


def test_the_choice_is_made_among_the_nearly_best_by_preference():
    table = pd.DataFrame(
        {"trained": [0.99, 0.98, 0.9, 1.0, 1.0], "trained preference": [0.1, 0.5, 0.9, 1.0, 1.0]},
        index=["occlusion, a", "occlusion, b", "occlusion, c", "deconvnet, conv1", "deconvnet, class score"],
    )
    assert locating.choose(table, "occlusion") == "occlusion, b"
    assert locating.choose(table, "deconvnet") == "deconvnet, conv1"
    with pytest.raises(ValueError, match="no lens of the family 'guided'"):
        locating.choose(table, "guided")
