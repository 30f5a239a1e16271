"""Variants climbed, kept and measured, network by network.

Readings are climbed by :mod:`harvis_utils.fast.ascent`, visual variants by
:mod:`harvis_utils.maximization.visualization`. What chooses among them uses networks that take no part in judging.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from torch import nn

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.fast import ascent
from harvis_utils.maximization import coordinates, objectives, paper_methods, priors, transforms, visualization
from harvis_utils.maximization.paper_methods import METHODS, PENALTIES, Method, Target
from harvis_utils.maximization.starting import chosen_units, spectrum_noise, starting_signal
from harvis_utils.metrics import similarity
from harvis_utils.metrics.signal_measures import flat
from harvis_utils.networks.taps import Tap
from harvis_utils.networks.trunks import network_of
from harvis_utils.paper.variants import BY_NAME, EXPLAINER, FREE, LIKELIEST_TRIGGER, PENALIZED, Variant, Visual, by_step
from harvis_utils.parallel import progress, torch_device
from harvis_utils.settings import MaximizationSettings, Settings, SimilaritySettings, VisualSettings
from harvis_utils.store.results import kept
from harvis_utils.training.published import NotPublished
from harvis_utils.training.supervised import Network, of_networks

#: what of a reading's scores is kept: all that a claim asks of single units
SCORES = (
    "failed", "dead", "silent", "peak_amplitude_g", "range_g", "displacement_g", "max_output", "total_variation_g",
    "high_frequency_share", "n_frequencies", "s_u", "shape_match", "shape", "nearest_share", "activation_ratio",
    "activation_ratio_p95",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ the paper's ascent


def second_moment(split: Split) -> np.ndarray:
    """(time, time) second moment of real windows, over all their axes, in G^2."""
    segments = split.segments.astype(np.float64)
    return segments.T @ segments / len(segments)


def window_prior(split: Split) -> np.ndarray:
    """(time, time) matrix P of a norm sqrt(x' P x) in which real windows are short: inverse of their second moment.

    Scaled so that a real window costs on average what its L2 norm would. Directions in which real windows hold less
    than a thousandth of the strongest one's power count as holding that much.
    """
    moment = second_moment(split)
    power, directions = np.linalg.eigh(moment)
    inverse = (directions / np.maximum(power, 1e-3 * power[-1])) @ directions.T
    inverse = (inverse + inverse.T) / 2
    return inverse * np.trace(moment) / np.trace(inverse @ moment)


def start_of(reading: Variant, settings: MaximizationSettings, split: Split) -> np.ndarray:
    """The sine that a reading starts from, (time,) in G."""
    return starting_signal(dataclasses.replace(settings, start_periods=reading.periods), split.length)


@kept("readings", apart=("device",))
def climb(
    network: Network,
    th_eap: xr.DataArray,
    windows: Windows,
    readings: Sequence[Variant],
    methods: Mapping[str, Method],
    units: Sequence[int],
    settings: MaximizationSettings,
    *,
    device: str | None = None,
) -> xr.Dataset:
    """Signals of readings that share a step, each with all ``methods``, at once.

    Returns ``signal`` in G, ``map`` and ``start_map``, the unit's outputs to it and to the start, over (reading,
    technique, layer, unit, time). A method without penalties is climbed once per start, whatever else its readings
    change. ``th_eap`` is (layer, unit) over all units; of ``settings``, weight, reduction and periods are not used.
    """
    split, units = windows.train, list(units)
    length, device = split.length, torch_device(device)

    def job(reading: Variant, method: str) -> tuple:
        return (reading.periods if method in FREE else reading.name, method)

    jobs = {job(reading, name): (reading, method) for reading in readings for name, method in methods.items()}
    order = [[list(jobs).index(job(reading, name)) for name in methods] for reading in readings]
    starts = np.stack([start_of(reading, settings, split) for reading, _ in jobs.values()])
    shared = [paper_methods.penalty_weights(reading.weight, reading.reduction, length) for reading, _ in jobs.values()]
    per_unit = np.array([reading.per_unit for reading, _ in jobs.values()])[:, None]
    parts = []
    for layer in network.trunk.layers:
        th = th_eap.sel(layer=layer).values
        scale = np.where(per_unit, np.nan_to_num(th[units], nan=1.0), 1.0)
        weights = {name: np.array([w[name] for w in shared])[:, None] * scale for name in PENALTIES}
        weights["eap"] = np.array([w["eap"] for w in shared])[:, None]  # it is an output, as the objective is
        rows = paper_methods.climbing_rows([m for _, m in jobs.values()], units, th, weights)
        found = ascent.climb(
            network.trunk, layer, rows, np.repeat(starts, len(units), axis=0), readings[0].step,
            n_steps=settings.n_steps, tolerance_g=settings.tolerance_g, th_aap_g=settings.th_aap_g, device=device,
            lowpass=paper_methods.lowpass_matrix(length, settings.lowpass_hz, settings.lowpass_order, windows.rate_hz),
            workers=torch.get_num_threads() if device.type == "cpu" else 1,
        )  # fmt: skip
        each = {k: v.reshape(len(jobs), len(units), length) for k, v in (("signal", found.signal), ("map", found.map))}
        with torch.no_grad():
            begun = network.trunk.to("cpu").feature_map(torch.as_tensor(starts), layer)[:, units].numpy()
        parts.append({k: v[order] for k, v in (each | {"start_map": begun}).items()})
    dims = ("layer", "reading", "technique", "unit", "time")
    names = {"reading": [reading.name for reading in readings], "technique": list(methods)}
    return xr.Dataset(
        {name: (dims, np.stack([part[name] for part in parts])) for name in parts[0]},
        coords=names | {"layer": list(network.trunk.layers), "unit": units},
    ).transpose("reading", "technique", "layer", "unit", "time")


@kept("reading_scores", apart=("device",))
def scores_of(
    network: Network,
    statistics: xr.Dataset,
    windows: Windows,
    readings: Sequence[Variant],
    units: Sequence[int],
    settings: MaximizationSettings,
    similarity_settings: SimilaritySettings,
    *,
    device: str | None = None,
) -> xr.Dataset:
    """Scores of readings of one network, dims (reading, technique, layer, unit[, activity]).

    The signals of readings that share a step are one stored result, so that a kill loses at most one of them.
    """
    methods, th_eap = {name: METHODS[name] for name in (*FREE, *PENALIZED)}, statistics["th_eap"]
    made = [
        climb(network, th_eap, windows, alike, methods, units, settings, device=device)
        for alike in progress(list(by_step(readings).values()), desc="readings", leave=False)
    ]
    together, parts = xr.concat(made, "reading"), []
    for periods in dict.fromkeys(one.periods for one in readings):  # displacements are from the reading's own start
        alike = [one for one in readings if one.periods == periods]
        start, some = start_of(alike[0], settings, windows.train), together.sel(reading=[r.name for r in alike])
        scored = similarity.score(some, statistics.sel(unit=list(units)), start, windows, similarity_settings)
        parts.append(scored[list(SCORES)])
    names = [one.name for one in readings]
    # xarray would keep the first part's length of names, and cut longer ones off when they are written
    return xr.concat(parts, "reading").sel(reading=names).assign_coords(reading=names)


def reading_scores(
    cfg: Settings, windows: Windows, networks: Sequence[Network], statistics: xr.Dataset, readings: Sequence[Variant]
) -> xr.Dataset:
    """Scores of readings, dims (seed, reading, technique, layer, unit[, activity]), on units spread over the layers.

    ``at_rest`` (seed, layer, unit) says whose strongest real windows are all flat.
    """
    units = chosen_units(statistics.sizes["unit"], cfg.readings.n_units)
    settings = dataclasses.replace(cfg.maximization, tolerance_g=cfg.readings.tolerance_g)
    decides = (windows, list(readings), units, settings, cfg.similarity)
    found = of_networks(networks, lambda net, own: scores_of(net, own, *decides, device=cfg.device), statistics)
    top = statistics["top_segment"].sel(unit=units)
    still = flat(windows.train.segments[top.values.reshape(-1)]).reshape(top.shape)
    found["at_rest"] = top.copy(data=still).all("rank")
    return similarity.with_activities(found, windows)


# --------------------------------------------------------------------------------------------- feature visualization


@kept("visualizations")
def visual_signals(
    network: Network,
    th_eap: xr.DataArray,
    windows: Windows,
    variant: Visual,
    units: Sequence[int],
    settings: VisualSettings,
    denoiser: priors.Denoiser | None,
) -> xr.Dataset:
    """Signals of one visual variant: ``signal`` (G) and ``map`` over (layer, unit, time).

    Units of SF-HF see one sensor axis, so one axis is optimized. ``th_eap`` is (layer, unit) over all units; a dead
    unit has none and is not clipped. ``denoiser`` is needed by variants with a prior.
    """
    layers = list(network.trunk.layers)
    only_trunk = isinstance(network.model, NotPublished)
    view = visualization.PerAxis(network_of(network.trunk) if only_trunk else network.model, layers[-1])
    places = [(view.tap(layer), th_eap.sel(layer=layer, unit=list(units)).values) for layer in layers]
    signal = visualized(view, places, windows, variant, units, settings, denoiser, network.seed)[:, :, 0]
    dims = ("layer", "unit", "time")
    return xr.Dataset(
        {"signal": (dims, signal), "map": (dims, similarity.own_maps(network.trunk, signal, units).values)},
        coords={"layer": layers, "unit": list(units)},
    )


class Viewed(nn.Module):
    """A place's units as a network of their own: signals in s (row, axis, time) to maps (row, unit, axis, time)."""

    def __init__(self, target: Target):
        super().__init__()
        self.network, self.target = target.network, target

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The place's maps of signals."""
        return self.target.maps(x)


def visualized(
    view: nn.Module,
    places: Sequence[tuple[Tap | None, np.ndarray]],
    windows: Windows,
    variant: Visual,
    units: Sequence[int],
    settings: VisualSettings,
    denoiser: priors.Denoiser | None = None,
    seed: int = 0,
    n_axes: int = 1,
) -> np.ndarray:
    """The best signal of a variant for ``units`` of each of ``places``: (place, unit, axis, time) in G.

    ``view`` is a network for signals of ``n_axes`` axes (row, axis, time), one where units see single axes, such as
    :class:`Viewed`, whose only place is None; each place comes with the units' thresholds, (unit,), NaN for none.
    Choice: of several axes each has the same norm or spectrum, and what a unit gives out is averaged over its map's.
    """
    each = [unit for unit in units for _ in range(variant.copies)]
    blocks = [(_objective(tap, th_eap, variant, each, windows), len(each)) for tap, th_eap in places]
    real = torch.tensor(_some_segments(windows)[:, None])
    slope = {"waking_steps": settings.n_steps, "waking_slope": variant.slope} if variant.slope else {}
    made = visualization.visualize(
        view,
        objectives.in_blocks(blocks),
        noise_starts(windows, len(places) * len(each), seed, n_axes),
        _space(variant.space, windows.train),
        transforms=[transforms.background(real, variant.background)] if variant.background else [],
        prior=denoiser if variant.prior else None,
        prior_rate=settings.prior_rate,
        n_steps=settings.n_steps,
        step_size=settings.step_size,
        decay=variant.decay,
        seed=seed,
        **slope,
    )
    shape = (len(places), len(units), variant.copies)
    best = made.score.reshape(shape).argmax(-1)
    every = made.signal.reshape(*shape, *made.signal.shape[1:])
    return np.take_along_axis(every, best[:, :, None, None, None], 2)[:, :, 0]


def _space(name: str, split: Split) -> coordinates.Parametrization:
    bound = visualization.amplitude_bound(split)
    spaces = {
        "frequency": lambda: coordinates.in_frequency(split.length, bound),
        "principal": lambda: coordinates.in_principal(second_moment(split), bound),
        "phase": lambda: coordinates.in_phase(coordinates.mean_magnitude(torch.tensor(split.segments)), split.length),
    }
    return spaces[name]()


def _objective(
    tap: Tap | None, th_eap: np.ndarray, variant: Visual, units: Sequence[int], windows: Windows
) -> objectives.Objective:
    """``th_eap`` are the different units', one after the other in ``units`` as often as there are copies."""
    th = torch.tensor(np.repeat(th_eap, variant.copies), dtype=torch.float32)
    limit = torch.nan_to_num(th, nan=torch.inf) if variant.clip else None
    of = {"channel": objectives.channel, "neuron": objectives.neuron, "largest": objectives.largest}[variant.objective]
    objective = of(tap or "maps", units, at_most=limit)
    objective = objective if tap else objectives.from_output(objective)
    th = th.abs()  # costs stay costs for units that are never above zero
    scale = float(th.nanmedian()) if not th.isnan().all() else 1.0
    if variant.spectral:
        power = objectives.mean_power(torch.tensor(_some_segments(windows)[:, None]))
        objective = objective - variant.spectral * scale * objectives.spectrum(power)
    if variant.unlikely:
        inverse = window_prior(windows.train) / np.trace(second_moment(windows.train))
        objective = objective - objectives.mahalanobis(inverse) * (variant.unlikely * torch.nan_to_num(th, nan=1.0))
    return objective


def _some_segments(windows: Windows) -> np.ndarray:
    return windows.train.segments[:: max(1, len(windows.train) // 4000)]


def noise_starts(windows: Windows, n: int, seed: int, n_axes: int = 1) -> np.ndarray:
    """Noise of the training windows' spectrum with the root mean square of the paper's sine: (window, axis, time)."""
    sine_rms = MaximizationSettings().start_amplitude_g / 2**0.5
    x = spectrum_noise(_some_segments(windows), n * n_axes, np.random.default_rng((seed, 0))).reshape(n, n_axes, -1)
    return (x * sine_rms / np.sqrt((x**2).mean(2, keepdims=True))).astype(np.float32)


# -------------------------------------------------------------------------------------------------- of all networks


def signals(
    cfg: Settings,
    windows: Windows,
    networks: Sequence[Network],
    statistics: xr.Dataset,
    chosen: Sequence[Visual],
    units: Sequence[int],
    denoiser: priors.Denoiser | None = None,
) -> xr.Dataset:
    """``signal`` and ``map`` of visual variants, dims (seed, technique, layer, unit, time).

    One stored result per network and variant. ``denoiser`` is needed by variants with a prior.
    """
    settings = dataclasses.replace(cfg.visual, only=(), n_units=VisualSettings.n_units)  # which decide no signal
    names = xr.DataArray([variant.name for variant in chosen], dims="technique", name="technique")

    def every(net: Network, th_eap: xr.DataArray) -> xr.Dataset:
        bar = progress(chosen, desc=f"variants, network {net.seed}", leave=False)
        made = [
            visual_signals(net, th_eap, windows, variant, units, settings, denoiser if variant.prior else None)
            for variant in bar
        ]
        return xr.concat(made, names)

    return of_networks(networks, every, statistics["th_eap"])


def likeliest_triggers(
    cfg: Settings, windows: Windows, networks: Sequence[Network], statistics: xr.Dataset
) -> xr.Dataset:
    """Signals of :data:`LIKELIEST_TRIGGER` of all units, dims (seed, layer, technique, unit, time).

    As :func:`paper_methods.signals` of one preset, so that they stand beside those of the paper's methods.
    """
    units = statistics["unit"].values.tolist()
    made = signals(cfg, windows, networks, statistics, [BY_NAME[EXPLAINER]], units)
    return made.assign_coords(technique=[LIKELIEST_TRIGGER]).transpose("seed", "layer", "technique", "unit", "time")
