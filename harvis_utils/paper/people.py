"""Other people: networks trained again with each person left out, and windows in which a sensor was lost.

The people of a data set are few, and the paper's own split leaves out two of them once. Here every person is left out
in turn, so that what is said of networks can be said with an interval over people.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from harvis_utils.data import windowing
from harvis_utils.data.windowing import SHORTEST_DROPOUT, SPLITS, Windows, dropouts, without_dropouts
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.paper_methods import BASELINE, PROPOSED
from harvis_utils.metrics import similarity
from harvis_utils.metrics.signal_measures import FLAT_G
from harvis_utils.paper.stages import Stages
from harvis_utils.parallel import progress
from harvis_utils.training.supervised import macro_f1

#: Choice: the seed of a person's network is this one plus the number of the person
FIRST_SEED = 500
#: columns of :func:`measured` that :func:`over_people` summarizes
MEASURES = ("F1", "F1 without dropouts", "flat share", "log10 Ssim ratio", "largest output / threshold")


def left_out(run: Stages, person: int) -> Stages:
    """The same run with one network, trained on all people but ``person`` (test) and the one that validates.

    Choice: the next person validates, after the last one the first. The network's seed is fixed by the person.
    """
    cfg, people = run.cfg, everybody(run)
    after = people[(people.index(person) + 1) % len(people)]
    split = {"train": tuple(p for p in people if p not in (person, after)), "val": (after,), "test": (person,)}
    training = replace(cfg.training, seeds=(FIRST_SEED + person,))
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

    ``F1`` is the macro F1 on the person, ``F1 without dropouts`` that without the windows in which a sensor was lost
    (:func:`windowing.dropouts`); ``flat share`` the share of units whose signal by the proposed method ranges over less
    than 0.05 G; ``log10 Ssim ratio`` that of the layer's mean Ssim, proposed over L2+TV (claim C5, Fig. 3), with
    nearest windows searched among those without dropouts; ``largest output / threshold`` the layer's mean under the
    proposed method (claim C6, Fig. 4).
    """
    rows = []
    for person in progress(everybody(run)[: run.cfg.people.n_people], desc="people left out", leave=False):
        other = left_out(run, person)
        (network,), test = other.networks, other.data.test
        whole, searched = ~dropouts(test, run.data.axes), without_dropouts(other.data)
        predicted = network.predicted["test"]
        signals = paper_methods.signals(
            other.cfg, other.networks, other.statistics, (BASELINE, PROPOSED), ("calibrated",)
        )
        scores = similarity.scores(other.cfg, searched, other.networks, other.statistics, signals)
        of_person = {
            "person": person,
            "validated by": int(other.data.val.subject[0]),
            "seed": network.seed,
            "F1": macro_f1(test, predicted),
            "F1 without dropouts": macro_f1(test.chosen(whole), predicted[whole]) if whole.any() else np.nan,
        }
        for layer in network.trunk.layers:
            own = scores.sel(layer=layer).isel(seed=0, preset=0)
            proposed = own.sel(technique=PROPOSED)
            of_layer = {
                "layer": layer,
                "flat share": float((proposed["range_g"] < FLAT_G).mean()),
                "log10 Ssim ratio": float(log_ssim_ratio(own)),
                "largest output / threshold": float(proposed["activation_ratio"].mean()),
            }
            rows.append(of_person | of_layer)
    return pd.DataFrame(rows)


def log_ssim_ratio(scores: xr.Dataset) -> xr.DataArray:
    """log10 of Ssim of the proposed method over that of L2+TV, (..., technique, unit) -> (...,).

    Each without its failed units, as in the paper; NaN where nothing is left, or Ssim is zero.
    """
    proposed, baseline = (scores["s_u"].sel(technique=name).mean("unit") for name in (PROPOSED, BASELINE))
    return np.log10((proposed / baseline).where((proposed > 0) & (baseline > 0)))


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
            mean, half = values.mean(), stats.t.ppf(0.975, len(values) - 1) * values.sem()
            rows[layer] |= {name: mean, f"{name} low": mean - half, f"{name} high": mean + half}
    return pd.DataFrame.from_dict(rows, "index").rename_axis("layer")


# --------------------------------------------------------------------------------------------------- sensor dropouts


def dropout_table(windows: Windows, shortest: int = SHORTEST_DROPOUT) -> pd.DataFrame:
    """``windows``, :func:`windowing.dropouts` and their ``share`` by person and activity, most affected first."""
    flags = [dropouts(getattr(windows, name), windows.axes, shortest) for name in SPLITS]
    labels = windows.labels().assign(dropout=np.concatenate(flags))
    found = labels.groupby(["person", "activity"], observed=True)["dropout"].agg(["size", "sum", "mean"])
    found = found.set_axis(["windows", "dropouts", "share"], axis=1)
    return found[found["dropouts"] > 0].sort_values("share", ascending=False)


def dropout_effect(run: Stages) -> pd.DataFrame:
    """What dropouts among the training windows do to nearest windows, one row per layer, means over all networks.

    ``of all`` is the share of training windows that are dropouts, ``near flat`` and ``near moving`` their share of the
    windows nearest to signals of the proposed method that are flat or not; ``log10 Ssim ratio`` as in :func:`measured`,
    mean over networks, searched in all training windows, and ``log10 Ssim ratio without`` in the others.
    """
    train, n_axes = run.data.train, len(run.data.axes)
    lost = dropouts(train, run.data.axes)
    signals = run.signals.sel(preset=["calibrated"], technique=[BASELINE, PROPOSED])
    with_all, without = (
        similarity.scores(run.cfg, windows, run.networks, run.statistics, signals).isel(preset=0)
        for windows in (run.data, without_dropouts(run.data))
    )
    near = with_all.sel(technique=PROPOSED)
    found = near["segment"].copy(data=lost[near["segment"].values // n_axes]).mean("neighbour")
    found = found.where(np.isfinite(near["s_u"]))  # of what was searched
    still, rows = near["range_g"] < FLAT_G, {}
    for layer in run.layers:
        own, of = found.sel(layer=layer), still.sel(layer=layer)
        rows[layer] = {"of all": lost.mean(), "near flat": float(own.where(of).mean())}
        rows[layer] |= {"near moving": float(own.where(~of).mean())}
        for name, scores in (("log10 Ssim ratio", with_all), ("log10 Ssim ratio without", without)):
            rows[layer][name] = float(log_ssim_ratio(scores.sel(layer=layer)).mean())
    return pd.DataFrame.from_dict(rows, "index").rename_axis("layer")
