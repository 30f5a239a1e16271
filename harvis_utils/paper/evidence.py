"""Measures of signals turned into tables with intervals: what each method reaches, and by how much two differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.windowing import Windows
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.paper_methods import PROPOSED
from harvis_utils.metrics import realism
from harvis_utils.metrics.intervals import interval, paired
from harvis_utils.paper import claims
from harvis_utils.settings import MaximizationSettings, Settings
from harvis_utils.training.supervised import Network

#: column -> how it is read from the measures; every one is (..., layer, unit)
MEASURES: dict[str, Callable[[xr.Dataset], xr.DataArray]] = {
    "activation": realism.activation,
    "nearness": realism.nearness,
    "realism p": lambda m: m["realism_p"],
    "spectral distance": lambda m: m["spectral_distance"],
    "matched Ssim, log10 G²": lambda m: np.log10(m["matched_ssim"].where(m["matched_ssim"] > 0)),
    "moved by [G]": lambda m: m["displacement_g"].where(~m["failed"]),
}

#: measures of which more is better; of the others less is, and moving is neither
MORE_IS_BETTER = ("activation", "nearness", "realism p")


def by_network(values: xr.DataArray, layer: str | None = None) -> np.ndarray:
    """(seed, unit) values of one layer, or of all layers side by side."""
    values = values.sel(layer=layer) if layer else values.stack(each=("layer", "unit"))
    return values.transpose("seed", ...).values.astype(float)


def table(measured: xr.Dataset, dimension: str) -> pd.DataFrame:
    """Mean and interval of every measure for each method or control and layer, one row each.

    ``dimension`` is "technique" or "control". "n" counts networks, "failed" is the share of signals beyond 10 G; means
    leave out what a measure does not exist for.
    """
    rows = []
    for name in measured[dimension].values:
        for layer in measured["layer"].values:
            some = measured.sel({dimension: name, "layer": layer})
            row = {"name": str(name), "layer": str(layer), "networks": measured.sizes["seed"]}
            row["failed"] = float(some["failed"].where(~some["dead"]).mean())
            for column, of in MEASURES.items():
                point, bounds = interval(by_network(of(measured.sel({dimension: name})), str(layer)))
                row |= {
                    column: point,
                    f"{column} low": (bounds or [np.nan])[0],
                    f"{column} high": (bounds or [np.nan])[-1],
                }
            rows.append(row)
    return pd.DataFrame(rows).set_index(["name", "layer"])


def differences(measured: xr.Dataset, dimension: str, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Paired differences, unit by unit, of each pair of methods (first minus second) for every measure and layer.

    With the interval, the effect size (dominance: share of units in which the first is larger minus the share in
    which it is smaller) and the number of networks and units. ``better`` is the first, the second, or empty where
    the interval reaches zero or the measure has no better side.
    """
    rows = []
    for first, second in pairs:
        for layer in [str(la) for la in measured["layer"].values]:
            for column, of in MEASURES.items():
                a, b = (by_network(of(measured.sel({dimension: name})), layer) for name in (first, second))
                found = paired(a, b)
                low, high = found.interval or (np.nan, np.nan)
                up = column in MORE_IS_BETTER
                better = "" if not found.clear or column.startswith("moved") else (first, second)[(low > 0) != up]
                rows.append(
                    {
                        "first": first,
                        "second": second,
                        "layer": layer,
                        "measure": column,
                        "difference": found.mean,
                        "low": low,
                        "high": high,
                        "dominance": found.dominance,
                        "better": better,
                        "networks": found.n_networks,
                        "units": found.n_pairs,
                    }
                )
    return pd.DataFrame(rows)


def joined(first: xr.Dataset, second: xr.Dataset, dimension: str) -> xr.Dataset:
    """Signals, or measures of them, of two groups under one dimension, so that they can be paired: what both have."""
    names = [name for name in first.data_vars if name in second and dimension in first[name].dims]
    shared = {name: first[name] for name in ("dead",) if name in first}
    both = xr.concat([first[names], second[names]], dimension, coords="minimal", compat="override")
    return both.assign(shared)


#: the recipe that notebook 09 chose on DSADS and judged on other networks (profile ``desk``), and what the method it
#: makes is called beside the paper's
OUR_RECIPE = "means"
OURS = "ours (means)"


def our_settings(settings: MaximizationSettings) -> MaximizationSettings:
    """Settings under which the proposed method is :data:`OURS`: L2 and TV are means over their terms, not sums."""
    return dataclasses.replace(settings, reduction="mean")


def our_signals(cfg: Settings, windows: Windows, networks: list[Network], statistics: xr.Dataset) -> xr.Dataset:
    """Signals of :data:`OURS`, a method that is not the paper's; missing ones are made.

    As :func:`paper_methods.signals`, dims (seed, layer, preset, technique, unit, time), with the calibrated preset and
    one method. They are stored beside those of the paper's methods, which stay as they are.
    """
    mine = dataclasses.replace(cfg, maximization=our_settings(cfg.maximization))
    made = paper_methods.signals(mine, networks, statistics, (PROPOSED,), ("calibrated",))
    return made.assign_coords(technique=[OURS])


#: share of the admissible readings under which a claim has to be met to hold whatever the hyper-parameters were. Choice
MOST = 0.5


def belief(verdict: str, share: float | None) -> str:
    """What to believe of a claim: its verdict under `calibrated`, beside the share of readings under which it is met.

    ``share`` is that of the readings which the other claims admit, None or NaN where the claim does not depend on the
    reading or was not tried. Fixed before the shares on real data were known.
    """
    if verdict == claims.UNTESTABLE:
        return "open: not tested here"
    if share is None or np.isnan(share):
        return {claims.HOLDS: "believe it", claims.PARTLY: "believe what the criteria meet"}.get(verdict, "doubt it")
    mostly = share >= MOST
    if verdict == claims.HOLDS:
        return "believe it" if mostly else "it holds, but the hyper-parameters decided it"
    if verdict == claims.PARTLY:
        return "believe what the criteria meet" if mostly else "believe little: it depends on the hyper-parameters"
    return "doubt it" if not mostly else "doubt it here; other readings meet it"


def beliefs(results: dict, shares: dict[str, dict]) -> pd.DataFrame:
    """One row per claim: what the paper says, verdict, share of readings under which it is met, and :func:`belief`.

    ``results`` is a ``results.json``, ``shares`` the entry of that name in notebook 07's ``readings.json``.
    """
    rows = []
    for claim in results["claims"]:
        share = shares.get(claim["id"], {}).get("all facts met in")
        rows.append(
            {
                "claim": claim["id"],
                "the paper says": claim["paper"],
                "verdict": claim["verdict"],
                "readings under which it is met": "" if share is None else f"{share:.0%}",
                "what to believe": belief(claim["verdict"], share),
            }
        )
    return pd.DataFrame(rows).set_index("claim")


def averages(found: pd.DataFrame, levels: str | Sequence[str] = "name") -> pd.DataFrame:
    """Each measure's mean over layers, from :func:`table`: one row per method or control, without intervals."""
    return found.groupby(level=levels, sort=False)[list(MEASURES)].mean()


def dependence_curves(depends: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """:func:`recovery.dependence` by factor: its levels, and (level, seed) arrays of what depends on them."""
    names = {"recall": "recall", "random_recall": "random weights", "macro_f1": "macro F1"}
    curves = {}
    for factor, part in depends.groupby("factor", sort=False):
        by_level = part.pivot(index="level", columns="seed", values=list(names))
        curves[str(factor)] = {"level": by_level.index.to_numpy()}
        curves[str(factor)] |= {name: by_level[column].to_numpy() for column, name in names.items()}
    return curves


def without_nan(values):
    """The same nested lists and dictionaries with None for NaN, as JSON wants it."""
    if isinstance(values, dict):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and np.isnan(values) else values
