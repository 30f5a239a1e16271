"""Climbs under backward slopes turned into tables: gains over plain ascent, steps, spread, and the exact maximum."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import rankdata

from harvis_utils.lenses.slopes import SLOPES
from harvis_utils.metrics.intervals import Difference, interval, paired
from harvis_utils.training.supervised import Network

#: Choice: a larger gain counts as this one, also where plain ascent does not leave zero; medians do not mind
HIGHEST_GAIN = 100.0


def gains(maximum: xr.DataArray, plain: xr.DataArray | None = None) -> xr.DataArray:
    """What each slope reaches over ``plain`` (None: plain ascent in ``maximum``), minus 1: dimensions of ``maximum``.

    NaN where both reach nothing (a dead unit); at most ``HIGHEST_GAIN``.
    """
    plain = maximum.sel(slope=SLOPES[0], drop=True) if plain is None else plain
    both = (plain > 0) | (maximum > 0)
    safe = plain.where(plain > 0, 1.0)
    return (maximum / safe - 1).where(plain > 0, np.inf).clip(max=HIGHEST_GAIN).where(both)


def _pairs(values: xr.DataArray) -> np.ndarray:
    """(seed, everything else)."""
    return values.transpose("seed", ...).values.reshape(values.sizes["seed"], -1)


def _median(values: np.ndarray) -> float:
    """The upper median, inf of no values: the mean of a number and inf would say nothing."""
    return float(np.sort(values)[len(values) // 2]) if len(values) else np.inf


def table(found: xr.Dataset) -> pd.DataFrame:
    """One row per layer ("all" too) and slope, with intervals over networks and units.

    * ``gain``: median over units of the gain of the mean maximum over starts; ``gain, best start``: of the best start;
      ``gain over plain's best``: of one start (their mean) over the best start of plain ascent.
    * ``higher``: share of units that come higher than by plain ascent, by 0.1 % at least, minus the share that comes
      lower.
    * ``reached``: share of ascents that come to 95 % of the highest value known for their unit; ``steps``: the median
      number they take, inf where most never do; ``steps if reached`` that of those that do.
    * ``spread``: standard deviation over starts in units of their mean; ``stuck``: share of ascents that never rise
      above their start; with bounds ``at_bounds`` and ``one_sided``.
    """
    rows = []
    layers = [str(layer) for layer in found["layer"].values]
    mean, best = found["maximum"].mean("start"), found["maximum"].max("start")
    alive = best.max("slope") > 0
    measures = {
        "gain": (gains(mean), "median"),
        "gain, best start": (gains(best), "median"),
        "gain over plain's best": (gains(mean, best.sel(slope=SLOPES[0], drop=True)), "median"),
        "higher": (np.sign(gains(mean)).where(abs(gains(mean)) > 1e-3, 0.0).where(alive), "mean"),
        "reached": (np.isfinite(found["until"]).where(found["until"].notnull()).mean("start"), "mean"),
        "spread": (found["maximum"].std("start") / mean.where(mean > 0), "median"),
        "stuck": ((found["maximum"] <= found["at_start"]).where(alive).mean("start"), "mean"),
    }
    for name in ("at_bounds", "one_sided"):
        if name in found:
            measures[name] = (found[name].where(alive).astype(float).mean("start"), "mean")
    for part in ["all", *layers]:
        chosen = layers if part == "all" else [part]
        for slope in found["slope"].values:
            row: dict = {"layer": part, "slope": float(slope)}
            for name, (values, summary) in measures.items():
                row[name], bounds = interval(_pairs(values.sel(layer=chosen, slope=slope)), summary)
                row[f"{name} low"], row[f"{name} high"] = bounds or (np.nan, np.nan)
            until = found["until"].sel(layer=chosen, slope=slope).values
            row["steps"], row["steps if reached"] = _median(until[~np.isnan(until)]), _median(until[np.isfinite(until)])
            row["networks"] = found.sizes["seed"]
            row["units"] = int(alive.sel(layer=chosen).sum())
            rows.append(row)
    return pd.DataFrame(rows).set_index(["layer", "slope"])


def best_in_box(weights: np.ndarray, biases: np.ndarray, bound: float, length: int) -> np.ndarray:
    """Exact maximum of each first-layer unit's mean output over all signals within ±bound, (unit,).

    ``weights`` are (unit, kernel), ``biases`` (unit,). A rectified weighted sum is convex, so the maximum lies in a
    corner of the box: each sample is at one bound or the other, and going along the signal, only the last
    ``kernel - 1`` samples matter for what follows. Deeper layers are not convex.
    """
    kernel = weights.shape[1]
    half = kernel // 2
    reached = {(0.0,) * (kernel - 1): np.zeros(len(weights))}  # zeros stand where the signal is padded
    for entering in range(length + half):
        further: dict[tuple[float, ...], np.ndarray] = {}
        for past, total in reached.items():
            for sample in (-bound, bound) if entering < length else (0.0,):
                seen = (*past, sample)
                output = np.maximum(weights @ np.array(seen) + biases, 0) if entering >= half else 0.0
                known = further.get(seen[1:], -np.inf)
                further[seen[1:]] = np.maximum(known, total + output)
        reached = further
    return np.max(list(reached.values()), axis=0) / length


def against_optimum(networks: list[Network], found: xr.Dataset, bound: float) -> pd.DataFrame:
    """First-layer units in a box, where the exact maximum is known: share of it that each slope reaches, per ascent.

    ``solved`` is the share of ascents within 1 % of it, ``solved, best start`` the share of units of which one was.
    """
    length = found.sizes["time"]
    exact = []
    for net in networks:
        first = [a[0].double().numpy() for a in (net.trunk.weights, net.trunk.biases)]
        exact.append(best_in_box(first[0][:, 0], first[1], bound, length))
    optimum = xr.DataArray(np.stack(exact), dims=("seed", "unit"), coords={"seed": found["seed"]})
    optimum = optimum.where(optimum > 0)
    share = found["maximum"].sel(layer=found["layer"].values[0]) / optimum
    solved = (share >= 0.99).where(share.notnull())
    measures = {"share": share.mean("start"), "solved": solved.mean("start"), "solved, best start": solved.max("start")}
    rows = []
    for slope in found["slope"].values:
        row: dict = {"slope": float(slope), "highest share": float(share.sel(slope=slope).max())}
        for name, values in measures.items():
            row[name], bounds = interval(_pairs(values.sel(slope=slope)))
            row[f"{name} low"], row[f"{name} high"] = bounds or (np.nan, np.nan)
        rows.append(row)
    return pd.DataFrame(rows).set_index("slope")


def white_optima(networks: list[Network], bound: float, length: int) -> np.ndarray:
    """Share of living first-layer units whose exact maximum in the box a constant at a bound reaches, (network,)."""
    shares = []
    for net in networks:
        weights, biases = (a[0].double().numpy() for a in (net.trunk.weights, net.trunk.biases))
        exact = best_in_box(weights[:, 0], biases, bound, length)
        constant = torch.tensor([[bound], [-bound]]).expand(2, length)
        white = net.trunk.feature_map(constant, net.trunk.layers[0]).mean(2).amax(0).numpy()
        shares.append((white[exact > 0] >= 0.999 * exact[exact > 0]).mean())
    return np.array(shares)


def bounds_and_height(found: xr.Dataset) -> xr.DataArray:
    """Rank correlation, over the ascents of one unit, of the maximum reached and the share of samples at the bounds.

    (seed, layer, unit); NaN where either is the same for all ascents.
    """
    stacked = found[["maximum", "at_bounds"]].stack(ascent=("slope", "start")).transpose(..., "ascent")
    ranks = [rankdata(stacked[name].values, axis=-1) for name in ("maximum", "at_bounds")]
    centred = [r - r.mean(-1, keepdims=True) for r in ranks]
    size = np.sqrt((centred[0] ** 2).sum(-1) * (centred[1] ** 2).sum(-1))
    with_both = np.where(size > 0, size, np.nan)
    return stacked["maximum"].isel(ascent=0, drop=True).copy(data=(centred[0] * centred[1]).sum(-1) / with_both)


def over_plain(found: xr.Dataset, name: str, slope: float) -> Difference:
    """What this slope's signals have more of a measure (``at_bounds``, ``one_sided``) than those of plain ascent.

    Unit by unit, mean over starts, living units only.
    """
    each = found[name].astype(float).mean("start").where(found["maximum"].max(("slope", "start")) > 0)
    return paired(*(_pairs(each.sel(slope=s)) for s in (slope, SLOPES[0])))


def height_table(height: xr.DataArray) -> pd.DataFrame:
    """Mean of :func:`bounds_and_height` per layer, and over "all", with its interval: ``correlation``, its ends."""
    layers = [str(layer) for layer in height["layer"].values]
    rows = {}
    for part in [*layers, "all"]:
        mean, bounds = interval(_pairs(height.sel(layer=layers if part == "all" else [part])))
        low, high = bounds or (np.nan, np.nan)
        rows[part] = {"correlation": mean, "correlation low": low, "correlation high": high}
    return pd.DataFrame(rows).T.rename_axis("layer")
