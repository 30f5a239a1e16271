"""Scored readings turned into a choice: which one meets what the paper reports.

Facts are the criteria of the claims C3 to C8, unchanged (:mod:`harvis_utils.paper.claims`), that L2+TV fails sometimes,
and that signals keep a shape. A claim counts by the share of its facts that are met; a reading's score is the mean over
the claims. The rule, with the grid of readings and its measure of how far one departs from the paper, was fixed before
any reading was tried on the networks that choose now. One value of the grid, the smallest weight of sums, was added
when the winner on MHEALTH lay at the smallest one tried. Known were the results of an earlier search, on other
networks, by an earlier rule which had no fact about shape and counted departures without their size.

* The *best* reading has the highest score; among equals the one that departs least from what is stated, then the
  first in the order of the list.
* A reading *cannot be told apart* from the best where the 95 % bootstrap interval of the difference of their scores
  (units within each network, and networks where there are enough, the same draws for all) reaches zero.
* The *winner* departs least from what is stated among those; of equals it is the one with the highest score, then the
  first. (So do one-standard-error rules for trees: Breiman et al. 1984.)
* A claim is judged under the readings that are admissible *by the other claims*, the same rule without it. Otherwise
  it would be asked of readings chosen because they meet it.
* Where no reading meets everything, the *frontier* is what there is to choose from: readings that no other one beats
  in one of score, flat signals and the two printed numbers without being beaten in another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.maximization.paper_methods import BASELINE, PROPOSED
from harvis_utils.metrics.intervals import LEVEL
from harvis_utils.paper.claims import CRITERIA
from harvis_utils.paper.evidence import LAYERS, Evidence, mean
from harvis_utils.paper.variants import Variant, departures, penalties
from harvis_utils.paper.verdicts import Criterion

#: claims that a reading has to meet; the step sizes have no part in the others
CHOOSING = ("C3", "C4", "C5", "C6", "C7", "C8")
#: what stands for a claim of the facts about shape, which are about Fig. 8
SHAPE = "shape"


def flat_share(evidence: Evidence, layer: str | None = None, at_rest: bool | None = None) -> np.ndarray:
    """Share of the proposed method's signals that are flat.

    With ``at_rest`` only of units whose strongest real windows are all flat, or (False) of the others.
    """
    still = 1.0 - evidence.moves(PROPOSED, layer)
    alive = ~np.isnan(evidence.of(PROPOSED, "range_g", layer))
    if at_rest is not None:
        alive &= evidence.of(PROPOSED, lambda s: s["at_rest"], layer) == at_rest
    return mean(still, alive)


#: Choice: from the paper's words on Fig. 8. Conv1's signals are edges or flat, two simple kinds, of which flat is the
#: second: fewer than half. Conv3's are of many kinds, and none is called flat: fewer than a tenth. Of Conv2 it says
#: nothing, and Figs. 3 and 4 treat it as the others: fewer than half. When this was written it was known that the
#: preset in use leaves more than that flat at Conv2 and Conv3. Doing nothing keeps the start's shape and meets this; it
#: is what the claims' criteria are there for
FLATTEST = dict(zip(LAYERS, (0.5, 0.5, 0.1), strict=True))

#: facts that the claims' criteria leave out
MORE = (
    # Paper section 5: a few units of the baseline fail
    Criterion("C5", "L2+TV: share of failed units: some, not half", lambda e: mean(e.of(BASELINE, "failed")), 0, 0.5),
    *(
        Criterion(SHAPE, f"{layer}: share of flat signals", partial(flat_share, layer=layer), -np.inf, most, "share")
        for layer, most in FLATTEST.items()
    ),
)

#: Paper: the two numbers that it prints, each of one unit
PRINTED = {"Fig. 1": 15.0, "Fig. 6": 2.0}

#: what the paper leaves open, as :func:`table` names it
OPEN = ("step", "decay", "penalties", "weight", "periods")

#: Choice: bootstrap draws for differences of scores
N_DRAWS = 400


@dataclass(frozen=True)
class Facts:
    """Criteria, and the evidence of all readings that they are asked of."""

    criteria: list[Criterion]
    evidence: Evidence

    @property
    def claims(self) -> np.ndarray:
        """The claim that each fact belongs to, (fact,)."""
        return np.array([criterion.claim for criterion in self.criteria])

    def of(self, evidence: Evidence) -> np.ndarray:
        """The number of every fact: (reading, [draw,] fact); NaN where no unit is left."""
        return np.stack([criterion.statistic(evidence) for criterion in self.criteria], -1)

    @cached_property
    def points(self) -> np.ndarray:
        """The number of every fact, of all units: (reading, fact)."""
        return self.of(self.evidence)

    def right(self, numbers: np.ndarray) -> np.ndarray:
        """Which numbers are as their facts want them: (..., fact), False where there is none."""
        return np.stack([criterion.right(numbers[..., k]) for k, criterion in enumerate(self.criteria)], -1)

    @cached_property
    def met(self) -> np.ndarray:
        """Whether each fact is met: (reading, fact)."""
        return self.right(self.points)

    @property
    def standing(self) -> np.ndarray:
        """Where each number lies: -1 below its fact's range, 0 in it, 1 above; (reading, fact), NaN without one."""
        points, low = self.points, np.array([criterion.low for criterion in self.criteria])
        return np.where(np.isnan(points), np.nan, np.where(self.right(points), 0, np.where(points <= low, -1, 1)))

    def draws(self, n: int = N_DRAWS) -> np.ndarray:
        """Bootstrap of what is met: (draw, reading, fact). All readings are drawn alike."""
        return np.moveaxis(self.right(self.of(self.evidence.resampled(n))), 1, 0)

    def score(self, met: np.ndarray, without: str = "") -> np.ndarray:
        """Mean over the claims, ``without`` one, of the share of a claim's facts that are met: (..., reading)."""
        left = [name for name in dict.fromkeys(self.claims) if name != without]
        return np.mean([met[..., self.claims == name].mean(-1) for name in left], axis=0)


def facts(scores: xr.Dataset, controls: xr.Dataset, dataset: str, names: Sequence[str] = (*CHOOSING, SHAPE)) -> Facts:
    """The facts of these claims under every reading, without those that need more than scores.

    ``scores`` is as :func:`harvis_utils.paper.climbing.reading_scores` returns it, ``controls`` those of the same
    networks, of all units.
    """
    of_claims = [c for name in names for c in (*CRITERIA, *MORE) if c.claim == name and not c.needs]
    nothing = np.full(scores.sizes["seed"], np.nan)
    own = controls.sel(unit=scores["unit"])
    return Facts(of_claims, Evidence(dataset, 0, nothing, np.nan, scores, own, atlas={}))


def printed(found: Facts) -> pd.DataFrame:
    """What stands for :data:`PRINTED` under every reading, and ``off``: the larger distance, in factors of ten.

    That is the median unit's largest output over its 95 % point: of naive ascent (criterion of size of C3), and of
    L2+TV+AAP in Conv1 (of C7).
    """
    sizes = [next(c for c in CRITERIA if c.claim == claim and c.kind == "size") for claim in ("C3", "C7")]
    rows = pd.DataFrame({name: c.statistic(found.evidence) for name, c in zip(PRINTED, sizes, strict=True)})
    with np.errstate(divide="ignore"):
        return rows.assign(off=np.abs(np.log10(rows / pd.Series(PRINTED))).max(axis=1, skipna=False))


def winner(scores: np.ndarray, alike: np.ndarray, readings: Sequence[Variant]) -> int:
    """Index of the winner among ``alike`` (reading,): least departure, then the highest score, then the earliest."""
    return min(np.flatnonzero(alike), key=lambda i: (departures(readings[i]), -round(float(scores[i]), 9), i))


def admissible(
    scores: np.ndarray, drawn: np.ndarray, readings: Sequence[Variant]
) -> tuple[int, np.ndarray, np.ndarray]:
    """The best reading, which cannot be told apart from it, (reading,), and the differences' intervals, (reading, 2).

    ``drawn`` is (draw, reading): bootstrap scores. A reading with the best one's score always belongs to them.
    """
    top = min(range(len(readings)), key=lambda i: (-round(float(scores[i]), 9), departures(readings[i]), i))
    bounds = np.quantile(drawn - drawn[:, [top]], LEVEL, axis=0).T
    return top, (bounds[:, 1] >= 0) | (scores >= scores[top]), bounds


def undominated(rows: pd.DataFrame) -> np.ndarray:
    """Which rows no other one beats in "score", "flat" or "off" without being beaten in another, bool (reading,).

    A row without one of these numbers is never among them.
    """
    worse = np.stack([-rows["score"], rows["flat"], rows["off"]], -1)
    known = ~np.isnan(worse).any(-1)
    no_worse, better = ((worse[:, None] >= worse).all(-1), (worse[:, None] > worse).any(-1))
    return known & ~(no_worse & better & known).any(1)


def table(readings: Sequence[Variant], found: Facts, drawn: np.ndarray) -> pd.DataFrame:
    """One row per reading, best first: what it is, its score, whether admissible and on the frontier, every fact.

    ``flat`` is the share of flat signals of all layers, then of units whose strongest real windows are all flat and of
    the others; "Fig. 1", "Fig. 6" and ``off`` are as in :func:`printed`. ``drawn`` is what :meth:`Facts.draws`
    returned. ``attrs["winner"]`` is the name of the winner.
    """
    total = found.score(found.met)
    top, alike, bounds = admissible(total, found.score(drawn), readings)
    low, high = bounds.T
    own = [
        (f"{r.step.optimizer} {r.step.step_size:g}", r.step.decay, penalties(r), r.weight, r.periods, departures(r))
        for r in readings
    ]
    rows = pd.DataFrame(own, columns=["step", "decay", "penalties", "weight", "periods", "departures"])
    rows = rows.assign(**{"score": total, "difference low": low, "difference high": high, "admissible": alike})
    flat = {"flat": None, "flat where windows are": True, "flat where windows move": False}
    rows = rows.assign(**{name: flat_share(found.evidence, at_rest=rest) for name, rest in flat.items()})
    rows = rows.join(printed(found))
    rows["frontier"] = undominated(rows)
    values = {f"{c.claim} {c.what}": of for c, of in zip(found.criteria, found.points.T, strict=True)}
    rows = rows.assign(**values).set_index(pd.Index([r.name for r in readings], name="reading"))
    rows.attrs["winner"] = readings[winner(total, alike, readings)].name
    order = sorted(range(len(readings)), key=lambda i: (i != top, -total[i], departures(readings[i])))
    return rows.iloc[order]


def deciding(rows: pd.DataFrame, what: Sequence[str] = ("score", "flat", "off")) -> pd.DataFrame:
    """How far each of :data:`OPEN` alone moves ``what``: one row per parameter.

    Standard deviation among readings that differ in this parameter only, mean over all such groups; largest minus
    smallest would favour a parameter of which many values were tried.
    """
    moved = {}
    for name in OPEN:
        groups = rows.groupby([other for other in OPEN if other != name])[[*what]]
        moved[name] = groups.std(ddof=0)[groups.size() > 1].mean()
    return pd.DataFrame(moved).T.rename_axis("parameter")


def excluding(found: Facts) -> pd.DataFrame:
    """Pairs of facts that some readings meet, each, and no reading meets both: how many meet the one and the other.

    First the pairs of which both are met often.
    """
    met = found.met
    names = [f"{criterion.claim} {criterion.what}" for criterion in found.criteria]
    counts = met.sum(0)
    rows = [
        (names[a], names[b], counts[a], counts[b])
        for a, b in combinations(range(len(names)), 2)
        if counts[a] and counts[b] and not (met[:, a] & met[:, b]).any()
    ]
    rows = sorted(rows, key=lambda row: -min(row[2:]))
    return pd.DataFrame(rows, columns=["fact", "excludes", "readings with the first", "readings with the second"])


def shares(readings: Sequence[Variant], found: Facts, drawn: np.ndarray, others: Facts | None = None) -> pd.DataFrame:
    """For each claim: under which share of the readings that the *other* claims admit it is so.

    "yes in": all its criteria of direction are right; "no in": one of them is wrong; "as stated in": all its criteria
    of size are as stated, where it has any; "yes in all" is the share of all readings. "chosen without it" is the
    winner by the other claims, "yes there" whether the claim is so under it. ``others`` are facts of claims that took
    no part in choosing.
    """
    met, rows = found.met, []
    for of in [found] if others is None else [found, others]:
        right, kinds = of.met, np.array([criterion.kind for criterion in of.criteria])
        for name in dict.fromkeys(of.claims):
            total, own = found.score(met, without=name), of.claims == name
            _, alike, _ = admissible(total, found.score(drawn, without=name), readings)
            chosen = winner(total, alike, readings)
            asked = own & (kinds == "direction")
            yes, no = right[:, asked].all(1), (~right & ~np.isnan(of.points))[:, asked].any(1)
            stated = right[:, own & (kinds == "size")].all(1)
            row = {"claim": str(name), "facts": int(own.sum()), "admissible readings": int(alike.sum())}
            told = {"yes in": yes[alike], "no in": no[alike], "yes in all": yes}
            row |= {which: float(so.mean()) for which, so in told.items()}
            row["as stated in"] = float(stated[alike].mean()) if (own & (kinds == "size")).any() else np.nan
            rows.append(row | {"chosen without it": readings[chosen].name, "yes there": bool(yes[chosen])})
    return pd.DataFrame(rows).set_index("claim")


def every_share(scores: xr.Dataset, controls: xr.Dataset, readings: Sequence[Variant], dataset: str) -> pd.DataFrame:
    """:func:`shares` of the claims that choose, and of C9, of which the same ``scores`` say something on DSADS."""
    found = facts(scores, controls, dataset)
    more = facts(scores, controls, dataset, ("C9",)) if found.evidence.base == "dsads" else None
    return shares(readings, found, found.draws(), more)
