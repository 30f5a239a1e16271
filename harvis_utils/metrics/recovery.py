"""Signals turned into recall: what is known to be there, and how much of it they show, against chance.

*Recall.* The made-up data set plants known shapes. A layer recovers one where the best match among its units' signals
(:mod:`harvis_utils.metrics.motifs`) exceeds what equally many signals reach that cannot know the shape: every
threshold here is the 95 % point of a null that chooses among as many signals as the method does.
*Dependence.* The same on harder versions of the data, other widths and shorter trainings, one factor at a time.
*Detectors.* Units whose filters are the shapes themselves: what the method writes where the network surely looks for
the shape, so that a missing motif can be laid to the method or to the networks.

The paper measures none of this; everything here is a Choice.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
import xarray as xr

from harvis_utils.data import synthetic, windowing
from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Windows
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.paper_methods import BASELINE, PROPOSED
from harvis_utils.maximization.starting import spectrum_noise, starting_signal
from harvis_utils.metrics import motifs, similarity
from harvis_utils.metrics.intervals import interval
from harvis_utils.metrics.motifs import ANY, matches
from harvis_utils.networks.sfhf import Trunk, folded_trunk
from harvis_utils.parallel import side_by_side, torch_device
from harvis_utils.settings import MaximizationSettings, ModelSettings, RecoverySettings, Settings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network

#: what stands beside the methods; each chooses among as many signals as a method
CONTROLS = {
    "random weights": "the proposed method on other networks without training, each judged by the rest of them",
    "phase-scrambled": "the proposed method's signals with random Fourier phases: the same spectrum, no shape",
    "real windows": "training segments drawn at random; they hold the motifs, so this is an upper yardstick, no null",
}

#: what the thresholds come from
NULLS = ("random weights", "L2+TV noise", "starting sine")


def chance_point(draws: np.ndarray, quantile: float = 0.95) -> np.ndarray:
    """The value that one more draw of the same null exceeds with a probability of at most ``1 - quantile``.

    ``draws`` is (..., draw); returns (...). It is the ceil(quantile (n + 1))-th smallest of n draws, so it holds for
    few draws too: of 19 draws the 95 % point is the largest. Raises ``ValueError`` for fewer than that.
    """
    n = np.shape(draws)[-1]
    rank = int(np.ceil(quantile * (n + 1) - 1e-9))
    if rank > n:
        least = int(np.ceil(quantile / (1 - quantile) - 1e-9))
        raise ValueError(f"{n} draws have no {quantile:.0%} point; use {least} or more")
    return np.sort(draws, axis=-1)[..., rank - 1]


def scrambled(signals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Signals (..., time) with random Fourier phases: the same mean and power spectrum, another shape; float64."""
    waves = np.fft.rfft(np.asarray(signals, dtype=np.float64), axis=-1)
    phase = rng.uniform(0, 2 * np.pi, waves.shape)
    phase[..., 0] = 0
    n_time = np.shape(signals)[-1]
    if n_time % 2 == 0:  # the Nyquist frequency has a sign only
        phase[..., -1] = np.pi * rng.integers(2, size=phase.shape[:-1])
    return np.fft.irfft(waves * np.exp(1j * phase), n=n_time, axis=-1)


def random_weights(cfg: Settings, windows: Windows, settings: RecoverySettings) -> xr.Dataset:
    """The proposed method on ``n_random`` untrained networks: ``signal``, ``map``, ``dead``; missing ones are made.

    Dims (seed, layer, unit[, time]), in G; calibrated preset. One stored result per network.
    """
    seeds = range(settings.first_random_seed, settings.first_random_seed + settings.n_random)
    how = (cfg.maximization, settings.thinning)
    found = side_by_side(cfg, lambda s: random_weights_of(windows, cfg.model, s, *how, device=cfg.device), seeds)
    return xr.concat(found, pd.Index(seeds, name="seed")).isel(technique=0, drop=True)


@kept("recovery", apart=("device",))
def random_weights_of(
    windows: Windows,
    model: ModelSettings,
    seed: int,
    maximization: MaximizationSettings,
    thinning: int,
    *,
    device: str | None = None,
) -> xr.Dataset:
    """The proposed method on one network that nobody trained; see :func:`maximized`."""
    trunk = folded_trunk(supervised.new_model(windows, model, seed).eval())
    return maximized(trunk, windows, (PROPOSED,), maximization, thinning, device)


def maximized(
    trunk: Trunk,
    windows: Windows,
    methods: Sequence[str],
    maximization: MaximizationSettings,
    thinning: int,
    device: str | None = None,
) -> xr.Dataset:
    """``signal``, ``map`` (layer, technique, unit, time) and ``dead`` (layer, unit) of all units of one network.

    Thresholds are taken over every ``thinning``-th training window.
    """
    device = torch_device(device)
    statistics = unit_statistics.collect(trunk, windows.train.every(thinning).segments, device, n_top=1)
    how = {"methods": methods, "settings": maximization, "device": device, "workers": 1}
    how |= {"length": windows.train.length, "rate_hz": windows.rate_hz}
    found = [
        paper_methods.maximize(trunk, layer, statistics["th_eap"].sel(layer=layer).values, **how)[["signal", "map"]]
        for layer in trunk.layers
    ]
    return xr.concat(found, pd.Index(trunk.layers, name="layer")).assign(dead=statistics["dead"])


def null(
    truth: PlantedMotifs,
    random_signals: xr.DataArray,
    baseline_signals: xr.DataArray,
    start: np.ndarray,
    settings: RecoverySettings,
) -> xr.Dataset:
    """What equally many signals match that cannot know the motifs, dims (motif, layer[, seed | draw]).

    * ``random weights`` (motif, layer, seed): one draw is one layer of one network without training, from
      ``random_signals`` (seed, layer, unit, time);
    * ``L2+TV noise`` (motif, layer, draw): noise with the mean power spectrum of that layer's ``baseline_signals``
      (..., layer, unit, time), as many signals per draw as ``random_signals`` has units;
    * ``starting sine`` (motif, layer): the match of the start itself, however often it is taken.

    For the view over any layer a draw is the best of the same layers as a method's.
    """
    n_units, layers = random_signals.sizes["unit"], random_signals["layer"].values
    rng = np.random.default_rng(settings.seed)
    each = [baseline_signals.sel(layer=layer).values.reshape(-1, baseline_signals.sizes["time"]) for layer in layers]
    noise = [spectrum_noise(of, settings.n_noise * n_units, rng).reshape(settings.n_noise, n_units, -1) for of in each]
    noise = xr.DataArray(np.stack(noise), dims=("layer", "draw", "unit", "time"), coords={"layer": layers})
    columns = (random_signals, noise, xr.DataArray(start, dims="time").expand_dims(layer=layers, unit=1))
    return xr.Dataset({name: matches(truth, of)["best"] for name, of in zip(NULLS, columns, strict=True)})


def thresholds(chance: xr.Dataset, quantile: float = 0.95) -> xr.Dataset:
    """Per motif and layer the largest of the 95 % points of :func:`null`'s three: ``threshold``, ``threshold_from``."""
    draws, noise, start = (chance[name].transpose("motif", "layer", ...) for name in NULLS)
    points = np.stack([chance_point(draws.values, quantile), chance_point(noise.values, quantile), start.values])
    dims, source = ("motif", "layer"), np.array(NULLS)[points.argmax(0)]
    limits = {"threshold": (dims, points.max(0)), "threshold_from": (dims, source)}
    return xr.Dataset(limits, coords={d: chance[d] for d in dims})


def thresholds_without(chance: xr.Dataset, quantile: float = 0.95) -> xr.Dataset:
    """:func:`thresholds` for each network with random weights, from all the others: dims (seed, motif, layer)."""
    seeds = chance["seed"].values
    return xr.concat(
        [thresholds(chance.sel(seed=seeds[seeds != s]), quantile).expand_dims(seed=[s]) for s in seeds], "seed"
    )


def _rows(truth: PlantedMotifs, signals: xr.DataArray, limit: xr.Dataset, method: str) -> pd.DataFrame:
    """:func:`matches` and thresholds as a long table; layers that cannot hold the motif are left out."""
    table = matches(truth, signals).assign(limit).to_dataframe().reset_index().dropna(subset="best")
    length = dict(zip(truth.names, map(len, truth.shapes), strict=True))
    holding = table[table["layer"] != ANY].groupby("motif")["layer"].nunique()
    layers_chosen_among = np.where(table["layer"] == ANY, table["motif"].map(holding), 1)
    table = table.assign(
        technique=method,
        control=method in CONTROLS,
        draw=table.get("draw", 0),
        length=table["motif"].map(length),
        n_signals=signals.sizes["unit"] * layers_chosen_among,
        recovered=table["best"] > table["threshold"],
    )
    return table[COLUMNS]


COLUMNS = [
    *("technique", "control", "motif", "length", "seed", "draw", "layer", "best", "unit", "first", "found_in"),
    *("threshold", "threshold_from", "n_signals", "recovered"),
]


def recall(
    cfg: Settings,
    windows: Windows,
    truth: PlantedMotifs | None,
    signals: xr.DataArray,
    random_signals: xr.DataArray,
    settings: RecoverySettings,
) -> pd.DataFrame:
    """One row per method or control, motif, network (seed), draw and layer: is the motif recovered?

    ``signals`` (seed, technique, layer, unit, time) must hold the proposed method and L2+TV; ``random_signals`` (seed,
    layer, unit, time) is the proposed method on networks without training, whose seeds are their own; all in G.
    Columns: those of :func:`motifs.matches`, ``threshold`` and the null it is
    the 95 % point of (``threshold_from``), ``n_signals`` that were chosen among, ``recovered``. The layer ``ANY`` is
    the best of all layers that hold the motif, against nulls that take the same best. No row where nothing was planted
    (``truth`` is ``None``). Raises ``ValueError`` where columns would choose among different numbers of signals.
    """
    if truth is None:
        return pd.DataFrame(columns=COLUMNS)
    names = [str(m) for m in signals["technique"].values]
    if missing := [m for m in (PROPOSED, BASELINE) if m not in names]:
        raise ValueError(f"recall needs signals of {' and '.join(missing)}; there are {', '.join(names)}")
    n_units = signals.sizes["unit"]
    if random_signals.sizes["unit"] != n_units:
        raise ValueError(
            f"{n_units} units a layer against {random_signals.sizes['unit']} of networks with random weights: the best "
            "of more signals is higher by chance; compare networks of one width"
        )
    if shared := sorted(set(signals["seed"].values) & set(random_signals["seed"].values)):
        raise ValueError(f"networks with random weights need seeds of their own, but share {shared} with the trained")
    segments, start = windows.train.segments, starting_signal(cfg.maximization, windows.train.length)
    chance = null(truth, random_signals, signals.sel(technique=BASELINE), start, settings)
    limit = thresholds(chance, settings.quantile)
    rng = np.random.default_rng((settings.seed, 1))
    ours = signals.sel(technique=PROPOSED).transpose("seed", "layer", "unit", "time")
    several = ours.expand_dims(draw=settings.n_control)
    controls = {
        "phase-scrambled": scrambled(several.values, rng),
        "real windows": segments[rng.integers(len(segments), size=several.shape[:-1])],
    }
    tables = [_rows(truth, signals.sel(technique=m, drop=True), limit, m) for m in names]
    tables.append(_rows(truth, random_signals, thresholds_without(chance, settings.quantile), "random weights"))
    tables += [_rows(truth, several.copy(data=values), limit, name) for name, values in controls.items()]
    return pd.concat(tables, ignore_index=True)


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Recall per method and control, view and motif length: one row each.

    ``view`` is "each layer" (share of motif, network and layer) or "any layer" (share of motif and network), ``length``
    in samples, 0 for all. Every motif counts the same, however many layers hold it. ``low`` and ``high`` bound the 95 %
    interval, by drawing networks, from five on, then motifs (:mod:`harvis_utils.metrics.intervals`). A null's recall
    is 5 % at most by construction: of its own 95 % point, and the threshold is the largest of three.
    """
    rows, lengths = [], (0, *sorted(table["length"].unique()))
    in_any = table["layer"] == ANY
    views = {"each layer": table[~in_any], "any layer": table[in_any]}
    for view, method, length in product(views, table["technique"].unique(), lengths):
        own = views[view][views[view]["technique"] == method]
        chosen = own[own["length"] == length] if length else own
        each = chosen.pivot_table(index="seed", columns="motif", values="recovered", aggfunc="mean")
        point, bounds = interval(each, n=1000)
        row = (view, method, int(length), point, *(bounds or (np.nan, np.nan)), *each.shape)
        rows.append((*row, int(chosen["recovered"].sum()), len(chosen)))
    names = ["view", "technique", "length", "recall", "low", "high", "n_networks", "n_motifs", "n_recovered", "n_rows"]
    return pd.DataFrame(rows, columns=names)


def by_length(summary: pd.DataFrame) -> pd.DataFrame:
    """The view of each layer of a :func:`summarize`: "recall", its ends, and "planted motifs", of which length."""
    each = summary[summary["view"] == "each layer"]
    ends = {"recall low": each["low"], "recall high": each["high"]}
    return each.assign(**ends, **{"planted motifs": [f"{n} samples" if n else "all" for n in each["length"]]})


def places(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """Where and by which threshold a method shows motifs, of a :func:`recall`: one row per motif and layer.

    ``best`` is the mean over networks, ``null`` what the threshold comes from, ``recovered`` the share of networks, and
    "first sample (median)" where in the signal the shape begins.
    """
    own = table[(table["technique"] == method) & (table["layer"] != ANY)].groupby(["motif", "layer"], sort=False)
    first, mean = own[["length", "threshold", "threshold_from"]].first(), own[["best", "recovered"]].mean()
    found = first.rename(columns={"threshold_from": "null"}).join(mean)
    return found.assign(**{"first sample (median)": own["first"].median()})


def detecting(
    windows: Windows, truth: PlantedMotifs, length: int, thinning: int
) -> tuple[list[str], Trunk, xr.DataArray]:
    """Motifs of ``length`` samples, a trunk of one layer whose units' filters they are, and its thresholds (unit,).

    Filters have no mean, a norm of one and no bias; thresholds are taken over every ``thinning``-th training window.
    """
    shapes = {n: shape for n, shape in zip(truth.names, truth.shapes, strict=True) if len(shape) == length}
    filters = similarity.unit_norm(np.stack(list(shapes.values()))).astype(np.float32)
    trunk = Trunk((torch.tensor(filters)[:, None],), (torch.zeros(len(shapes)),))
    found = unit_statistics.collect(trunk, windows.train.every(thinning).segments, n_top=1)
    return list(shapes), trunk, found["th_eap"].sel(layer="conv1")


def detectors(
    cfg: Settings, windows: Windows, truth: PlantedMotifs | None, methods: Sequence[str], settings: RecoverySettings
) -> pd.DataFrame:
    """What the methods write for units that look for a motif and nothing else: one row per motif and method.

    Each motif is the filter of a unit of its own (:func:`detecting`). ``match`` is the best correlation of the unit's
    signal with its motif, ``reached`` its largest output as a share of the threshold; a signal beyond the amplitude at
    which it has failed still has both. No row where nothing was planted.
    """
    if truth is None:
        return pd.DataFrame(columns=["motif", "length", "technique", "match", "reached"])
    tables = []
    for length in dict.fromkeys(map(len, truth.shapes)):
        names, trunk, th_eap = detecting(windows, truth, length, settings.thinning)
        th, shapes = th_eap.values, [truth.shapes[truth.names.index(name)] for name in names]
        options = {"settings": cfg.maximization, "length": windows.train.length, "rate_hz": windows.rate_hz}
        found = paper_methods.maximize(trunk, "conv1", th, methods=methods, **options)
        for method in methods:
            signals, maps = (found[v].sel(technique=method).transpose("unit", "time").values for v in ("signal", "map"))
            match, reached = np.diag(motifs.best_match(shapes, signals)), maps.max(1) / th
            row = {"motif": names, "length": length, "technique": method, "match": match}
            tables.append(pd.DataFrame(row | {"reached": reached.astype(float)}))
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class Level:
    """One setting of the experiment: the data and the network."""

    noise_g: float
    prevalence: float
    n_units: int
    epochs: int


FACTORS = tuple(f.name for f in dataclasses.fields(Level))


def levels(cfg: Settings, settings: RecoverySettings) -> list[tuple[str, Level]]:
    """Factor and setting of every level: one factor moves away from ``cfg``'s own network on the plain data.

    The base is a level of every factor, whether ``settings`` list it or not.
    """
    base = Level(0.0, 1.0, cfg.model.n_units, cfg.training.epochs)
    return [
        (factor, dataclasses.replace(base, **{factor: value}))
        for factor in FACTORS
        for value in sorted({*getattr(settings, factor), getattr(base, factor)})
    ]


def dependence(cfg: Settings, settings: RecoverySettings) -> pd.DataFrame:
    """Recall of the proposed method and test macro F1 for every factor, level and seed; missing ones are made.

    A row has ``factor``, ``level``, ``seed``, ``macro_f1`` (recall means something only where a network learned),
    ``recall`` (each layer) and ``recall_any`` (any layer), with every motif counting the same, the ``random_recall``
    and ``random_recall_any`` of networks of that width with random weights, and ``expected``, the share that a null
    exceeds its own 95 % point by construction. ``cfg`` is the base: use that of the quick profile, whose networks
    train in seconds. One stored result per level and seed.

    Choice: random weights see the plain data only. Other data reach them through th_eap alone, which moved their
    median match by less than 0.03 where it was tried (0.8 G of noise added, 20 % of the motifs planted).
    """
    plan = levels(cfg, settings)
    wanted = list(dict.fromkeys(level for _, level in plan))
    places = dict.fromkeys((level.noise_g, level.prevalence) for level in wanted)
    data = {place: _variant(cfg, *place) for place in places}
    plain = data[0.0, 1.0][1]
    random = {
        n: random_weights(_changed(cfg, n, cfg.training.epochs), plain, settings) for n in {la.n_units for la in wanted}
    }

    def one(job: tuple[Level, int]) -> dict:
        level, seed = job
        own, windows = data[level.noise_g, level.prevalence]
        network = supervised.train(_changed(own, level.n_units, level.epochs), windows, seed)
        signals = random[level.n_units]["signal"]
        return recalled_of(network, windows, signals, cfg.maximization, settings, device=cfg.device)

    jobs = [(level, seed) for level in wanted for seed in settings.seeds]
    # the longest first, so that no thread is left with one at the end
    jobs.sort(key=lambda job: -job[0].epochs * job[0].n_units)
    found = dict(zip(jobs, side_by_side(cfg, one, jobs), strict=True))
    rows = [
        {"factor": factor, "level": float(getattr(level, factor)), "seed": seed, **found[level, seed]}
        for factor, level in plan
        for seed in settings.seeds
    ]
    return pd.DataFrame(rows).assign(expected=1 - settings.quantile)


def _variant(cfg: Settings, noise_g: float, prevalence: float) -> tuple[Settings, Windows]:
    """Settings and windows of a harder version of the data; what is made of them says which one it was."""
    recordings = synthetic.variant(noise_g, prevalence)
    return dataclasses.replace(cfg, dataset=recordings.name), windowing.cut(recordings, cfg.windows)


def _changed(cfg: Settings, n_units: int, epochs: int) -> Settings:
    model = dataclasses.replace(cfg.model, n_units=n_units)
    return dataclasses.replace(cfg, model=model, training=dataclasses.replace(cfg.training, epochs=epochs))


@kept("recovery", apart=("device",))
def recalled_of(
    network: Network,
    windows: Windows,
    random: xr.DataArray,
    maximization: MaximizationSettings,
    settings: RecoverySettings,
    *,
    device: str | None = None,
) -> dict[str, float]:
    """Macro F1 and recall of one network, beside the recall of networks with ``random`` weights (their signals)."""
    truth, wanted = synthetic.motifs(), (PROPOSED, BASELINE)
    made = maximized(network.trunk, windows, wanted, maximization, settings.thinning, device)["signal"]
    made = made.expand_dims(seed=[network.seed])
    start = starting_signal(maximization, windows.train.length)
    chance = null(truth, random, made.sel(technique=BASELINE), start, settings)
    judged = {
        "": (made.sel(technique=PROPOSED, drop=True), thresholds(chance, settings.quantile)),
        "random_": (random, thresholds_without(chance, settings.quantile)),
    }
    result = {"macro_f1": supervised.macro_f1(windows.test, network.predicted["test"])}
    for prefix, (signals, limit) in judged.items():
        table = _rows(truth, signals, limit, PROPOSED)
        for suffix, of in (("", table[table["layer"] != ANY]), ("_any", table[table["layer"] == ANY])):
            result[f"{prefix}recall{suffix}"] = float(of.groupby("motif")["recovered"].mean().mean())
    return result
