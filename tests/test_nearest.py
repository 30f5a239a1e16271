"""The exact search against three loops: near, far, flat, tied."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from naive_search import naive_search

from harvis_utils.data.windowing import Split
from harvis_utils.metrics import nearest


def split_of(series: np.ndarray, start, length: int) -> Split:
    start = np.asarray(start)
    return Split(series.astype(np.float32), start, *(np.zeros_like(start) for _ in range(4)), length=length)


@settings(max_examples=150)
# still signals, whose distances differ by rounding alone
@example(seed=0, n_windows=22, n_axes=2, kind="still", scale=0.01, shape=20, apart=1e-3, mixed=False)
@example(seed=0, n_windows=18, n_axes=2, kind="still", scale=30.0, shape=19, apart=1e-3, mixed=False)
@example(seed=0, n_windows=18, n_axes=2, kind="still", scale=0.01, shape=19, apart=1e-3, mixed=False)
@given(
    seed=st.integers(0, 10_000),
    n_windows=st.integers(5, 40),
    n_axes=st.integers(1, 3),
    kind=st.sampled_from(["noise", "walk", "grid", "still"]),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    shape=st.integers(0, 20),
    apart=st.sampled_from([1e-6, 1e-3, 0.05, 0.5]),
    mixed=st.booleans(),
)
def test_search_equals_three_loops(seed, n_windows, n_axes, kind, scale, shape, apart, mixed):
    """Coarse values and still signals make many distances equal: ties go to the earlier segment and offset.

    Some pieces are so near to others, by ``apart``, that one search serves several. Pieces are of one axis or of all.
    """
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
    segments = split.of_units(mixed)
    real = segments[rng.integers(0, len(segments), 3), ..., 3:9]
    size = real.shape[1:]
    pieces = [rng.normal(size=(3, *size)) * scale, real, real + 1e-3, np.zeros((1, *size)), np.ones((1, *size))]
    pieces = np.concatenate(pieces)
    pieces = np.concatenate([pieces, pieces[:6] + apart * rng.normal(size=(6, *size)), pieces[:4] + apart])
    pieces = (pieces.round() if kind == "grid" else pieces).astype(np.float32)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nearest, "QUERIES", 1 + shape % 7)
        patched.setattr(nearest, "KEPT", 1 + shape % 3)
        patched.setattr(nearest, "BLOCK", 40 + shape)
        found = nearest.PieceIndex(split, 6, mixed).nearest(pieces, 5)
    expected = list(naive_search(pieces, segments, 5))
    assert np.allclose(found[0], expected[0], rtol=1e-12, atol=1e-15)
    assert np.array_equal(found[1], expected[1]) and np.array_equal(found[2], expected[2])


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("level", [9, 3e4])
def test_search_is_exact_where_products_cancel(mixed, level):
    """Large norms, tiny differences: what |q|^2 + |w|^2 - 2 q.w loses, the margins give back."""
    rng = np.random.default_rng(0)
    split = split_of(level + 1e-4 * level * rng.normal(size=(600, 2)), np.arange(0, 570, 7), 30)
    pieces = (level + 1e-4 * level * rng.normal(size=(20, 2, 10) if mixed else (20, 10))).astype(np.float32)
    found = nearest.PieceIndex(split, 10, mixed).nearest(pieces, 12)
    expected = list(naive_search(pieces, split.of_units(mixed), 12))
    assert np.array_equal(found[1], expected[1]) and np.allclose(found[0], expected[0], rtol=1e-9, atol=0)


def test_equal_pieces_get_equal_answers_and_a_piece_of_the_data_has_distance_zero():
    split = split_of(np.random.default_rng(1).normal(size=(400, 2)), np.arange(0, 370, 30), 30)
    segment = split.segments[7]
    distance, index, offset = nearest.PieceIndex(split, 10).nearest(np.stack([segment[4:14]] * 2), 3)
    assert distance[0, 0] == 0 and index[0, 0] == 7 and offset[0, 0] == 4
    assert np.array_equal(distance[0], distance[1])


def test_pieces_that_stand_still_are_kept_once_for_each_window():
    """Of the pieces of a flat stretch the first is enough, and the first of each window that starts within it."""
    series = np.random.default_rng(5).normal(size=(120, 1))
    series[20:80] = 1
    index = nearest.PieceIndex(split_of(series, np.arange(0, 90, 15), 30), 10)
    expected = [i for i in range(96) if not 20 < i <= 70 or i % 15 == 0]
    assert index.piece.tolist() == expected
    distance, segment, offset = index.nearest(np.ones((1, 10), np.float32), 5)
    assert distance.tolist() == [[0, 0, 0, 0, 0]]
    assert segment.tolist() == [[0, 1, 2, 3, 4]] and offset.tolist() == [[20, 5, 0, 0, 0]]


@pytest.mark.parametrize(("starts", "n"), [([0, 0, 0, 5], 4), ([0, 0, 0, 0], 3), (range(0, 60, 1), 60)])
def test_windows_that_share_all_their_pieces_are_found(starts, n):
    """One window of each piece is counted for the first estimate; here that leaves fewer than are wanted."""
    split = split_of(np.random.default_rng(6).normal(size=(80, 1)), list(starts), 12)
    pieces = np.random.default_rng(7).normal(size=(5, 10)).astype(np.float32)
    found = nearest.PieceIndex(split, 10).nearest(pieces, n)
    expected = list(naive_search(pieces, split.segments, n))
    assert np.array_equal(found[1], expected[1]) and np.array_equal(found[2], expected[2])


def test_no_piece_and_a_single_piece():
    split = split_of(np.random.default_rng(9).normal(size=(12, 1)), [0], 12)
    index = nearest.PieceIndex(split, 12)
    assert [array.shape for array in index.nearest(np.zeros((0, 12)), 1)] == [(0, 1)] * 3
    assert [array.tolist() for array in index.nearest(split.segments, 1)] == [[[0]], [[0]], [[0]]]


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


def test_a_whole_window_is_a_piece_too():
    split = split_of(np.random.default_rng(2).normal(size=(200, 1)), np.arange(0, 180, 9), 12)
    pieces = np.random.default_rng(3).normal(size=(4, 12)).astype(np.float32)
    found = nearest.PieceIndex(split, 12).nearest(pieces, len(split))
    expected = list(naive_search(pieces, split.segments, len(split)))
    assert np.array_equal(found[1], expected[1]) and (found[2] == 0).all()


@pytest.mark.parametrize("size", [1e-18, 1e-22, 1e12])
def test_search_is_exact_at_the_ends_of_the_numbers(size):
    """Where squares in float32 vanish altogether, and where they are huge."""
    rng = np.random.default_rng(8)
    split = split_of(size * rng.normal(size=(200, 2)), np.arange(0, 180, 9), 12)
    pieces = (size * rng.normal(size=(6, 10))).astype(np.float32)
    found = nearest.PieceIndex(split, 10).nearest(pieces, 7)
    expected = list(naive_search(pieces, split.segments, 7))
    assert np.array_equal(found[1], expected[1]) and np.allclose(found[0], expected[0], rtol=1e-9, atol=0)
