"""Two runs turned into a verdict: every table, JSON file and stored array of one beside those of the other.

    python -m workflow.yardstick REFERENCE CURRENT [--stores REFERENCE CURRENT]

A run is a folder such as ``reports/quick/synthetic``; ``git archive COMMIT reports/published | tar x -C FOLDER`` brings
those that a commit published. ``yardstick.toml`` says what may differ, and by how much; everything else is
compared exactly. Nothing of the package is imported, so that the yardstick outlives whatever is renamed there.

Tables are compared cell by cell, whatever the order of their columns and rows; JSON files value by value. Stored
arrays are found again by content: each row of the last axis of a reference's array has to occur, bit by bit, among the
rows of the current store's arrays, under whatever names, grouped in whatever way; so that store has to be the run's
own, without results that an earlier commit left. ``make yardstick`` does all of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from safetensors.numpy import load_file

CLASSES = Path(__file__).with_name("yardstick.toml")
#: differences of two Monte-Carlo estimates that are let through, in standard errors of such a difference
STANDARD_ERRORS = 4.5
#: from so many ends of intervals in a file on, half of them must lie within this share of their tolerance: with other
#: draws it is a tenth; with another level, such as 90 %, a half
ENOUGH, TYPICAL = 20, 0.25


@dataclass(frozen=True, eq=False)
class Rule:
    """What may happen to the values at some places, and why; the tolerances of ``yardstick.toml`` add up."""

    kind: str  # "exact", "Monte Carlo" or "changed"
    where: tuple[str, ...] = ()
    reason: str = ""
    absolute: float = 0.0
    relative: float = 0.0  # of the reference's value
    width: float = 0.0  # of the interval that the value is one end of
    draws: int = 0  # the value is a share of this many draws
    beyond: float = 0.0  # share of a file's values under this rule that may lie outside, or be other texts

    def names(self, file: str, place: str, row: str) -> bool:
        """Whether one of the patterns ``file: place`` or ``file: place @ row`` is of this value."""
        for pattern in self.where:
            of_file, _, rest = pattern.partition(": ")
            of_place, _, of_row = rest.partition(" @ ")
            if all(map(fnmatchcase, (file, place, row), (of_file, of_place, of_row or "*"))):
                return True
        return False

    def tolerance(self, value: float, place: str, beside: Callable) -> float:
        """How far from ``value`` another run's may lie; ``beside(name)`` is the value at a neighbouring place."""
        found = self.absolute + self.relative * abs(value)
        if self.width:
            found += self.width * abs(value - other_end(place, beside))
        if self.draws:  # at least a draw's worth, where a share is 0 or 1
            error = np.sqrt(2 * max(value * (1 - value), 1 / self.draws) / self.draws)
            found += STANDARD_ERRORS * error
        return found


EXACT = Rule("exact")


@dataclass(frozen=True)
class Rules:
    """All of ``yardstick.toml``: the first rule that names a value counts, what none names is exact.

    Columns, cells, JSON keys, texts and files that are ``renamed`` are read under their new names on both sides.
    """

    rules: tuple[Rule, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)

    def of(self, file: str, place: str = "", row: str = "") -> Rule:
        """The rule of a column, JSON path or variable; of a whole file where ``place`` is empty."""
        return next((rule for rule in self.rules if rule.names(file, place, row)), EXACT)

    def named(self, name: str) -> str:
        """What ``name`` is called now."""
        return self.renamed.get(name, name)


def load_rules(path: Path = CLASSES) -> Rules:
    """The rules of a TOML file; one without a reason, or of Monte Carlo without a tolerance, is a ``ValueError``."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    kinds = {"changed": "changed", "monte_carlo": "Monte Carlo"}
    rules = tuple(Rule(kind, **rule) for name, kind in kinds.items() for rule in content.get(name, []))
    for rule in rules:
        allowed = rule.absolute or rule.relative or rule.width or rule.draws or rule.beyond
        if not rule.reason or bool(allowed) != (rule.kind == "Monte Carlo"):
            raise ValueError(f"{path}: the rule for {rule.where} needs a reason, and a tolerance if it is Monte Carlo")
    return Rules(rules, content.get("renamed", {}))


@dataclass
class Verdict:
    """What became of one file or stage: by rule, the size of each value's difference, and the values in words."""

    file: str
    rules: Rules
    values: dict[Rule, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, what: str, place: str = "", row: str = "", size: float = np.inf) -> None:
        """Count a value; ``size`` is its difference in units of its tolerance, above 1 outside."""
        rule = self.rules.of(self.file, place, row)
        self.values[rule].append((size, f"{what} ({rule.kind})"))

    def compare(self, what: str, old, new, beside: Callable, place: str, row: str = "") -> None:
        """Count two values; ``beside(name)`` is the reference's value at a neighbouring place."""
        a, b, size = number(old), number(new), np.inf
        if old == new:
            size = 0.0
        elif a is not None and b is not None:
            rule = self.rules.of(self.file, place, row)
            if a == b or (np.isnan(a) and np.isnan(b)):
                size = 0.0
            elif np.isfinite(a - b):  # where nothing may differ, the size only says which difference is the largest
                size = abs(a - b) / (rule.tolerance(a, place, beside) or 1e-9 * max(abs(a), 1e-300)) + (rule is EXACT)
        self.add(f"{what}: {old!r}, now {new!r}", place, row, size)

    @property
    def outside(self) -> dict[Rule, list[tuple[float, str]]]:
        """By rule, what differs by more than the tolerance."""
        judged = ((rule, values) for rule, values in self.values.items() if rule.kind != "changed")
        return {rule: [value for value in values if value[0] > 1] for rule, values in judged}

    @property
    def differences(self) -> list[tuple[float, str]]:
        """What its rule does not let through, the largest first."""
        found = []
        for rule, outside in self.outside.items():
            sizes = [size for size, _ in self.values[rule]]
            if len(outside) > rule.beyond * len(sizes):
                found += outside
            elif rule.width and len(sizes) >= ENOUGH and (typical := float(np.median(sizes))) > TYPICAL:
                what = f"{len(sizes)} ends of intervals, typically by {typical:.0%} of their tolerance"
                found.append((typical, what))
        return sorted(found, key=lambda one: -one[0])

    def __str__(self) -> str:
        n = Counter(rule.kind for rule, values in self.values.items() for _ in values)
        said = ", ".join(f"{n[kind]} {kind}" for kind in ("exact", "Monte Carlo", "changed") if n[kind])
        if held := self.differences:
            return f"DIFFERS  {self.file}: {said}; {len(held)} differ, worst: {held[0][1]}"
        if let_through := sum(map(len, self.outside.values())):
            said += f"; {let_through} beyond tolerance, which is few"
        return f"ok       {self.file}: {said}"


def number(value) -> float | None:
    """A cell as a number, or None where it is text, a truth value or nothing."""
    try:
        return float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None
    except ValueError:
        return None


def other_end(place: str, beside: Callable) -> float:
    """The other end of the interval that ``place`` is one end of: low and high, or two numbers, or the last of three.

    Raises ``ValueError`` where there is none.
    """
    for first, second in (("low", "high"), ("/1", "/2"), ("/0", "/1")):
        for one, other in ((first, second), (second, first)):
            value = number(beside(place.removesuffix(one) + other)) if place.endswith(one) else None
            if value is not None:
                return value
    raise ValueError(f"{place!r} has a tolerance relative to its interval, but no other end was found")


# ------------------------------------------------------------------------------------------- tables and JSON files


def compare_table(verdict: Verdict, old: Path, new: Path) -> None:
    """Two CSV files, cell by cell. Rows match by all that is exact, then by texts and whole numbers, then in order."""
    named = verdict.rules.named
    before, now = (
        pd.read_csv(path, dtype=str, keep_default_na=False).rename(columns=named).map(named) for path in (old, new)
    )
    for name in before.columns.symmetric_difference(now.columns):
        verdict.add(f"column {name!r} is on one side only", name)
    if len(before) != len(now):
        verdict.add(f"{len(before)} rows, now {len(now)}")
    columns = [name for name in before if name in now]
    exact = [name for name in columns if verdict.rules.of(verdict.file, name) is EXACT]
    labels = [name for name in exact if not before[name].map(_has_point).any()]
    for i, j in _matched_rows(before, now, (exact, labels, [])):
        row = before.iloc[i]
        where = f"row {i + 1} ({', '.join(row[(labels or columns)[:4]])}), column"
        for name in columns:
            verdict.compare(f"{where} {name!r}", row[name], now[name].iloc[j], row.get, name, row.iloc[0])


def _has_point(cell: str) -> bool:
    """Whether a cell is a number that is measured rather than counted."""
    return number(cell) is not None and not cell.lstrip("-").isdecimal()


def _matched_rows(before: pd.DataFrame, now: pd.DataFrame, keys) -> Iterator[tuple[int, int]]:
    """Pairs of rows that are equal in the first of the ``keys``' columns, then of the rest in the next ones."""
    left, right = list(range(len(before))), list(range(len(now)))
    for names in keys:
        waiting, ours, theirs = defaultdict(list), before[names].values, now[names].values
        for j in right:
            waiting[tuple(theirs[j])].append(j)
        for i in list(left):
            if found := waiting[tuple(ours[i])]:
                left.remove(i)
                right.remove(found[0])
                yield i, found.pop(0)


def leaves(value, path: str = "") -> Iterator[tuple[str, object]]:
    """(path, value) of everything in a JSON value that holds nothing else; an empty list or dictionary is such."""
    if isinstance(value, (dict, list)) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{path}/{key}" if path else str(key))
    else:
        yield path, value


def compare_json(verdict: Verdict, old: Path, new: Path) -> None:
    """Two JSON files, value by value."""
    texts = [path.read_text(encoding="utf-8") for path in (old, new)]
    for name, other in verdict.rules.renamed.items():
        texts = [text.replace(json.dumps(name), json.dumps(other)) for text in texts]
    before, now = (dict(leaves(json.loads(text))) for text in texts)
    for path in {**before, **now}:
        if path in before and path in now:
            verdict.compare(path, before[path], now[path], before.get, path)
        else:
            verdict.add(f"{path} is {'missing' if path in before else 'new'}", path)


def compare_reports(rules: Rules, reference: Path, current: Path) -> list[Verdict]:
    """A verdict on each table and JSON file of two runs; a file that one side lacks differs unless it is named."""
    before, now = (
        {
            rules.named(p.relative_to(run).as_posix()): p
            for p in sorted([*run.glob("tables/*.csv"), *run.glob("*.json")])
        }
        for run in (reference, current)
    )
    if not before:
        raise ValueError(f"{reference} holds no tables and no JSON files")
    verdicts = [Verdict(name, rules) for name in {**before, **now}]
    for verdict in verdicts:
        if verdict.file in before and verdict.file in now:
            compare = compare_table if verdict.file.endswith(".csv") else compare_json
            compare(verdict, before[verdict.file], now[verdict.file])
        else:
            verdict.add("the file is on one side only")
    return verdicts


# -------------------------------------------------------------------------------------------------- stored arrays


def arrays_of(store: Path) -> Iterator[tuple[Path, str, np.ndarray]]:
    """(file, variable, array) of every array that a store holds, in NetCDF, safetensors and NumPy files."""
    readers = {".nc": lambda path: xr.load_dataset(path, engine="h5netcdf"), ".safetensors": load_file, ".npz": np.load}
    for path in sorted(store.rglob("*.*")):
        if path.suffix in readers:
            yield from ((path, str(name), np.asarray(of)) for name, of in readers[path.suffix](path).items())


def rows_of(array: np.ndarray) -> Iterator[bytes]:
    """The content of each row of the last axis that is longer than 1, with its type."""
    array = np.atleast_1d(np.squeeze(array))
    rows = np.ascontiguousarray(array).reshape(-1, array.shape[-1]) if array.size else ()
    if array.dtype.kind in "OUS":
        yield from ("\n".join(map(str, row)).encode() for row in rows)
    else:
        yield from (array.dtype.str.encode() + row.tobytes() for row in rows)


def compare_arrays(rules: Rules, reference: Path, current: Path) -> list[Verdict]:
    """A verdict on each stage of the reference's store: which of its arrays are found among the current ones?"""
    known = {row for _, _, array in arrays_of(current) for row in rows_of(array)}
    verdicts: dict[str, Verdict] = {}
    for path, name, array in arrays_of(reference):
        stage = f"store/{path.relative_to(reference).parts[0]}"
        gone = [row not in known for row in rows_of(array)]
        what = f"{path.parent.name}/{path.name}, {name} {array.shape}: {sum(gone)} of {len(gone)} rows not found"
        if any(gone):
            about = json.loads((path.parent / "manifest.json").read_text(encoding="utf-8"))["provenance"]
            what += f", { ({key: about[key] for key in ('seed', 'layer', 'preset', 'kind') if key in about}) }"
        verdicts.setdefault(stage, Verdict(stage, rules)).add(what, name, size=1 + sum(gone) if any(gone) else 0)
    if not verdicts:
        raise ValueError(f"{reference} holds no arrays")
    return list(verdicts.values())


# ------------------------------------------------------------------------------------------------ the command line


def main(arguments: list[str] | None = None) -> int:
    """Print a line per file and stage, those that differ last, and a summary; 1 where any differs beyond its class."""
    parser = argparse.ArgumentParser(prog="python -m workflow.yardstick", description="Compare two runs.")
    parser.add_argument("run", nargs=2, type=Path, metavar=("REFERENCE", "CURRENT"), help="folders of reports")
    parser.add_argument("--stores", nargs=2, type=Path, metavar=("REFERENCE", "CURRENT"), help="compare arrays too")
    words, rules = parser.parse_args(arguments), load_rules()
    verdicts = compare_reports(rules, *words.run)
    if words.stores:
        verdicts += compare_arrays(rules, *words.stores)
    for verdict in sorted(verdicts, key=lambda v: bool(v.differences)):
        print(verdict)
    wrong = sum(bool(v.differences) for v in verdicts)
    n = sum(len(values) for v in verdicts for values in v.values.values())
    print(f"{len(verdicts)} files and stages, {n} values and arrays: {wrong or 'none'} differ beyond their class")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
