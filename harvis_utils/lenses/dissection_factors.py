"""What the number of detectors depends on, and whether concepts explain what units are good for.

*Factors* (Bau, Zhou et al. 2017, sections 3.4 to 3.7): small networks that differ in one thing: width, batch norm, or
having learned from labels or from a task without any. *Explanation*: what silencing a unit costs, beside its
concept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses import ablation, dissection, pretext
from harvis_utils.lenses.concepts import Concepts
from harvis_utils.lenses.dissection_runs import DissectionSettings, dissect
from harvis_utils.metrics.intervals import ENOUGH_SEEDS, interval, paired
from harvis_utils.parallel import side_by_side
from harvis_utils.settings import Settings, load_settings
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network

#: what the small networks differ from: the quick profile's model and training, whatever the run's own are
BASE = "16 units, batch norm, labels"
LABELS, PRETEXT = "labels", "pretext"


def small(cfg: Settings, settings: DissectionSettings, **model) -> Settings:
    """The settings of a small network that differs from the base in ``model``.

    Choice: no dropout; with it, so few epochs do not teach the task without labels at all.
    """
    quick = load_settings("quick", cfg.dataset, cfg.device)
    trained = dataclasses.replace(quick.training, seeds=settings.factor_seeds)
    model = dataclasses.replace(quick.model, **{"dropout": 0.0, **model})
    return dataclasses.replace(quick, windows=cfg.windows, model=model, training=trained)


def levels(settings: DissectionSettings) -> dict[str, tuple[str, dict]]:
    """Name of each kind of small network -> what it learns, and what its model differs in from the base."""
    widths = {f"{n} units": (LABELS, {"n_units": n}) for n in settings.widths}
    return {BASE: (LABELS, {}), **widths, "no batch norm": (LABELS, {"batch_norm": False}), "no labels": (PRETEXT, {})}


def small_networks(cfg: Settings, windows: Windows, settings: DissectionSettings) -> dict[str, list[Network]]:
    """The small networks of each level, one per seed, trained on thinned windows where they are not there yet.

    ``history["test_f1"]`` of those without labels is that of the task they learned.
    """
    tasks, plan = _tasks(windows, settings), levels(settings)
    jobs = [(level, seed) for level in plan for seed in settings.factor_seeds]

    def one(job: tuple[str, int]) -> Network:
        task, model = plan[job[0]]
        return supervised.train(small(cfg, settings, **model), tasks[task], job[1])

    # the widest first, so that no thread is left with one at the end
    jobs.sort(key=lambda job: -plan[job[0]][1].get("n_units", small(cfg, settings).model.n_units))
    found = dict(zip(jobs, side_by_side(cfg, one, jobs), strict=True))
    return {level: [found[level, seed] for seed in settings.factor_seeds] for level in plan}


def _tasks(windows: Windows, settings: DissectionSettings) -> dict[str, Windows]:
    few = windows.every(settings.factor_thinning)
    return {LABELS: few, PRETEXT: pretext.task(few)}


def factors(cfg: Settings, windows: Windows, concepts: Concepts, settings: DissectionSettings) -> xr.Dataset:
    """Detectors of small networks, trained (``weights`` "trained") and with random weights ("random").

    ``unique``, ``share`` (of units that are detectors) over (level, weights, seed, layer, rule), ``iou``, the mean of
    the units' best, over (level, weights, seed, layer), and ``f1`` (level, seed): macro F1 on thinned test windows of
    the task that was learned. Missing networks are trained.
    """
    tasks, plan, columns, f1 = _tasks(windows, settings), levels(settings), [], []
    for level, trained in small_networks(cfg, windows, settings).items():
        task, model = plan[level]
        own = small(cfg, settings, **model)
        f1.append([supervised.macro_f1(tasks[task].test, net.predicted["test"]) for net in trained])
        both = {"trained": trained, "random": supervised.untrained(own, tasks[task])}
        found = [
            _counted(dissection.detectors(dissect(own, windows, nets, concepts, settings))).expand_dims(weights=[name])
            for name, nets in both.items()
        ]
        columns.append(xr.concat(found, "weights").expand_dims(level=[level]))
    return xr.concat(columns, "level").assign(f1=(("level", "seed"), np.array(f1)))


def factor_table(found: xr.Dataset, rule: str = dissection.RULES[0]) -> pd.DataFrame:
    """One row per kind of small network: F1 of its task, unique detectors and mean best IoU, both means over layers.

    From :func:`factors`' result; beside the latter two their difference from the base, as :func:`compared` makes it,
    and the same measure of networks of that kind with random weights.
    """
    measures = {"unique detectors": found["unique"].sel(rule=rule), "mean best IoU": found["iou"]}
    columns = {"macro F1 of its task": found["f1"].mean("seed").to_series()}
    for name, both in measures.items():
        of = both.sel(weights="trained")
        own = {str(level): of.sel(level=level).mean("layer").expand_dims(layer=["all"]) for level in of["level"].values}
        table = compared(own, BASE).xs("all")
        for suffix in ("", " low", " high"):
            columns[f"{name}{suffix}"] = table[f"value{suffix}"]
            columns[f"{name}, base minus this{suffix}"] = table[f"{BASE} minus this{suffix}"]
        columns[f"{name}, random weights"] = both.sel(weights="random").mean(("layer", "seed")).to_series()
    return pd.DataFrame(columns).loc[list(own)].rename_axis("kind").assign(networks=found.sizes["seed"])


def _counted(found: xr.Dataset) -> xr.Dataset:
    share, iou = found["detector"].mean("unit"), found["best"].mean("unit")
    return xr.Dataset({"unique": dissection.unique(found), "share": share, "iou": iou})


# ---------------------------------------------------------------------------------------- comparison, examples


def compared(counts: Mapping[str, xr.DataArray], first: str = "trained") -> pd.DataFrame:
    """Values of several kinds of networks, (seed, layer) each, beside each other: one row per layer and kind.

    "value" with its interval over networks, and "first minus this", paired network by network, with its own; intervals
    from ``ENOUGH_SEEDS`` networks on, because fewer say too little of others.
    """
    rows = []
    for layer in counts[first]["layer"].values:
        own = {who: of.sel(layer=layer).transpose("seed").values.astype(float)[:, None] for who, of in counts.items()}
        for who, values in own.items():
            columns = {"value": interval(values)}
            if who != first:
                found = paired(own[first], values)
                columns[f"{first} minus this"] = found.mean, found.interval
            row = {"layer": str(layer), "units": who}
            for name, (mean, ends) in columns.items():
                low, high = ends if ends and len(values) >= ENOUGH_SEEDS else (np.nan, np.nan)
                row |= {name: mean, f"{name} low": low, f"{name} high": high}
            rows.append(row | {"networks": len(values)})
    return pd.DataFrame(rows).set_index(["layer", "units"])


@dataclass(frozen=True)
class Example:
    """A unit where its output is largest: the ``signal`` (time,) in G there, the unit's mask and its concept's."""

    layer: str
    unit: int
    concept: str
    iou: float
    signal: np.ndarray
    unit_mask: np.ndarray
    concept_mask: np.ndarray


def examples(network: Network, labels: xr.Dataset, split: Split, concepts: Concepts, n: int) -> list[Example]:
    """The ``n`` detectors of one network with the largest IoU, each concept at most once in a layer.

    ``labels`` are :func:`dissection.detectors`' over (layer, unit), ``split`` and ``concepts`` the windows they come
    from. Each is shown where its output is largest, which is not where it fits best.
    """
    table = labels[["best", "concept"]].stack(place=("layer", "unit")).to_dataframe().reset_index(drop=True)
    table[["layer", "unit"]] = [list(place) for place in labels["best"].stack(place=("layer", "unit"))["place"].values]
    table = table.sort_values("best", ascending=False).drop_duplicates(["layer", "concept"]).head(n)
    found = {}
    for layer, rows in table.groupby("layer"):
        maps = dissection.kept(dissection.stream(network.model, layer, split.x))
        units = dissection.unit_masks(maps, dissection.thresholds(maps), *concepts.masks.shape[2:])
        whole = torch.cat(list(maps()))
        for row in rows.itertuples():
            window, axis, _ = np.unravel_index(int(whole[:, row.unit].argmax()), whole[:, row.unit].shape)
            own = units[row.unit].toarray().reshape(concepts.masks.shape[1:])[window, axis] > 0
            concept = concepts.masks[concepts.names.index(row.concept), window, axis]
            signal = split.x[window, axis]
            found[row.Index] = Example(layer, row.unit, row.concept, row.best, signal, own, concept)
    return [found[index] for index in table.index]


# ------------------------------------------------------------------------------------------------- explanation


def explained(
    found: xr.Dataset, lost: xr.Dataset, activities: Sequence[str], settings: DissectionSettings
) -> pd.DataFrame:
    """Do concepts explain effects? One row per layer and question, averaged over networks.

    ``found`` are :func:`dissect`'s results, ``lost`` those of :func:`ablate`. "own activity": do units that overlap an
    activity cost that activity's F1, or the probability its windows get? "any concept": do units with a large best IoU
    cost macro F1?
    """
    overlap = found["iou"].sel(concept=[a for a in activities if a in found["concept"]])
    classes = [list(activities).index(a) for a in overlap["concept"].values]
    rows = []
    for layer in found["layer"].values:
        questions: dict[str, list[ablation.Explained]] = {}
        for seed in found["seed"].values:
            at = {"seed": seed, "layer": layer}
            own, cost = overlap.sel(at).values, lost.sel(at).isel({"class": classes})
            best = found["iou"].sel(at).max("concept").values[:, None]
            rng = np.random.default_rng(0)  # the same draws for every question
            pairs = {
                "own activity, F1": (own, cost["f1"].values),
                "own activity, probability": (own, cost["probability"].values),
                "any concept, macro F1": (best, lost["f1"].sel(at).mean("class").values[:, None]),
            }
            for question, (concept, effect) in pairs.items():
                one = ablation.explained(concept, effect, settings.n_permutations, rng)
                questions.setdefault(question, []).append(one)
        for question, parts in questions.items():
            whole = ablation.pooled(parts)
            values = [part.value for part in parts]
            low, high = (float(np.quantile(whole.null, q)) for q in (0.025, 0.975))
            row = {"layer": str(layer), "question": question, "correlation": whole.value, "p": whole.p}
            row |= {"chance low": low, "chance high": high, "networks": len(parts)}
            rows.append(row | {"smallest": min(values), "largest": max(values)})
    return pd.DataFrame(rows).set_index(["layer", "question"])
