"""Scored readings turned into a choice: which of them meets what the paper reports, and what may be believed then.

Facts are the criteria of the claims C3 to C8, unchanged (:mod:`harvis_utils.paper.claims`), and one more: that L2+TV
fails sometimes. A claim counts by the share of its facts whose point estimate lies in its range; a reading's score
is the mean over the claims. The rule was fixed before any reading was tried on real data, but for one step: that the
winner is the reading nearest to the paper among those that cannot be told apart, and not simply the best, was
settled when the networks kept for choosing had been seen, and before any reading but ``literal`` and the one then in
use had been tried on those that judge:

* the *best* reading has the highest score; among equals the one that departs least from what is stated, then the
  first in the order of the grid;
* a reading *cannot be told apart* from the best where the 95 % bootstrap interval of the difference of their scores
  (networks, then units, the same draws for both) reaches zero;
* the *winner* departs least from what is stated among those that cannot be told apart; of equals it is the one with
  the highest score, then the first. (So do one-standard-error rules for trees: Breiman et al. 1984.);
* a claim is judged under the readings that are admissible *by the other claims*: those that cannot be told apart from
  the best when the claim itself is left out. Otherwise it would be asked of readings chosen because they meet it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.metrics.intervals import LEVEL
from harvis_utils.paper import claims, readings
from harvis_utils.paper.claims import Criterion, Evidence

#: claims that a reading has to meet; the step sizes have no part in the others
CHOOSING = ("C3", "C4", "C5", "C6", "C7", "C8")
#: claims that are only judged under the admissible readings
JUDGED = (*CHOOSING, "C9", "C11")

#: Paper section 5 speaks of a few failed units of the baseline; the claims' criteria do not
SOME_FAIL = Criterion(
    "L2+TV: share of failed units (some: above 0, below a half)",
    lambda e: np.where(np.isnan(e.of("L2+TV", "activation_ratio")), np.nan, e.of("L2+TV", "failed")),
    0.001,
    0.5,
)

#: Choice: bootstrap draws for differences of scores
N_DRAWS = 400


def facts(names: Sequence[str] = CHOOSING) -> list[tuple[str, Criterion]]:
    """(claim, criterion) of every fact, in the order of the claims."""
    found = [(claim.id, criterion) for claim in claims.CLAIMS if claim.id in names for criterion in claim.criteria]
    if "C5" in names:
        found.append(("C5", SOME_FAIL))
    return sorted(found, key=lambda fact: names.index(fact[0]))


def values(
    scores: xr.Dataset, controls: xr.Dataset, labels: Sequence[str], wanted: Sequence[tuple[str, Criterion]]
) -> list[np.ndarray]:
    """Each fact's values of every reading: one array (reading, seed, column) per fact, columns being units.

    ``scores`` is as :func:`harvis_utils.paper.readings.scores` returns it, ``controls`` as
    :func:`harvis_utils.paper.readings.real_windows`.
    """
    renamed = scores.rename(reading="preset")
    found: list[list[np.ndarray]] = [[] for _ in wanted]
    for label in labels:
        evidence = Evidence(
            dataset="dsads",
            epochs=0,
            macro_f1=np.full(scores.sizes["seed"], np.nan),
            amplitude_threshold_g=float("nan"),
            scores=renamed.sel(preset=[label]),
            controls=controls,
            atlas={},
            preset=label,
        )
        for column, (_, criterion) in zip(found, wanted, strict=True):
            column.append(np.asarray(criterion.values(evidence), dtype=float))
    return [np.stack(column) for column in found]


def points(
    arrays: Sequence[np.ndarray], wanted: Sequence[tuple[str, Criterion]], network=None, unit=None
) -> np.ndarray:
    """Point estimate of every fact: (reading, fact); NaN where no unit is left.

    ``network`` (drawn,) and ``unit`` (drawn network, layer, drawn unit) resample the same way in all readings.
    """
    found = np.full((len(arrays[0]), len(wanted)), np.nan)
    for k, (array, (_, criterion)) in enumerate(zip(arrays, wanted, strict=True)):
        if network is not None:
            n_layers = array.shape[2] // unit.shape[2]
            at = unit[:, :n_layers] + np.arange(n_layers)[:, None] * unit.shape[2]
            array = array[:, network[:, None], at.reshape(len(network), -1)]
        flat = array.reshape(len(array), -1)
        known = ~np.isnan(flat).all(1)
        measure = np.nanmedian if criterion.summary == "median" else np.nanmean
        found[known, k] = measure(flat[known], axis=1)
    return found


def met(found: np.ndarray, wanted: Sequence[tuple[str, Criterion]]) -> np.ndarray:
    """Whether each point lies in its fact's range: (reading, fact), False where there is none."""
    low, high = (np.array([getattr(c, name) for _, c in wanted]) for name in ("low", "high"))
    return (found >= low) & (found <= high)  # NaN compares as False


def score(is_met: np.ndarray, wanted: Sequence[tuple[str, Criterion]], without: str = "") -> np.ndarray:
    """Mean over the claims, ``without`` one, of the share of a claim's facts that are met: (reading,)."""
    names = [name for name, _ in wanted]
    claims_left = [name for name in dict.fromkeys(names) if name != without]
    return np.mean([is_met[:, [n == name for n in names]].mean(1) for name in claims_left], axis=0)


def draws(
    arrays: Sequence[np.ndarray], wanted: Sequence[tuple[str, Criterion]], n_units: int, n: int = N_DRAWS, seed: int = 0
) -> np.ndarray:
    """Bootstrap of what is met: (draw, reading, fact). All readings are drawn alike: networks, then units."""
    rng = np.random.default_rng(seed)
    n_networks = arrays[0].shape[1]
    n_layers = max(array.shape[2] for array in arrays) // n_units
    found = []
    for _ in range(n):
        network = rng.integers(n_networks, size=n_networks)
        unit = rng.integers(n_units, size=(n_networks, n_layers, n_units))
        found.append(met(points(arrays, wanted, network, unit), wanted))
    return np.stack(found)


def best(scores: np.ndarray, grid: Sequence[readings.Reading]) -> int:
    """Index of the best reading: highest score, then fewest departures, then the earliest."""
    return min(range(len(grid)), key=lambda i: (-round(float(scores[i]), 9), grid[i].departures, i))


def winner(scores: np.ndarray, alike: np.ndarray, grid: Sequence[readings.Reading]) -> int:
    """Index of the winner among ``alike`` (reading,): fewest departures, then the highest score, then the earliest."""
    return min(np.flatnonzero(alike), key=lambda i: (grid[i].departures, -round(float(scores[i]), 9), i))


def admissible(scores: np.ndarray, drawn: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Readings that cannot be told apart from the best, (reading,), and the interval of the difference, (reading, 2).

    ``drawn`` is (draw, reading): bootstrap scores. A reading with the best one's score always belongs to them.
    """
    bounds = np.quantile(drawn - drawn[:, [top]], LEVEL, axis=0).T
    return (bounds[:, 1] >= 0) | (scores >= scores[top]), bounds


def table(
    grid: Sequence[readings.Reading], arrays: Sequence[np.ndarray], wanted: Sequence[tuple[str, Criterion]], drawn
) -> pd.DataFrame:
    """One row per reading, best first: what it is, every fact's point, claims met, score, and whether admissible.

    ``drawn`` is what :func:`draws` returned. ``attrs["winner"]`` is the label of the winner.
    """
    found = points(arrays, wanted)
    is_met = met(found, wanted)
    total = score(is_met, wanted)
    top = best(total, grid)
    alike, bounds = admissible(total, np.stack([score(d, wanted) for d in drawn]), top)
    rows = pd.DataFrame(
        {
            "optimizer": [r.optimizer for r in grid],
            "step size": [r.step_size for r in grid],
            "decay": [r.decay for r in grid],
            "L2 and TV": [r.reduction for r in grid],
            "weight": [r.weight for r in grid],
            "periods": [r.periods for r in grid],
            "departures": [r.departures for r in grid],
            "score": total,
            "difference low": bounds[:, 0],
            "difference high": bounds[:, 1],
            "admissible": alike,
        },
        index=pd.Index([r.label for r in grid], name="reading"),
    )
    for k, (name, criterion) in enumerate(wanted):
        rows[f"{name} {criterion.what}"] = found[:, k]
    rows["place"] = [0 if i == top else 1 for i in range(len(grid))]
    rows = rows.sort_values(["place", "score", "departures"], ascending=[True, False, True], kind="stable")
    rows.attrs["winner"] = grid[winner(total, alike, grid)].label
    return rows.drop(columns="place")


def shares(
    grid: Sequence[readings.Reading],
    arrays: Sequence[np.ndarray],
    wanted: Sequence[tuple[str, Criterion]],
    drawn: np.ndarray,
    others: Sequence[tuple[tuple[str, Criterion], np.ndarray]] = (),
) -> pd.DataFrame:
    """For each claim: under which share of the readings that the other claims admit all of its facts are met.

    ``others`` are facts of claims that took no part in choosing, each with its values.
    """
    is_met = met(points(arrays, wanted), wanted)
    names = [name for name, _ in wanted]
    rows = []
    more = list(dict.fromkeys(name for (name, _), _ in others))
    for name in [*dict.fromkeys(names), *more]:
        total = score(is_met, wanted, without=name)
        drawn_scores = np.stack([score(d, wanted, without=name) for d in drawn])
        alike, _ = admissible(total, drawn_scores, best(total, grid))
        if name in names:
            own = is_met[:, [n == name for n in names]]
        else:
            chosen = [(fact, array) for fact, array in others if fact[0] == name]
            own_facts = [fact for fact, _ in chosen]
            own = met(points([array for _, array in chosen], own_facts), own_facts)
        rows.append(
            {
                "claim": name,
                "facts": own.shape[1],
                "admissible readings": int(alike.sum()),
                "all facts met in": float(own[alike].all(1).mean()),
                "facts met on average": float(own[alike].mean()),
                "in all readings": float(own.all(1).mean()),
            }
        )
    return pd.DataFrame(rows).set_index("claim")
