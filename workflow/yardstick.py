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
    """All of ``yardstick.toml``: the first rule that names a value counts, what none names is exact."""

    rules: tuple[Rule, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)

    def of(self, file: str, place: str = "", row: str = "") -> Rule:
        """The rule of a column, JSON path or variable; of a whole file where ``place`` is empty."""
        return next((rule for rule in self.rules if rule.names(file, place, row)), EXACT)

    def find(self, name: str, among) -> str | None:
        """What ``name`` of the reference is called now: its new name where that is there, else its own, else None."""
        return next((n for n in (self.renamed.get(name, name), name) if n in among), None)


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
    """What became of one file or stage: by rule, the size of each value's difference, and what lies outside."""

    file: str
    sizes: dict = field(default_factory=lambda: defaultdict(list))
    outside: dict = field(default_factory=lambda: defaultdict(list))

    def add(self, rule: Rule, size: float = 0.0, what: str = "") -> None:
        """Count a value; ``size`` is its difference in units of its tolerance, above 1 outside."""
        self.sizes[rule].append(size)
        if size > 1 and rule.kind != "changed":
            self.outside[rule].append((size, f"{what} ({rule.kind})"))

    @property
    def differences(self) -> list[tuple[float, str]]:
        """What its rule does not let through, the largest first."""
        found = []
        for rule, sizes in self.sizes.items():
            if len(self.outside[rule]) > rule.beyond * len(sizes):
                found += self.outside[rule]
            elif rule.width and len(sizes) >= ENOUGH and (typical := float(np.median(sizes))) > TYPICAL:
                found.append(
                    (typical, f"{len(sizes)} ends of intervals, typically by {typical:.0%} of their tolerance")
                )
        return sorted(found, key=lambda one: -one[0])

    def __str__(self) -> str:
        held, n = self.differences, Counter()
        for rule, sizes in self.sizes.items():
            n[rule.kind] += len(sizes)
        said = ", ".join(f"{n[kind]} {kind}" for kind in ("exact", "Monte Carlo", "changed") if n[kind])
        if held:
            return f"DIFFERS  {self.file}: {said}; {len(held)} differ, worst: {held[0][1]}"
        let_through = sum(map(len, self.outside.values()))
        return f"ok       {self.file}: {said}" + (
            f"; {let_through} beyond tolerance, which is few" if let_through else ""
        )


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


def compare_value(verdict: Verdict, rules: Rules, rule: Rule, place: str, where: str, old, new, beside) -> None:
    """Judge one value; ``beside(name)`` is the reference's value at a neighbouring place."""
    a, b = number(old), number(new)
    if old == new or (isinstance(old, str) and rules.renamed.get(old) == new):
        verdict.add(rule)
    elif a is None or b is None:
        verdict.add(rule, np.inf, f"{where}: {old!r}, now {new!r}")
    elif a == b or (np.isnan(a) and np.isnan(b)):
        verdict.add(rule)
    else:
        tolerance = rule.tolerance(a, place, beside) or 1e-9 * max(abs(a), 1e-300)  # of exact ones only for the order
        size = abs(a - b) / tolerance if np.isfinite(a - b) else np.inf
        verdict.add(rule, size if rule is not EXACT else 1 + size, f"{where}: {old}, now {new}")


# ------------------------------------------------------------------------------------------- tables and JSON files


def compare_table(verdict: Verdict, rules: Rules, old: Path, new: Path) -> None:
    """Two CSV files, cell by cell. Rows match by all that is exact, then by texts and whole numbers, then in order."""
    before, now = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (old, new))
    columns = {name: rules.find(name, now.columns) for name in before}
    for name in [n for n, found in columns.items() if found is None] + sorted(set(now) - set(columns.values())):
        verdict.add(rules.of(verdict.file, name), np.inf, f"column {name!r} is on one side only")
    columns = {name: found for name, found in columns.items() if found is not None}
    if len(before) != len(now):
        verdict.add(rules.of(verdict.file), np.inf, f"{len(before)} rows, now {len(now)}")
    exact = [name for name in columns if rules.of(verdict.file, name) is EXACT]
    labels = [name for name in exact if not before[name].map(_has_point).any()]
    for i, j in _matched_rows(rules, before, now, columns, (exact, labels, [])):
        row = before.iloc[i]
        said = ", ".join(row[name] for name in (labels or list(columns))[:4])
        for name, found in columns.items():
            rule, where = rules.of(verdict.file, name, row.iloc[0]), f"row {i + 1} ({said}), column {name!r}"
            compare_value(verdict, rules, rule, name, where, row[name], now[found].iloc[j], row.get)


def _has_point(cell: str) -> bool:
    """Whether a cell is a number that is measured rather than counted."""
    return number(cell) is not None and not cell.lstrip("-").isdecimal()


def _matched_rows(rules: Rules, before, now, columns: dict[str, str], keys) -> Iterator[tuple[int, int]]:
    """Pairs of rows that are equal in the first of the ``keys``' columns, then of the rest in the next ones."""
    left, rest = list(range(len(before))), list(range(len(now)))
    for names in keys:
        waiting, kept = defaultdict(list), []
        for j, cells in zip(rest, now.iloc[rest][[columns[n] for n in names]].values, strict=True):
            waiting[tuple(cells)].append(j)
        for i, cells in zip(left, before.iloc[left][names].values, strict=True):
            as_named = (tuple(cells), tuple(rules.renamed.get(cell, cell) for cell in cells))
            if found := next((waiting[n] for n in as_named if waiting.get(n)), None):
                yield i, found.pop(0)
            else:
                kept.append(i)
        left, rest = kept, sorted(j for some in waiting.values() for j in some)


def leaves(value, path: str = "") -> Iterator[tuple[str, object]]:
    """(path, value) of everything in a JSON value that holds nothing else; an empty list or dictionary is such."""
    if isinstance(value, (dict, list)) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{path}/{key}" if path else str(key))
    else:
        yield path, value


def compare_json(verdict: Verdict, rules: Rules, old: Path, new: Path) -> None:
    """Two JSON files, value by value."""
    before, now = (dict(leaves(json.loads(path.read_text(encoding="utf-8")))) for path in (old, new))
    rest = set(now)
    for path, value in before.items():
        rule, renamed = rules.of(verdict.file, path), "/".join(rules.renamed.get(p, p) for p in path.split("/"))
        if found := next((p for p in (renamed, path) if p in now), None):
            rest.discard(found)
            compare_value(verdict, rules, rule, path, path, value, now[found], before.get)
        else:
            verdict.add(rule, np.inf, f"{path} is missing")
    for path in sorted(rest):
        verdict.add(rules.of(verdict.file, path), np.inf, f"{path} is new")


def compare_reports(rules: Rules, reference: Path, current: Path) -> list[Verdict]:
    """A verdict on each table and JSON file of two runs; a file that one side lacks differs unless it is named."""
    before, now = (
        {p.relative_to(run).as_posix(): p for p in sorted([*run.glob("tables/*.csv"), *run.glob("*.json")])}
        for run in (reference, current)
    )
    if not before:
        raise ValueError(f"{reference} holds no tables and no JSON files")
    found = {name: rules.find(name, now) for name in before}
    verdicts = {name: Verdict(name) for name in [*before, *(set(now) - set(found.values()))]}
    for name, verdict in verdicts.items():
        if found.get(name) is None:
            verdict.add(rules.of(name), np.inf, "the file is on one side only")
        else:
            compare = compare_table if name.endswith(".csv") else compare_json
            compare(verdict, rules, before[name], now[found[name]])
    return list(verdicts.values())


# -------------------------------------------------------------------------------------------------- stored arrays


def arrays_of(store: Path) -> Iterator[tuple[Path, str, np.ndarray]]:
    """(file, variable, array) of every array that a store holds, in NetCDF, safetensors and NumPy files."""
    for path in sorted(p for p in store.rglob("*.*") if p.is_file()):
        if path.suffix == ".nc":
            values = {str(name): of.values for name, of in xr.load_dataset(path, engine="h5netcdf").data_vars.items()}
        elif path.suffix == ".safetensors":
            values = load_file(path)
        elif path.suffix == ".npz":
            values = dict(np.load(path, allow_pickle=False))
        else:
            continue
        yield from ((path, name, value) for name, value in values.items())


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
        verdict, rule = verdicts.setdefault(stage, Verdict(stage)), rules.of(stage, name)
        gone = [row not in known for row in rows_of(array)]
        what = f"{path.parent.name}/{path.name}, {name} {array.shape}: {sum(gone)} of {len(gone)} rows not found"
        if any(gone):
            about = json.loads((path.parent / "manifest.json").read_text(encoding="utf-8"))["provenance"]
            what += f", { ({key: about[key] for key in ('seed', 'layer', 'preset', 'kind') if key in about}) }"
        verdict.add(rule, 1 + sum(gone) if any(gone) else 0, what)
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
    n = sum(len(sizes) for v in verdicts for sizes in v.sizes.values())
    print(f"{len(verdicts)} files and stages, {n} values and arrays: {wrong or 'none'} differ beyond their class")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
