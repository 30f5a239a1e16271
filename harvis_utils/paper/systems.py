"""What the sources of the systems in notebooks 15 and later say, and how it is judged: a difference with its margin.

Such a claim is one difference, taken network by network with the same seed on both sides. It is so where the interval
lies above zero and the difference reaches its margin; not so where the interval lies below zero, or altogether within
the margin: then there is no difference that matters. Else it is undecided. Controls stand beside it: what else would
give the same number.

Intervals go over networks alone: two test people are too few to be drawn from. With three networks an interval reaches
from the smallest to the largest; where there is no difference at all, it lies on one side of zero in one case of four.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd

from harvis_utils.metrics.intervals import interval, listed
from harvis_utils.paper.verdicts import NO, UNDECIDED, UNSTATED, UNTESTABLE, YES, number
from harvis_utils.settings import as_json

#: Choice: networks on each side; fewer have no interval worth the name
FEWEST_NETWORKS = 3


@dataclass(frozen=True)
class Question:
    """One claim of a source, by its ``id``: what it says and where, and the ``difference`` by which it is asked here.

    A difference of at least ``margin`` in ``unit`` ("share", "times", "G", ...) counts. ``control`` tells what could
    give the same without what the source says.
    """

    id: str
    where: str
    source: str
    difference: str
    control: str
    margin: float = 0.0
    unit: str = ""


def judge(
    question: Question,
    values,
    controls: Mapping[str, Sequence[float]] = MappingProxyType({}),
    missing: str = "",
    drawn=None,
) -> dict:
    """The verdict as an entry of ``results.json``.

    ``values`` are the differences, (seed,) or (seed, ...): then their mean in each network; NaN is left out.
    ``controls`` maps names to the same of what they replace. With ``missing`` words nothing is judged: they say what
    is not there. ``drawn`` are the parts whose mean the values are where something else than networks is drawn first
    for the interval, (class, seed) say.
    """
    values = by_network(values)
    many = int((~np.isnan(values)).sum())
    if not missing and many < FEWEST_NETWORKS:
        missing = f"{many} of the {FEWEST_NETWORKS} networks that an interval wants"
    value, ends = interval(values if drawn is None else drawn)
    direction = UNTESTABLE if missing else direction_of(value, ends, question.margin)
    others = {name: interval(by_network(of) if drawn is None else of) for name, of in controls.items()}
    beside = {name: dict(zip(("value", "interval"), of, strict=True)) for name, of in others.items()}
    first = {"value": value if many else None, "interval": ends}
    said = f"{question.difference[0].upper()}{question.difference[1:]}: {told(first, question.unit)}"
    said += f", margin {_margin(question.margin, question.unit)}" if question.margin else ""
    said += "".join(f"; {name}: {told(of, question.unit)}" for name, of in beside.items())
    why = f"Not testable: {missing}. {said}." if missing else f"{direction.capitalize()}. {said}."
    return as_json(
        {
            "id": question.id,
            "where": question.where,
            "source": question.source,
            "direction": direction,
            "size": UNSTATED,
            "value": value,
            "unit": question.unit,
            "interval": ends,
            "margin": question.margin,
            "networks": many,
            "per_network": values.tolist(),
            "control": question.control,
            "controls": beside,
            "why": why,
        },
        nan_as_null=True,
    )


def by_network(values) -> np.ndarray:
    """(seed, ...) values as their mean in each network, (seed,), NaN left out; a number is one network's."""
    values = np.atleast_1d(np.asarray(values, dtype=float))
    return pd.DataFrame(values.reshape(len(values), -1)).mean(axis=1).to_numpy()


def best_rival(table: pd.DataFrame, names: Sequence[str], lowest: bool = False) -> pd.Series:
    """Of the columns ``names`` of a table with a row for each network, the one that does best on average.

    It is one rival for all networks: the best of each network has luck on its side, and beats equals more often.
    """
    mean = table[list(names)].mean() * (-1 if lowest else 1)
    return table[mean.fillna(-np.inf).idxmax()]


def told(of: Mapping, unit: str) -> str:
    """A difference, ``value`` and ``interval`` of a verdict or one of its controls, for a sentence."""
    return number(of["value"], unit, of["interval"], signed=True)


def _margin(margin: float, unit: str) -> str:
    """A margin of a difference: in points, where the difference is, but without a sign."""
    return number(margin, unit, signed=True).removeprefix("+")


def ahead(verdict: Mapping) -> list[str]:
    """The controls of an entry that reach its own value, or come within its margin."""
    least = np.inf if verdict["value"] is None else verdict["value"] - verdict["margin"]
    return [name for name, of in verdict["controls"].items() if of["value"] is not None and of["value"] >= least]


def finding(verdict: Mapping) -> str:
    """A verdict for a list of findings: what was measured, and the names of the controls that reach as much.

    What these reach is in the verdict's "why", and in :func:`table`.
    """
    if verdict["direction"] == UNTESTABLE:
        return f"{verdict['why'].partition('. ')[0]}."
    said, rivals = f"{verdict['why'].partition('; ')[0].removesuffix('.')}.", [f"*{of}*" for of in ahead(verdict)]
    if not verdict["controls"]:
        return said
    much = "as much, within the margin" if verdict["margin"] else "as much"
    return f"{said} {much.capitalize()}: {listed(rivals)}." if rivals else f"{said} No control reaches {much}."


def direction_of(value: float, ends: Sequence[float] | None, margin: float) -> str:
    """The direction of a difference from its interval and the margin, as the module says."""
    if ends is None:
        return UNTESTABLE
    low, high = ends
    if low > 0 and value >= margin:
        return YES
    return NO if high <= 0 or (margin and -margin < low and high < margin) else UNDECIDED


def table(verdicts: Sequence[Mapping]) -> pd.DataFrame:
    """Verdicts for reading, one row per claim."""
    rows = {
        v["id"]: {
            "the source says": f"{v['source']} ({v['where']})",
            "is it so": v["direction"],
            "number": told(v, v["unit"]),
            "networks": v["networks"],
            "margin": _margin(v["margin"], v["unit"]),
            "could fail against": v["control"],
            "why": v["why"],
        }
        for v in verdicts
    }
    return pd.DataFrame(rows).T.rename_axis("claim")
