"""Numbers put into words: what is there is said, what is missing is not made up."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvis_utils.metrics import wording

ROW = {"x": 0.234, "x low": 0.11, "x high": 0.36, "y": -1.5, "z": 2.0, "z low": np.nan, "z high": np.nan, "n": np.nan}


def test_a_number_is_said_with_its_interval_where_it_has_one():
    for row in (ROW, pd.Series(ROW)):
        assert wording.said(row, "x") == "0.23 (0.11 to 0.36)"
        assert wording.said(row, "x", "+.0%") == "+23% (+11% to +36%)"
        assert wording.said(row, "y") == "-1.50" and wording.said(row, "z", ".0f") == "2"
        with pytest.raises(KeyError):
            wording.said(row, "w")


@given(low=st.floats(-2, 2), width=st.floats(0, 2))
def test_a_difference_is_told_apart_when_its_interval_leaves_zero_out(low, width):
    row = {"x": low + width / 2, "x low": low, "x high": low + width}
    expected = "not told apart" if low <= 0 <= low + width else "higher" if low > 0 else "lower"
    assert wording.verdict(row, "x") == expected
    assert wording.hedged(row, "x").endswith(", not clear)") == (expected == "not told apart")


def test_without_an_interval_nothing_is_told_apart_and_nothing_is_hedged():
    assert wording.verdict(ROW, "y") == wording.verdict(ROW, "z") == "not told apart"
    assert wording.hedged(ROW, "y") == "-1.50"


def test_names_are_listed_and_none_is_said():
    assert wording.listed(["a", 1]) == "a, 1" and wording.listed(pd.Index(["a", "b"]), "; ") == "a; b"
    assert wording.listed([]) == "none" and wording.listed([], nothing="no layer") == "no layer"
    assert wording.number(np.nan) == "none" and wording.number(0.5, ".1%") == "50.0%"


def test_numbers_for_json_keep_their_intervals_and_leave_out_what_is_missing():
    assert wording.triple(ROW, "x") == [0.234, 0.11, 0.36]
    of = wording.triples(pd.Series(ROW), "x", "z")
    assert of["x"] == [0.234, 0.11, 0.36] and np.array_equal(of["z"], [2.0, np.nan, np.nan], equal_nan=True)
    assert wording.bounded(ROW, "x", "y", "z", "n") == {"x": {"value": 0.234, "low": 0.11, "high": 0.36}}
    assert wording.known(pd.Series({"a": 1, "b": np.nan})) == {"a": 1.0}


def test_columns_are_shown_with_their_intervals():
    table = pd.DataFrame([ROW], index=["row"])
    shown = wording.columns(table, ["y", "x"])
    assert (
        list(shown) == ["y", "x"] and shown.loc["row", "x"] == "0.23 (0.11 to 0.36)" and shown.loc["row", "y"] == -1.5
    )
