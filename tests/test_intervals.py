"""Intervals against a plain twin, what they cover, paired differences, and how they are said."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvis_utils.metrics import intervals
from harvis_utils.metrics.intervals import interval, paired


def naive_interval(rows, summary, n, seed):
    """The same draws, one value at a time: networks first when there are five, then units."""
    measure = {"mean": lambda v: sum(v) / len(v), "median": sorted_median}[summary]
    rows = [[v for v in row if not np.isnan(v)] for row in rows]
    rows = [row for row in rows if row]
    if not rows:
        return np.nan, None
    pooled = [v for row in rows for v in row]
    groups = rows if len(rows) >= 5 else [pooled]
    rng = np.random.default_rng(seed)
    network = rng.integers(len(groups), size=(n, len(groups)))
    chance = rng.random((n, len(groups), max(map(len, groups))))
    draws = []
    for d in range(n):
        values = []
        for place in range(len(groups)):
            row = groups[network[d, place]]
            values += [row[int(chance[d, place, k] * len(row))] for k in range(len(row))]
        draws.append(measure(values))
    return measure(pooled), [np.quantile(draws, 0.025), np.quantile(draws, 0.975)]


def sorted_median(values):
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


@settings(max_examples=50)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(-5, 5) | st.just(np.nan), min_size=4, max_size=4), min_size=n, max_size=n
        )
    ),
    st.sampled_from(["mean", "median"]),
    st.integers(0, 99),
)
def test_interval_agrees_with_twin(rows, summary, seed):
    point, bounds = interval(rows, summary, n=40, seed=seed)
    expected, expected_bounds = naive_interval(rows, summary, 40, seed)
    if expected_bounds is None:
        assert np.isnan(point) and bounds is None
    else:
        assert point == pytest.approx(expected) and bounds == pytest.approx(expected_bounds)
        assert min(v for r in rows for v in r if not np.isnan(v)) <= bounds[0] <= bounds[1]


def test_interval_of_one_number_and_of_one_value_per_network():
    assert interval(1.5) == (1.5, [1.5, 1.5]) and interval(float("nan"))[1] is None
    assert interval([0.7, 0.7]) == (pytest.approx(0.7), pytest.approx([0.7, 0.7]))


def test_networks_that_differ_widen_the_interval():
    """Units of one network agree: drawing units alone would promise too much."""
    alike = np.repeat(np.arange(6.0)[:, None], 50, axis=1)
    _, by_network = interval(alike)
    _, by_unit = interval(alike[:, :10].reshape(1, -1))
    assert by_network[1] - by_network[0] > 2 * (by_unit[1] - by_unit[0])


def test_intervals_cover_the_mean_about_as_often_as_they_say():
    """Eight networks with an own level each: a percentile bootstrap of so few is a little too short."""
    rng = np.random.default_rng(0)
    hits = 0
    for k in range(200):
        values = rng.normal(size=(8, 1)) + rng.normal(size=(8, 20))
        low, high = interval(values, n=300, seed=k)[1]
        hits += low <= 0 <= high
    assert 0.82 < hits / 200 < 0.98


def test_paired_difference_sees_what_means_hide():
    rng = np.random.default_rng(1)
    level = 10 * rng.normal(size=(5, 40))
    found = paired(level + 0.1, level)
    assert found.mean == pytest.approx(0.1) and found.clear and found.dominance == 1
    assert found.n_networks == 5 and found.n_pairs == 200
    unclear = paired(level, rng.permutation(level.ravel()).reshape(level.shape))
    assert not unclear.clear and abs(unclear.dominance) < 0.3


def test_pairs_with_a_missing_value_are_left_out():
    first = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])
    found = paired(first, np.zeros((2, 3)))
    assert (found.mean, found.n_networks, found.n_pairs) == (2.0, 1, 2)
    nothing = paired(first * np.nan, first)
    assert nothing.interval is None and not nothing.clear and nothing.n_networks == 0


@pytest.mark.parametrize("shape", [(3,), (2, 4), (3, 2)])
def test_unequal_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="one shape"):
        paired(np.zeros(shape), np.zeros((2, 3)))


def test_a_table_for_reading_has_value_and_interval_in_one_place():
    table = pd.DataFrame(
        {"a": [0.123456, np.nan, 2.0], "a low": [0.1, np.nan, np.nan], "a high": [0.2, np.nan, np.nan], "n": [1, 2, 3]},
        index=["x", "y", "z"],
    )
    shown = intervals.shown(table)
    assert list(shown) == ["a", "n"] and list(shown["n"]) == [1, 2, 3]
    assert list(shown["a"]) == ["0.123 (0.1 to 0.2)", "", "2"]
    assert "a low" in table, "the table itself is left as it is"


ROW = {"x": 0.234, "x low": 0.11, "x high": 0.36, "y": -1.5, "z": 2.0, "z low": np.nan, "z high": np.nan, "n": np.nan}


def test_a_number_is_said_with_its_interval_where_it_has_one():
    for row in (ROW, pd.Series(ROW)):
        assert intervals.said(row, "x") == "0.23 (0.11 to 0.36)"
        assert intervals.said(row, "x", "+.0%") == "+23% (+11% to +36%)"
        assert intervals.said(row, "y") == "-1.50" and intervals.said(row, "z", ".0f") == "2"
        with pytest.raises(KeyError):
            intervals.said(row, "w")


@given(low=st.floats(-2, 2), width=st.floats(0, 2))
def test_a_difference_is_told_apart_when_its_interval_leaves_zero_out(low, width):
    row = {"x": low + width / 2, "x low": low, "x high": low + width}
    expected = "not told apart" if low <= 0 <= low + width else "higher" if low > 0 else "lower"
    assert intervals.verdict(row, "x") == expected


def test_verdicts_of_several_rows_are_told_in_one_line():
    ends = {"x low": [0.1, -0.1, 0.2, np.nan], "x high": [0.3, 0.1, 0.4, np.nan]}
    rows = pd.DataFrame({"x": 0.2} | ends, ["conv1", "conv2", "conv3", "conv4"])
    assert intervals.verdicts(rows, "x") == "higher in conv1, conv3; not told apart in conv2, conv4"


def test_names_are_listed_and_none_is_said():
    assert intervals.listed(["a", 1]) == "a, 1" and intervals.listed(pd.Index(["a", "b"]), "; ") == "a; b"
    assert intervals.listed([]) == "none" and intervals.listed([], nothing="no layer") == "no layer"
    assert intervals.number(np.nan) == "none" and intervals.number(0.5, ".1%") == "50.0%"


def test_numbers_for_json_keep_their_intervals_and_leave_out_what_is_missing():
    assert intervals.triple(ROW, "x") == [0.234, 0.11, 0.36]
    of = intervals.triples(pd.DataFrame([ROW], ["row"]), "x", "z")["row"]
    assert of["x"] == [0.234, 0.11, 0.36] and np.array_equal(of["z"], [2.0, np.nan, np.nan], equal_nan=True)
    assert intervals.bounded(ROW, "x", "y", "z", "n") == {"x": {"value": 0.234, "low": 0.11, "high": 0.36}}


@given(
    lengths=st.lists(st.integers(1, 6), min_size=8, max_size=12), n_groups=st.integers(1, 2), seed=st.integers(0, 99)
)
@settings(max_examples=60)
def test_a_recording_gets_the_windows_of_another_of_its_group_in_order(lengths, n_groups, seed):
    rng, end_to_end = np.random.default_rng(seed), np.repeat(10 * np.arange(len(lengths)), lengths)
    for recording in (end_to_end, rng.permutation(end_to_end)):
        groups, partners = recording // 10 % n_groups, []
        (other,) = intervals.traded(recording, 1, rng, groups)
        for one in np.unique(recording):
            mine, (whose,) = np.flatnonzero(recording == one), np.unique(recording[other[recording == one]])
            theirs = np.flatnonzero(recording == whose)
            assert other[mine].tolist() == [theirs[k % len(theirs)] for k in range(len(mine))]
            assert groups[mine[0]] == groups[theirs[0]]
            partners.append(whose)
        assert sorted(partners) == np.unique(recording).tolist()


def test_every_way_to_trade_is_as_frequent():
    recording = np.repeat(np.arange(4), 2)
    seen = pd.Series([tuple(other[::2] // 2) for other in intervals.traded(recording, 2400, np.random.default_rng(0))])
    assert seen.nunique() == 24 and seen.value_counts().between(60, 140).all()


@pytest.mark.parametrize("lengths", [[20] * 40, [8, 120, 8, 8, 30] * 6], ids=["equal", "unequal"])
@pytest.mark.parametrize("n_groups", [1, 4])
def test_unrelated_things_exceed_chance_as_often_as_they_may(lengths, n_groups):
    """Both have a value for each recording, and one for each group, which draws within groups keep."""
    recording, above = np.repeat(np.arange(len(lengths)), lengths), 0
    groups = recording % n_groups
    for repetition in range(200):
        rng = np.random.default_rng(repetition)
        a, b = (rng.normal(size=len(lengths))[recording] + rng.normal(size=len(recording)) for _ in range(2))
        a, b = a + 3 * groups, b + 3 * groups
        a, b = ((v - v.mean()) / np.linalg.norm(v - v.mean()) for v in (a, b))
        short = [b[other] for other in intervals.traded(recording, 39, rng, groups)]
        drawn = [(a @ other) / np.linalg.norm(other - other.mean()) for other in short]
        above += a @ b > np.sort(drawn)[37]
    assert 2 <= above <= 20  # 5 % of 200 is 10, with a standard deviation of 3.1


def test_a_relation_in_time_is_found():
    rng, recording = np.random.default_rng(0), np.repeat(np.arange(24), 20)
    groups = recording % 4
    a = rng.normal(size=len(recording))
    b = a + 2 * rng.normal(size=len(recording))
    drawn = [np.corrcoef(a, b[other])[0, 1] for other in intervals.traded(recording, 99, rng, groups)]
    assert np.corrcoef(a, b)[0, 1] > max(drawn)


def test_too_few_recordings_are_refused_before_anything_is_drawn():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="1 recordings can trade places in 1 ways only"):
        intervals.traded(np.zeros(50), 19, rng)
    with pytest.raises(ValueError, match="8 recordings can trade places within 4 groups in 16 ways only"):
        intervals.traded(np.arange(80) // 10, 19, rng, np.arange(80) // 20)
    assert len(list(intervals.traded(np.arange(100) // 10, 19, rng, np.arange(100) // 20))) == 19


def test_rows_of_one_network_count_once_and_rows_without_a_network_keep_their_value():
    table = pd.DataFrame({"row": list("aaaab"), "seed": [0, 0, 1, 1, np.nan], "x": [0.0, 2.0, 3.0, 3.0, 7.0]})
    found = intervals.over_networks(table, ["row"], ["x"], least=1)
    assert found["networks"].tolist() == [2, 0] and found["x"].tolist() == [2.0, 7.0]
    assert found[["x low", "x high"]].iloc[0].tolist() == [1.0, 3.0]
