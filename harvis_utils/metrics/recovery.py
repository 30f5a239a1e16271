"""Signals turned into recall: what is known to be there, and how much of it they show, against chance.

*Recall.* The made-up data set plants known shapes. A layer recovers one where the best match among its units' signals
(:mod:`harvis_utils.metrics.motifs`) exceeds what equally many signals reach that cannot know the shape. The best of
many is high by chance, so a match alone says nothing: every threshold here is the 95 % point of a null that chooses
among as many signals as the method does.

*Dependence.* The same on harder versions of the data, other widths and shorter trainings, one factor at a time.

*Detectors.* Units whose filters are the shapes themselves: what the method writes where the network surely looks for
the shape, so that a missing motif can be laid to the method or to the networks.

The paper measures none of this; everything here is a Choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import xarray as xr

from harvis_utils.data import synthetic, windowing
from harvis_utils.data.kinds import Dataset
from harvis_utils.data.windowing import Windows
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.paper_methods import BASELINE, PROPOSED
from harvis_utils.maximization.starting import spectrum_noise, starting_signal
from harvis_utils.metrics import motifs
from harvis_utils.metrics.intervals import interval
from harvis_utils.networks.sfhf import Trunk, folded_trunk
from harvis_utils.parallel import side_by_side, torch_device
from harvis_utils.settings import Settings
from harvis_utils.store import stages
from harvis_utils.store.files import read_dataset, read_json, write_dataset, write_json
from harvis_utils.training import supervised

if TYPE_CHECKING:
    from harvis_utils.data.synthetic import PlantedMotifs

STAGE = stages.Stage(
    "recovery",
    notebook="08_evidence",
    modules=(
        "data.windowing",
        "networks.sfhf",
        "training.supervised",
        "maximization.unit_statistics",
        "fast.ascent",
        "settings",
        "maximization.paper_methods",
        "metrics.similarity",
        "metrics.motifs",
        "metrics.recovery",
    ),
)

#: the "layer" of the view that takes the best of all layers whose receptive field holds a motif
ANY = "any"

#: what stands beside the methods; each chooses among as many signals as a method
CONTROLS = {
    "random weights": "the proposed method on other networks without training, each judged by the rest of them",
    "phase-scrambled": "the proposed method's signals with random Fourier phases: the same spectrum, no shape",
    "real windows": "training segments drawn at random; they hold the motifs, so this is an upper yardstick, no null",
}

#: what the thresholds come from
NULLS = ("random weights", "L2+TV noise", "starting sine")


@dataclass(frozen=True)
class RecoverySettings:
    """How many draws the nulls have, and the levels of the factors that recall may depend on."""

    n_random: int = 20  # networks with random weights; a 95 % point, leaving one out, needs 20
    first_random_seed: int = 1000  # their seeds are this one and the next ones
    thinning: int = 10  # th_eap of networks made here is taken over every n-th training window
    n_noise: int = 1000  # draws of noise
    n_control: int = 10  # draws of phase-scrambled signals and of real windows
    n_matchings: int = 20  # draws of each null of the agreement of networks
    quantile: float = 0.95
    seed: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)  # networks per level
    noise_g: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3)  # standard deviation of the noise added, G
    prevalence: tuple[float, ...] = (0.2, 0.3, 0.5, 0.75, 1.0)  # share of the motifs that are planted
    n_units: tuple[int, ...] = (4, 8, 16, 32)  # width of each layer
    epochs: tuple[int, ...] = (1, 3, 6, 12)


#: by profile; the experiments on dependence train small networks in every profile
SETTINGS: dict[str, RecoverySettings] = {
    "quick": RecoverySettings(
        n_noise=400,
        seeds=(0,),
        noise_g=(0.0, 0.1, 0.2),
        prevalence=(0.3, 0.6, 1.0),
        n_units=(),  # the base alone: each further width needs its own networks with random weights
        epochs=(1, 3, 6),
    ),
    "desk": RecoverySettings(),
    "paper": RecoverySettings(n_random=100),
}


# -------------------------------------------------------------------------------------------------------- chance


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

    def one(seed: int) -> xr.Dataset:
        def build(part: Path) -> None:
            trunk = folded_trunk(supervised.new_model(windows, cfg.model, seed).eval())
            write_dataset(part / "signals.nc", _maximized(cfg, windows, trunk, (PROPOSED,), settings))

        key = STAGE.key([cfg.windows, cfg.model, cfg.maximization, settings.thinning, seed], windows.digest)
        about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=seed, kind="random weights")
        return read_dataset(STAGE.obtain(key, build, about) / "signals.nc").expand_dims(seed=[seed])

    seeds = range(settings.first_random_seed, settings.first_random_seed + settings.n_random)
    return xr.concat(side_by_side(cfg, one, seeds), "seed").isel(technique=0, drop=True)


def _maximized(
    cfg: Settings, windows: Windows, trunk: Trunk, methods: Sequence[str], settings: RecoverySettings
) -> xr.Dataset:
    """``signal``, ``map`` (layer, technique, unit, time) and ``dead`` (layer, unit) of one network."""
    device = torch_device(cfg.device)
    segments = windows.train.every(settings.thinning).segments
    statistics = unit_statistics.collect(trunk, segments, device, n_top=1)
    found = [
        paper_methods.maximize(
            trunk,
            layer,
            statistics["th_eap"].sel(layer=layer).values,
            methods=methods,
            settings=cfg.maximization,
            length=cfg.windows.length,
            rate_hz=cfg.windows.rate_hz,
            device=device,
            workers=1,
        )[["signal", "map"]].expand_dims(layer=[layer])
        for layer in trunk.layers
    ]
    return xr.concat(found, "layer").assign(dead=statistics["dead"])


# -------------------------------------------------------------------------------------------------------- recall


def matches(truth: PlantedMotifs, signals: xr.DataArray) -> xr.Dataset:
    """Best match of each motif among the units of each layer that can hold it, and among all of these layers.

    ``signals`` has dims (..., layer, unit, time). Returns dims (motif, ..., layer), the last layer being ``ANY``:
    ``best`` (NaN where the receptive field is too short), ``unit``, ``first`` (the sample of the signal where the shape
    begins) and ``found_in`` (the layer). Raises ``ValueError`` for signals that are not finite or layers that miss one
    of the motifs'.
    """
    ordered = signals.transpose(..., "layer", "unit", "time")
    layers = [str(layer) for layer in ordered["layer"].values]
    if missing := sorted(set(truth.layers) - set(layers)):
        raise ValueError(f"motifs are held from {', '.join(missing)} on, but the signals are of {', '.join(layers)}")
    lead = ordered.shape[:-3]
    shape = (len(truth.names), *lead, len(layers))
    best, unit, first = np.full(shape, np.nan), np.full(shape, -1), np.full(shape, -1)
    for depth, layer in enumerate(layers):
        held = [k for k, name in enumerate(truth.layers) if layers.index(name) <= depth]
        if not held:
            continue
        x = ordered.sel(layer=layer).values
        match, start = (
            v.reshape(len(held), *lead, -1)
            for v in motifs.best_places([truth.shapes[k] for k in held], x.reshape(-1, x.shape[-1]))
        )
        at = match.argmax(-1, keepdims=True)
        best[held, ..., depth], first[held, ..., depth] = (
            np.take_along_axis(v, at, -1)[..., 0] for v in (match, start)
        )
        unit[held, ..., depth] = at[..., 0]
    dims = ("motif", *ordered.dims[:-3], "layer")
    coords = {"motif": list(truth.names), "layer": layers}
    coords |= {d: ordered[d].values for d in ordered.dims[:-3] if d in ordered.coords}
    found = xr.Dataset({"best": (dims, best), "unit": (dims, unit), "first": (dims, first)}, coords=coords)
    found["found_in"] = xr.where(found["unit"] >= 0, found["layer"], "")
    over_all = found.isel(layer=found["best"].fillna(-2).argmax("layer")).drop_vars("layer").expand_dims(layer=[ANY])
    return xr.concat([found, over_all.transpose(*dims)], "layer")


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
    noise = [
        spectrum_noise(
            baseline_signals.sel(layer=layer).values.reshape(-1, baseline_signals.sizes["time"]),
            settings.n_noise * n_units,
            rng,
        ).reshape(settings.n_noise, n_units, -1)
        for layer in layers
    ]
    dims = ("layer", "draw", "unit", "time")
    flat = xr.DataArray(np.broadcast_to(start, (len(layers), 1, len(start))), dims=("layer", "unit", "time"))
    columns = (
        random_signals,
        xr.DataArray(np.stack(noise), dims=dims, coords={"layer": layers}),
        flat.assign_coords(layer=layers),
    )
    return xr.Dataset({name: matches(truth, of)["best"] for name, of in zip(NULLS, columns, strict=True)})


def thresholds(chance: xr.Dataset, quantile: float = 0.95) -> xr.Dataset:
    """Per motif and layer the largest of the three nulls' 95 % points: ``threshold``, ``threshold_from``.

    ``chance`` is what :func:`null` returns.
    """
    draws, noise, start = (chance[name].transpose("motif", "layer", ...) for name in NULLS)
    points = np.stack([chance_point(draws.values, quantile), chance_point(noise.values, quantile), start.values])
    which = np.where(np.isnan(points), -2, points).argmax(0)
    dims = ("motif", "layer")
    return xr.Dataset(
        {
            "threshold": (dims, np.take_along_axis(points, which[None], 0)[0]),
            "threshold_from": (dims, np.array(NULLS)[which]),
        },
        coords={d: chance[d] for d in dims},
    )


def thresholds_without(chance: xr.Dataset, quantile: float = 0.95) -> xr.Dataset:
    """:func:`thresholds` for each network with random weights, from all the others: dims (seed, motif, layer)."""
    seeds = chance["seed"].values
    return xr.concat(
        [thresholds(chance.sel(seed=seeds[seeds != s]), quantile).expand_dims(seed=[s]) for s in seeds], "seed"
    )


def _rows(truth: PlantedMotifs, found: xr.Dataset, limit: xr.Dataset, method: str, n_units: int) -> pd.DataFrame:
    """:func:`matches` and thresholds as a long table; layers that cannot hold the motif are left out."""
    table = found.assign(limit).to_dataframe().reset_index()
    table = table[table["best"].notna()].reset_index(drop=True)
    if "draw" not in table:
        table["draw"] = 0
    table["technique"], table["control"] = method, method in CONTROLS
    table["length"] = table["motif"].map(dict(zip(truth.names, map(len, truth.shapes), strict=True)))
    layers = [layer for layer in found["layer"].values if layer != ANY]
    holding = {name: len(layers) - layers.index(first) for name, first in zip(truth.names, truth.layers, strict=True)}
    table["n_signals"] = n_units * np.where(table["layer"] == ANY, table["motif"].map(holding), 1)
    table["recovered"] = table["best"] > table["threshold"]
    return table[COLUMNS]


COLUMNS = [
    *("technique", "control", "motif", "length", "seed", "draw", "layer", "best", "unit", "first", "found_in"),
    *("threshold", "threshold_from", "n_signals", "recovered"),
]


def recall_table(
    truth: PlantedMotifs,
    signals: xr.DataArray,
    random_signals: xr.DataArray,
    segments: np.ndarray,
    start: np.ndarray,
    settings: RecoverySettings,
) -> pd.DataFrame:
    """One row per method or control, motif, network (seed), draw and layer: is the motif recovered?

    ``signals`` (seed, technique, layer, unit, time) must hold the proposed method and L2+TV; ``random_signals`` (seed,
    layer, unit, time) is the proposed method on networks without training, whose seeds are their own; ``segments``
    (segment, time) are real ones; all in G. Columns: ``best`` match, the ``unit`` that has it, the sample ``first`` of
    its signal where the shape begins, ``found_in`` (its layer), ``threshold`` and the null it is
    the 95 % point of (``threshold_from``), ``n_signals`` that were chosen among, ``recovered``. The layer ``ANY`` is
    the best of all layers that hold the motif, against nulls that take the same best. Raises ``ValueError`` where
    columns would choose among different numbers of signals.
    """
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
    chance = null(truth, random_signals, signals.sel(technique=BASELINE), start, settings)
    limit = thresholds(chance, settings.quantile)
    rng = np.random.default_rng((settings.seed, 1))
    ours = signals.sel(technique=PROPOSED).transpose("seed", "layer", "unit", "time")
    several = ours.expand_dims(draw=settings.n_control)
    controls = {
        "phase-scrambled": scrambled(several.values, rng),
        "real windows": segments[rng.integers(len(segments), size=several.shape[:-1])],
    }
    tables = [_rows(truth, matches(truth, signals.sel(technique=m, drop=True)), limit, m, n_units) for m in names]
    others = thresholds_without(chance, settings.quantile)
    tables.append(_rows(truth, matches(truth, random_signals), others, "random weights", n_units))
    for name, values in controls.items():
        tables.append(_rows(truth, matches(truth, several.copy(data=values)), limit, name, n_units))
    return pd.concat(tables, ignore_index=True)


def recall(
    cfg: Settings,
    windows: Windows,
    signals: xr.Dataset,
    random_signals: xr.Dataset,
    dataset: Dataset,
    settings: RecoverySettings,
) -> pd.DataFrame | None:
    """:func:`recall_table` of all methods of the calibrated preset; ``None`` for data without planted motifs.

    ``signals`` has dims (seed, layer, preset, technique, unit, time); ``random_signals`` is what :func:`random_weights`
    returns.
    """
    if dataset.motifs is None:
        return None
    return recall_table(
        dataset.motifs(),
        signals["signal"].sel(preset="calibrated", drop=True),
        random_signals["signal"],
        windows.train.segments,
        starting_signal(cfg.maximization, windows.train.length),
        settings,
    )


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Recall per method and control, view and motif length: one row each.

    ``view`` is "each layer" (share of motif, network and layer) or "any layer" (share of motif and network), ``length``
    in samples, 0 for all. Every motif counts the same, however many layers hold it. ``low`` and ``high`` bound the 95 %
    interval, by drawing networks, from five on, then motifs (:mod:`harvis_utils.metrics.intervals`). A null's recall
    is 5 % at most by construction: of its own 95 % point, and the threshold is the largest of three.
    """
    rows = []
    views = {"each layer": table[table["layer"] != ANY], "any layer": table[table["layer"] == ANY]}
    for view, part in views.items():
        for method in table["technique"].unique():
            own = part[part["technique"] == method]
            for length in (0, *sorted(own["length"].unique())):
                chosen = own if length == 0 else own[own["length"] == length]
                each = chosen.pivot_table(index="seed", columns="motif", values="recovered", aggfunc="mean")
                point, bounds = interval(each.to_numpy(dtype=float), n=1000)
                low, high = bounds or (np.nan, np.nan)
                row = {
                    "view": view,
                    "technique": method,
                    "length": int(length),
                    "recall": point,
                    "low": low,
                    "high": high,
                }
                row |= {"n_networks": each.shape[0], "n_motifs": each.shape[1]}
                rows.append(row | {"n_recovered": int(chosen["recovered"].sum()), "n_rows": len(chosen)})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------- units whose answer is the shape


def detectors(
    cfg: Settings, windows: Windows, truth: PlantedMotifs, methods: Sequence[str], settings: RecoverySettings
) -> pd.DataFrame:
    """What the methods write for units that look for a motif and nothing else: one row per motif and method.

    Each motif is the filter of a unit of its own, in a network of one layer: without its mean, of unit norm, no bias.
    Thresholds come from the training windows as for any unit. ``match`` is the best correlation of the unit's signal
    with its motif, ``reached`` its largest output as a share of the threshold; a signal beyond the amplitude at which
    it has failed still has both.
    """
    segments = windows.train.every(settings.thinning).segments
    rows = []
    for length in dict.fromkeys(map(len, truth.shapes)):
        names = [name for name, shape in zip(truth.names, truth.shapes, strict=True) if len(shape) == length]
        shapes = [shape for shape in truth.shapes if len(shape) == length]
        filters = np.stack([shape - shape.mean() for shape in shapes])
        filters = (filters / np.linalg.norm(filters, axis=1, keepdims=True)).astype(np.float32)
        trunk = Trunk((torch.tensor(filters)[:, None],), (torch.zeros(len(names)),))
        th = unit_statistics.collect(trunk, segments, torch.device("cpu"), n_top=1)["th_eap"].sel(layer="conv1").values
        found = paper_methods.maximize(
            trunk, "conv1", th, methods=methods, settings=cfg.maximization,
            length=cfg.windows.length, rate_hz=cfg.windows.rate_hz,
        )  # fmt: skip
        for method in methods:
            some = found.sel(technique=method)
            match = np.diag(motifs.best_match(shapes, some["signal"].transpose("unit", "time").values))
            reached = some["map"].transpose("unit", "time").values.max(1) / th
            rows += [
                {"motif": n, "length": length, "technique": method, "match": float(m), "reached": float(r)}
                for n, m, r in zip(names, match, reached, strict=True)
            ]
    return pd.DataFrame(rows)


# ----------------------------------------------------------------------------------------- what recall depends on


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
    places = dict.fromkeys([(0.0, 1.0), *((level.noise_g, level.prevalence) for level in wanted)])
    data = {place: _variant(cfg, *place) for place in places}
    plain = data[0.0, 1.0][1]
    random = {n: random_weights(_changed(cfg, n_units=n), plain, settings) for n in {la.n_units: None for la in wanted}}

    def one(job: tuple[Level, int]) -> dict:
        level, seed = job
        own, windows = data[level.noise_g, level.prevalence]
        own = _changed(own, n_units=level.n_units, epochs=level.epochs)
        return _measured(own, windows, seed, random[level.n_units]["signal"], plain.digest, settings)

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


def _changed(cfg: Settings, n_units: int, epochs: int | None = None) -> Settings:
    return dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, n_units=n_units),
        training=dataclasses.replace(cfg.training, epochs=epochs or cfg.training.epochs),
    )


def _measured(
    cfg: Settings, windows: Windows, seed: int, random: xr.DataArray, plain: str, settings: RecoverySettings
) -> dict:
    """Macro F1 and recall of one network; ``plain`` is the digest of the data that ``random`` was made with."""
    chosen = ("n_random", "first_random_seed", "thinning", "n_noise", "quantile", "seed")
    key = STAGE.key(
        [cfg.maximization, {name: getattr(settings, name) for name in chosen}],
        supervised._key(cfg, windows, seed),
        windows.digest,
        plain,
    )

    def build(part: Path) -> None:
        net, truth = supervised.train(cfg, windows, seed), synthetic.motifs()
        signals = _maximized(cfg, windows, net.trunk, (PROPOSED, BASELINE), settings)["signal"].expand_dims(seed=[seed])
        start = starting_signal(cfg.maximization, cfg.windows.length)
        chance = null(truth, random, signals.sel(technique=BASELINE), start, settings)
        n_units = random.sizes["unit"]
        ours = _rows(
            truth,
            matches(truth, signals.sel(technique=PROPOSED, drop=True)),
            thresholds(chance, settings.quantile),
            PROPOSED,
            n_units,
        )
        others = thresholds_without(chance, settings.quantile)
        theirs = _rows(truth, matches(truth, random), others, "random weights", n_units)
        result = {"macro_f1": supervised.macro_f1(windows.test, net.predicted["test"])}
        for prefix, table in (("", ours), ("random_", theirs)):
            for suffix, of in (("", table[table["layer"] != ANY]), ("_any", table[table["layer"] == ANY])):
                result[f"{prefix}recall{suffix}"] = float(of.groupby("motif")["recovered"].mean().mean())
        write_json(part / "recall.json", result)

    about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=seed, kind="dependence")
    return read_json(STAGE.obtain(key, build, about) / "recall.json")
