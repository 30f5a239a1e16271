"""Signals of all networks beside their references: how well each method explains units, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.windowing import Windows
from harvis_utils.lenses.triggered import STRONGEST, references
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.metrics.explanation import MEASURES, explained
from harvis_utils.metrics.intervals import paired, with_interval
from harvis_utils.settings import ExplanationSettings, Settings
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network, of_networks


@kept("explanation")
def explained_of(
    network: Network, windows: Windows, signals: xr.DataArray, th_eap: xr.DataArray, settings: ExplanationSettings
) -> xr.Dataset:
    """:func:`explained` of one network's signals (technique, layer, unit, time) in test windows: (technique, layer, unit)."""
    made = [
        explained(network.trunk, layer, signals.sel(layer=layer), windows.test, th_eap.sel(layer=layer), settings)
        for layer in signals["layer"].values.tolist()
    ]
    return xr.concat(made, "layer").transpose("technique", "layer", "unit")


@kept("explanation")
def references_of(
    network: Network, windows: Windows, th_eap: xr.DataArray, start: np.ndarray, settings: ExplanationSettings
) -> xr.Dataset:
    """The same of the references (:func:`harvis_utils.lenses.triggered.references`) of all units of one network."""
    parts = []
    for layer in network.trunk.layers:
        made = references(network.trunk, layer, windows.train, start, settings, seed=network.seed)
        nine = made["strongest"].expand_dims(technique=[STRONGEST])
        how = (windows.test, th_eap.sel(layer=layer), settings)
        both = [
            explained(network.trunk, layer, of, *how) for of in (made["signal"].rename(reference="technique"), nine)
        ]
        parts.append(xr.concat(both, "technique").assign_coords(layer=layer))
    return xr.concat(parts, "layer").transpose("technique", "layer", "unit")


def explanations(
    cfg: Settings, windows: Windows, networks: Sequence[Network], statistics: xr.Dataset, signals: xr.DataArray
) -> xr.Dataset:
    """Explanation of methods and references, dims (seed, technique, layer, unit); missing ones are made.

    ``signals`` is (seed, technique, layer, unit, time) of all units.
    """
    start = starting_signal(cfg.maximization, windows.train.length)
    how = cfg.explanation

    def one(net: Network, own: xr.DataArray, th_eap: xr.DataArray) -> xr.Dataset:
        made = explained_of(net, windows, own, th_eap, how), references_of(net, windows, th_eap, start, how)
        return xr.concat(made, "technique")

    return of_networks(
        networks, one, signals.transpose("seed", "technique", "layer", "unit", "time"), statistics["th_eap"]
    )


def table(found: xr.Dataset) -> pd.DataFrame:
    """Every measure, and what other units' signals get, with its interval: one row per method and layer.

    ``found`` is (seed, technique, layer, unit). ``flat`` and ``reaches`` are shares of signals.
    """
    rows = []
    for method, layer in product(found["technique"].values.tolist(), found["layer"].values.tolist()):
        own = found.sel(technique=method, layer=layer)
        row: dict = {"technique": method, "layer": layer}
        for name, null in MEASURES.items():
            row |= with_interval(name, own[name].transpose("seed", "unit"))
            row |= {null: float(own[null].mean())} if null else {}
        row |= {name: float(own[name].mean()) for name in ("flat", "reaches")}
        rows.append(row | {"networks": own.sizes["seed"], "units": own.sizes["unit"]})
    return pd.DataFrame(rows)


def against(found: xr.Dataset, reference: str) -> pd.DataFrame:
    """What every method has more than one of them, unit by unit: one row per method, layer and measure, with interval.

    Columns "technique", "layer", "measure", "difference" with its ends, and "dominance".
    """
    rows = []
    others = [name for name in found["technique"].values.tolist() if name != reference]
    for method, layer, name in product(others, found["layer"].values.tolist(), MEASURES):
        pair = (found[name].sel(technique=m, layer=layer).transpose("seed", "unit") for m in (method, reference))
        difference = paired(*pair)
        row = {"technique": method, "layer": layer, "measure": name, "dominance": difference.dominance}
        rows.append(row | difference.row("difference"))
    return pd.DataFrame(rows)
