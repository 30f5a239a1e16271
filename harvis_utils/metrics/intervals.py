"""Values of networks and units turned into a number with its interval, and rows of such numbers into words.

Units of one network are no independent witnesses: they were trained together. Where there are enough networks,
networks are therefore drawn first and units within each; a difference is taken unit by unit before anything is drawn.
Nor are windows of one recording, which overlap and are alike: a null trades whole recordings (:func:`traded`). Tables
have columns "x", "x low" and "x high".
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

#: Paper: five networks per setting; below that intervals are over units only
ENOUGH_SEEDS = 5
#: Choice: bootstrap draws; the ends of a 95 % interval then vary by a few hundredths of its width
N_DRAWS = 2000
LEVEL = (0.025, 0.975)
#: recordings have to be able to trade places in so many ways; of fewer the one that is there is more than 5 %
FEWEST_WAYS = 20


def interval(values, summary: str = "mean", n: int = N_DRAWS, seed: int = 0) -> tuple[float, list[float] | None]:
    """Point estimate and 95 % percentile bootstrap interval of (seed, unit) or (seed,) values, NaN left out.

    From five networks on, networks are drawn first, then units within each; below, units only, all networks
    pooled. Returns ``(nan, None)`` when nothing is left; a plain number is its own interval.
    """
    values = np.asarray(values, dtype=float)
    measure = {"mean": np.mean, "median": np.median}[summary]
    if values.ndim == 0:
        return (float(values), None if np.isnan(values) else [float(values)] * 2)
    rows = [row[~np.isnan(row)] for row in values.reshape(len(values), -1)]
    rows = [row for row in rows if len(row)]
    if not rows:
        return float("nan"), None
    draws = _draws(rows, n, np.random.default_rng(seed))
    found = np.nanmean(draws, axis=1) if summary == "mean" else np.nanmedian(draws, axis=1)
    return float(measure(np.concatenate(rows))), bounds(found)


def bounds(draws) -> list[float]:
    """The ends of the 95 % percentile interval of (draw,) values."""
    return [float(q) for q in np.quantile(draws, LEVEL)]


def resampled(*shapes: tuple[int, ...], n: int = N_DRAWS, seed=0) -> Iterator[list[np.ndarray]]:
    """``n`` times indices drawn with replacement, one array per shape: ``(5, 64)`` draws 64 of 64 for each of five.

    ``seed`` is a number or a generator.
    """
    rng = np.random.default_rng(seed)
    return ([rng.integers(shape[-1], size=shape) for shape in shapes] for _ in range(n))


def traded(recording, n: int, rng: np.random.Generator, groups=None) -> Iterator[np.ndarray]:
    """``n`` draws of a null over windows, in which whole recordings trade places: (window,) indices each.

    A draw says for every window which one stands in its place: of two things measured in the same windows one keeps
    its windows, the other is taken from those. ``recording`` (window,) says whose a window is, those of one recording
    in order of time; with ``groups`` (window,) recordings trade within their group only.

    Choice: recordings, because the null hypothesis is that two things have nothing to do with each other, whatever
    each has in common with its own neighbours; windows that trade places one by one find 30 % of unrelated things
    above a 95 % point. A window gets the one with its own number in the other recording, counted on from the beginning
    where that is shorter; of a longer one the end stays out. So no recording is cut in two: recordings of unequal
    length laid end to end, or one stretch of all windows shifted, cut some, and find 6 % to 38 % where 5 % are right.
    What a person does alike in all own recordings counts as a relation. Raises ``ValueError`` where recordings can
    trade in fewer than ``FEWEST_WAYS`` ways: a recording that is alone in its group stays where it is.
    """
    groups = np.zeros(len(recording)) if groups is None else np.asarray(groups)
    windows = pd.DataFrame({"group": groups, "recording": np.asarray(recording)})
    of = windows.groupby(["group", "recording"], dropna=False)
    number, place, length = of.ngroup().to_numpy(), of.cumcount().to_numpy(), of.size().to_numpy()
    group, order = of.size().index.get_level_values("group").to_numpy(), np.argsort(number, kind="stable")
    ways = math.prod(math.factorial(many) for many in np.unique(group, return_counts=True)[1].tolist())
    if ways < FEWEST_WAYS:
        inside = f" within {len(np.unique(group))} groups" if len(np.unique(group)) > 1 else ""
        raise ValueError(
            f"{len(length)} recordings can trade places{inside} in {ways} ways only; a 95 % point of chance needs "
            f"{FEWEST_WAYS} or more, that is more recordings{' in a group' if inside else ''}"
        )
    begin = np.cumsum(length) - length

    def draw() -> np.ndarray:
        other = np.lexsort((rng.random(len(length)), group))[number]  # recordings are numbered group by group
        return order[begin[other] + place % length[other]]

    return (draw() for _ in range(n))


def with_interval(name: str, values, summary: str = "mean", least: int = 1) -> dict[str, float]:
    """:func:`interval` as a part of a table's row: ``name``, "name low" and "name high".

    The ends are NaN where there is none, and where fewer than ``least`` values are there.
    """
    value, ends = interval(values, summary)
    enough = np.count_nonzero(~np.isnan(np.asarray(values, dtype=float))) >= least
    return _row(name, value, ends if enough else None)


def _row(name: str, value: float, ends: list[float] | None) -> dict[str, float]:
    low, high = ends or (np.nan, np.nan)
    return {name: value, f"{name} low": low, f"{name} high": high}


def tabulated(values: Mapping[str, xr.DataArray], by: str, medians: Sequence[str] = ()) -> pd.DataFrame:
    """:func:`with_interval` of each of ``values`` (with a dimension "seed"): one row per entry of the dimension ``by``.

    Means over all other dimensions; medians of those that ``medians`` names.
    """
    labels = next(iter(values.values()))[by].values
    rows = []
    for label in labels:
        row: dict = {}
        for name, array in values.items():
            own = array.sel({by: label}).transpose("seed", ...)
            row |= with_interval(name, own, "median" if name in medians else "mean")
        rows.append(row)
    return pd.DataFrame(rows, pd.Index(labels, name=by))


def over_networks(table: pd.DataFrame, by: Sequence[str], columns: Sequence[str], least: int = 2) -> pd.DataFrame:
    """Mean over networks and :func:`with_interval` of ``columns``, one row per group, in the order of the groups.

    ``table`` has a column "seed"; of several rows of one network in a group, or of none (NaN), their mean counts.
    ``networks`` says how many there are; fewer than ``least`` with a value have no interval.
    """
    rows = {}
    for group, own in table.groupby(list(by), sort=False):
        rows[group] = {"networks": own["seed"].nunique()}
        for name in columns:
            rows[group] |= with_interval(name, own.groupby("seed", dropna=False)[name].mean(), least=least)
    return pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=by))


def _draws(rows: list[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    """(draw, value): values drawn with replacement; a shorter network's places are filled up with NaN."""
    if len(rows) < ENOUGH_SEEDS:
        rows = [np.concatenate(rows)]
    length = np.array([len(row) for row in rows])
    table = np.full((len(rows), length.max()), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    network = rng.integers(len(rows), size=(n, len(rows), 1))
    unit = (rng.random((n, len(rows), table.shape[1])) * length[network]).astype(int)
    drawn = np.where(np.arange(table.shape[1]) < length[network], table[network, unit], np.nan)
    return drawn.reshape(n, -1)


@dataclass(frozen=True)
class Difference:
    """``mean`` of the paired differences with its interval, and an effect size.

    ``dominance`` is the share of pairs in which the first is larger minus the share in which it is smaller (Cliff's
    delta of paired values): 1 always larger, 0 neither, -1 always smaller. ``n_networks`` and ``n_pairs`` say how many
    entered.
    """

    mean: float
    interval: list[float] | None
    dominance: float
    n_networks: int
    n_pairs: int

    def row(self, name: str) -> dict[str, float]:
        """The mean as a part of a table's row, as :func:`with_interval` gives it."""
        return _row(name, self.mean, self.interval)

    @property
    def clear(self) -> bool:
        """Whether the interval of the mean difference leaves zero out."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def paired(first, second) -> Difference:
    """What the first has more than the second, unit by unit: both are (seed, unit), pairs with a NaN are left out.

    Raises ``ValueError`` for arrays of different shapes.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"pairs need two (seed, unit) arrays of one shape, not {first.shape} and {second.shape}")
    difference = first - second
    there = ~np.isnan(difference)
    counts = int(there.any(1).sum()), int(there.sum())
    return Difference(*interval(difference), interval(np.sign(difference))[0], *counts)


def shown(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """The table for reading: each column "x" with its "x low" and "x high" as one text, "x (low to high)".

    ``digits`` are significant ones. Other columns stay; what is missing is empty.
    """
    found = table.copy()
    for column in [c for c in table if f"{c} low" in table]:
        rows = (row for _, row in table.iterrows())
        found[column] = ["" if pd.isna(row[column]) else said(row, column, f".{digits}g") for row in rows]
        found = found.drop(columns=[f"{column} low", f"{column} high"])
    return found


def _ends(row: Mapping, name: str) -> tuple[float, float]:
    return tuple(np.array([row.get(f"{name} {end}") for end in ("low", "high")], float).tolist())  # None: NaN


def said(row: Mapping, name: str, form: str = ".2f") -> str:
    """A number with its interval, as "0.23 (0.11 to 0.36)"; without an interval the number alone.

    ``row`` is a row of a table or a dictionary, ``form`` a format specification for each number. Raises ``KeyError``
    for a column that is not there.
    """
    low, high = _ends(row, name)
    return f"{row[name]:{form}}" + ("" if np.isnan(low) else f" ({low:{form}} to {high:{form}})")


def number(value: float, form: str = ".2f", nothing: str = "none") -> str:
    """A number, or ``nothing`` where it is NaN."""
    return nothing if np.isnan(value) else f"{value:{form}}"


def verdict(row: Mapping, name: str) -> str:
    """Whether a difference is surely above zero, surely below, or neither: "higher", "lower" or "not told apart"."""
    low, high = _ends(row, name)
    return "higher" if low > 0 else "lower" if high < 0 else "not told apart"


def verdicts(rows: pd.DataFrame, name: str) -> str:
    """:func:`verdict` of all rows in one line, as "higher in conv1; not told apart in conv2, conv3"."""
    each = rows.apply(verdict, axis=1, name=name)
    return "; ".join(f"{word} in {listed(each.index[each == word])}" for word in each.unique())


def listed(names: Iterable, joint: str = ", ", nothing: str = "none") -> str:
    """Names in one line, ``nothing`` where there is none."""
    return joint.join(str(n) for n in names) or nothing


def triple(row: Mapping, name: str) -> list[float]:
    """A number and the ends of its interval, [value, low, high]; NaN where there is none."""
    return [float(row[name]), *_ends(row, name)]


def triples(table: pd.DataFrame, *names: str) -> pd.Series:
    """:func:`triple` of several columns, by name, for each row of a table."""
    return table.apply(lambda row: {name: triple(row, name) for name in names}, axis=1)


def columns(table: pd.DataFrame, names: Iterable[str], digits: int = 2) -> pd.DataFrame:
    """These columns for reading, each with its interval where it has one; ``digits`` are significant ones."""
    names = list(names)
    ends = [f"{n} {end}" for n in names if f"{n} low" in table for end in ("low", "high")]
    return shown(table[[*names, *ends]], digits=digits)[names]


def bounded(row: Mapping, *names: str) -> dict[str, dict[str, float]]:
    """Numbers with their intervals for JSON: name -> value, low, high; what is missing is left out."""
    found = {n: dict(zip(("value", "low", "high"), triple(row, n), strict=True)) for n in names}
    return {n: of for n, of in found.items() if not np.isnan([of["value"], of["low"]]).any()}
