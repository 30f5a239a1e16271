"""What lenses say of a place, put into tables, and the tables into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import xarray as xr

from harvis_utils.lenses import dissection, triggered
from harvis_utils.metrics import intervals, signal_measures
from harvis_utils.own.looking import ExplainError, Looked
from harvis_utils.paper.variants import LIKELIEST_TRIGGER

METHOD, REAL, NOISE = "the paper's method", "strongest real window", "spectrum noise"
#: what units may be read from
READINGS = {REAL: "the real windows that excite them most", LIKELIEST_TRIGGER: "their likeliest triggers"}
READINGS |= {METHOD: "the method's signals"}
NO_READING = (
    "no picture here surely tells more than guessing: read none, and keep to thresholds, concepts and occlusion"
)
NOT_TO_CONCLUDE = (
    "that a unit means what its picture shows: without its controls a picture is no evidence",
    "that a flat signal shows a unit that looks for rest: it shows nothing",
    "that another network, other people or other windows would give the same: this is one network and one split",
)


@dataclass
class Found:
    """What is known of a place so far: parts by their lens, lenses that refused with the reason, and those to come.

    ``asked`` says what the page is of.
    """

    of: Looked
    units: list[int]
    statistics: xr.Dataset
    asked: dict
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
        made["signals"], made["waves"] = _each_signal(found, signals), _waves(signals)
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
    """One row per signal and unit: how far it ranges in s, and what is known of it."""
    x = found.of.in_s(signal_measures.in_rows(signals["signal"], ["technique", "unit"]))
    shape, dims = (signals.sizes["technique"], signals.sizes["unit"]), ("technique", "unit")
    values = {"range": signal_measures.ranges(x), "flat": signal_measures.flat(x)}
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


def _waves(signals: xr.Dataset) -> pd.DataFrame:
    """The signals themselves: a row for each signal, unit and axis, a column for each sample."""
    x = signals["signal"]
    rows = x.stack(row=[d for d in x.dims if d != "time"]).transpose("row", "time")
    return pd.DataFrame(rows.values, rows.indexes["row"].rename({"technique": "signal"}))


def numbers(found: Found, made: Mapping[str, pd.DataFrame]) -> dict:
    """The numbers of the first paragraph, all out of the tables; those that are not there are missing."""
    told = {"units": len(made["thresholds"]), "silent": int(made["thresholds"]["silent"].sum())}
    if found.part(METHOD) is None:
        return told
    each, means = made["signals"], made["measures"]
    told |= {"looked at": len(each.loc[METHOD]), "flat": int(each.loc[METHOD, "flat"].sum())}
    if "nearness" in each and NOISE in means.index:
        told["nearness"] = {name: float(means.loc[name, "nearness"]) for name in (METHOD, NOISE)}
        told["method minus noise"] = _difference(each, METHOD, NOISE, "nearness")
    if "right answers" in each:
        right = means["right answers"].dropna()
        told["right answers"] = {name: intervals.triple(means.loc[name], "right answers") for name in right.index}
        told["reading"] = _reading(each, told["right answers"])
    return told


def _difference(each: pd.DataFrame, first: str, second: str, column: str) -> list[float]:
    """Mean of what the first has more than the second, unit by unit, and the ends of its interval."""
    both = (each[column].xs(name).to_numpy(float)[None] for name in (first, second))
    return intervals.triple(intervals.paired(*both).row(column), column)


def _reading(each: pd.DataFrame, right: Mapping[str, Sequence[float]]) -> str:
    """What tells surely more of the units than guessing; the real window, where nothing tells surely more than that."""

    def most(names: Sequence[str]) -> str:
        return READINGS[max(names, key=lambda name: right[name][0])]

    sure = [name for name in READINGS if name in right and right[name][1] > 0.5]
    better = [name for name in sure if name != REAL and _difference(each, name, REAL, "right answers")[1] > 0]
    if not sure:
        return NO_READING
    if better:
        return f"read the units from {most(better)}, which surely tell more than the strongest real window, beside it"
    if REAL in sure:
        return f"read the units from {READINGS[REAL]}; no made signal surely tells more"
    return f"read the units from {most(sure)}, beside real windows, which surely tell neither less nor more"


def words(found: Found, told: Mapping) -> list[str]:
    """The first paragraph, sentence by sentence."""
    of, flat = found.of, "0.05 G" if found.of.scale is None else "0.05 of two standard deviations of the data"
    is_are = "is" if told["silent"] == 1 else "are"
    silent = f"{told['silent']} of the {told['units']} units of {of.name} {is_are} silent"
    lines = [f"{silent}: no training window excites {'it' if is_are == 'is' else 'them'}."]
    if METHOD in found.refused:
        lines.append("The paper's method could not make signals here; the reason stands below.")
    if "flat" in told:
        is_are = "is" if told["flat"] == 1 else "are"
        lines.append(
            f"{told['flat']} of {told['looked at']} signals that the paper's method made {is_are} flat: they range "
            f"over less than {flat}, and show nothing."
        )
    if "method minus noise" in told:
        difference = dict(zip(("d", "d low", "d high"), told["method minus noise"], strict=True))
        standing = {"lower": "is nearer", "higher": "is farther", "not told apart": "is not surely nearer or farther"}
        method, noise = (f"{told['nearness'][name]:.2f}" for name in (METHOD, NOISE))
        lines.append(
            f"Noise with the training windows' spectrum, which knows nothing of the units, "
            f"{standing[intervals.verdict(difference, 'd')]} than the method to the real windows that excite them: "
            f"nearness {noise}, the method {method}, the method minus noise {intervals.said(difference, 'd')}; "
            f"0.50 is as near as real windows are to one another."
        )
    if "reading" in told:
        right = ", ".join(
            f"{name} {told['right answers'][name][0]:.0%}" for name in READINGS if name in told["right answers"]
        )
        lines.append(
            f"Which of two held-out windows excites a unit more is told right from its picture in: {right}; guessing "
            "is right in 50%."
        )
        lines.append(f"The likeliest reading: {told['reading']}.")
    lines.append(f"Do not conclude {'; nor '.join(NOT_TO_CONCLUDE)}.")
    return lines
