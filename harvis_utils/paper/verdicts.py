"""A claim's numbers and their intervals turned into a verdict, and into a sentence that tells it.

* direction: "no" if any criterion of direction lies wholly on the wrong side, "yes" if all lie wholly on the right
  one, else "undecided"; "not testable" only with what is missing.
* size: "as stated", "smaller" or "larger" where the interval lies in, below or above what the paper states.

The intervals of one claim hold together: each is at 95 % after Bonferroni's correction for the claim's criteria. With
fewer than five networks they are over units only, and numbers that a network has once have none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from harvis_utils.metrics.intervals import ENOUGH_SEEDS
from harvis_utils.paper.evidence import Evidence

YES, NO, UNDECIDED, UNTESTABLE = "yes", "no", "undecided", "not testable"
AS_STATED, SMALLER, LARGER, UNSTATED = "as stated", "smaller", "larger", "not stated"

#: one number of the evidence, or of every draw of it
Statistic = Callable[[Evidence], np.ndarray]


@dataclass(frozen=True)
class Criterion:
    """One number of a claim and the range that the paper's words stand for.

    ``statistic(evidence)`` reduces the last two axes (seed, unit) of what :meth:`Evidence.of` gives; a number that is
    the same in every draw needs no interval. ``unit`` is "times", "share", "G", "p" or another name.
    """

    claim: str
    what: str
    statistic: Callable[[Evidence], np.ndarray]
    low: float = -np.inf
    high: float = np.inf
    unit: str = ""
    kind: str = "direction"  # or "size"
    needs: str = ""  # the part of the evidence without which it is left out

    def right(self, values: np.ndarray) -> np.ndarray:
        """Whether values lie on the right side or, of a size, where the paper states; False for NaN."""
        values = np.asarray(values)
        inside = (values > self.low) & (values < self.high)
        return inside if self.kind == "direction" else (values >= self.low) & (values <= self.high)

    def standing(self, bounds: Sequence[float] | None) -> str:
        """Where an interval lies: "right", "wrong" or "open" of a direction; of a size as :data:`AS_STATED` says.

        A direction that only reaches its bound, such as a tie, is on the wrong side.
        """
        if bounds is None:
            return "open"
        below, above = bounds[1] < self.low, bounds[0] > self.high
        if self.kind == "size":
            return SMALLER if below else LARGER if above else AS_STATED if self.right(bounds).all() else "open"
        if self.right(bounds).all():
            return "right"
        return "wrong" if bounds[1] <= self.low or bounds[0] >= self.high else "open"


@dataclass(frozen=True)
class Claim:
    """One claim of the paper: where it stands, what it says, what it could fail against, and how its numbers are told.

    ``says`` has its criteria's numbers in braces, in their order.
    """

    id: str
    where: str
    paper: str
    control: str
    says: str
    needs: Callable[[Evidence], str] = lambda evidence: ""  # what is missing to test it here; empty: nothing
    by_networks: bool = True  # False: no network is involved, so the number of networks says nothing


def measure(criterion: Criterion, evidence: Evidence, drawn: Evidence, level: float) -> dict:
    """A criterion's number with its interval, outside of which a share ``level`` of the draws lies."""
    value, draws = float(criterion.statistic(evidence)), np.asarray(criterion.statistic(drawn))
    known, ends = draws[~np.isnan(draws)], None
    if not np.isnan(value) and known.size > 0.95 * draws.size:  # Choice: else too few draws have anything left
        ends = [float(q) for q in np.quantile(known, (level / 2, 1 - level / 2))]
    return {
        "what": criterion.what,
        "kind": criterion.kind,
        "value": None if np.isnan(value) else value,
        "unit": criterion.unit,
        "interval": ends,
        "range": [None if np.isinf(b) else b for b in (criterion.low, criterion.high)],
        "standing": criterion.standing(ends),
    }


def decide(criteria: Sequence[dict]) -> dict[str, str]:
    """Direction and size from measured criteria."""
    stands = {kind: {c["standing"] for c in criteria if c["kind"] == kind} for kind in ("direction", "size")}
    untestable = all(c["value"] is None for c in criteria)
    direction = (
        UNTESTABLE
        if untestable
        else NO
        if "wrong" in stands["direction"]
        else YES
        if stands["direction"] == {"right"}
        else UNDECIDED
    )
    sizes = stands["size"] - {AS_STATED} or stands["size"]  # one that is not as stated decides
    size = UNSTATED if not sizes else UNDECIDED if len(sizes) > 1 or "open" in sizes else sizes.pop()
    return {"direction": direction, "size": size}


def judge(
    claim: Claim,
    criteria: Sequence[Criterion],
    evidence: Evidence,
    drawn: Evidence,
    robust: Mapping[str, float] = MappingProxyType({}),
) -> dict:
    """Verdict on one claim as an entry of ``results.json``.

    ``drawn`` is the evidence :meth:`Evidence.resampled`, ``robust`` the share of readings of each direction.
    """
    criteria = [c for c in criteria if not c.needs or getattr(evidence, c.needs) is not None]
    sized = any(c.kind == "size" for c in criteria)
    entry = {"id": claim.id, "where": claim.where, "paper": claim.paper}
    entry |= {"direction": UNTESTABLE, "size": UNDECIDED if sized else UNSTATED}
    entry |= {"value": None, "unit": "", "interval": None, "robust": None, "why": "", "criteria": []}
    if reason := claim.needs(evidence):
        return entry | {"why": f"Not testable: {reason}."}
    found = [measure(c, evidence, drawn, 0.05 / len(criteria)) for c in criteria]
    entry |= decide(found) | {name: found[0][name] for name in ("value", "unit", "interval")} | {"criteria": found}
    if entry["direction"] == UNTESTABLE:
        return entry | {"why": "Not testable: no unit is left to measure it on."}
    share = robust.get(entry["direction"])
    entry["robust"] = None if share is None or np.isnan(share) else float(share)
    return entry | {"why": told(claim, entry, evidence.scores.sizes["seed"])}


def number(value: float | None, unit: str, ends: Sequence[float] | None = None, signed: bool = False) -> str:
    """A number for a sentence, as "12 times", "83 %" or "+12 points", with its interval where one is given.

    A signed "share" is a difference of two; a "relative" one is a part of what it is compared with.
    """
    if value is None:
        return "no number"
    share, sign = unit in ("share", "relative"), "+" if signed else ""
    after = {"share": " points" if signed else " %", "relative": " %", "times": " times", "G": " G"}.get(unit, "")

    def form(v: float) -> str:
        v = 100 * v if share else v
        fine = (signed or not share) and abs(v) < 99.5
        digits = ".1g" if share and 0 < abs(v) < 0.95 else ".2g" if fine else ".0f"
        return f"{v:{sign}{digits}}"

    sure = ends is None or ends[0] == ends[1]
    return form(value) + after + ("" if sure else f" ({form(ends[0])} to {form(ends[1])})")


def told(claim: Claim, entry: dict, n_networks: int) -> str:
    """The verdict and its numbers in one sentence."""
    said = []
    for k, c in enumerate(entry["criteria"]):
        said.append(number(c["value"], c["unit"], None if k else c["interval"], " minus " in c["what"]))
    size = "" if entry["size"] == UNSTATED else f" (size: {entry['size']})"
    parts = [f"{entry['direction'].capitalize()}{size}: {claim.says.format(*said)}"]
    for standing, words in (("wrong", "against it"), ("open", "open")):
        those = [c["what"] for c in entry["criteria"] if c["standing"] == standing]
        parts += [f"{words}: {' and '.join(those[:2])}"] if those else []
        parts[-1] += f" and {len(those) - 2} more" if len(those) > 2 else ""
    if entry["robust"] is not None:
        parts.append(f"the same under {entry['robust']:.0%} of the admissible readings")
    if claim.by_networks and n_networks < ENOUGH_SEEDS:
        parts.append(f"intervals are over the units of {n_networks} networks only")
    return "; ".join(parts) + "."
