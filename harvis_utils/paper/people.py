"""Other people: networks trained again with each person left out, and windows in which a sensor was lost.

The people of a data set are few, and the paper's own split leaves out two of them once. Here every person is left out
in turn, so that what is said of networks can be said with an interval over people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from harvis_utils.data import windowing
from harvis_utils.data.windowing import SPLITS, Split, Windows
from harvis_utils.lenses.occlusion import by_sensor
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.paper_methods import BASELINE, PROPOSED
from harvis_utils.metrics import similarity
from harvis_utils.metrics.signal_measures import flat
from harvis_utils.paper.stages import Stages
from harvis_utils.parallel import progress
from harvis_utils.training.supervised import macro_f1

#: columns of :func:`measured` that :func:`over_people` summarizes
MEASURES = ("F1", "F1 without dropouts", "flat share", "log10 Ssim ratio", "largest output / threshold")


def left_out(run: Stages, person: int) -> Stages:
    """The same run with one network, trained on all people but ``person`` (test) and the one that validates.

    Choice: the next person validates, after the last one the first. The network's seed is fixed by the person.
    """
    cfg, people = run.cfg, everybody(run)
    after = people[(people.index(person) + 1) % len(people)]
    split = {"train": tuple(p for p in people if p not in (person, after)), "val": (after,), "test": (person,)}
    training = replace(cfg.training, seeds=(cfg.people.first_seed + person,))
    other = Stages(replace(cfg, training=training, weights="trained"))
    other.recordings = replace(run.recordings, dataset=replace(run.recordings.dataset, split=split))
    data = windowing.cut(other.recordings, cfg.windows)
    other.data = data.thinned(cfg.people.n_windows or len(data.train))
    return other


def everybody(run: Stages) -> list[int]:
    """The people of the data set, by number."""
    return sorted({item.subject for item in run.recordings.items})


def measured(run: Stages) -> pd.DataFrame:
    """One row per person left out and layer of that person's network.

    ``F1`` is the macro F1 on the person, ``F1 without dropouts`` that without the windows of :func:`dropouts`;
    ``flat share`` the share of units whose signal by the proposed method ranges over less than 0.05 G; ``log10 Ssim
    ratio`` of the layer's mean Ssim, proposed over L2+TV (claim C5, Fig. 3), each without its failed units as in the
    paper; ``largest output / threshold`` the layer's mean under the proposed method (claim C6, Fig. 4).
    """
    rows = []
    for person in progress(everybody(run)[: run.cfg.people.n_people], desc="people left out", leave=False):
        other = left_out(run, person)
        (network,), test = other.networks, other.data.test
        whole = ~dropouts(test, other.data.axes, run.cfg.people.shortest_dropout)
        predicted = network.predicted["test"]
        signals = paper_methods.signals(
            other.cfg, other.networks, other.statistics, (BASELINE, PROPOSED), ("calibrated",)
        )
        scores = similarity.scores(other.cfg, other.data, other.networks, other.statistics, signals)
        of_person = {
            "person": person,
            "validated by": int(other.data.val.subject[0]),
            "seed": network.seed,
            "F1": macro_f1(test, predicted),
            "F1 without dropouts": macro_f1(test.chosen(whole), predicted[whole]) if whole.any() else np.nan,
        }
        for layer in network.trunk.layers:
            own = scores.sel(layer=layer).isel(seed=0, preset=0)
            proposed, baseline = (own.sel(technique=name) for name in (PROPOSED, BASELINE))
            signal = signals["signal"].sel(layer=layer, technique=PROPOSED).isel(seed=0, preset=0)
            ratio = float(proposed["s_u"].mean() / baseline["s_u"].mean())
            of_layer = {
                "layer": layer,
                "flat share": float(flat(signal.values).mean()),
                "log10 Ssim ratio": float(np.log10(ratio)) if ratio > 0 else np.nan,
                "largest output / threshold": float(proposed["activation_ratio"].mean()),
            }
            rows.append(of_person | of_layer)
    return pd.DataFrame(rows)


def over_people(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of every measure of :func:`measured` over people with its 95 % t interval, one row per layer.

    Choice: Student's t, because a percentile bootstrap of eight people is too narrow. The networks share most of
    their training people, so they differ less than networks of entirely other people would.
    """
    rows = {}
    for layer, own in table.groupby("layer", sort=False):
        rows[layer] = {"people": len(own)}
        for name in MEASURES:
            values = own[name].dropna()
            half = stats.t.ppf(0.975, len(values) - 1) * values.sem()
            rows[layer] |= {
                name: values.mean(),
                f"{name} low": values.mean() - half,
                f"{name} high": values.mean() + half,
            }
    return pd.DataFrame.from_dict(rows, "index").rename_axis("layer")


# --------------------------------------------------------------------------------------------------- sensor dropouts


def dropouts(split: Split, axes: Sequence[str], shortest: int) -> np.ndarray:
    """Windows in which all axes of a sensor read exactly zero for ``shortest`` samples in a row: bool (window,).

    ``axes`` names the axes of the windows. No real sensor says so: gravity is on one of its axes, and noise on all.
    Choice: all axes of a sensor, because one alone reads zero wherever a copy of the data is coarse.
    """
    begun = np.zeros(len(split.series) + 1, int)  # runs of such samples that begin before each sample
    for sensor in by_sensor(axes).values():
        lost = (split.series[:, list(sensor)] == 0).all(1)
        runs = np.lib.stride_tricks.sliding_window_view(lost, shortest).all(-1)
        begun[1 : len(runs) + 1] += np.cumsum(runs)
        begun[len(runs) + 1 :] += runs.sum()
    return begun[split.start + split.length - shortest + 1] > begun[split.start]


def without_dropouts(windows: Windows, shortest: int) -> Windows:
    """The same windows without those of :func:`dropouts`, in all splits: those in which to search for nearest ones."""
    splits = {name: getattr(windows, name) for name in SPLITS}
    return replace(windows, **{name: of.chosen(~dropouts(of, windows.axes, shortest)) for name, of in splits.items()})


def dropout_table(windows: Windows, shortest: int) -> pd.DataFrame:
    """``windows``, ``dropouts`` and their ``share`` for every person and activity that has any, most affected first."""
    flags = [dropouts(getattr(windows, name), windows.axes, shortest) for name in SPLITS]
    labels = windows.labels().assign(dropout=np.concatenate(flags))
    found = labels.groupby(["person", "activity"], observed=True)["dropout"].agg(["size", "sum", "mean"])
    found = found.set_axis(["windows", "dropouts", "share"], axis=1)
    return found[found["dropouts"] > 0].sort_values("share", ascending=False)
