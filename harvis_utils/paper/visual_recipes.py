"""Ways to visualize a unit: parametrization x aids x prior, beside the paper's method.

Units of SF-HF see one sensor axis, so one axis is optimized; only rotation needs a sensor's three, of which the first
is the unit's and is judged. Every recipe starts from the same noise, keeps signals within the reach of real movement
and, unless it says otherwise, counts outputs up to the unit's threshold, as the paper's clipping does. The list was
written before any of it was judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from harvis_utils.data.windowing import Windows
from harvis_utils.maximization import (
    coordinates,
    objectives,
    paper_methods,
    priors,
    transforms,
    unit_statistics,
    visualization,
)
from harvis_utils.maximization.starting import spectrum_noise
from harvis_utils.paper import recipes
from harvis_utils.parallel import progress
from harvis_utils.settings import MaximizationSettings, Settings
from harvis_utils.store import stages
from harvis_utils.store.files import read_dataset, write_dataset
from harvis_utils.training.supervised import Network

STAGE = stages.Stage(
    "visualizations",
    notebook="10_visualization",
    modules=(
        *(
            "data.windowing",
            "networks.sfhf",
            "maximization.unit_statistics",
            "fast.ascent",
            "maximization.paper_methods",
            "metrics.similarity",
        ),
        *(
            "networks.taps",
            "networks.backward",
            "maximization.objectives",
            "maximization.coordinates",
            "maximization.transforms",
        ),
        *("maximization.visualization", "maximization.priors", "paper.visual_recipes"),
    ),
)

PAPERS = recipes.PAPERS


@dataclass(frozen=True)
class VisualSettings:
    """How long and how far a recipe climbs. Choice."""

    n_steps: int = 200
    step_size: float = 0.05
    prior_rate: float = 0.1  # share of the way to the denoised signal that every step goes


#: by profile
SETTINGS = {"quick": VisualSettings(n_steps=60), "desk": VisualSettings(), "paper": VisualSettings(n_steps=500)}


@dataclass(frozen=True)
class Recipe:
    """One way to visualize; every number 0 switches its aid off."""

    name: str
    family: str
    frequency: bool = True  # else in time
    objective: str = "channel"  # or "neuron": the middle sample alone
    clip: bool = True  # outputs beyond the unit's threshold count as that
    shift: int = 0  # samples
    scale: float = 0.0  # share
    noise_g: float = 0.0
    rotate: float = 0.0  # degrees
    spectral: float = 0.0  # weight of the cost of the spectrum, in units of the threshold
    copies: int = 1  # signals per unit, of which the one with the highest objective is kept
    diversity: float = 0.0  # weight of the likeness of the copies, in units of the threshold
    prior: bool = False


_AIDS = {"shift": 2, "scale": 0.2, "noise_g": 0.1, "rotate": 10.0}

#: Choice: parametrization x all aids x prior, each aid alone, other objectives
RECIPES: tuple[Recipe, ...] = (
    Recipe("time", "time", False),
    Recipe("time, aids", "time", False, **_AIDS),
    Recipe("time, prior", "time", False, prior=True),
    Recipe("time, aids, prior", "time", False, prior=True, **_AIDS),
    Recipe("frequency", "frequency"),
    Recipe("frequency, aids", "frequency", **_AIDS),
    Recipe("frequency, prior", "frequency", prior=True),
    Recipe("frequency, aids, prior", "frequency", prior=True, **_AIDS),
    Recipe("shift", "one aid", shift=2),
    Recipe("scale", "one aid", scale=0.2),
    Recipe("noise", "one aid", noise_g=0.1),
    Recipe("rotation", "one aid", rotate=10.0),
    Recipe("spectral penalty", "one aid", spectral=0.1),
    Recipe("best of 3", "several", copies=3),
    Recipe("best of 3, diverse", "several", copies=3, diversity=1.0),
    Recipe("no clipping", "objective", clip=False),
    Recipe("neuron", "objective", objective="neuron"),
    Recipe("neuron, prior", "objective", objective="neuron", prior=True),
    Recipe("neuron, aids, prior", "objective", objective="neuron", prior=True, **_AIDS),
)
BY_NAME = {r.name: r for r in RECIPES}

#: what a first run tries; the other profiles try all. Choice
QUICK = (
    *(r.name for r in RECIPES if r.family in ("time", "frequency")),
    *("spectral penalty", "best of 3, diverse", "neuron, prior"),
)
#: recipes that are also run on networks with random weights. Choice
RANDOM = ("time", "time, aids, prior", "frequency", "frequency, aids, prior", "neuron, prior")


def of_profile(profile: str) -> list[Recipe]:
    """The recipes that a profile tries."""
    return [BY_NAME[name] for name in (QUICK if profile == "quick" else BY_NAME)]


def climb(
    network: Network,
    statistics: xr.Dataset,
    windows: Windows,
    recipe: Recipe,
    units: Sequence[int],
    settings: VisualSettings,
    denoiser: priors.Denoiser,
) -> xr.Dataset:
    """Signals of one recipe: ``signal`` (G) and ``map`` over (layer, unit, time).

    ``statistics`` is (layer, unit) over all units; a dead unit has no threshold and is not clipped.
    """
    length, layers = windows.train.length, list(network.trunk.layers)
    view = visualization.PerAxis(network.model, layers[-1])
    bound = visualization.amplitude_bound(windows.train)
    each = [unit for unit in units for _ in range(recipe.copies)]
    blocks = [(_objective(view, statistics.sel(layer=la), recipe, each, windows), len(each)) for la in layers]
    aids: list[transforms.Transform] = []
    aids += [transforms.shift(recipe.shift)] if recipe.shift else []
    aids += [transforms.scale(recipe.scale)] if recipe.scale else []
    aids += [transforms.rotate(recipe.rotate, ((0, 1, 2),))] if recipe.rotate else []
    aids += [transforms.noise(recipe.noise_g)] if recipe.noise_g else []
    made = visualization.visualize(
        view,
        objectives.in_blocks(blocks),
        starts(windows, len(layers) * len(each), 3 if recipe.rotate else 1, network.seed),
        coordinates.in_frequency(length, bound) if recipe.frequency else coordinates.in_time(bound),
        transforms=aids,
        prior=denoiser if recipe.prior else None,
        prior_rate=settings.prior_rate,
        n_steps=settings.n_steps,
        step_size=settings.step_size,
        seed=network.seed,
    )
    best = made.score.reshape(len(layers), len(units), recipe.copies).argmax(-1)
    signal = made.signal[:, 0].reshape(len(layers), len(units), recipe.copies, length)
    signal = np.take_along_axis(signal, best[:, :, None, None], 2)[:, :, 0]
    dims = ("layer", "unit", "time")
    return xr.Dataset(
        {"signal": (dims, signal), "map": (dims, maps(network, signal, units))},
        coords={"layer": layers, "unit": list(units)},
    )


def _objective(
    view: visualization.PerAxis, statistics: xr.Dataset, recipe: Recipe, units: Sequence[int], windows: Windows
) -> objectives.Objective:
    tap = view.tap(str(statistics["layer"].values))
    th = torch.tensor(statistics["th_eap"].sel(unit=list(units)).values, dtype=torch.float32)
    limit = torch.nan_to_num(th, nan=torch.inf) if recipe.clip else None
    of = {"channel": objectives.channel, "neuron": objectives.neuron}[recipe.objective]
    objective = of(tap, units, axis=0, at_most=limit)
    scale = float(th.nanmedian()) if not th.isnan().all() else 1.0
    if recipe.spectral:
        real = torch.tensor(windows.train.segments[:: max(1, len(windows.train) // 4000), None])
        power = objectives.mean_power(real)
        objective = objective - recipe.spectral * scale * objectives.spectrum(power)
    if recipe.diversity:
        objective = objective - recipe.diversity * scale * objectives.alike(tap, units)
    return objective


def starts(windows: Windows, n: int, n_axes: int, seed: int) -> np.ndarray:
    """Noise of the training windows' spectrum with the root mean square of the paper's sine: (window, axis, time).

    The first axis does not depend on how many there are.
    """
    sine_rms = MaximizationSettings().start_amplitude_g / 2**0.5
    segments = windows.train.segments[:: max(1, len(windows.train) // 4000)]
    axes = [spectrum_noise(segments, n, np.random.default_rng((seed, axis))) for axis in range(n_axes)]
    x = np.stack(axes, 1)
    return (x * sine_rms / np.sqrt((x**2).mean(2, keepdims=True))).astype(np.float32)


@torch.no_grad()
def maps(network: Network, signal: np.ndarray, units: Sequence[int]) -> np.ndarray:
    """Outputs of each signal's own unit: (layer, unit, time) in G -> the same shape."""
    unit = torch.tensor(list(units))
    each = zip(network.trunk.layers, signal, strict=True)
    return np.stack([paper_methods.unit_maps(network.trunk, la, unit, torch.tensor(x)).numpy() for la, x in each])


# -------------------------------------------------------------------------------------------------- stored results


def signals(
    cfg: Settings,
    windows: Windows,
    networks: Sequence[Network],
    statistics: xr.Dataset,
    chosen: Sequence[Recipe],
    units: Sequence[int],
    denoiser: priors.Denoiser,
) -> xr.Dataset:
    """Signals of all recipes, dims (seed, recipe, layer, unit, time), the paper's method first; missing ones are made.

    One stored result per network and recipe. The paper's are those of :mod:`harvis_utils.paper.recipes`.
    """
    settings = SETTINGS[cfg.profile]
    papers = recipes.signals(cfg, windows, list(networks), statistics, [recipes.BY_NAME[PAPERS]], units)
    bar = progress(total=len(networks) * len(chosen), desc="visualizing", leave=False)
    stacked = []
    for net in networks:
        parts = []
        for recipe in chosen:

            def build(folder, net=net, recipe=recipe) -> None:
                own = statistics.sel(seed=net.seed)
                write_dataset(folder / "signals.nc", climb(net, own, windows, recipe, units, settings, denoiser))

            about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=net.seed)
            folder = STAGE.obtain(key(cfg, windows, net, recipe, units), build, about)
            parts.append(read_dataset(folder / "signals.nc").expand_dims(recipe=[recipe.name]))
            bar.update(1)
        stacked.append(xr.concat(parts, "recipe").expand_dims(seed=[net.seed]))
    bar.close()
    return xr.concat([papers[["signal", "map"]], xr.concat(stacked, "seed")], "recipe")


def key(cfg: Settings, windows: Windows, network: Network, recipe: Recipe, units: Sequence[int]) -> str:
    """Address of the signals of one network and recipe."""
    of_prior = priors.weights.key(windows, cfg.prior) if recipe.prior else ""
    settings = [cfg.windows, SETTINGS[cfg.profile], recipe, list(units)]
    return STAGE.key(settings, unit_statistics.statistics_of.key(network, windows), of_prior)
