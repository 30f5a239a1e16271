"""What is timed is compared first: the engine beside plain loops, after one step, many, and full runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import ks_2samp
from torch import Tensor

from benchmarks import climbing
from harvis_utils.fast import ascent
from harvis_utils.maximization import paper_methods
from harvis_utils.metrics.signal_measures import flat, ranges
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.settings import PRESETS
from harvis_utils.training.supervised import Network


def largest(pairs: Iterable[tuple[str, Tensor, Tensor]]) -> dict[str, float]:
    """The largest difference under each name."""
    worst: dict[str, float] = defaultdict(float)
    for name, one, other in pairs:
        worst[name] = max(worst[name], float((one - other).abs().max()))
    return dict(worst)


def one_step(network: Network, th: xr.DataArray, n_axes: int, n_units: int = 3) -> dict:
    """Largest differences in G between the engine and the others after one step in float32."""

    def pairs():
        # folding the batch norm rounds to float32; of the trunk both sides get the folded weights
        trunk, whole = network.trunk, climbing.OnAllAxes(network.model, n_axes)
        others = {
            "float32": (climbing.layer_by_autograd, trunk),
            "whole_network": (climbing.one_at_a_time, whole),
            "lucent": (climbing.lucent_itself, whole),
        }
        for layer, (name, (run, net)) in product(trunk.layers, others.items()):
            task = climbing.live_units(layer, th, 1, n_units, dtype=torch.float32)
            try:
                yield f"{name}_one_step_g", climbing.engine(trunk, task), run(net, task)
            except ImportError:
                continue  # the table of times says so

    return largest(pairs())


def reordered(trunk: Trunk, layer: str, seed: int = 0) -> Trunk:
    """The same functions of ``layer``, the units of the layers before it in another order."""
    generator = torch.Generator().manual_seed(seed)
    weights, biases = list(trunk.weights), list(trunk.biases)
    for i in range(trunk.depth(layer) - 1):
        order = torch.randperm(len(biases[i]), generator=generator)
        weights[i], biases[i], weights[i + 1] = weights[i][order], biases[i][order], weights[i + 1][:, order]
    return Trunk(tuple(weights), tuple(biases))


def engine_path(trunk: Trunk, task: climbing.Task) -> Tensor:
    """The engine's signals at the start and after every step, (step, signal, time); a path for the plain loop."""
    method, step = paper_methods.METHODS[task.technique], PRESETS[task.preset]
    weights = paper_methods.penalty_weights(climbing.SETTINGS.weight, climbing.SETTINGS.reduction, climbing.LENGTH)
    rows = paper_methods.climbing_rows([method], task.units.tolist(), task.th.numpy(), weights)
    lowpass, block = climbing.LOWPASS.to(task.th), len(rows)
    rows = rows.to("cpu", task.th.dtype)
    chunk = ascent.Chunk(trunk, task.layer, rows, task.start, step, climbing.SETTINGS.th_aap_g, lowpass, block)
    path = [chunk.x.clone()]
    for number in range(task.n_steps):
        chunk.advance(number)
        path.append(chunk.x.clone())
    return torch.stack(path)


def by_method(network: Network, th: xr.DataArray, n_units: int = 10, n_steps: int = 200) -> dict:
    """Largest differences in G after ``n_steps`` in float64, for every method, over layers, presets and units.

    ``engine`` is the engine against :func:`climbing.plain_steps`; ``reordered`` is that loop against itself with its
    additions in another order, so what rounding alone does; ``step`` is the largest difference after any single one of
    these steps, the loop taking each from where the engine stands, so that rounding has no time to grow.
    """
    trunk = network.trunk.to("cpu", torch.float64)

    def pairs(technique: str):
        for layer, preset in product(trunk.layers, PRESETS):
            task = climbing.live_units(layer, th, n_steps, n_units, dtype=torch.float64)
            task = replace(task, technique=technique, preset=preset)
            loop, path = climbing.layer_by_autograd(trunk, task), engine_path(trunk, task)
            yield "engine", climbing.engine(trunk, task), loop
            yield "reordered", climbing.layer_by_autograd(reordered(trunk, layer), task), loop
            steps = climbing.plain_steps(task, climbing.layer_maps(trunk, task), path)
            for end, x in zip(path[1:], steps, strict=True):
                yield "step", end, x

    methods = {technique: largest(pairs(technique)) for technique in paper_methods.METHODS}
    return {"n_units": n_units, "n_steps": n_steps, "methods": methods}


def full_runs(network: Network, th: xr.DataArray, n_steps: int = 5000) -> dict:
    """Mean objective and failed signals after full float32 runs: the engine, and autograd's batch."""
    found: dict[str, dict] = {}
    for layer in network.trunk.layers:
        task = climbing.live_units(layer, th, n_steps, dtype=torch.float32)
        maps_of = climbing.layer_maps(network.trunk, task)
        both = {
            "engine": climbing.engine(network.trunk, task),
            "autograd": climbing.own_units_by_autograd(network.trunk, task),
        }
        found[layer] = {
            name: {
                "mean_objective": float(climbing.objective(x, maps_of(x), task).mean()),
                "failed": int((x.abs().amax(1) > 10).sum()),
            }
            for name, x in both.items()
        }
    return found


def by_device(trunk: Trunk, layer: str, one: xr.DataArray, other: xr.DataArray, live: np.ndarray) -> pd.DataFrame:
    """Signals (technique, unit, time) in G of the same network from two devices: a row for each technique.

    ``differ`` is the share of ``live`` units (unit,) whose signals differ by more than 0.01 G at any sample,
    ``largest`` that difference in G; then the share of flat ones on both, and p-values of two-sample
    Kolmogorov-Smirnov tests over units: of how far signals move (max - min), and of the mean outputs that they reach.
    """
    rows, units = [], np.flatnonzero(live)
    for technique in one["technique"].values:
        pair = [np.asarray(of.sel(technique=technique).values[units], np.float32) for of in (one, other)]
        moved = [ranges(x) for x in pair]
        reached = [trunk.feature_map(torch.tensor(x), layer)[range(len(x)), units].mean(1).numpy() for x in pair]
        apart = np.abs(pair[0] - pair[1]).max(1)
        row = {"technique": technique, "units": len(units), "differ": (apart > 0.01).mean(), "largest": apart.max()}
        row |= {f"flat, {name}": flat(x).mean() for name, x in zip(("first", "second"), pair, strict=True)}
        rows.append(row | {"p of movement": ks_2samp(*moved).pvalue, "p of output": ks_2samp(*reached).pvalue})
    return pd.DataFrame(rows)
