"""Ways to set up the ascent that the paper does not try, and whether one beats its method on both axes at once.

The two axes are those of notebook 08: *activation*, the share of its threshold that a signal brings its unit to, and
*nearness*, how near the exciting piece is to real ones, relative to how near these are to one another. Either alone is
easily won, by amplitude or by doing nothing.

Recipes are compared on networks that take part in no verdict, one of them is chosen by a rule fixed in code, and it is
judged on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.fast import ascent
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.paper_methods import Method
from harvis_utils.maximization.starting import starting_points, starting_signal
from harvis_utils.metrics import realism
from harvis_utils.metrics.intervals import paired
from harvis_utils.parallel import progress, torch_device
from harvis_utils.settings import PRESETS, Settings
from harvis_utils.store import stages
from harvis_utils.store.files import read_dataset, write_dataset
from harvis_utils.training.supervised import Network

STAGE = stages.Stage(
    "recipes",
    notebook="09_recipes",
    modules=(
        "data.windowing",
        "networks.sfhf",
        "maximization.unit_statistics",
        "fast.ascent",
        "settings",
        "maximization.paper_methods",
        "metrics.similarity",
        "metrics.realism",
        "paper.recipes",
    ),
)

PAPERS = "the paper's method"
#: training segments from which quantiles of outputs are taken, drawn at random
N_PROBED = 30_000


@dataclass(frozen=True)
class Recipe:
    """One way to climb. ``quantile`` None is the paper's threshold, mean + 2 standard deviations."""

    name: str
    family: str
    method: Method = paper_methods.METHODS["L2+TV+EAP+clip"]
    weight: float = 0.1
    reduction: str = "sum"
    per_unit: bool = False  # penalties weigh in units of the unit's threshold
    quantile: float | None = None  # threshold: this quantile of the largest outputs of the windows that excite the unit
    n_starts: int = 1  # starting points, of which the one with the highest objective is kept
    jitter: int = 0  # samples by which the network sees the signal moved, another number in every step


_PRIOR = Method(prior=True, eap=True, clip=True)

#: Choice: one change at a time, then those that could help together; the list was written before any of it was run
RECIPES: tuple[Recipe, ...] = (
    Recipe(PAPERS, "paper"),
    Recipe("weight 0.03", "weight", weight=0.03),
    Recipe("weight 0.01", "weight", weight=0.01),
    Recipe("means", "weight", reduction="mean"),
    Recipe("weight per unit 0.1", "weight per unit", per_unit=True),
    Recipe("weight per unit 0.03", "weight per unit", per_unit=True, weight=0.03),
    Recipe("weight per unit 0.01", "weight per unit", per_unit=True, weight=0.01),
    Recipe("threshold: median", "threshold", quantile=0.5),
    Recipe("threshold: 90 %", "threshold", quantile=0.9),
    Recipe("threshold: 99 %", "threshold", quantile=0.99),
    Recipe("best of 5 starts", "starts", n_starts=5),
    Recipe("jitter 2", "jitter", jitter=2),
    Recipe("jitter 5", "jitter", jitter=5),
    Recipe("prior 0.1", "prior", _PRIOR),
    Recipe("prior 0.03", "prior", _PRIOR, weight=0.03),
    Recipe("prior per unit 0.1", "prior", _PRIOR, per_unit=True),
    Recipe("prior per unit 0.03", "prior", _PRIOR, per_unit=True, weight=0.03),
    Recipe("prior per unit 0.01", "prior", _PRIOR, per_unit=True, weight=0.01),
    Recipe("weight per unit 0.03, best of 5", "together", per_unit=True, weight=0.03, n_starts=5),
    Recipe("prior per unit 0.1, best of 5", "together", _PRIOR, per_unit=True, n_starts=5),
    Recipe("prior per unit 0.03, best of 5", "together", _PRIOR, per_unit=True, weight=0.03, n_starts=5),
    Recipe("prior per unit 0.03, best of 5, jitter 2", "together", _PRIOR, 0.03, "sum", True, None, 5, 2),
    Recipe("prior per unit 0.03, best of 5, 90 %", "together", _PRIOR, 0.03, "sum", True, 0.9, 5),
)
BY_NAME = {r.name: r for r in RECIPES}

# ------------------------------------------------------------------------------------------------ ingredients


def window_prior(split: Split, floor: float = 1e-3) -> np.ndarray:
    """(time, time) matrix P of a norm sqrt(x' P x) in which real windows are short: inverse of their second moment.

    Scaled so that a real window costs on average what its L2 norm would. Directions in which real windows hold less
    than ``floor`` of the strongest one's power count as holding that much.
    """
    segments = split.segments.astype(np.float64)
    moment = segments.T @ segments / len(segments)
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


# ------------------------------------------------------------------------------------------------ the signals


def climb(
    network: Network, statistics: xr.Dataset, split: Split, recipe: Recipe, units: Sequence[int], cfg: Settings
) -> xr.Dataset:
    """Signals of one recipe: ``signal`` (G) and ``map`` over (layer, unit, time), and the ``start`` that was kept.

    ``statistics`` is (layer, unit) over all units. Steps, their size and the starting amplitude are those of the
    calibrated preset.
    """
    settings, length, units = cfg.maximization, split.length, list(units)
    starts = starting_points(settings, split, recipe.n_starts)
    prior = window_prior(split) if recipe.method.prior else None
    shared = paper_methods.penalty_weights(recipe.weight, recipe.reduction, length)
    device = torch_device(cfg.device)
    outputs = {}
    if recipe.quantile is not None:
        segments = split.segments
        some = np.random.default_rng(0).permutation(len(segments))[:N_PROBED]
        outputs = realism.largest_outputs(network.trunk, segments[some], device=device)
    parts = []
    for layer in network.trunk.layers:
        own = statistics["th_eap"].sel(layer=layer).values
        th = own if recipe.quantile is None else quantile_thresholds(outputs[layer], recipe.quantile)
        scale = np.nan_to_num(own[units], nan=1.0) if recipe.per_unit else np.ones(len(units))
        weights = {name: w * scale for name, w in shared.items()}
        weights["eap"] = np.full(len(units), shared["eap"])  # the excess is an output itself, in units of the objective
        rows = paper_methods.climbing_rows([recipe.method], units, th, weights, recipe.n_starts)
        found = ascent.climb(
            network.trunk, layer, rows, np.repeat(starts, len(units), axis=0), PRESETS["calibrated"],
            n_steps=settings.n_steps, record=(settings.n_steps,), tolerance_g=settings.tolerance_g,
            th_aap_g=settings.th_aap_g, prior=prior, jitter=recipe.jitter, device=device,
            workers=torch.get_num_threads() if device.type == "cpu" else 1,
        )  # fmt: skip
        best = found.history["objective"][:, 0].reshape(recipe.n_starts, len(units)).argmax(0)
        at = best * len(units) + np.arange(len(units))
        parts.append({"signal": found.signal[at], "map": found.map[at], "start": best})
    dims = {"signal": ("layer", "unit", "time"), "map": ("layer", "unit", "time"), "start": ("layer", "unit")}
    return xr.Dataset(
        {name: (dims[name], np.stack([part[name] for part in parts])) for name in dims},
        coords={"layer": list(network.trunk.layers), "unit": units},
    )


def signals(
    cfg: Settings,
    windows: Windows,
    networks: list[Network],
    statistics: xr.Dataset,
    recipes: Sequence[Recipe],
    units: Sequence[int],
) -> xr.Dataset:
    """Signals of all recipes, dims (seed, recipe, layer, unit, time); missing ones are made.

    One stored result per network and recipe.
    """
    bar = progress(total=len(networks) * len(recipes), desc="recipes", leave=False)
    stacked = []
    for net in networks:
        parts = []
        for recipe in recipes:

            def build(folder, net=net, recipe=recipe) -> None:
                made = climb(net, statistics.sel(seed=net.seed), windows.train, recipe, units, cfg)
                write_dataset(folder / "signals.nc", made)

            about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=net.seed)
            folder = STAGE.obtain(key(cfg, windows, net, recipe, units), build, about)
            parts.append(read_dataset(folder / "signals.nc").expand_dims(recipe=[recipe.name]))
            bar.update(1)
        stacked.append(xr.concat(parts, "recipe").expand_dims(seed=[net.seed]))
    bar.close()
    return xr.concat(stacked, "seed")


def key(cfg: Settings, windows: Windows, network: Network, recipe: Recipe, units: Sequence[int]) -> str:
    """Address of the signals of one network and recipe."""
    settings = [cfg.maximization, cfg.windows, recipe, list(units)]
    return STAGE.key(settings, unit_statistics.statistics_of.key(network, windows))


def measures(
    cfg: Settings, windows: Windows, networks: list[Network], statistics: xr.Dataset, made: xr.Dataset
) -> xr.Dataset:
    """Measures of notebook 08 for all recipes' signals: dims (seed, recipe, layer, unit)."""
    start, found = starting_signal(cfg.maximization, windows.train.length), []
    for net in networks:
        some, of_net = (of.sel(seed=net.seed, drop=True) for of in (made[["signal", "map"]], statistics))
        reference = realism.references_of(net, windows, of_net["th_eap"], cfg.similarity, device=cfg.device)
        one = realism.measure(some, of_net, net.trunk, windows.train, cfg.similarity, start, reference)
        found.append(one.expand_dims(seed=[net.seed]))
    return xr.concat(found, "seed")


# ---------------------------------------------------------------------------------------------- the two axes


def _pairs(values: xr.DataArray) -> np.ndarray:
    """(seed, layer and unit)."""
    return values.transpose("seed", "layer", "unit").values.reshape(values.sizes["seed"], -1)


def compare(measured: xr.Dataset, against: str = PAPERS) -> pd.DataFrame:
    """Every recipe beside the paper's method: means, paired differences with intervals and effect sizes, on both axes.

    ``beats`` says that both intervals lie above zero; ``surety`` is the smaller of the two differences in units of
    half its interval's width.
    """
    rows = []
    for name in measured["recipe"].values:
        row: dict = {"recipe": str(name), "family": BY_NAME[str(name)].family}
        sure = []
        for axis, of in realism.AXES.items():
            values = of(measured)
            ours, theirs = (_pairs(values.sel(recipe=n)) for n in (name, against))
            found = paired(ours, theirs)
            low, high = found.interval or (np.nan, np.nan)
            row |= {
                axis: float(np.nanmean(ours)),
                f"{axis} difference": found.mean,
                f"{axis} low": low,
                f"{axis} high": high,
                f"{axis} dominance": found.dominance,
            }
            sure.append(found.mean / ((high - low) / 2) if high > low else 0.0)
        row |= {"networks": found.n_networks, "pairs": found.n_pairs, "surety": min(sure)}
        row["beats"] = bool(row["activation low"] > 0 and row["nearness low"] > 0)
        rows.append(row)
    return pd.DataFrame(rows).set_index("recipe")


def choose(table: pd.DataFrame) -> str:
    """The recipe that is most surely better on both axes: the largest ``surety``; of equals the first."""
    return str(table["surety"].drop(PAPERS).idxmax())
