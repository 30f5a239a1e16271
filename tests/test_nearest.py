"""The exact search against three loops: near, far, flat, tied, in trees of any shape."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from naive_search import naive_search

from harvis_utils import nearest
from harvis_utils.windows import Split


def split_of(series: np.ndarray, start, length: int) -> Split:
    start = np.asarray(start)
    return Split(series.astype(np.float32), start, *(np.zeros_like(start) for _ in range(4)), length=length)


@settings(max_examples=150, deadline=None)
# still signals, whose distances differ by rounding alone
@example(seed=0, n_windows=22, n_axes=2, kind="still", scale=0.01, leaf=27)
@example(seed=0, n_windows=18, n_axes=2, kind="still", scale=30.0, leaf=25)
@example(seed=0, n_windows=18, n_axes=2, kind="still", scale=0.01, leaf=25)
@given(
    seed=st.integers(0, 10_000),
    n_windows=st.integers(5, 40),
    n_axes=st.integers(1, 3),
    kind=st.sampled_from(["noise", "walk", "grid", "still"]),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    leaf=st.integers(1, 60),
)
def test_search_equals_three_loops(seed, n_windows, n_axes, kind, scale, leaf):
    """Coarse values and still signals make many distances equal: ties go to the earlier segment and offset."""
    rng = np.random.default_rng(seed)
    series = rng.normal(size=(150, n_axes))
    series = {
        "noise": series,
        "walk": series.cumsum(0) / 5,
        "grid": series.round(),
        "still": np.where(np.arange(150)[:, None] < 100, 1.0, series),
    }[kind]
    # windows overlap as they like, in any order, and leave gaps
    split = split_of(series, rng.integers(0, 150 - 14, n_windows), 14)
    real = split.segments[rng.integers(0, n_windows * n_axes, 3), 3:9]
    pieces = np.concatenate([rng.normal(size=(3, 6)) * scale, real, real + 1e-3, np.zeros((1, 6)), np.ones((1, 6))])
    pieces = (pieces.round() if kind == "grid" else pieces).astype(np.float32)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nearest, "LEAF", leaf)
        patched.setattr(nearest, "BEAM", 1 + leaf % 3)
        patched.setattr(nearest, "FIRST_LEAVES", 1 + leaf % 2)
        patched.setattr(nearest, "QUERIES", 4)
        found = nearest.PieceIndex(split, 6).nearest(pieces, 5)
    expected = list(naive_search(pieces, split.segments, 5))
    assert np.allclose(found[0], expected[0], rtol=1e-12, atol=1e-15)
    assert np.array_equal(found[1], expected[1]) and np.array_equal(found[2], expected[2])


def test_search_is_exact_where_products_cancel():
    """Large norms, tiny differences: what float32 loses in |q|^2 + |w|^2 - 2 q.w, the margins give back."""
    rng = np.random.default_rng(0)
    split = split_of(9 + 0.001 * rng.normal(size=(600, 2)), np.arange(0, 570, 7), 30)
    pieces = (9 + 0.001 * rng.normal(size=(20, 10))).astype(np.float32)
    found = nearest.PieceIndex(split, 10).nearest(pieces, 12)
    expected = list(naive_search(pieces, split.segments, 12))
    assert np.array_equal(found[1], expected[1]) and np.allclose(found[0], expected[0], rtol=1e-9, atol=0)


def test_equal_pieces_get_equal_answers_and_a_piece_of_the_data_has_distance_zero():
    split = split_of(np.random.default_rng(1).normal(size=(400, 2)), np.arange(0, 370, 30), 30)
    segment = split.segments[7]
    distance, index, offset = nearest.PieceIndex(split, 10).nearest(np.stack([segment[4:14]] * 2), 3)
    assert distance[0, 0] == 0 and index[0, 0] == 7 and offset[0, 0] == 4
    assert np.array_equal(distance[0], distance[1])


def test_a_whole_window_is_a_piece_too():
    split = split_of(np.random.default_rng(2).normal(size=(200, 1)), np.arange(0, 180, 9), 12)
    pieces = np.random.default_rng(3).normal(size=(4, 12)).astype(np.float32)
    found = nearest.PieceIndex(split, 12).nearest(pieces, len(split))
    expected = list(naive_search(pieces, split.segments, len(split)))
    assert np.array_equal(found[1], expected[1]) and (found[2] == 0).all()


def test_the_boxes_hold_their_pieces_and_the_leaves_hold_all():
    split = split_of(np.random.default_rng(4).normal(size=(3000, 2)).cumsum(0), np.arange(0, 2970, 15), 30)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nearest, "LEAF", 20)
        index = nearest.PieceIndex(split, 10)
    assert sorted(index.piece) == list(range(len(index.piece))) and len(index.levels) > 2
    turned = index._turned(index._views[index.piece // 2, index.piece % 2])
    for level in index.levels:
        for low, high, a, b in zip(level.low, level.high, level.begin[:-1], level.begin[1:], strict=True):
            assert (turned[a:b] >= low).all() and (turned[a:b] <= high).all() and b > a
        assert level.begin[0] == 0 and level.begin[-1] == len(index.piece)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: nearest.PieceIndex(s, 10).nearest(np.zeros((1, 10)), 50), "4 training segments are fewer than"),
        (lambda s: nearest.PieceIndex(s, 31), "a piece of 31 samples does not fit windows of 30"),
        (lambda s: nearest.PieceIndex(s, 10).nearest(np.full((1, 10), np.nan), 2), "not finite"),
        (lambda s: nearest.PieceIndex(split_of(s.series, np.zeros(0, int), 30), 10), "no window to search"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(split_of(np.zeros((60, 2)), [0, 15], 30))
