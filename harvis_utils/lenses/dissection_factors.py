"""What the number of detectors depends on: small networks that differ in one thing, each dissected.

Bau, Zhou et al. (2017), sections 3.4 to 3.7: width, batch norm, or having learned from labels or from a task without
any. That task is to tell which of four transformations was applied to a window, after Saeed, Ozcelebi and Lukkien
(2019): ordinary windows whose "activities" are the transformations.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.windowing import SPLITS, Windows
from harvis_utils.lenses import dissection
from harvis_utils.lenses.concepts import Concepts
from harvis_utils.parallel import side_by_side
from harvis_utils.settings import DissectionSettings, Settings, load_settings
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network

#: pieces into which a window is cut to be scrambled
N_PIECES = 5
TRANSFORMATIONS = ("as it is", "turned over", "reversed in time", "scrambled")


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
    for window in np.flatnonzero(which == 3):
        order = np.arange(N_PIECES)
        while (order == np.arange(N_PIECES)).all():  # the order it has is no other order
            order = rng.permutation(N_PIECES)
        pieces = np.split(x[window, :, :whole], N_PIECES, axis=1)
        found[window, :, :whole] = np.concatenate([pieces[k] for k in order], axis=1)
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


#: what the small networks differ from: the quick profile's model and training, whatever the run's own are
BASE = "16 units, batch norm, labels"
LABELS, PRETEXT = "labels", "pretext"


def small(cfg: Settings, **model) -> Settings:
    """The settings of a small network that differs from the base in ``model``.

    Choice: no dropout; with it, so few epochs do not teach the task without labels at all.
    """
    quick = load_settings("quick", cfg.dataset)
    training = dataclasses.replace(quick.training, seeds=cfg.dissection.factor_seeds)
    return dataclasses.replace(cfg, model=dataclasses.replace(quick.model, dropout=0.0, **model), training=training)


def levels(settings: DissectionSettings) -> dict[str, tuple[str, dict]]:
    """Name of each kind of small network -> what it learns, and what its model differs in from the base."""
    widths = {f"{n} units": (LABELS, {"n_units": n}) for n in settings.widths}
    return {BASE: (LABELS, {}), **widths, "no batch norm": (LABELS, {"batch_norm": False}), "no labels": (PRETEXT, {})}


def tasks(cfg: Settings, windows: Windows) -> dict[str, Windows]:
    """What small networks learn from: every n-th window of all splits with its label, and without labels."""
    few = windows.every(cfg.dissection.factor_thinning)
    return {LABELS: few, PRETEXT: without_labels(few)}


def small_networks(cfg: Settings, windows: Windows) -> dict[str, list[Network]]:
    """The small networks of each level, one per seed, trained on thinned windows where they are not there yet.

    ``history["test_f1"]`` of those without labels is that of the task they learned.
    """
    learned, plan, seeds = tasks(cfg, windows), levels(cfg.dissection), cfg.dissection.factor_seeds
    jobs = [(level, seed) for level in plan for seed in seeds]

    def one(job: tuple[str, int]) -> Network:
        task, model = plan[job[0]]
        return supervised.train(small(cfg, **model), learned[task], job[1])

    # the widest first, so that no thread is left with one at the end
    jobs.sort(key=lambda job: -small(cfg, **plan[job[0]][1]).model.n_units)
    found = dict(zip(jobs, side_by_side(cfg, one, jobs), strict=True))
    return {level: [found[level, seed] for seed in seeds] for level in plan}


def factors(cfg: Settings, windows: Windows, concepts: Concepts) -> xr.Dataset:
    """Detectors of small networks, trained (``weights`` "trained") and with random weights ("random").

    ``unique`` over (level, weights, seed, layer, rule), ``iou``, the mean of the units' best, over (level, weights,
    seed, layer), and ``f1`` (level, seed): macro F1 on thinned test windows of the task that was learned.
    """
    learned, plan, columns, f1 = tasks(cfg, windows), levels(cfg.dissection), [], []
    for level, trained in small_networks(cfg, windows).items():
        task, model = plan[level]
        f1.append([supervised.macro_f1(learned[task].test, net.predicted["test"]) for net in trained])
        both = {"trained": trained, "random": supervised.untrained(small(cfg, **model), learned[task])}
        found = xr.concat(
            [dissection.detectors(dissection.dissect_networks(cfg, windows, nets, concepts)) for nets in both.values()],
            pd.Index(both, name="weights"),
        )
        columns.append(xr.Dataset({"unique": dissection.unique(found), "iou": found["best"].mean("unit")}))
    return xr.concat(columns, pd.Index(plan, name="level")).assign(f1=(("level", "seed"), np.array(f1)))


def factor_table(found: xr.Dataset, rule: str = dissection.RULES[0]) -> pd.DataFrame:
    """One row per kind of small network of :func:`factors`: F1 of its task, unique detectors and mean best IoU.

    The latter are means over layers, each with its difference from the base (:func:`dissection.compared`) and the same
    of networks of that kind with random weights.
    """
    measures = {"unique detectors": found["unique"].sel(rule=rule), "mean best IoU": found["iou"]}
    columns = {"macro F1 of its task": found["f1"].mean("seed").to_series()}
    for name, both in measures.items():
        of = both.sel(weights="trained")
        own = {str(level): of.sel(level=level).mean("layer").expand_dims(layer=["all"]) for level in of["level"].values}
        table = dissection.compared(own, BASE).xs("all")
        for suffix in ("", " low", " high"):
            columns[f"{name}{suffix}"] = table[f"value{suffix}"]
            columns[f"{name}, base minus this{suffix}"] = table[f"{BASE} minus this{suffix}"]
        columns[f"{name}, random weights"] = both.sel(weights="random").mean(("layer", "seed")).to_series()
    return pd.DataFrame(columns).loc[list(own)].rename_axis("kind").assign(networks=found.sizes["seed"])
