"""What lenses say of a place, put into tables, and the tables into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.windowing import Windows
from harvis_utils.lenses import cards, dissection, triggered
from harvis_utils.metrics import intervals, signal_measures
from harvis_utils.own.looking import FLAT, LEAST_TRAINED, ExplainError, Looked
from harvis_utils.paper.variants import LIKELIEST_TRIGGER

METHOD, REAL, NOISE = "the paper's method", "strongest real window", "spectrum noise"
AVERAGE, NINE = "triggered average", triggered.STRONGEST
#: what units may be read from: what was made, and what is real
MADE = {LIKELIEST_TRIGGER: "their likeliest triggers", METHOD: "the signals of the paper's method"}
TRUE = {NINE: f"the nine real windows that excite each most (cards have {cards.N_WINDOWS} of them)"}
TRUE |= {REAL: "the real window that excites each most", AVERAGE: "real windows averaged by how they excite each"}
READINGS = TRUE | MADE
NO_READING = "no picture here tells surely more than guessing: read none, keep to thresholds, concepts and occlusion"
#: where noise is, by whether the method minus noise is lower or higher
NOISE_IS = {"lower": "nearer", "higher": "farther", "not told apart": "not surely nearer or farther"}
#: Choice: a window that is strongest for more than this share of units is named; a flat signal that reaches at most so
#: much more of the threshold than flat zero does no better
SHARED, NO_MORE = 0.25, 0.05


@dataclass
class Found:
    """What is known of a place so far: parts by their lens, lenses that refused with the reason, and those to come.

    ``asked`` says what the page is of, ``judged`` how well activities are told (:func:`looking.judged`).
    """

    of: Looked
    units: list[int]
    statistics: xr.Dataset
    asked: dict
    judged: dict[str, dict[str, float]] = field(default_factory=dict)
    parts: dict[str, list] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)

    def part(self, lens: str):
        """What a lens gave, of all units together; None where it gave nothing yet, or refused."""
        found = self.parts.get(lens, [])
        return None if not found else found[0] if len(found) == 1 else xr.concat(found, "unit")

    def given(self, lens: str) -> xr.Dataset:
        """What another lens gave, or all "signals"; raises ``ValueError`` where that refused."""
        if (found := self.signals if lens == "signals" else self.part(lens)) is None:
            raise ExplainError(f"it needs what could not be had here: {lens}")
        return found

    @property
    def signals(self) -> xr.Dataset | None:
        """``signal`` and ``map`` over (technique, unit, ...), of units that the method has been made for."""
        made = {name: self.part(name) for name in (METHOD, LIKELIEST_TRIGGER)}
        found = [one.expand_dims(technique=[name]) for name, one in made.items() if one is not None]
        if (beside := self.part("references")) is not None:
            found.append(beside[["signal", "map"]])
        return xr.concat(found, "technique", join="inner") if found else None


# ------------------------------------------------------------------------------------------------- tables and words


def tables(found: Found) -> dict[str, pd.DataFrame]:
    """The tables that there are so far, by the names of their files."""
    of, made = found.of, {}
    names = {"mean": "mean of outputs", "std": "standard deviation", "nonzero": "share of outputs not zero"}
    names |= {"th_eap": "threshold", "p95": "95 % point", "maximum": "largest output", "dead": "silent"}
    made["thresholds"] = found.statistics[list(names)].to_dataframe()[list(names)].rename(columns=names)
    if (signals := found.signals) is not None:
        made["signals"], made["waves"] = _each_signal(found, signals), _waves(of, signals)
        made["measures"] = _measures(found, made["signals"])
    if (named := found.part("concepts")) is not None:
        best = dissection.detectors(named)
        columns = {
            "concept": best["concept"].where(best["best"] > 0, ""),
            "IoU": best["best"],
            "by chance, 95 % point": best["limit"].isel(rule=1),
        }
        columns |= {"above chance": best["detector"].isel(rule=1), "share of samples in its mask": named["on"]}
        made["concepts"] = pd.DataFrame({name: one.values for name, one in columns.items()}, named["unit"].to_index())
    if (lost := found.part("silencing")) is not None:
        names = dict(enumerate(of.windows.activities))
        made["silenced"] = lost["f1"].transpose("unit", "class").to_pandas().rename(columns=names)
        made["silenced"].columns.name = "drop of F1"
    if (covered := found.part("occlusion")) is not None:
        made["covered"] = covered[["log_odds", "activity"]].to_dataframe(["window", "group", "time"])
        made["covered"].columns = ["drop of the log odds", "share of the strongest unit's activity"]
    return made


def _each_signal(found: Found, signals: xr.Dataset) -> pd.DataFrame:
    """One row per signal and unit: how far it ranges in s, the share of the threshold ``reached``, what is known."""
    x = found.of.in_s(signal_measures.in_rows(signals["signal"], ["technique", "unit"]))
    shape, dims = (signals.sizes["technique"], signals.sizes["unit"]), ("technique", "unit")
    top = signal_measures.largest(signals["map"], ["technique", "unit"]).reshape(shape)
    th = found.statistics["th_eap"].sel(unit=signals["unit"]).values
    values = {"range": signal_measures.ranges(x), "flat": signal_measures.flat(x)}
    values["reached"] = signal_measures.reached(top, th)
    table = xr.Dataset({name: (dims, of.reshape(shape)) for name, of in values.items()}, signals[["technique", "unit"]])
    if (near := found.part("nearness")) is not None:
        table = table.assign(near[["activation", "nearness"]])
    if (told := found.part("right answers")) is not None:
        more = found.part(triggered.STRONGEST)
        told = told if more is None else xr.concat([told, more], "technique")
        names = {"accuracy": "right answers", "accuracy of others": "right answers of other units' signals"}
        kept = told[[*names, "specificity", "identified"]].rename(names)
        table = xr.merge([table, kept], join="outer", compat="no_conflicts")
    order = [*dict.fromkeys([*signals["technique"].values.tolist(), *table["technique"].values.tolist()])]
    frame = table.sel(technique=order).to_dataframe(["technique", "unit"]).rename_axis(index={"technique": "signal"})
    return frame.assign(flat=[None if pd.isna(flat) else bool(flat) for flat in frame["flat"]])


def _measures(found: Found, each: pd.DataFrame) -> pd.DataFrame:
    """One row per kind of signal: means over units, with intervals over units."""
    rows = {}
    for name, own in each.groupby(level="signal", sort=False):
        rows[name] = {"units": len(own), "flat": own["flat"].dropna().astype(float).mean()}
        for column in ("activation", "nearness", "right answers", "specificity"):
            if column in own:
                rows[name] |= intervals.with_interval(column, own[column].to_numpy(float)[None])
        for column in ("right answers of other units' signals", "identified"):
            if column in own:
                rows[name][column] = own[column].mean()
    return pd.DataFrame(rows.values(), pd.Index(rows, name="signal"))


def _waves(of: Looked, signals: xr.Dataset) -> pd.DataFrame:
    """The signals themselves as they are drawn: a row for each signal, unit and axis, a column for each sample."""
    x = signals["signal"].copy(data=of.drawn(signals["signal"].values))
    x = x.assign_coords(axis=list(of.windows.axes)) if "axis" in x.dims else x
    rows = x.stack(row=[d for d in x.dims if d != "time"]).transpose("row", "time")
    return pd.DataFrame(rows.values, rows.indexes["row"].rename({"technique": "signal"}))


def numbers(found: Found, made: Mapping[str, pd.DataFrame]) -> dict:
    """What the first paragraph says, all out of the tables; what is not there is missing."""
    silent = int(made["thresholds"]["silent"].sum())
    told = {"activities": found.judged, "units": len(made["thresholds"]), "silent": silent}
    if found.part(METHOD) is None:
        return told
    each, means = made["signals"], made["measures"]
    told |= {"looked at": len(each.loc[METHOD]), "flat": int(each.loc[METHOD, "flat"].sum())}
    if FLAT in means.index:
        both = each["reached"].unstack("signal").loc[each.loc[METHOD, "flat"].astype(bool), [METHOD, FLAT]].dropna()
        told |= {"flat reach": both.median().to_dict()} if len(both) else {}
        told["flat like zero"] = int((both[METHOD] <= both[FLAT] + NO_MORE).sum())
        strongest = found.part("references")["signal"].sel(technique=REAL)
        strongest = strongest.isel(unit=~found.statistics["dead"].sel(unit=strongest["unit"]).values)
        n = np.unique(signal_measures.in_rows(strongest, ["unit"]), axis=0, return_counts=True)[1].max(initial=0)
        told |= {"share one window": int(n)} if n > max(1, SHARED * len(found.units)) else {}
    if "nearness" in each and NOISE in means.index:
        told["nearness"] = {name: float(means.loc[name, "nearness"]) for name in (METHOD, NOISE)}
        both = (each["nearness"].xs(name).to_numpy(float)[None] for name in (METHOD, NOISE))
        own = intervals.paired(*both).row("d")
        told |= {"method minus noise": intervals.triple(own, "d"), "by": intervals.said(own, "d")}
        told["noise is"] = NOISE_IS[intervals.verdict(own, "d")]
    if "right answers" in each:
        right = means["right answers"].dropna()
        told["right answers"] = {name: intervals.triple(means.loc[name], "right answers") for name in right.index}
        told["reading"] = _reading(each, told["right answers"])
    return told


def _reading(each: pd.DataFrame, right: Mapping[str, Sequence[float]]) -> str:
    """What tells most of the units: what was made, where it tells surely more than the best of what is real."""
    real, made = (max((n for n in of if n in right), key=lambda n: right[n][0], default=None) for of in (TRUE, MADE))
    surely = {name for name in (real, made) if name and right[name][1] > 0.5}
    if not surely:
        return NO_READING
    said = {name: f"{READINGS[name]} ({right[name][0]:.1%} right)" for name in (real, made) if name}
    if real is None or made is None:
        return f"read the units from {said[real or made]}"
    both = (each["right answers"].xs(name).to_numpy(float)[None] for name in (made, real))
    if intervals.triple(intervals.paired(*both).row("d"), "d")[1] > 0:
        return f"read the units from {said[made]}: they tell surely more than the best that is real, {said[real]}"
    if real in surely:
        return f"read the units from {said[real]}: nothing made tells surely more, the best being {said[made]}"
    return f"look at {said[made]}, surely better than guessing, beside {said[real]}: which tells more is not sure"


def units_of(windows: Windows) -> str:
    """The unit of each sensor, in words."""
    sensors = dict.fromkeys(axis.rpartition(" ")[0] for axis in windows.axes)
    return ", ".join(f"{sensor} in {windows.units.get(sensor, 'G')}" for sensor in sensors)


def doubt(found: Found) -> str:
    """What is to be checked first where training windows are told worse than a trained network tells them."""
    own = found.judged.get("train", {"mean": 1, "guessing": 0})
    if own["mean"] - own["guessing"] >= LEAST_TRAINED * (1 - own["guessing"]):
        return ""
    return (
        f"the network tells only {own['mean']:.0%} of the training windows right (mean over activities; guessing: "
        f"{own['guessing']:.0%}). Windows are {units_of(found.of.windows)} (m/s^2 has become G): was it trained on "
        'm/s^2, degrees or standardized windows? from_arrays leaves values as they are with unit="as trained"'
    )
