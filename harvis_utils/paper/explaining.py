"""Signals of all networks beside their references: how well each method explains units, with intervals."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import product
from types import MappingProxyType

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data import synthetic, windowing
from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Windows
from harvis_utils.lenses.triggered import STRONGEST, references
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.metrics import motifs, realism, recovery, similarity
from harvis_utils.metrics.explanation import MEASURES, explained
from harvis_utils.metrics.intervals import paired, with_interval
from harvis_utils.settings import ExplanationSettings, Settings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network, of_networks


@kept("explanation")
def explained_of(
    network: Network, windows: Windows, signals: xr.DataArray, th_eap: xr.DataArray, settings: ExplanationSettings
) -> xr.Dataset:
    """:func:`explained` of one network's signals (technique, layer, unit, time) in test windows."""
    made = [
        explained(network.trunk, layer, signals.sel(layer=layer), windows.test, th_eap.sel(layer=layer), settings)
        for layer in signals["layer"].values.tolist()
    ]
    return xr.concat(made, "layer").transpose("technique", "layer", "unit")


@kept("explanation")
def references_of(network: Network, windows: Windows, start: np.ndarray, settings: ExplanationSettings) -> xr.Dataset:
    """Reference signals of all units of one network (:func:`references`), from its training windows.

    ``signal`` (technique, layer, unit, time) and ``strongest`` (layer, unit, example, time).
    """
    trunk = network.trunk
    made = [references(trunk, layer, windows.train, start, settings, seed=network.seed) for layer in trunk.layers]
    return xr.concat(made, pd.Index(trunk.layers, name="layer")).rename(reference="technique")


def with_references(
    cfg: Settings, windows: Windows, networks: Sequence[Network], signals: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray]:
    """Signals (seed, technique, layer, unit, time) with references behind them, and the strongest windows alone.

    The latter have the dimension ``example`` too, and one technique.
    """
    start = starting_signal(cfg.maximization, windows.train.length)
    found = of_networks(networks, lambda net: references_of(net, windows, start, cfg.explanation))
    both = xr.concat([signals, found["signal"]], "technique", join="inner")
    # names that were read from a file keep its length, and longer ones would be cut off when they are written
    both = both.assign_coords(technique=both["technique"].values.tolist())
    strongest = found["strongest"].expand_dims(technique=[STRONGEST])
    dims = ("seed", "technique", "layer", "unit")
    return both.transpose(*dims, "time"), strongest.sel(unit=both["unit"]).transpose(*dims, "example", "time")


def explanations(
    cfg: Settings, windows: Windows, networks: Sequence[Network], statistics: xr.Dataset, signals: xr.DataArray
) -> xr.Dataset:
    """Explanation of methods and references, dims (seed, technique, layer, unit); missing ones are made.

    ``signals`` is (seed, technique, layer, unit, time).
    """

    def one(net: Network, th_eap: xr.DataArray, *own: xr.DataArray) -> xr.Dataset:
        return xr.concat([explained_of(net, windows, of, th_eap, cfg.explanation) for of in own], "technique")

    return of_networks(networks, one, statistics["th_eap"], *with_references(cfg, windows, networks, signals))


def mean_accuracy(found: Sequence[xr.Dataset], names: Sequence[str]) -> dict[str, float]:
    """Accuracy of these techniques by which :func:`variants.most_explaining` chooses, of explanations by data set.

    The mean over units, then networks, then layers, then data sets.
    """
    each = [one["accuracy"].sel(technique=[*names]).mean("unit").mean("seed").mean("layer") for one in found]
    mean = xr.concat(each, "dataset").mean("dataset")
    return dict(zip(mean["technique"].values.tolist(), mean.values.tolist(), strict=True))


def table(found: xr.Dataset, measures: Mapping[str, str | None] = MappingProxyType(MEASURES)) -> pd.DataFrame:
    """Every measure with its interval, and its null, such as what other units' signals get: a row per method and layer.

    ``found`` is (seed, technique, layer, unit). ``flat`` and ``reaches`` are shares of signals.
    """
    rows = []
    for method, layer in product(found["technique"].values.tolist(), found["layer"].values.tolist()):
        own = found.sel(technique=method, layer=layer)
        row: dict = {"technique": method, "layer": layer}
        for name, null in measures.items():
            row |= with_interval(name, own[name].transpose("seed", "unit"))
            row |= {null: float(own[null].mean())} if null else {}
        row |= {name: float(own[name].mean()) for name in ("flat", "reaches")}
        rows.append(row | {"networks": own.sizes["seed"], "units": own.sizes["unit"]})
    return pd.DataFrame(rows)


def against(
    found: xr.Dataset,
    references: Sequence[str],
    techniques: Sequence[str] | None = None,
    measures: Sequence[str] = tuple(MEASURES),
) -> pd.DataFrame:
    """What every one of ``techniques`` (all) has more than each of ``references``, unit by unit, with intervals.

    One row per technique, layer and measure; columns "technique", "against", "layer", "measure", "difference" with its
    ends, and "dominance".
    """
    names = found["technique"].values.tolist() if techniques is None else techniques
    rows = []
    for other, name, layer, measure in product(references, names, found["layer"].values.tolist(), measures):
        if name != other:
            pair = (found[measure].sel(technique=one, layer=layer).transpose("seed", "unit") for one in (name, other))
            row = {"technique": name, "against": other, "layer": layer, "measure": measure}
            difference = paired(*pair)
            rows.append(row | {"dominance": difference.dominance} | difference.row("difference"))
    return pd.DataFrame(rows)


def beside_real(
    cfg: Settings, windows: Windows, networks: Sequence[Network], statistics: xr.Dataset, signals: xr.DataArray
) -> xr.Dataset:
    """:func:`realism.realism` of what :func:`explanations` is of, with its dims; missing ones are made."""
    both, _ = with_references(cfg, windows, networks, signals)
    both = both.astype(np.float32)

    def maps(net: Network, own: xr.DataArray) -> xr.DataArray:
        each = [similarity.own_maps(net.trunk, x, own["unit"].values).values for x in own.values]
        return own.copy(data=np.stack(each))

    made = xr.Dataset({"signal": both, "map": of_networks(networks, maps, both)})
    return realism.realism(cfg, windows, networks, statistics, made)


# ---------------------------------------------------------------------------------------------- the truth, where known


def motif_identification(
    cfg: Settings,
    windows: Windows,
    networks: Sequence[Network],
    statistics: xr.Dataset,
    signals: xr.DataArray,
    truth: PlantedMotifs,
) -> xr.Dataset:
    """Whether signals show the planted motif that their unit prefers, dims (seed, technique, layer, unit).

    Of methods and references, as :func:`explanations`; see :func:`motifs.identification`.
    """

    def one(net: Network, th_eap: xr.DataArray, own: xr.DataArray) -> xr.Dataset:
        made = [
            motifs.identification(net.trunk, layer, own.sel(layer=layer), truth, th_eap.sel(layer=layer))
            for layer in net.trunk.layers
        ]
        return xr.concat(made, "layer").transpose("technique", "layer", "unit")

    both, _ = with_references(cfg, windows, networks, signals)
    return of_networks(networks, one, statistics["th_eap"], both)


def motif_table(found: xr.Dataset) -> pd.DataFrame:
    """Of :func:`motif_identification` the share "identified" and the mean "match", with intervals, and "chance".

    One row per technique and layer; "units" is how many prefer a motif.
    """
    rows = []
    for technique, layer in product(found["technique"].values.tolist(), found["layer"].values.tolist()):
        own = found.sel(technique=technique, layer=layer).transpose("seed", "unit")
        row = {"technique": technique, "layer": layer}
        row |= with_interval("identified", own["identified"]) | with_interval("match", own["match"])
        rows.append(row | {"chance": float(own["chance"].mean()), "units": int(own["identified"].count())})
    return pd.DataFrame(rows)


def detector_units(cfg: Settings, windows: Windows, truth: PlantedMotifs, techniques: Sequence[str]) -> pd.DataFrame:
    """:func:`motifs.identification` of units whose filter is a motif: one row per motif and technique or reference.

    There the method alone decides what is shown (:func:`recovery.detecting`).
    """
    tables, start = [], starting_signal(cfg.maximization, windows.train.length)
    for length in dict.fromkeys(map(len, truth.shapes)):
        names, trunk, th = recovery.detecting(windows, truth, length, cfg.recovery.thinning)
        how = {"settings": cfg.maximization, "length": windows.train.length, "rate_hz": windows.rate_hz}
        made = paper_methods.maximize(trunk, "conv1", th.values, methods=techniques, **how)["signal"]
        beside = references(trunk, "conv1", windows.train, start, cfg.explanation)["signal"]
        both = xr.concat([made, beside.rename(reference="technique")], "technique")
        found = motifs.identification(trunk, "conv1", both, truth, th).assign_coords(motif=("unit", names))
        tables.append(found.to_dataframe().reset_index())
    columns = ["motif", "technique", "identified", "match", "chance"]
    return pd.concat(tables, ignore_index=True)[columns]


def harder(cfg: Settings, techniques: Sequence[str]) -> tuple[xr.Dataset, float]:
    """:func:`motif_identification` where most noise is added to the made-up data, and how much, in G.

    The networks are small ones, trained on that (:attr:`RecoverySettings.noise_g`, :attr:`RecoverySettings.seeds`).
    """
    noise_g = max(cfg.recovery.noise_g)
    recordings = synthetic.variant(noise_g)
    windows = windowing.cut(recordings, cfg.windows)
    own = dataclasses.replace(
        cfg, dataset=recordings.name, training=dataclasses.replace(cfg.training, seeds=cfg.recovery.seeds)
    )
    networks = supervised.networks(own, windows)
    statistics = unit_statistics.statistics(own, windows, networks)
    made = paper_methods.signals(own, networks, statistics, tuple(techniques), ("calibrated",))
    signals = made["signal"].sel(preset="calibrated", drop=True)
    truth = recordings.dataset.motifs()
    return motif_identification(own, windows, networks, statistics, signals, truth), noise_g
