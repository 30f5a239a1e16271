"""Chosen outputs of any network turned into the input that they speak of: deconvnet, guided and plain gradient.

The deconvnet keeps some activations of a layer, sets all others to zero and goes back to the input: unpool by the
switches, rectify, filter by the transposed filters (Zeiler and Fergus 2014, section 2.1). That is the backward pass of
the network with another rule at its rectifiers, which :mod:`harvis_utils.networks.backward` puts in their place; max
pooling's own backward pass already uses the switches, and batch norm in evaluation mode is part of the filters.

A network without max pooling has no switches. Its projection of a given output is then the same for every window: the
window decides only *where* and *how strongly* a unit speaks, not what comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.networks import backward, taps
from harvis_utils.networks.taps import Tap
from harvis_utils.settings import Settings
from harvis_utils.store import stages
from harvis_utils.store.files import read_dataset, write_dataset
from harvis_utils.training.supervised import Network

STAGE = stages.Stage(
    "projections",
    notebook="12_deconvnet",
    modules=("data.windowing", "networks.sfhf", "networks.taps", "networks.backward", "lenses.deconvnet"),
)

#: what a projection does at a rectifier on its way back; None leaves the gradient as it is
RULES: dict[str, backward.Rule | None] = {
    "deconvnet": backward.deconvnet,
    "guided": backward.guided,
    "gradient": None,
}

#: maps (window, unit, axis, time) -> what goes back: the same shape, zero wherever nothing is to be projected
Keep = Callable[[Tensor], Tensor]

#: strongest activations shown of a unit; Paper: nine (Fig. 2)
N_TOP = 9
#: Choice: at most so many training windows are searched for the strongest activations
N_SEARCHED = 8000
#: windows pushed through a network at once
BATCH = 512


# ---------------------------------------------------------------------------------------------- what goes back


def strongest(n: int = 1) -> Keep:
    """Keep the ``n`` strongest activations of the whole layer in each window, with their values."""

    def keep(maps: Tensor) -> Tensor:
        flat = maps.flatten(1)
        found = flat.topk(min(n, flat.shape[1]), dim=1)
        return torch.zeros_like(flat).scatter(1, found.indices, found.values).view_as(maps)

    return keep


def places(units: Sequence[int], axes: Sequence[int], times: Sequence[int]) -> Keep:
    """Keep one activation per window, of the given unit, axis and time step (one of each per window)."""

    def keep(maps: Tensor) -> Tensor:
        at = (torch.arange(len(maps)), *(torch.as_tensor(np.asarray(i)) for i in (units, axes, times)))
        kept = torch.zeros_like(maps)
        kept[at] = maps[at]
        return kept

    return keep


def whole_maps(units: Sequence[int]) -> Keep:
    """Keep the whole map of one unit per window."""

    def keep(maps: Tensor) -> Tensor:
        chosen = torch.zeros(maps.shape[:2], dtype=torch.bool)
        chosen[torch.arange(len(maps)), torch.as_tensor(np.asarray(units))] = True
        return maps * chosen[:, :, None, None].to(maps.device)

    return keep


def classes(index: Sequence[int]) -> Keep:
    """Keep 1 at one class per window: projects the score itself, whatever its sign."""

    def keep(maps: Tensor) -> Tensor:
        return torch.zeros_like(maps).index_put((torch.arange(len(maps)), torch.as_tensor(index)), maps.new_ones(()))

    return keep


def project(network: nn.Module, tap: str | Tap, x: np.ndarray | Tensor, keep: Keep, rule: str = "deconvnet") -> Tensor:
    """What of the input the kept outputs of a layer speak of, (window, axis, time), for windows of that shape in G.

    ``keep`` gets the layer's maps and returns what goes back; ``rule`` is one of ``RULES``. The network is used in
    evaluation mode and left as it was. Raises ``ValueError`` for an unknown layer or rule, listing the valid ones, for
    a ``keep`` of another shape, and where nothing leads from the layer back to the input.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; valid rules: {', '.join(RULES)}")
    place, rectify = taps.find(network, tap), RULES[rule]
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    found = []
    with taps.evaluating(network), backward.rectifiers(rectify) if rectify else nullcontext():
        for batch in torch.as_tensor(x).split(BATCH):
            batch = batch.to(device).clone().requires_grad_(True)
            with torch.enable_grad():
                maps = taps.maps_of(network, place, batch)
            kept = keep(maps.detach())
            if kept.shape != maps.shape:
                raise ValueError(f"keep returned {tuple(kept.shape)}, but {place.name} has maps {tuple(maps.shape)}")
            (gradient,) = torch.autograd.grad(maps, batch, kept)
            found.append(gradient.cpu())
    return torch.cat(found)


# ------------------------------------------------------------------------------------------ strongest activations


def top_activations(network: nn.Module, tap: str | Tap, split: Split, n: int = N_TOP) -> xr.Dataset:
    """The ``n`` strongest activations of every unit, at most one of each recording, with where they are.

    Dims (unit, rank): ``window`` (index into the split), ``axis``, ``time`` (of the maps), ``value``. Fewer recordings
    than ``n`` give fewer ranks. Paper: over all windows and places; Choice: of different recordings, because the next
    strongest of all would be the same movement half a window later.
    """
    return next(iter(top_of_layers(network, [tap], split, n).values()))


def top_of_layers(
    network: nn.Module, layers: Sequence[str | Tap], split: Split, n: int = N_TOP
) -> dict[str, xr.Dataset]:
    """:func:`top_activations` of several layers by their taps' names, with one pass over the windows."""
    return {
        name: _top(value, place, shape, split.recording, n)
        for name, (value, place, shape) in _window_maxima(network, layers, split).items()
    }


def _top(value: np.ndarray, place: np.ndarray, shape: tuple, recording: np.ndarray, n: int) -> xr.Dataset:
    """``value`` and ``place`` are (window, unit): the largest activation and its flat index in maps of ``shape``."""
    n_units, n_axes, n_time = shape
    units = np.arange(n_units)
    recordings, first = np.unique(recording, return_inverse=True)
    window = np.zeros((len(recordings), n_units), np.int64)  # of each recording, the window that excites a unit most
    for r in range(len(recordings)):
        inside = np.flatnonzero(first == r)
        window[r] = inside[value[inside].argmax(0)]
    order = np.argsort(-value[window, units], axis=0, kind="stable")[:n]
    chosen = np.take_along_axis(window, order, 0).T  # (unit, rank)
    at = place[chosen, units[:, None]]
    return xr.Dataset(
        {
            "window": (("unit", "rank"), chosen),
            "axis": (("unit", "rank"), at // n_time % n_axes),
            "time": (("unit", "rank"), at % n_time),
            "value": (("unit", "rank"), value[chosen, units[:, None]]),
        },
        coords={"unit": units},
    )


def _window_maxima(network: nn.Module, layers: Sequence[str | Tap], split: Split) -> dict[str, tuple]:
    """By layer: every unit's largest activation in every window (window, unit), its flat place, the maps' shape."""
    found = [taps.find(network, layer) for layer in layers]
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    parts: dict[str, list] = {tap.name: [] for tap in found}
    shapes = {}
    with taps.evaluating(network), torch.no_grad(), taps.record(network, found) as maps:
        for batch in torch.as_tensor(split.x).split(BATCH):
            network(batch.to(device))
            for name, of in maps.items():
                largest = of.flatten(2).max(dim=2)
                parts[name].append((largest.values.cpu().numpy(), largest.indices.cpu().numpy()))
                shapes[name] = tuple(of.shape[1:])
    return {name: (*map(np.concatenate, zip(*of, strict=True)), shapes[name]) for name, of in parts.items()}


def project_top(
    network: nn.Module, tap: str | Tap, split: Split, top: xr.Dataset, rules: Sequence[str] = tuple(RULES)
) -> xr.Dataset:
    """``top`` with ``projection`` (rule, unit, rank, axis, time) and the windows that caused them, ``signal`` in G."""
    unit, rank = top["window"].shape
    flat = {name: top[name].values.reshape(-1) for name in ("window", "axis", "time")}
    x = split.x[flat["window"]]
    units = np.repeat(np.arange(unit), rank)

    def found(rule: str) -> np.ndarray:
        begun = []
        for begin in range(0, len(x), BATCH):
            some = slice(begin, begin + BATCH)
            keep = places(units[some], flat["axis"][some], flat["time"][some])
            begun.append(project(network, tap, x[some], keep, rule).numpy())
        return np.concatenate(begun).reshape(unit, rank, *x.shape[1:])

    dims = ("unit", "rank", "input_axis", "sample")
    return top.assign(
        signal=(dims, x.reshape(unit, rank, *x.shape[1:])),
        projection=(("rule", *dims), np.stack([found(rule) for rule in rules])),
    ).assign_coords(rule=list(rules))


# ------------------------------------------------------------------------------------------------- stored results


def projections(cfg: Settings, windows: Windows, network: Network) -> xr.Dataset:
    """:func:`project_top` of all units of SF-HF's layers, dims (layer, ...), over the training windows.

    Choice: of more than ``N_SEARCHED`` training windows, every n-th; ``window`` counts in :func:`searched`. One stored
    result per network.
    """

    def build(part: Path) -> None:
        split = searched(windows.train, N_SEARCHED)
        top = top_of_layers(network.model, network.model.layers, split)
        found = [project_top(network.model, la, split, of).expand_dims(layer=[la]) for la, of in top.items()]
        write_dataset(part / "top.nc", xr.concat(found, "layer"))

    about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=network.seed)
    key = STAGE.key([N_TOP, N_SEARCHED, list(RULES)], windows.digest, network.key)
    return read_dataset(STAGE.obtain(key, build, about) / "top.nc")


def searched(split: Split, at_most: int) -> Split:
    """Every n-th window of a split, so that no more than ``at_most`` are left."""
    return split.every(-(-len(split) // at_most))


def around(values: np.ndarray, top: xr.Dataset) -> np.ndarray:
    """Each activation's own axis, moved so that the activation's time step is in the middle: (..., sample).

    ``values`` is (..., axis, sample), ``top`` has ``axis`` and ``time`` of the leading dimensions; samples beyond the
    window are 0. For layers that keep axes apart and have the input's length; else the axis with the largest value and
    the window as it is.
    """
    n_axes, length = values.shape[-2:]
    flat = values.reshape(-1, n_axes, length)
    time = np.asarray(top["time"].values).reshape(-1)
    axis = np.abs(flat).max(2).argmax(1)
    moved = np.zeros((len(flat), 2 * length - 1), flat.dtype)
    at = length - 1 - time[:, None] + np.arange(length)
    np.put_along_axis(moved, at, flat[np.arange(len(flat)), axis], 1)
    return moved.reshape(*values.shape[:-2], -1)


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation along the last axis, NaN where either is constant; shapes broadcast."""
    first, second = (np.asarray(v, dtype=np.float64) for v in (first, second))
    a, b = (v - v.mean(-1, keepdims=True) for v in (first, second))
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    product = (a * b).sum(-1)
    known = np.isfinite(scale) & (scale > 1e-12)
    return np.divide(product, scale, out=np.full(product.shape, np.nan), where=known)


def likeness(projection: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """How alike the projections of a unit's strongest activations are, and the windows themselves: (unit,) each.

    Both (unit, rank, time) around the activation. Mean Pearson correlation over pairs of ranks; NaN where a unit has
    fewer than two that are not constant. Zeiler and Fergus show projections to vary less than the windows (Fig. 2).
    """
    return np.stack([_mean_correlation(values) for values in (projection, signal)])


def _mean_correlation(values: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(values.shape[1], 1)
    pairs = correlation(values[:, first], values[:, second])
    known = (~np.isnan(pairs)).sum(1)
    return np.divide(np.nansum(pairs, 1), known, out=np.full(len(values), np.nan), where=known > 0)
