"""Backward slopes on all units of SF-HF: step sizes chosen on networks of their own, then every unit of the others.

A signal is one sensor axis, as everywhere in this project. The gradient is written out (autograd with rectifiers
caught one by one takes several times as long); ``tests/test_lens_slopes.py`` holds the autograd version beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from harvis_utils.data.windowing import Windows
from harvis_utils.fast import ascent
from harvis_utils.lenses import slopes
from harvis_utils.lenses.slopes import SLOPES, Ascent
from harvis_utils.maximization import unit_statistics
from harvis_utils.maximization.starting import chosen_units, starting_points
from harvis_utils.networks.sfhf import SFHF, Trunk
from harvis_utils.parallel import progress, workers
from harvis_utils.settings import Settings, Step
from harvis_utils.store import stages
from harvis_utils.store.files import read_dataset, write_dataset
from harvis_utils.training.supervised import Network

STAGE = stages.Stage(
    "slopes",
    notebook="13_slopes",
    modules=(
        "data.windowing",
        "networks.sfhf",
        "fast.ascent",
        "maximization.paper_methods",
        "metrics.similarity",
        "paper.variants",
        "networks.taps",
        "networks.backward",
        "lenses.slopes",
        "lenses.slopes_sfhf",
    ),
)

#: step sizes tried: from clearly too small to clearly too large in G
STEP_SIZES = {"ascent": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0), "adam": (0.01, 0.03, 0.1, 0.3, 1.0)}
DECAY = 0.99  # Choice: steps end at about a tenth of their size
#: Choice: where nothing bounds the signal, one step for all slopes (not the calibrated preset's), because a larger one
#: always gets higher
FREE = Step("adam", 0.1, 0.995)


@dataclass(frozen=True)
class Budget:
    """How long and from how many starting points every unit is climbed; fewer where step sizes are chosen."""

    n_steps: int
    n_starts: int  # of starting_points


#: Choice: enough that the curves are flat at their end (notebook 13 shows it), and all of DSADS takes some minutes
BUDGETS = {"quick": Budget(60, 3), "desk": Budget(200, 5), "paper": Budget(1000, 5)}

# -------------------------------------------------------------------------------------- one network, one layer


class SingleAxis(nn.Module):
    """SF-HF up to a layer as a network of its own, for signals (signal, time); its units are those of ``maps``."""

    def __init__(self, model: SFHF, layer: str):
        super().__init__()
        self.model, self.layer, self.maps = model, layer, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(self.model.feature_maps(x[:, None], self.layer)[self.layer])


def _leaked(g: Tensor, h: Tensor, slope: float) -> Tensor:
    """Gradient ``g`` of a rectified output ``h``: where that is 0 the rectifier was closed."""
    return torch.ops.aten.leaky_relu_backward(g, h, slope, False) if slope else ascent._rectified(g, h)


class SlopedMaps(ascent.UnitMaps):
    """Map of one unit per row, and the way back through rectifiers of another slope below zero."""

    def __init__(self, trunk: Trunk, layer: str, unit: Tensor, slope: float):
        super().__init__(trunk, layer, unit)
        self.slope = slope

    def backward(self, g: Tensor) -> Tensor:
        """As in :class:`harvis_utils.fast.ascent.UnitMaps`, except for what comes back through closed rectifiers."""
        if self.depth == 1:
            return ascent._gather(self.own_back * g[:, None])
        taps = self.own.shape[1]
        padded = torch.nn.functional.pad(g, ascent._half(taps))
        g = torch.bmm(padded.unfold(1, taps, 1).contiguous(), self.own_back)
        for h, w in zip(reversed(self.hidden[1:]), reversed(self.back), strict=True):
            g = ascent._convolve(_leaked(g, h, self.slope), w)
        g = _leaked(g, self.hidden[0], self.slope)
        taps = (self.first_back @ g.reshape(-1, g.shape[2]).T).view(-1, *g.shape[:2])
        return ascent._gather(taps.transpose(0, 1))


@torch.inference_mode()
def climb(
    trunk: Trunk,
    layer: str,
    unit: Tensor,
    start: Tensor,
    slope: float,
    step: Step,
    n_steps: int,
    bound: float | None = None,
    block_bytes: int = ascent.CPU_BLOCK_BYTES,
) -> Ascent:
    """Climb each row's ``unit`` (row,) of a layer from ``start`` (row, time) in G under one backward slope."""
    size = ascent.block_rows(trunk, layer, start.shape[1], start.dtype, block_bytes)
    parts = []
    for at in range(0, len(start), size):
        maps = SlopedMaps(trunk, layer, unit[at : at + size], slope)

        def field(x: Tensor, maps=maps) -> tuple[Tensor, Tensor]:
            out = maps.forward(x)
            return out.mean(1), maps.backward(_leaked(torch.full_like(out, 1 / out.shape[1]), out, slope))

        parts.append(slopes.ascend(field, start[at : at + size], step, n_steps, bound))
    return Ascent(*(torch.cat([getattr(p, name) for p in parts]) for name in ("curve", "best", "last")))


# ------------------------------------------------------------------------------------------ all units and slopes


def climb_all(
    trunk: Trunk,
    steps: Mapping[float, Step],
    starts: np.ndarray,
    n_steps: int,
    bound: float | None,
    units: Sequence[int] | None = None,
) -> xr.Dataset:
    """All layers, ``units`` (None: all) and ``starts`` (start, time) under each slope of ``steps``, with its own step.

    Returns over (layer, slope, start, unit): ``maximum``; ``until``, the first step at 95 % of the highest value that
    any slope and start gave this unit (inf: never); ``signal`` (also time) in G; ``curve`` (also step). With a bound
    also ``at_bounds``, the share of its samples there, and ``one_sided``, whether all are at the same one. ``at_start``
    is (layer, start, unit).
    """
    layers = trunk.layers
    counts = {layer: len(trunk.biases[trunk.depth(layer) - 1]) for layer in layers}
    units = list(range(min(counts.values())) if units is None else units)
    n_starts, length = starts.shape
    # rows are (start, unit)
    x = torch.tensor(np.repeat(starts, len(units), axis=0))
    unit = torch.tensor(units).repeat(n_starts)
    jobs = [(layer, slope) for layer in layers for slope in steps]

    def one(job: tuple[str, float]) -> Ascent:
        return climb(trunk, job[0], unit, x, job[1], steps[job[1]], n_steps, bound)

    with workers() as pool:
        found = list(pool.map(one, jobs))
    shape = (len(layers), len(steps), n_starts, len(units))
    curve = np.stack([a.curve.numpy() for a in found]).reshape(*shape, n_steps + 1)
    signal = np.stack([a.best.numpy() for a in found]).reshape(*shape, length)
    maximum = curve[..., -1]
    target = slopes.REACHED * maximum.max((1, 2), keepdims=True)
    until = slopes.steps_until(curve, np.broadcast_to(target, shape))
    dims = ("layer", "slope", "start", "unit")
    arrays = {
        "maximum": (dims, maximum),
        "until": (dims, np.where(target > 0, until, np.nan)),  # a dead unit is nowhere
        "signal": ((*dims, "time"), signal),
        "curve": ((*dims, "step"), curve),
        "at_start": (("layer", "start", "unit"), curve[:, 0, :, :, 0]),
    }
    if bound is not None:
        arrays |= {
            "at_bounds": (dims, slopes.at_bounds(signal, bound)),
            "one_sided": (dims, slopes.one_sided(signal, bound)),
        }
    return xr.Dataset(arrays, {"layer": list(layers), "slope": list(steps), "unit": units})


def climbs(
    cfg: Settings, windows: Windows, networks: list[Network], steps: Mapping[float, Step], bound: float | None
) -> xr.Dataset:
    """:func:`climb_all` for all networks and units, dims (seed, layer, slope, start, unit); missing ones are made.

    One stored result per network, slopes and bound; of the curve only :func:`kept_steps`.
    """
    budget = BUDGETS[cfg.profile]
    starts = starting_points(cfg.maximization, windows.train, budget.n_starts)
    found = []
    for net in progress(networks, desc="slopes", leave=False):

        def build(folder, net=net) -> None:
            made = climb_all(net.trunk, steps, starts, budget.n_steps, bound)
            kept = kept_steps(budget.n_steps)
            write_dataset(folder / "climbs.nc", made.isel(step=kept).assign_coords(step=kept))

        about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=net.seed)
        folder = STAGE.obtain(key(cfg, windows, net, steps, bound), build, about)
        found.append(read_dataset(folder / "climbs.nc").expand_dims(seed=[net.seed]))
    return xr.concat(found, "seed")


def key(
    cfg: Settings, windows: Windows, network: Network, steps: Mapping[float, Step], bound: float | None, *more
) -> str:
    """Address of the climbs of one network."""
    settings = [BUDGETS[cfg.profile], cfg.maximization.start_amplitude_g, cfg.maximization.start_periods]
    settings += [sorted(steps), [steps[slope] for slope in sorted(steps)], bound, *more]
    return STAGE.key(settings, unit_statistics.statistics_of.key(network, windows))


def kept_steps(n_steps: int, n: int = 30) -> list[int]:
    """The start, the end and about ``n`` steps between, evenly spaced in log time."""
    return sorted({0, n_steps, *np.unique(np.geomspace(1, max(n_steps, 1), n).astype(int)).tolist()})


# --------------------------------------------------------------------------------------------- choosing the steps


@dataclass(frozen=True)
class Chosen:
    """The step of each slope, and ``table``: the score of every optimizer and step size (row) under every slope."""

    steps: dict[float, Step]
    table: pd.DataFrame


def choose_steps(cfg: Settings, windows: Windows, networks: list[Network], bound: float) -> Chosen:
    """One step size per slope, chosen on ``networks`` that are judged nowhere.

    The score of a setting is how high it comes, as a share of the highest that any setting under any slope reached for
    that unit, mean over starts, units and networks. The optimizer is the one under which plain ascent scores best, so
    that what it is compared with is never handicapped; then each slope takes the step size that scores best for it.
    """
    budget = BUDGETS[cfg.profile]
    starts = starting_points(cfg.maximization, windows.train, budget.n_starts)
    units = chosen_units(cfg.model.n_units, cfg.readings.n_units)
    tried = [Step(optimizer, size, DECAY) for optimizer, sizes in STEP_SIZES.items() for size in sizes]
    maxima = []
    for net in progress(networks, desc="step sizes", leave=False):

        def build(folder, net=net) -> None:
            made = [
                climb_all(net.trunk, dict.fromkeys(SLOPES, step), starts, budget.n_steps, bound, units)["maximum"]
                for step in tried
            ]
            write_dataset(folder / "maxima.nc", xr.concat(made, "tried").to_dataset(name="maximum"))

        about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=net.seed)
        where = key(cfg, windows, net, dict.fromkeys(SLOPES, tried[0]), bound, tried, units)
        folder = STAGE.obtain(where, build, about)
        maxima.append(read_dataset(folder / "maxima.nc")["maximum"])
    joined = xr.concat(maxima, "network")
    highest = joined.max(("tried", "slope", "start"))
    share = (joined / highest.where(highest > 0)).mean(("network", "layer", "start", "unit"))
    labels = pd.MultiIndex.from_tuples([(t.optimizer, t.step_size) for t in tried], names=["optimizer", "step size"])
    table = pd.DataFrame(share.transpose("tried", "slope").values, labels, pd.Index(SLOPES, name="backward slope"))
    optimizer = str(table[SLOPES[0]].idxmax()[0])
    best = table.loc[optimizer].idxmax()
    return Chosen({slope: Step(optimizer, float(best[slope]), DECAY) for slope in SLOPES}, table)
