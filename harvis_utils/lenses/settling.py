"""Features at several epochs turned into one number a layer: the epoch from which they stand still.

A layer has *settled* at the first kept epoch from which the median over its units of the correlation with the last
epoch exceeds ``SETTLED`` to the end. Zeiler and Fergus (2014, Fig. 4) judge it by eye; the rule is a Choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.metrics.intervals import LEVEL, N_DRAWS, interval
from harvis_utils.metrics.similarity import correlation

#: Choice: a unit looks like its last state where the correlation exceeds this
SETTLED = 0.9
MEASURES = ("maps", "projections")


def likeness(found: xr.Dataset) -> xr.Dataset:
    """How much every unit is like its last state: Pearson correlations, dims (epoch, layer, unit).

    ``maps`` on fixed windows; ``projections`` around the strongest activation; ``same_window``, whether the strongest
    activation comes from the window it comes from in the end. Units silent at either epoch have NaN.
    """
    dims = ("epoch", "layer", "unit")
    return xr.Dataset(
        {
            "maps": (dims, correlation(found["maps"].values, found["maps"].values[-1])),
            "projections": (dims, correlation(found["projection"].values, found["projection"].values[-1])),
            "same_window": (dims, (found["window"].values == found["window"].values[-1]).astype(float)),
        },
        coords={d: found[d].values for d in ("epoch", "layer")},
    )


def settled(epochs: Sequence[int], values: np.ndarray, level: float = SETTLED) -> int:
    """First of the epochs from which the median over units exceeds ``level`` to the end; ``values`` (epoch, unit).

    The last epoch is like itself, so that an answer always exists; where it *is* the last epoch, nothing had settled.
    """
    known = [row[~np.isnan(row)] for row in np.asarray(values)]
    above = np.array([len(row) > 0 and np.median(row) > level for row in known])
    below = np.flatnonzero(~above[:-1])
    return int(epochs[below[-1] + 1]) if len(below) else int(epochs[0])


def settling(alike: xr.Dataset, seed: int = 0) -> pd.DataFrame:
    """When each layer settles, by each of ``MEASURES``, with an interval over units (one network).

    Columns ``epoch``, ``epoch low``, ``epoch high``, ``last epoch``, ``settled before the end``, and ``before
    training``: the median correlation of the random start with the end, with its interval.
    """
    epochs, rows = alike["epoch"].values, []
    rng = np.random.default_rng(seed)
    for layer in alike["layer"].values:
        for measure in MEASURES:
            values = alike[measure].sel(layer=layer).values
            values = values[:, ~np.isnan(values).all(0)]
            drawn = rng.integers(values.shape[1], size=(N_DRAWS // 4, values.shape[1]))
            low, high = np.quantile([settled(epochs, values[:, d]) for d in drawn], LEVEL, method="inverted_cdf")
            first, bounds = interval(values[0], "median")
            rows.append(
                {
                    "layer": str(layer),
                    "measure": measure,
                    "epoch": settled(epochs, values),
                    "epoch low": low,
                    "epoch high": high,
                }
                | {"last epoch": int(epochs[-1]), "before training": first, "units": values.shape[1]}
                | dict(zip(("before training low", "before training high"), bounds or (np.nan, np.nan), strict=True))
            )
    table = pd.DataFrame(rows)
    table["settled before the end"] = table["epoch"] < table["last epoch"]
    return table.set_index(["layer", "measure"])
