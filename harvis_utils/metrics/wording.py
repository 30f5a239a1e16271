"""Rows of tables with intervals put into words: columns "x", "x low" and "x high", as the tables of results have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from harvis_utils.metrics import intervals


def _bounds(row: Mapping, name: str) -> tuple[float, float]:
    low, high = (row.get(f"{name} {end}") for end in ("low", "high"))
    return tuple(np.nan if b is None else float(b) for b in (low, high))


def said(row: Mapping, name: str, form: str = ".2f") -> str:
    """A number with its interval, as "0.23 (0.11 to 0.36)"; without an interval the number alone.

    ``row`` is a row of a table or a dictionary, ``form`` a format specification for each number. Raises ``KeyError``
    for a column that is not there.
    """
    low, high = _bounds(row, name)
    return f"{row[name]:{form}}" + ("" if np.isnan(low) else f" ({low:{form}} to {high:{form}})")


def number(value: float, form: str = ".2f", nothing: str = "none") -> str:
    """A number, or ``nothing`` where it is NaN."""
    return nothing if np.isnan(value) else f"{value:{form}}"


def verdict(row: Mapping, name: str) -> str:
    """Whether a difference is surely above zero, surely below, or neither: "higher", "lower" or "not told apart"."""
    low, high = _bounds(row, name)
    return "higher" if low > 0 else "lower" if high < 0 else "not told apart"


def hedged(row: Mapping, name: str, form: str = "+.2f") -> str:
    """As :func:`said`, with "not clear" where the interval reaches zero."""
    text = said(row, name, form)
    return text[:-1] + ", not clear)" if text.endswith(")") and verdict(row, name) == "not told apart" else text


def listed(names: Iterable, joint: str = ", ", nothing: str = "none") -> str:
    """Names in one line, ``nothing`` where there is none."""
    return joint.join(str(n) for n in names) or nothing


def triple(row: Mapping, name: str) -> list[float]:
    """A number and the ends of its interval, [value, low, high]; NaN where there is none."""
    return [float(row[name]), *_bounds(row, name)]


def triples(row: Mapping, *names: str) -> dict[str, list[float]]:
    """:func:`triple` of several numbers, by name."""
    return {name: triple(row, name) for name in names}


def known(row: pd.Series) -> dict[str, float]:
    """The numbers of a row that are there, by name, for JSON."""
    return {str(name): float(value) for name, value in row.dropna().items()}


def columns(table: pd.DataFrame, names: Iterable[str], digits: int = 2) -> pd.DataFrame:
    """These columns for reading, each with its interval where it has one; ``digits`` are significant ones."""
    names = list(names)
    ends = [f"{n} {end}" for n in names if f"{n} low" in table for end in ("low", "high")]
    return intervals.shown(table[[*names, *ends]], digits=digits)[names]


def bounded(row: Mapping, *names: str) -> dict[str, dict[str, float]]:
    """Numbers with their intervals for JSON: name -> value, low, high; what is missing is left out."""
    found = {n: dict(zip(("value", "low", "high"), (float(row[n]), *_bounds(row, n)), strict=True)) for n in names}
    return {n: of for n, of in found.items() if not np.isnan([of["value"], of["low"]]).any()}
