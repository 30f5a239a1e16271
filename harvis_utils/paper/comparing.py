"""Measures of signals turned into tables with intervals: what each method reaches, and by how much they differ.

The two axes are those of notebook 08: *activation*, the share of its threshold that a signal brings its unit to, and
*nearness*, how near the exciting piece is to real ones, relative to how near these are to one another. Either alone is
easily won, by amplitude or by doing nothing.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data import kinds
from harvis_utils.data.windowing import Windows
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.paper_methods import METHODS, PROPOSED
from harvis_utils.maximization.starting import starting_points
from harvis_utils.metrics import realism, signal_measures
from harvis_utils.metrics.intervals import listed, paired, with_interval
from harvis_utils.paper import claims, verdicts
from harvis_utils.paper.evidence import Evidence
from harvis_utils.paper.variants import LIKELIEST_TRIGGER
from harvis_utils.parallel import torch_device
from harvis_utils.settings import Settings
from harvis_utils.training import published
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


def by_network(values: xr.DataArray) -> np.ndarray:
    """(seed, unit) values of all layers side by side."""
    return values.stack(each=("layer", "unit")).transpose("seed", ...).values.astype(float)


def table(measured: xr.Dataset, dimension: str) -> pd.DataFrame:
    """Mean and interval of every measure for each method or control and layer, one row each.

    ``dimension`` is "technique" or "control". "networks" counts them, "failed" is the share of signals beyond 10 G;
    means leave out what a measure does not exist for.
    """
    rows = []
    for name, layer in product(*(measured[d].values.tolist() for d in (dimension, "layer"))):
        some = measured.sel({dimension: name, "layer": [layer]})
        failed = float(some["failed"].where(~some["dead"]).mean())
        row = {"name": name, "layer": layer, "networks": measured.sizes["seed"], "failed": failed}
        for column, of in MEASURES.items():
            row |= with_interval(column, by_network(of(some)))
        rows.append(row)
    return pd.DataFrame(rows).set_index(["name", "layer"])


def differences(measured: xr.Dataset, dimension: str, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Paired differences, unit by unit, of each pair of methods (first minus second) for every measure and layer.

    With the interval, the effect size (dominance: share of units in which the first is larger minus the share in
    which it is smaller) and the number of networks and units. ``better`` is the first, the second, or empty where
    the interval reaches zero or the measure has no better side.
    """
    rows = []
    for (first, second), layer, (column, of) in product(pairs, measured["layer"].values.tolist(), MEASURES.items()):
        found = paired(*(by_network(of(measured.sel({dimension: n, "layer": [layer]}))) for n in (first, second)))
        low, high = found.interval or (np.nan, np.nan)
        up = column in MORE_IS_BETTER
        better = "" if not found.clear or column.startswith("moved") else (first, second)[(low > 0) != up]
        row = (first, second, layer, column, found.mean, low, high, found.dominance, better)
        rows.append((*row, found.n_networks, found.n_pairs))
    names = ["first", "second", "layer", "measure", "difference", "low", "high", "dominance", "better"]
    return pd.DataFrame(rows, columns=[*names, "networks", "units"])


def against(measured: xr.Dataset, controls: xr.Dataset) -> pd.DataFrame:
    """:func:`differences` of the proposed method and the paper's others, the likeliest trigger and it, it and controls.

    ``measured`` has the dimension "technique", ``controls`` "control"; its "random-weights" are left out.
    """
    beside = controls.drop_sel(control="random-weights").rename(control="technique")
    pairs = [(PROPOSED, name) for name in METHODS if name != PROPOSED] + [(LIKELIEST_TRIGGER, PROPOSED)]
    pairs += [(PROPOSED, name) for name in beside["technique"].values.tolist()]
    return differences(joined(measured, beside, "technique"), "technique", pairs)


def nearer(differences: pd.DataFrame, than: str) -> tuple[str, str]:
    """Layers in which the proposed method is surely nearer to real windows ``than`` a control, and the other way round.

    ``differences`` is that of :func:`against`.
    """
    rows = differences[(differences["measure"] == "nearness") & (differences["second"] == than)]
    rows = rows[rows["first"] == PROPOSED].set_index("layer")["better"]
    won, lost = (listed(rows.index[rows == name], nothing="no layer") for name in (PROPOSED, than))
    return won, lost


def joined(first: xr.Dataset, second: xr.Dataset, dimension: str) -> xr.Dataset:
    """Signals, or measures of them, of two groups under one dimension, so that they can be paired: what both have."""
    names = [name for name in first.data_vars if name in second and dimension in first[name].dims]
    both = xr.concat([first[names], second[names]], dimension, coords="minimal", compat="override")
    # names that were read from a file keep its length, and longer ones would be cut off when they are written
    both = both.assign_coords({dimension: both[dimension].values.tolist()})
    return both.assign(dead=first["dead"]) if "dead" in first else both


def by_factor(depends: pd.DataFrame) -> pd.DataFrame:
    """:func:`recovery.dependence` in words, one row per "factor", "level", "seed" and what it is a share "of"."""
    factors = {"noise_g": "noise added [G]", "prevalence": "share of motifs planted", "n_units": "units per layer"}
    named = depends.rename(columns={"random_recall": "random weights", "macro_f1": "macro F1"})
    named = named.replace({"factor": factors})
    return named.melt(["factor", "level", "seed"], ["recall", "random weights", "macro F1"], "of", "recall, macro F1")


def spreads(
    cfg: Settings,
    windows: Windows,
    network: Network,
    th_eap: xr.DataArray,
    methods: Sequence[str],
    units: Sequence[int],
) -> pd.DataFrame:
    """How far apart a method's signals end that began at five points (:func:`signal_measures.spread`), over ``units``.

    One row per layer and method: median, smallest and largest. ``th_eap`` is (layer, unit) over all units.
    """
    starts = starting_points(cfg.maximization, windows.train, 5)
    begin = np.broadcast_to(starts[:, None, None], (5, len(methods), len(units), windows.train.length))
    how = {"length": windows.train.length, "rate_hz": windows.rate_hz, "device": torch_device(cfg.device)}
    how |= {"methods": methods, "units": units, "settings": cfg.maximization, "start": begin}
    parts = {}
    for layer in network.trunk.layers:
        made = paper_methods.maximize(network.trunk, layer, th_eap.sel(layer=layer).values, **how)["signal"].values
        parts[layer] = pd.DataFrame(signal_measures.spread(made, starts), methods).agg(["median", "min", "max"], axis=1)
    return pd.concat(parts, names=["layer", "technique"]).set_axis(["median spread", "smallest", "largest"], axis=1)


def protocols(dataset: str) -> pd.DataFrame:
    """What the published networks of a data set reach by each profile's training, a row each, and what C1 is by them.

    "macro F1" on the test people with its 95 % interval over "networks" of so many "epochs", "the paper's", None where
    it has none, and the verdict: "is it so", "how much", "why". Reads no data and trains nothing; raises
    :class:`published.PublishedError` where no networks are published.
    """
    rows, known = [], kinds.check_name(dataset)
    claim = next(claim for claim in claims.CLAIMS if claim.id == "C1")
    for profile, curves in published.learning_curves(dataset).groupby("profile", sort=False):
        f1, epochs = curves.loc[curves["chosen"], "test_f1"].to_numpy(), int(curves["epoch"].max())
        counted = {"seed": range(len(f1)), "layer": [0], "unit": [0], "activity": list(known.activities)}
        evidence = Evidence(dataset, epochs, f1, np.nan, xr.Dataset(coords=counted), xr.Dataset(), {})
        entry = verdicts.judge(claim, claims.criteria_of("C1"), evidence, evidence.resampled())
        row = {"profile": profile, "networks": len(f1), "epochs": epochs} | with_interval("macro F1", f1)
        row |= {"the paper's": claims.PAPER_F1.get(evidence.base), "is it so": entry["direction"]}
        rows.append(row | {"how much": entry["size"], "why": entry["why"]})
    return pd.DataFrame(rows).set_index("profile")
