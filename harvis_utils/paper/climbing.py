"""Variants climbed, kept and measured, network by network, and the signals that stand beside them.

Readings and recipes are climbed by :mod:`harvis_utils.fast.ascent`, visual variants by
:mod:`harvis_utils.maximization.visualization`. What chooses among them uses networks that take no part in judging.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
import xarray as xr

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.fast import ascent
from harvis_utils.maximization import coordinates, objectives, paper_methods, priors, transforms, visualization
from harvis_utils.maximization.paper_methods import METHODS, PENALTIES, PROPOSED, Method
from harvis_utils.maximization.starting import chosen_units, spectrum_noise, starting_points, starting_signal
from harvis_utils.metrics import realism, similarity
from harvis_utils.metrics.signal_measures import flat
from harvis_utils.paper import explaining
from harvis_utils.paper.variants import FREE, OURS, PENALIZED, Variant, Visual, by_step
from harvis_utils.parallel import progress, torch_device
from harvis_utils.settings import MaximizationSettings, Settings, SimilaritySettings, VisualSettings
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network, of_networks

#: training segments from which quantiles of outputs are taken, drawn at random
N_PROBED = 30_000
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


def window_prior(split: Split, floor: float = 1e-3) -> np.ndarray:
    """(time, time) matrix P of a norm sqrt(x' P x) in which real windows are short: inverse of their second moment.

    Scaled so that a real window costs on average what its L2 norm would. Directions in which real windows hold less
    than ``floor`` of the strongest one's power count as holding that much.
    """
    moment = second_moment(split)
    power, directions = np.linalg.eigh(moment)
    inverse = (directions / np.maximum(power, floor * power[-1])) @ directions.T
    inverse = (inverse + inverse.T) / 2
    return inverse * np.trace(moment) / np.trace(inverse @ moment)


def quantile_thresholds(outputs: np.ndarray, quantile: float) -> np.ndarray:
    """That quantile of the largest outputs of the windows that excite a unit at all: (unit, window) -> (unit,)."""
    excited = np.where(outputs > 0, outputs, np.nan)
    silent = np.isnan(excited).all(1)
    found = np.full(len(outputs), np.nan)
    found[~silent] = np.nanquantile(excited[~silent], quantile, axis=1)
    return found


def starts_of(variant: Variant, settings: MaximizationSettings, split: Split) -> np.ndarray:
    """The signals that a variant starts from, (start, time) in G: the paper's sine first."""
    own = dataclasses.replace(settings, start_periods=variant.periods)
    few = variant.n_starts == 1
    return starting_signal(own, split.length)[None] if few else starting_points(own, split, variant.n_starts)


def climb(
    network: Network,
    th_eap: xr.DataArray,
    windows: Windows,
    variants: Sequence[Variant],
    methods: Mapping[str, Method],
    units: Sequence[int],
    settings: MaximizationSettings,
    *,
    device: str | None = None,
) -> xr.Dataset:
    """Signals of variants that share step, jitter, quantile and number of starts, each with all ``methods``, at once.

    Returns ``signal`` in G, ``map`` and ``start_map``, the unit's outputs to it and to the first start, over (variant,
    technique, layer, unit, time), and over the same without time ``start``, the one that was kept. A method without
    penalties is climbed once per start, whatever else its variants change. ``th_eap`` is (layer, unit) over all units;
    of ``settings``, weight, reduction and periods are not used.
    """
    split, first, units = windows.train, variants[0], list(units)
    length, device = split.length, torch_device(device)

    def job(variant: Variant, method: str) -> tuple:
        return (variant.periods if method in FREE else variant.name, method)

    jobs = {job(variant, name): (variant, method) for variant in variants for name, method in methods.items()}
    order = [[list(jobs).index(job(variant, name)) for name in methods] for variant in variants]
    starts = np.stack([starts_of(variant, settings, split) for variant, _ in jobs.values()], 1)
    shared = [paper_methods.penalty_weights(variant.weight, variant.reduction, length) for variant, _ in jobs.values()]
    per_unit = np.array([variant.per_unit for variant, _ in jobs.values()])[:, None]
    prior = window_prior(split) if any(method.prior for method in methods.values()) else None
    outputs = {}
    if first.quantile is not None:
        some = split.segments[np.random.default_rng(0).permutation(len(split.segments))[:N_PROBED]]
        outputs = realism.largest_outputs(network.trunk, some, device=device)
    parts = []
    for layer in network.trunk.layers:
        own = th_eap.sel(layer=layer).values
        th = own if first.quantile is None else quantile_thresholds(outputs[layer], first.quantile)
        scale = np.where(per_unit, np.nan_to_num(own[units], nan=1.0), 1.0)
        weights = {name: np.array([w[name] for w in shared])[:, None] * scale for name in PENALTIES}
        weights["eap"] = np.array([w["eap"] for w in shared])[:, None]  # it is an output, as the objective is
        rows = paper_methods.climbing_rows([m for _, m in jobs.values()], units, th, weights, first.n_starts)
        found = ascent.climb(
            network.trunk, layer, rows, np.repeat(starts.reshape(-1, length), len(units), axis=0), first.step,
            n_steps=settings.n_steps, record=(settings.n_steps,), tolerance_g=settings.tolerance_g,
            th_aap_g=settings.th_aap_g, prior=prior, jitter=first.jitter, device=device,
            lowpass=paper_methods.lowpass_matrix(length, settings.lowpass_hz, settings.lowpass_order, windows.rate_hz),
            workers=torch.get_num_threads() if device.type == "cpu" else 1,
        )  # fmt: skip
        shape = (first.n_starts, len(jobs), len(units))
        best = found.history["objective"][:, 0].reshape(shape).argmax(0)
        each = {"signal": found.signal, "map": found.map}
        each = {k: np.take_along_axis(v.reshape(*shape, length), best[None, ..., None], 0)[0] for k, v in each.items()}
        with torch.no_grad():
            begun = network.trunk.to("cpu").feature_map(torch.as_tensor(starts[0]), layer)[:, units].numpy()
        parts.append({k: v[order] for k, v in (each | {"start_map": begun, "start": best}).items()})
    dims = ("layer", "variant", "technique", "unit", "time")
    stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    names = {"variant": [variant.name for variant in variants], "technique": list(methods)}
    return xr.Dataset(
        {name: (dims[: values.ndim], values) for name, values in stacked.items()},
        coords=names | {"layer": list(network.trunk.layers), "unit": units},
    ).transpose("variant", "technique", "layer", "unit", "time")


reading_signals = kept("readings", apart=("device",))(climb)
recipe_signals = kept("recipes", apart=("device",))(climb)


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
        reading_signals(network, th_eap, windows, alike, methods, units, settings, device=device)
        for alike in progress(list(by_step(readings).values()), desc="readings", leave=False)
    ]
    together, parts = xr.concat(made, "variant").rename(variant="reading"), []
    for periods in dict.fromkeys(one.periods for one in readings):  # displacements are from the reading's own start
        alike = [one for one in readings if one.periods == periods]
        start, some = starts_of(alike[0], settings, windows.train)[0], together.sel(reading=[r.name for r in alike])
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


def our_signals(cfg: Settings, networks: list[Network], statistics: xr.Dataset) -> xr.Dataset:
    """Signals of :data:`OURS`, a method that is not the paper's: L2 and TV are means over their terms, not sums.

    As :func:`paper_methods.signals`, dims (seed, layer, preset, technique, unit, time), with the calibrated preset and
    one method. They are stored beside those of the paper's methods, which stay as they are.
    """
    mine = dataclasses.replace(cfg, maximization=dataclasses.replace(cfg.maximization, reduction="mean"))
    made = paper_methods.signals(mine, networks, statistics, (PROPOSED,), ("calibrated",))
    return made.assign_coords(technique=[OURS])


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

    Units of SF-HF see one sensor axis, so one axis is optimized; only rotation needs a sensor's three, of which the
    first is the unit's and is judged. ``th_eap`` is (layer, unit) over all units; a dead unit has none and is not
    clipped. ``denoiser`` is needed by variants with a prior.
    """
    length, layers = windows.train.length, list(network.trunk.layers)
    view = visualization.PerAxis(network.model, layers[-1])
    each = [unit for unit in units for _ in range(variant.copies)]
    blocks = [(_objective(view, th_eap.sel(layer=la), variant, each, windows), len(each)) for la in layers]
    aids = (
        (transforms.shift, variant.shift),
        (transforms.scale, variant.scale),
        (partial(transforms.rotate, sensors=((0, 1, 2),)), variant.rotate),
        (transforms.noise, variant.noise_g),
        (partial(transforms.background, torch.tensor(_some_segments(windows)[:, None])), variant.background),
    )
    slope = {"waking_steps": settings.n_steps, "waking_slope": variant.slope} if variant.slope else {}
    made = visualization.visualize(
        view,
        objectives.in_blocks(blocks),
        noise_starts(windows, len(layers) * len(each), 3 if variant.rotate else 1, network.seed),
        _space(variant.space, windows.train),
        transforms=[aid(size) for aid, size in aids if size],
        prior=denoiser if variant.prior else None,
        prior_rate=settings.prior_rate,
        n_steps=settings.n_steps,
        step_size=settings.step_size,
        decay=variant.decay,
        seed=network.seed,
        **slope,
    )
    shape = (len(layers), len(units), variant.copies)
    best = made.score.reshape(shape).argmax(-1)
    signal = np.take_along_axis(made.signal[:, 0].reshape(*shape, length), best[:, :, None, None], 2)[:, :, 0]
    dims = ("layer", "unit", "time")
    return xr.Dataset(
        {"signal": (dims, signal), "map": (dims, similarity.own_maps(network.trunk, signal, units).values)},
        coords={"layer": layers, "unit": list(units)},
    )


def _space(name: str, split: Split) -> coordinates.Parametrization:
    bound = visualization.amplitude_bound(split)
    spaces = {
        "time": lambda: coordinates.in_time(bound),
        "frequency": lambda: coordinates.in_frequency(split.length, bound),
        "principal": lambda: coordinates.in_principal(second_moment(split), bound),
        "phase": lambda: coordinates.in_phase(coordinates.mean_magnitude(torch.tensor(split.segments)), split.length),
    }
    return spaces[name]()


def _objective(
    view: visualization.PerAxis, th_eap: xr.DataArray, variant: Visual, units: Sequence[int], windows: Windows
) -> objectives.Objective:
    tap = view.tap(str(th_eap["layer"].values))
    th = torch.tensor(th_eap.sel(unit=list(units)).values, dtype=torch.float32)
    limit = torch.nan_to_num(th, nan=torch.inf) if variant.clip else None
    of = {"channel": objectives.channel, "neuron": objectives.neuron, "largest": objectives.largest}[variant.objective]
    objective = of(tap, units, axis=0, at_most=limit)
    scale = float(th.nanmedian()) if not th.isnan().all() else 1.0
    if variant.spectral:
        power = objectives.mean_power(torch.tensor(_some_segments(windows)[:, None]))
        objective = objective - variant.spectral * scale * objectives.spectrum(power)
    if variant.unlikely:
        inverse = window_prior(windows.train) / np.trace(second_moment(windows.train))
        objective = objective - objectives.mahalanobis(inverse) * (variant.unlikely * torch.nan_to_num(th, nan=1.0))
    if variant.diversity:
        objective = objective - variant.diversity * scale * objectives.alike(tap, units)
    return objective


def _some_segments(windows: Windows) -> np.ndarray:
    return windows.train.segments[:: max(1, len(windows.train) // 4000)]


def noise_starts(windows: Windows, n: int, n_axes: int, seed: int) -> np.ndarray:
    """Noise of the training windows' spectrum with the root mean square of the paper's sine: (window, axis, time).

    The first axis does not depend on how many there are.
    """
    sine_rms = MaximizationSettings().start_amplitude_g / 2**0.5
    segments = _some_segments(windows)
    axes = [spectrum_noise(segments, n, np.random.default_rng((seed, axis))) for axis in range(n_axes)]
    x = np.stack(axes, 1)
    return (x * sine_rms / np.sqrt((x**2).mean(2, keepdims=True))).astype(np.float32)


# -------------------------------------------------------------------------------------------------- of all networks


def signals(
    cfg: Settings,
    windows: Windows,
    networks: Sequence[Network],
    statistics: xr.Dataset,
    chosen: Sequence[Variant | Visual],
    units: Sequence[int],
    denoiser: priors.Denoiser | None = None,
) -> xr.Dataset:
    """``signal`` and ``map`` of recipes and visual variants, dims (seed, recipe, layer, unit, time).

    One stored result per network and variant. ``denoiser`` is needed by visual variants with a prior.
    """
    visual = dataclasses.replace(cfg.visual, only=())

    def one(net: Network, th_eap: xr.DataArray, variant: Variant | Visual) -> xr.Dataset:
        if isinstance(variant, Visual):
            return visual_signals(net, th_eap, windows, variant, units, visual, denoiser if variant.prior else None)
        how = (windows, [variant], {"own": variant.method}, units, cfg.maximization)
        made = recipe_signals(net, th_eap, *how, device=cfg.device)
        return made.isel(variant=0, technique=0, drop=True)[["signal", "map"]]

    names = xr.DataArray([variant.name for variant in chosen], dims="recipe", name="recipe")

    def every(net: Network, th_eap: xr.DataArray) -> xr.Dataset:
        bar = progress(chosen, desc=f"variants, network {net.seed}", leave=False)
        return xr.concat([one(net, th_eap, variant) for variant in bar], names)

    return of_networks(networks, every, statistics["th_eap"])


def explanations(
    cfg: Settings,
    windows: Windows,
    networks: Sequence[Network],
    statistics: xr.Dataset,
    chosen: Sequence[Visual],
    units: Sequence[int],
    denoiser: priors.Denoiser | None = None,
) -> xr.Dataset:
    """How well :func:`signals` explain their units in held-out windows, dims (seed, recipe, layer, unit).

    See :func:`harvis_utils.metrics.explanation.explained`.
    """
    made = signals(cfg, windows, networks, statistics, chosen, units, denoiser)["signal"].rename(recipe="technique")
    made = made.transpose("seed", "technique", "layer", "unit", "time")

    def one(net: Network, own: xr.DataArray, th_eap: xr.DataArray) -> xr.Dataset:
        return explaining.explained_of(net, windows, own, th_eap, cfg.explanation)

    return of_networks(networks, one, made, statistics["th_eap"]).rename(technique="recipe")


def mean_accuracy(found: Sequence[xr.Dataset]) -> dict[str, float]:
    """Machine interpretability by which :func:`variants.most_explaining` chooses, of :func:`explanations` by data set.

    The mean over units, then networks, then layers, then data sets.
    """
    each = [one["accuracy"].mean("unit").mean("seed").mean("layer") for one in found]
    mean = xr.concat(each, "dataset").mean("dataset")
    return dict(zip(mean["recipe"].values.tolist(), mean.values.tolist(), strict=True))
