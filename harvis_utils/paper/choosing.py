"""Scored variants turned into a choice: which reading meets what the paper reports, and which recipe beats it.

Facts are the criteria of the claims C3 to C8, unchanged (:mod:`harvis_utils.paper.claims`), and one more: that L2+TV
fails sometimes. A claim counts by the share of its facts whose point estimate lies in its range; a reading's score
is the mean over the claims. The rule was fixed before any reading was tried on real data, except that the winner is
the nearest to the paper and not simply the best: this was settled when the networks kept for choosing had been seen,
and before any reading but ``literal`` and the one then in use had been tried on those that judge.

* The *best* reading has the highest score; among equals the one that departs least from what is stated, then the
  first in the order of the list.
* A reading *cannot be told apart* from the best where the 95 % bootstrap interval of the difference of their scores
  (networks, then units, the same draws for both) reaches zero.
* The *winner* departs least from what is stated among those; of equals it is the one with the highest score, then the
  first. (So do one-standard-error rules for trees: Breiman et al. 1984.)
* A claim is judged under the readings that are admissible *by the other claims*, the same rule without it. Otherwise
  it would be asked of readings chosen because they meet it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.metrics.intervals import LEVEL, resampled
from harvis_utils.paper.claims import CRITERIA, Criterion, Evidence
from harvis_utils.paper.variants import PAPERS, Variant, departures

#: claims that a reading has to meet; the step sizes have no part in the others
CHOOSING = ("C3", "C4", "C5", "C6", "C7", "C8")

#: Paper section 5 speaks of a few failed units of the baseline; the claims' criteria do not
SOME_FAIL = Criterion(
    "C5",
    "L2+TV: share of failed units (some: above 0, below a half)",
    lambda e: np.where(np.isnan(e.of("L2+TV", "activation_ratio")), np.nan, e.of("L2+TV", "failed")),
    0.001,
    0.5,
)

#: what the paper leaves open, as :func:`table` names it
OPEN = ("optimizer", "step size", "L2 and TV", "weight", "decay", "periods")

#: Choice: bootstrap draws for differences of scores
N_DRAWS = 400


@dataclass(frozen=True)
class Facts:
    """Criteria, each with its values under every reading: (reading, seed, column), columns being units by layer."""

    criteria: list[Criterion]
    values: list[np.ndarray]

    @property
    def claims(self) -> np.ndarray:
        """The claim that each fact belongs to, (fact,)."""
        return np.array([criterion.claim for criterion in self.criteria])

    def points(self, network=None, unit=None) -> np.ndarray:
        """Point estimate of every fact: (reading, fact); NaN where no unit is left.

        ``network`` (drawn,) and ``unit`` (drawn network, layer, drawn unit) resample the same way in all readings.
        """
        found = np.full((len(self.values[0]), len(self.values)), np.nan)
        for k, (values, criterion) in enumerate(zip(self.values, self.criteria, strict=True)):
            if network is not None:
                n_layers = values.shape[2] // unit.shape[2]
                at = unit[:, :n_layers] + np.arange(n_layers)[:, None] * unit.shape[2]
                values = values[:, network[:, None], at.reshape(len(network), -1)]
            flat = values.reshape(len(values), -1)
            known = ~np.isnan(flat).all(1)
            measure = np.nanmedian if criterion.summary == "median" else np.nanmean
            found[known, k] = measure(flat[known], axis=1)
        return found

    def standing(self, network=None, unit=None) -> np.ndarray:
        """Where each point lies: -1 below its fact's range, 0 in it, 1 above; (reading, fact), NaN without a point."""
        low, high = (np.array([getattr(criterion, end) for criterion in self.criteria]) for end in ("low", "high"))
        found = self.points(network, unit)
        return np.where(np.isnan(found), np.nan, (found > high) * 1.0 - (found < low))

    def met(self, network=None, unit=None) -> np.ndarray:
        """Whether each point lies in its fact's range: (reading, fact), False where there is none."""
        return self.standing(network, unit) == 0

    def draws(self, n_units: int, n: int = N_DRAWS) -> np.ndarray:
        """Bootstrap of what is met: (draw, reading, fact). All readings are drawn alike: networks, then units."""
        n_networks, n_layers = self.values[0].shape[1], max(v.shape[2] for v in self.values) // n_units
        drawn = resampled((n_networks,), (n_networks, n_layers, n_units), n=n)
        return np.stack([self.met(network, unit) for network, unit in drawn])

    def score(self, met: np.ndarray, without: str = "") -> np.ndarray:
        """Mean over the claims, ``without`` one, of the share of a claim's facts that are met: (..., reading)."""
        left = [name for name in dict.fromkeys(self.claims) if name != without]
        return np.mean([met[..., self.claims == name].mean(-1) for name in left], axis=0)


def facts(
    scores: xr.Dataset, controls: xr.Dataset, readings: Sequence[Variant], names: Sequence[str] = CHOOSING
) -> Facts:
    """The facts of these claims under every reading.

    ``scores`` is as :func:`harvis_utils.paper.climbing.reading_scores` returns it, ``controls`` as
    :func:`harvis_utils.paper.climbing.real_windows`.
    """
    criteria = sorted((c for c in (*CRITERIA, SOME_FAIL) if c.claim in names), key=lambda c: names.index(c.claim))
    renamed = scores.rename(reading="preset")
    unused = {"dataset": "dsads", "epochs": 0, "amplitude_threshold_g": np.nan, "atlas": {}}
    unused["macro_f1"] = np.full(scores.sizes["seed"], np.nan)
    each = [Evidence(scores=renamed.sel(preset=[r.name]), controls=controls, preset=r.name, **unused) for r in readings]
    return Facts(criteria, [np.stack([np.asarray(c.values(e), dtype=float) for e in each]) for c in criteria])


def winner(scores: np.ndarray, alike: np.ndarray, readings: Sequence[Variant]) -> int:
    """Index of the winner among ``alike`` (reading,): fewest departures, then the highest score, then the earliest."""
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


def table(readings: Sequence[Variant], found: Facts, drawn: np.ndarray) -> pd.DataFrame:
    """One row per reading, best first: what it is, every fact's point, claims met, score, and whether admissible.

    ``drawn`` is what :meth:`Facts.draws` returned. ``attrs["winner"]`` is the name of the winner.
    """
    total = found.score(found.met())
    top, alike, bounds = admissible(total, found.score(drawn), readings)
    what = ["optimizer", "step size", "decay", "L2 and TV", "weight", "periods", "departures"]
    own = [(*astuple(r.step), r.reduction, r.weight, r.periods, departures(r)) for r in readings]
    low, high = bounds.T
    values = {"score": total, "difference low": low, "difference high": high, "admissible": alike}
    values |= {f"{c.claim} {c.what}": of for c, of in zip(found.criteria, found.points().T, strict=True)}
    rows = pd.DataFrame(own, pd.Index([r.name for r in readings], name="reading"), what).assign(**values)
    rows.attrs["winner"] = readings[winner(total, alike, readings)].name
    order = sorted(range(len(readings)), key=lambda i: (i != top, -total[i], departures(readings[i])))
    return rows.iloc[order]


def by_parameter(rows: pd.DataFrame) -> pd.DataFrame:
    """Score by the value of each of :data:`OPEN`, over all others: mean, smallest ("low") and largest ("high").

    ``rows`` is what :func:`table` returns.
    """
    parts = {name: rows.groupby(name)["score"].agg(["mean", "min", "max"]) for name in OPEN}
    found = pd.concat(part.rename(index=lambda value, name=name: f"{name}: {value}") for name, part in parts.items())
    return found.set_axis(["score", "score low", "score high"], axis=1).rename_axis("parameter")


def shares(readings: Sequence[Variant], found: Facts, drawn: np.ndarray, others: Facts | None = None) -> pd.DataFrame:
    """For each claim: under which share of the readings that the other claims admit all of its facts are met.

    ``others`` are facts of claims that took no part in choosing.
    """
    met, rows = found.met(), []
    both = [found] if others is None else [found, others]
    for name, own in [(n, of.met()[:, of.claims == n]) for of in both for n in dict.fromkeys(of.claims)]:
        total = found.score(met, without=name)
        _, alike, _ = admissible(total, found.score(drawn, without=name), readings)
        row = {"claim": str(name), "facts": own.shape[1], "admissible readings": int(alike.sum())}
        row |= {"all facts met in": float(own[alike].all(1).mean()), "facts met on average": float(own[alike].mean())}
        rows.append(row | {"in all readings": float(own.all(1).mean())})
    return pd.DataFrame(rows).set_index("claim")


def every_share(scores: xr.Dataset, real: xr.Dataset, readings: Sequence[Variant], dataset: str) -> pd.DataFrame:
    """:func:`shares` of the claims that choose, and of those that the same ``scores`` say something about."""
    found = facts(scores, real, readings)
    more = [c for c in ("C9", "C11") if c != "C9" or dataset.removesuffix("-approximate") == "dsads"]
    return shares(readings, found, found.draws(scores.sizes["unit"]), facts(scores, real, readings, more))


def choose(gains: pd.DataFrame) -> str:
    """The recipe that is most surely better on both axes: the largest ``surety``; of equals the first."""
    return str(gains["surety"].drop(PAPERS).idxmax())
