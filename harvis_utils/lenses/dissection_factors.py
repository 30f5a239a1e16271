"""What the number of detectors depends on: small networks that differ in one thing, each dissected.

Bau, Zhou et al. (2017), sections 3.4 to 3.7: width, batch norm, or having learned from labels or from a task without
any. That task is to tell which of four transformations was applied to a window, after Saeed, Ozcelebi and Lukkien
(2019): ordinary windows whose "activities" are the transformations.
"""

import dataclasses

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.windowing import SPLITS, Windows
from harvis_utils.lenses import dissection
from harvis_utils.lenses.concepts import Concepts
from harvis_utils.settings import Settings, load_settings
from harvis_utils.training import supervised

#: pieces into which a window is cut to be scrambled
N_PIECES = 5
TRANSFORMATIONS = ("as it is", "turned over", "reversed in time", "scrambled")
#: what the other small networks differ from: the quick profile's model and training, whatever the run's own are
BASE = "16 units, batch norm, labels"


def transformed(x: np.ndarray, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Windows (window, axis, time), each changed as ``which`` (window,) says: an index into ``TRANSFORMATIONS``.

    All axes of a window change alike. Scrambled windows have their ``N_PIECES`` pieces in another order; samples that
    make no whole piece stay at the end. Raises ``ValueError`` for an unknown transformation.
    """
    if not np.isin(which, np.arange(len(TRANSFORMATIONS))).all():
        raise ValueError(f"transformations are numbered 0 to {len(TRANSFORMATIONS) - 1}, not {np.unique(which)}")
    found = x.copy()
    found[which == 1] *= -1
    found[which == 2] = x[which == 2][..., ::-1]
    whole = x.shape[2] // N_PIECES * N_PIECES
    as_it_is = np.arange(N_PIECES)
    for window in np.flatnonzero(which == 3):
        order = as_it_is
        while (order == as_it_is).all():
            order = rng.permutation(N_PIECES)
        pieces = x[window, :, :whole].reshape(len(x[window]), N_PIECES, -1)
        found[window, :, :whole] = pieces[:, order].reshape(len(pieces), whole)
    return found


def without_labels(windows: Windows, seed: int = 0) -> Windows:
    """The windows, each changed by a transformation drawn at random, which is its class; splits and subjects stay."""
    rng, splits = np.random.default_rng(seed), {}
    for name in SPLITS:
        split = getattr(windows, name)
        which = rng.integers(len(TRANSFORMATIONS), size=len(split))
        series = transformed(split.x, which, rng).transpose(0, 2, 1).reshape(-1, split.series.shape[1])
        start = np.arange(len(split)) * split.length  # window after window
        splits[name] = dataclasses.replace(split, series=series, start=start, activity=which)
    return dataclasses.replace(windows, **splits, activities=TRANSFORMATIONS)


def kinds(cfg: Settings, windows: Windows) -> dict[str, tuple[Settings, Windows]]:
    """Name of each kind of small network -> its settings and what it learns from: thinned windows of all splits.

    Choice: no dropout; with it, so few epochs do not teach the task without labels at all.
    """
    quick, few = load_settings("quick", cfg.dataset), windows.every(cfg.dissection.factor_thinning)
    training = dataclasses.replace(quick.training, seeds=cfg.dissection.factor_seeds)

    def small(**model) -> Settings:
        return dataclasses.replace(cfg, model=dataclasses.replace(quick.model, dropout=0.0, **model), training=training)

    found = {BASE: (small(), few)} | {f"{n} units": (small(n_units=n), few) for n in cfg.dissection.widths}
    return found | {"no batch norm": (small(batch_norm=False), few), "no labels": (small(), without_labels(few))}


def factors(cfg: Settings, windows: Windows, concepts: Concepts) -> xr.Dataset:
    """Detectors of small networks, trained (``weights`` "trained") and with random weights.

    They are trained where they are not there yet. ``unique`` over (level, weights, seed, layer, rule), ``iou``, the
    mean of the units' best, over (level, weights, seed, layer), and ``f1`` (level, seed): macro F1 on thinned test
    windows of the task that was learned.
    """
    levels, found = kinds(cfg, windows), []
    for settings, learned in levels.values():
        both = {"trained": supervised.networks(settings, learned)}
        both["random weights"] = supervised.untrained(settings, learned)
        dissected = [dissection.dissect_networks(cfg, windows, networks, concepts) for networks in both.values()]
        labels = xr.concat([dissection.detectors(of) for of in dissected], pd.Index(both, name="weights"))
        f1 = [supervised.macro_f1(learned.test, net.predicted["test"]) for net in both["trained"]]
        counts = {"unique": dissection.unique(labels), "iou": labels["best"].mean("unit"), "f1": ("seed", f1)}
        found.append(xr.Dataset(counts))
    return xr.concat(found, pd.Index(levels, name="level"))


def factor_table(found: xr.Dataset, rule: str = dissection.RULES[0]) -> pd.DataFrame:
    """One row per kind of small network of :func:`factors`: F1 of its task, unique detectors and mean best IoU.

    The latter are means over layers, each with its difference from the base (:func:`dissection.compared`) and the same
    of networks of that kind with random weights.
    """
    columns = {"macro F1 of its task": found["f1"].mean("seed").to_series()}
    for name, both in {"unique detectors": found["unique"].sel(rule=rule), "mean best IoU": found["iou"]}.items():
        own = both.sel(weights="trained").mean("layer").rename(level="units").expand_dims(layer=["all"])
        table = dissection.compared(own, BASE).xs("all")
        for suffix in ("", " low", " high"):
            columns[f"{name}{suffix}"] = table[f"value{suffix}"]
            columns[f"{name}, base minus this{suffix}"] = table[f"{BASE} minus this{suffix}"]
        columns[f"{name}, random weights"] = both.sel(weights="random weights").mean(("layer", "seed")).to_series()
    table = pd.DataFrame(columns).loc[found["level"].values].assign(networks=found.sizes["seed"])
    return table.rename_axis("kind")
