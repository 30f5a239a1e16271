"""All lenses on one unit: a card, made of what notebooks 03 to 05, 08, 11 and 12 stored, and of its match in another
network. A card adds no other measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.windowing import Split
from harvis_utils.lenses.dissection import DETECTOR_IOU, over_networks
from harvis_utils.metrics import agreement, embedding, recovery
from harvis_utils.metrics.signal_measures import in_rows
from harvis_utils.settings import SimilaritySettings

#: Choice: windows, concepts, activities and neighbours that a card shows
N_WINDOWS, N_CONCEPTS, N_ACTIVITIES, N_NEIGHBOURS = 5, 5, 5, 5
#: Choice: a unit matters for an activity whose F1 falls when it is silenced, and by more than for nine of ten units
MATTERS = 0.9
#: Choice: matchings with phase-scrambled signals, whose 95 % point a twin has to exceed
N_SCRAMBLED = 20


@dataclass(frozen=True)
class StrongWindow:
    """A real window that excites the unit: its own axis (time,) in G, and the projection of the activation.

    Of a unit that mixes axes all of them, (axis, time), and ``axis`` is "all axes". The projection is by the ``rule``
    "deconvnet", or "gradient" where that one is refused.
    """

    signal: np.ndarray
    projection: np.ndarray
    rule: str
    activity: str
    axis: str
    subject: int
    activation: float


@dataclass(frozen=True)
class Twin:
    """The unit of another network that matches best one to one: its signal ([axis,] time) in G, their ``similarity``
    (:func:`agreement.unit_similarity`), and what 95 % of matches with phase-scrambled signals stay below (``chance``).
    """

    seed: int
    unit: int
    signal: np.ndarray
    similarity: float
    chance: float


@dataclass(frozen=True)
class Card:
    """Everything known of one unit; what there is none of is NaN, ``None`` or empty, and ``status`` says why.

    ``signal`` ([axis,] time) in G is the proposed method's, ``activation`` the share of its threshold that the unit
    reaches, ``nearness`` to real exciting windows (notebook 08). ``iou`` maps the ``N_CONCEPTS`` concepts that overlap
    the unit most to their IoU, ``cost`` the ``N_ACTIVITIES`` that lose most when it is silenced to that F1;
    ``detects`` and ``matters_for`` are all above the thresholds, strongest first. ``neighbours`` are the nearest units
    on the atlas. ``units`` are those of signals. A network that is the only one has no ``seed``.
    """

    seed: int | None
    layer: str
    unit: int
    status: str
    signal: np.ndarray
    activation: float
    nearness: float
    nearest_activity: str
    twin: Twin | None
    windows: tuple[StrongWindow, ...]
    iou: dict[str, float]
    cost: dict[str, float]
    detects: tuple[str, ...]
    matters_for: tuple[str, ...]
    neighbours: tuple[int, ...]
    units: str = "G"

    @property
    def key(self) -> str:
        """Its name on pages, like "conv1-3"."""
        return f"{self.layer}-{self.unit}"


@dataclass(frozen=True)
class Lenses:
    """Stored results of one run that cards are made of, all with dims (seed, layer, unit, ...).

    ``signals`` (``signal``, ``map``, ``dead``) and ``measured`` (``activation``, ``nearness``) are the proposed
    method's; ``dissected`` has ``iou`` (..., concept), ``ablated`` ``f1`` (..., class). One network's are
    ``projected`` (:func:`deconvnet.projections`) from the windows ``searched``, and ``views``, its atlas by layer.
    ``dissected``, ``ablated`` and ``projected`` are None where that lens can do nothing on a network.
    """

    signals: xr.Dataset
    measured: xr.Dataset
    dissected: xr.Dataset | None
    ablated: xr.Dataset | None
    projected: xr.Dataset | None
    searched: Split
    views: dict[str, embedding.AtlasLayer]


def collect(
    lenses: Lenses, seed: int, activities: Sequence[str], axes: Sequence[str], similarity: SimilaritySettings
) -> list[Card]:
    """The cards of all units of the network with this ``seed``, layer by layer.

    Raises ``KeyError`` for a seed that is not in the results.
    """
    if seed not in (seeds := lenses.signals["seed"].values):
        raise KeyError(f"no network has seed {seed}; seeds of this run: {', '.join(map(str, seeds))}")
    units, found = lenses.signals["signal"].attrs.get("units", "G"), []
    numbers = lenses.signals["unit"].values.tolist()
    costs = pd.DataFrame(index=pd.MultiIndex.from_product([lenses.signals["layer"].values, numbers]))
    if lenses.ablated is not None:
        costs = lenses.ablated["f1"].sel(seed=seed).to_series().unstack("class").set_axis(list(activities), axis=1)
    # how many units each exceeds, class by class: F1 moves in steps, and equals do not exceed one another
    exceeded = costs.rank(method="min", na_option="top") - 1
    important = (costs > 0) & (exceeded >= MATTERS * len(costs))
    for layer in map(str, lenses.signals["layer"].values):
        own, measured = (of.sel(seed=seed, layer=layer) for of in (lenses.signals, lenses.measured))
        signals, status = in_rows(own["signal"], ["unit"]), agreement.status(own, similarity)["status"]
        overlap = pd.DataFrame(index=numbers)
        if lenses.dissected is not None:
            dissected = lenses.dissected["iou"].sel(seed=seed, layer=layer)
            overlap = dissected.transpose("unit", "concept").to_pandas()
        matches, view = twins(lenses, seed, layer, similarity), lenses.views[layer]
        near = _neighbours(view.positions)
        for k, u in enumerate(numbers):
            nearest = view.activities[k]
            iou, cost = (_falling(of) for of in (overlap.loc[u], costs.loc[layer, u]))
            found.append(
                Card(
                    seed=seed,
                    layer=layer,
                    unit=u,
                    status=str(status.values[k]),
                    signal=signals[k],
                    activation=float(measured["activation"].sel(unit=u)),
                    nearness=float(measured["nearness"].sel(unit=u)),
                    nearest_activity=activities[nearest] if nearest >= 0 else "",
                    twin=matches.get(k),
                    windows=_strong_windows(lenses, layer, u, activities, axes),
                    iou=iou.head(N_CONCEPTS).to_dict(),
                    cost=cost.head(N_ACTIVITIES).to_dict(),
                    detects=tuple(iou.index[iou > DETECTOR_IOU]),
                    matters_for=tuple(cost.index[important.loc[layer, u][cost.index]]),
                    neighbours=tuple(numbers[i] for i in near.get(k, ())),
                    units=units,
                )
            )
    return found


def _falling(values: pd.Series) -> pd.Series:
    """What is known, the largest first."""
    return values.dropna().sort_values(ascending=False, kind="stable")


def twins(lenses: Lenses, seed: int, layer: str, similarity: SimilaritySettings) -> dict[int, Twin]:
    """By unit of a layer of the network ``seed``: its match in the next network of the run, for units that have one.

    Matched one to one as in :func:`agreement.matched`; dead, failed, silent and flat units have no match, nor has any
    where there is one network only.
    """
    seeds = [int(s) for s in lenses.signals["seed"].values]
    other = seeds[(seeds.index(seed) + 1) % len(seeds)]
    (mine, signals, first), (yours, others, begins) = (
        agreement.usable(lenses.signals.sel(seed=s, layer=layer), similarity) for s in (seed, other)
    )
    if other == seed or not len(mine) or not len(yours):
        return {}
    units, rng = agreement.units_of(signals, first, similarity.piece), np.random.default_rng((seed, other))

    def matched(candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return agreement.matched(units, agreement.units_of(candidates, begins, similarity.piece))

    chance = np.concatenate([matched(recovery.scrambled(others, rng))[2] for _ in range(N_SCRAMBLED)])
    limit = float(recovery.chance_point(chance))
    return {
        int(mine[a]): Twin(other, int(yours[b]), others[b], float(value), limit)
        for a, b, value in zip(*matched(others), strict=True)
    }


def _neighbours(positions: np.ndarray) -> dict[int, tuple[int, ...]]:
    """By unit with a place on the map: the units nearest to it there."""
    placed = np.flatnonzero(np.isfinite(positions).all(1))
    if len(placed) < 2:
        return {}
    near = placed[embedding.neighbours(positions[placed], min(N_NEIGHBOURS, len(placed) - 1))]
    return dict(zip(placed.tolist(), map(tuple, near.tolist()), strict=True))


def _strong_windows(
    lenses: Lenses, layer: str, unit: int, activities: Sequence[str], axes: Sequence[str]
) -> tuple[StrongWindow, ...]:
    """The unit's strongest windows; without those that leave it silent."""
    if lenses.projected is None:
        return ()
    rule = "deconvnet" if "deconvnet" in lenses.projected["rule"] else "gradient"
    top, of = lenses.projected.sel(layer=layer, unit=unit, rule=rule), lenses.searched
    found = []
    for rank in np.flatnonzero(top["value"].values > 0)[:N_WINDOWS]:
        x, back, window, axis, value = (
            top[name].values[rank] for name in ("signal", "projection", "window", "axis", "value")
        )
        mixed = "axis" in lenses.signals["signal"].dims
        own, named = (slice(None), "all axes") if mixed else (axis, axes[axis])
        who = activities[of.activity[window]], named, int(of.subject[window])
        found.append(StrongWindow(x[own], back[own], rule, *who, float(value)))
    return tuple(found)


#: what lenses say of a unit, as a number
NUMBERS = ("activation", "nearness", "IoU", "cost", "match")


def numbers(lenses: Lenses, seed: int, similarity: SimilaritySettings) -> pd.DataFrame:
    """What the lenses say of every unit of one network, as numbers: a column each of ``NUMBERS``, rows (layer, unit).

    ``IoU`` is that with the unit's best concept, ``cost`` the largest drop of any activity's F1, ``match`` the
    similarity to its match in the next network (NaN without one).
    """
    layers = list(map(str, lenses.signals["layer"].values))
    match = {(la, u): twin.similarity for la in layers for u, twin in twins(lenses, seed, la, similarity).items()}
    found = lenses.measured.sel(seed=seed).to_dataframe(["layer", "unit"])[["activation", "nearness"]]
    best, cost = lenses.dissected["iou"].max("concept"), lenses.ablated["f1"].max("class")
    found["IoU"], found["cost"] = (of.sel(seed=seed).to_series() for of in (best, cost))
    return found.assign(match=[match.get(unit, np.nan) for unit in found.index])


def agreeing(lenses: Lenses, similarity: SimilaritySettings) -> pd.DataFrame:
    """Spearman's ``correlation`` over units between any two of ``NUMBERS``: mean over networks, 95 % interval.

    One row per pair of lenses and layer, with the ends (NaN below five networks) and the number of ``networks``.
    """
    of = [numbers(lenses, int(seed), similarity) for seed in lenses.signals["seed"].values]
    rows = {}
    for first, second in combinations(NUMBERS, 2):
        for layer in of[0].index.unique("layer"):
            known = [one.loc[layer, [first, second]].dropna() for one in of]
            values = [t.corr("spearman").iloc[0, 1] for t in known if len(t) > 2 and (t.nunique() > 1).all()]
            row = over_networks("correlation", values or [np.nan])
            rows[f"{first}, {second}", str(layer)] = row | {"networks": len(values)}
    return pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=["lenses", "layer"]))


def overview(deck: Sequence[Card]) -> pd.DataFrame:
    """One row per card: what each lens says of the unit in a word or a number, names joined by "; ".

    ``concept`` is the one it overlaps most; ``match`` is the unit of the next network that matches best, ``alike`` how
    well it does, ``by chance`` how well scrambled signals do; all three are missing where there is none.
    """
    rows = [
        {
            "unit": c.key,
            "layer": c.layer,
            "status": c.status,
            "activation": c.activation,
            "nearness": c.nearness,
            "concept": next(iter(c.iou), ""),
            "IoU": max(c.iou.values(), default=np.nan),
            "detects": "; ".join(c.detects),
            "matters for": "; ".join(c.matters_for),
            "match": c.twin.unit if c.twin else None,
            "alike": c.twin.similarity if c.twin else np.nan,
            "by chance": c.twin.chance if c.twin else np.nan,
            "nearest activity": c.nearest_activity,
        }
        for c in deck
    ]
    return pd.DataFrame(rows).set_index("unit")


def counts(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Per layer of an :func:`overview`: units, and how many are usable, detect, matter, do both, are matched."""
    detects, matters = table["detects"] != "", table["matters for"] != ""
    told = table.assign(units=True, usable=table["status"] == "used", matched=table["alike"] > table["by chance"])
    told = told.assign(detects=detects, matters=matters, both=detects & matters)
    names = ["units", "usable", "detects", "matters", "both", "matched"]
    return told.groupby("layer", sort=False)[names].sum().to_dict("index")
