"""Every reading of the open hyper-parameters turned into scored signals, on networks kept for nothing else.

The paper's step sizes cannot give its results (notebook 03), and it leaves open whether the norms are sums or means.
A reading is one way to fill this in. Each is run on some units of a few networks that take no part in any verdict,
with the methods the paper's facts speak of; :mod:`harvis_utils.paper.facts` says which reading meets them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from harvis_utils.data.windowing import Windows
from harvis_utils.fast import ascent
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.starting import chosen_units, starting_signal
from harvis_utils.metrics import similarity
from harvis_utils.parallel import progress, torch_device
from harvis_utils.settings import MaximizationSettings, Settings, Step
from harvis_utils.store import stages
from harvis_utils.store.files import read_dataset, write_dataset
from harvis_utils.training.supervised import Network

STAGE = stages.Stage(
    "readings",
    notebook="07_readings",
    modules=("networks.sfhf", "fast.ascent", "maximization.paper_methods", "paper.readings"),
)
SCORES = stages.Stage(
    "reading_scores",
    notebook="07_readings",
    modules=(
        "data.windowing",
        "networks.sfhf",
        "maximization.unit_statistics",
        "fast.ascent",
        "maximization.paper_methods",
        "fast.nearest",
        "metrics.similarity",
        "paper.readings",
    ),
)

#: step sizes tried for each optimizer: the stated one, and a range in which X moves by about 0.1 to 100 G
STEP_SIZES = {
    "ascent": (1e-4, 0.03, 0.1, 0.3, 1.0),
    "momentum": (1e-4, 0.003, 0.01, 0.03, 0.1),
    "adam": (1e-4, 0.01, 0.03, 0.1, 0.3),
}

#: Paper: what is stated; the optimizer is "gradient ascent", the starting sine's period is not stated
STATED = {"step_size": 1e-4, "decay": 0.995, "weight": 0.1}

#: what the facts C3 to C8 speak of; the first two have no penalty, so reduction and weight do not touch them
FREE = ("naive", "lowpass")
PENALIZED = ("L2+TV", "L2+TV+AAP", "L2+TV+EAP", "L2+TV+EAP+clip")
METHODS = FREE + PENALIZED


@dataclass(frozen=True)
class Reading:
    """One way to fill in what the paper leaves open."""

    optimizer: str
    step_size: float
    decay: float
    reduction: str  # L2 and TV as sums, as written, or as means over the samples
    weight: float
    periods: float  # of the starting sine in a window

    @property
    def step(self) -> Step:
        return Step(self.optimizer, self.step_size, self.decay)

    @property
    def label(self) -> str:
        return (
            f"{self.optimizer} {self.step_size:g}, decay {self.decay:g}, {self.reduction}, "
            f"w {self.weight:g}, {self.periods:g} per."
        )

    @property
    def departures(self) -> int:
        """How many stated values it does not take as they stand; means count as one, because sums are written."""
        return sum(getattr(self, k) != v for k, v in STATED.items()) + (self.reduction != "sum")


def grid() -> list[Reading]:
    """All readings: every optimizer, step size, reduction and weight; other decays and starts at the stated weight."""
    found = []
    for optimizer, sizes in STEP_SIZES.items():
        for size in sizes:
            for reduction in paper_methods.REDUCTIONS:
                found += [Reading(optimizer, size, 0.995, reduction, w, 1.0) for w in (0.01, 0.1, 1.0)]
                found += [Reading(optimizer, size, 0.999, reduction, 0.1, 1.0)]
                found += [Reading(optimizer, size, 0.995, reduction, 0.1, 2.0)]
    return found


def by_step(readings: Sequence[Reading]) -> dict[Step, list[Reading]]:
    """The readings that share a step: they are climbed together and stored as one result."""
    found: dict[Step, list[Reading]] = {}
    for reading in readings:
        found.setdefault(reading.step, []).append(reading)
    return found


# ---------------------------------------------------------------------------------------------- one climb a step


def climb_step(
    network: Network, statistics: xr.Dataset, step: Step, readings: Sequence[Reading], units: list[int], cfg: Settings
) -> xr.Dataset:
    """Signals of all readings with one ``step``, over (reading, technique, layer, unit, time).

    Returns ``signal`` in G, ``map`` and ``start_map``, the unit's outputs to it and to the sine it started from.
    Readings that differ in weights or start alone are climbed together; methods without penalties once per start.
    ``statistics`` is (layer, unit) over all units.
    """
    length = cfg.windows.length
    settings = cfg.maximization
    jobs: list[tuple[Reading, str]] = []  # what is climbed; a free method once per start, under its first reading
    place: dict[tuple[Reading, str], int] = {}
    first: dict[tuple[float, str], int] = {}
    for reading in readings:
        for method in METHODS:
            known = first.get((reading.periods, method)) if method in FREE else None
            if known is None:
                known = len(jobs)
                jobs.append((reading, method))
                if method in FREE:
                    first[reading.periods, method] = known
            place[reading, method] = known
    starts = np.stack([start_of(settings, reading, length) for reading, _ in jobs])
    recipes = [paper_methods.METHODS[method] for _, method in jobs]
    each = [paper_methods.penalty_weights(reading.weight, reading.reduction, length) for reading, _ in jobs]
    weights = {name: np.array([w[name] for w in each])[:, None] for name in paper_methods.PENALTIES}
    device = torch_device(cfg.device)
    workers = torch.get_num_threads() if device.type == "cpu" else 1
    lowpass = paper_methods.lowpass_matrix(length, settings.lowpass_hz, settings.lowpass_order, cfg.windows.rate_hz)
    order = [[place[reading, method] for method in METHODS] for reading in readings]
    parts = []
    for layer in network.trunk.layers:
        th = statistics["th_eap"].sel(layer=layer).values
        rows = paper_methods.climbing_rows(recipes, units, th, weights)
        at = np.repeat(starts, len(units), axis=0)
        found = ascent.climb(
            network.trunk, layer, rows, at, step,
            n_steps=settings.n_steps, tolerance_g=settings.tolerance_g, th_aap_g=settings.th_aap_g,
            lowpass=lowpass, device=device, workers=workers,
        )  # fmt: skip
        with torch.no_grad():
            begun = network.trunk.feature_map(torch.as_tensor(starts), layer)[:, units].numpy()
        arrays = {"signal": found.signal, "map": found.map, "start_map": begun}
        parts.append({k: v.reshape(len(jobs), len(units), length)[order] for k, v in arrays.items()})
    dims = ("layer", "reading", "technique", "unit", "time")
    return xr.Dataset(
        {k: (dims, np.stack([part[k] for part in parts])) for k in parts[0]},
        coords={
            "layer": list(network.trunk.layers),
            "reading": [r.label for r in readings],
            "technique": list(METHODS),
            "unit": units,
        },
    ).transpose("reading", "technique", "layer", "unit", "time")


def start_of(settings: MaximizationSettings, reading: Reading, length: int) -> np.ndarray:
    """The sine that a reading starts from, (time,) in G."""
    return starting_signal(dataclasses.replace(settings, start_periods=reading.periods), length)


# ------------------------------------------------------------------------------------------------- stored scores

#: what of the scores is kept: all that a claim asks of single units
KEPT = ("failed", "dead", "silent", "peak_amplitude_g", "displacement_g", "max_output", "total_variation_g")
KEPT += ("high_frequency_share", "n_frequencies", "s_u", "shape_match", "shape", "nearest_share")
KEPT += ("activation_ratio", "activation_ratio_p95")


def signals(
    cfg: Settings, windows: Windows, network: Network, statistics: xr.Dataset, readings: Sequence[Reading]
) -> xr.Dataset:
    """Signals of all readings of one network, dims (reading, technique, layer, unit, time); missing ones are made.

    One stored result per step, so that a kill loses at most one of them. ``statistics`` is (layer, unit).
    """
    units = chosen_units(statistics.sizes["unit"], cfg.readings.n_units)
    parts = []
    for step, alike in progress(list(by_step(readings).items()), desc="readings", leave=False):

        def build(folder, alike=alike, step=step) -> None:
            made = climb_step(network, statistics, step, alike, units, cfg)
            write_dataset(folder / "signals.nc", made)

        about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=network.seed)
        folder = STAGE.obtain(key(cfg, windows, network, alike), build, about)
        parts.append(read_dataset(folder / "signals.nc"))
    return _in_order(parts, readings)


def _in_order(parts: Sequence[xr.Dataset], readings: Sequence[Reading]) -> xr.Dataset:
    """The parts under one dimension, in the order of ``readings``."""
    labels = [r.label for r in readings]
    # xarray would keep the first part's length of names, and cut longer ones off when they are written
    return xr.concat(parts, "reading").sel(reading=labels).assign_coords(reading=labels)


def key(cfg: Settings, windows: Windows, network: Network, readings: Sequence[Reading], stage=STAGE) -> str:
    """Address of what is kept of one network and some readings."""
    # what a reading says itself is not taken from the settings
    rest = dataclasses.replace(cfg.maximization, weight=0.0, reduction="", start_periods=0.0)
    settings = [rest, cfg.windows, cfg.readings.n_units, list(readings)]
    if stage is SCORES:
        settings.append(cfg.similarity)
    return stage.key(settings, unit_statistics.statistics_of.key(network, windows))


def scores(
    cfg: Settings, windows: Windows, networks: list[Network], statistics: xr.Dataset, readings: Sequence[Reading]
) -> xr.Dataset:
    """Scores of all readings, dims (seed, reading, technique, layer, unit[, activity]); missing ones are made."""
    found = []
    for net in networks:
        of_net = statistics.sel(seed=net.seed)

        def build(folder, net=net, of_net=of_net) -> None:
            made = signals(cfg, windows, net, of_net, readings)
            write_dataset(folder / "scores.nc", _scored(cfg, windows, made, of_net, readings))

        about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=net.seed)
        folder = SCORES.obtain(key(cfg, windows, net, readings, SCORES), build, about)
        found.append(read_dataset(folder / "scores.nc").expand_dims(seed=[net.seed]))
    return similarity.with_activities(xr.concat(found, "seed"), windows)


def _scored(
    cfg: Settings, windows: Windows, made: xr.Dataset, statistics: xr.Dataset, readings: Sequence[Reading]
) -> xr.Dataset:
    parts = []
    for periods in dict.fromkeys(r.periods for r in readings):  # a displacement is that from the reading's own start
        alike = [r for r in readings if r.periods == periods]
        start = start_of(cfg.maximization, alike[0], cfg.windows.length)
        some, of_units = made.sel(reading=[r.label for r in alike]), statistics.sel(unit=made["unit"])
        parts.append(similarity.score(some, of_units, start, windows, cfg.similarity)[list(KEPT)])
    return _in_order(parts, readings)


def real_windows(cfg: Settings, windows: Windows, networks: list[Network], statistics: xr.Dataset) -> xr.Dataset:
    """The real test window that excites each chosen unit most, scored like the readings: (seed, control, layer, unit).

    The control that claim C3 asks for.
    """
    found = []
    for net in networks:
        units = chosen_units(statistics.sizes["unit"], cfg.readings.n_units)

        def build(folder, net=net, units=units) -> None:
            held_out = windows.test.segments
            top = unit_statistics.collect(net.trunk, held_out, torch_device(cfg.device), n_top=1)
            x = held_out[top["top_segment"].isel(rank=0).sel(unit=units).values]
            share = similarity.high_frequency_share(x, cfg.windows.rate_hz)
            made = xr.Dataset({"high_frequency_share": (("layer", "unit"), share)}, {"layer": list(net.trunk.layers)})
            write_dataset(folder / "scores.nc", made.assign_coords(unit=units))

        about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=net.seed)
        address = SCORES.key(
            [cfg.windows, cfg.readings.n_units, "real windows"], unit_statistics.statistics_of.key(net, windows)
        )
        folder = SCORES.obtain(address, build, about)
        found.append(read_dataset(folder / "scores.nc").expand_dims(seed=[net.seed]))
    return xr.concat(found, "seed").expand_dims(control=["held-out-strongest"])
