"""Chosen outputs of any network turned into the input that they speak of: deconvnet, guided and plain gradient.

The deconvnet keeps some activations of a layer, sets all others to zero and goes back to the input: unpool by the
switches, rectify, filter by the transposed filters (Zeiler and Fergus 2014, section 2.1). That is the backward pass
with another rule at the rectifiers (:mod:`harvis_utils.networks.backward`); max pooling's own already uses the
switches, and batch norm in evaluation mode is part of the filters.

Without max pooling there are no switches, and the projection of a given output is the same for every window: the window
decides only *where* and *how strongly* a unit speaks. What switches carry is told by others in their place.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.metrics.intervals import tabulated
from harvis_utils.metrics.similarity import correlation
from harvis_utils.networks import backward, taps
from harvis_utils.networks.sfhf import known
from harvis_utils.networks.taps import CHUNK, Tap
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network

#: what a projection does at a rectifier on its way back; None leaves the gradient as it is
RULES: dict[str, backward.Rule | None] = {"deconvnet": backward.deconvnet, "guided": backward.guided, "gradient": None}


def _random(h: Tensor) -> Tensor:
    """Equally likely places, the same in every call."""
    return torch.rand(h.shape, generator=torch.Generator().manual_seed(0)).to(h)


def _lent(h: Tensor) -> Tensor:
    """What the second half of a batch has, for the first half."""
    return h.roll(len(h) // 2, 0)


#: switches in place of a window's own, said behind a rule ("deconvnet, random switches"): places drawn at random, and
#: those of the window that stands a third of all windows before it
SWITCHES: dict[str, Callable[[Tensor], Tensor]] = {"random switches": _random, "another window's switches": _lent}
#: the deconvnet with the switches of the window itself, and with each of the others
SWITCHED = ("deconvnet", *(f"deconvnet, {name}" for name in SWITCHES))

#: maps (window, unit, axis, time) of some windows, and which of all these are, bool (window,) -> what goes back: the
#: maps' shape, zero wherever nothing is to be projected
Keep = Callable[[Tensor, Tensor], Tensor]

#: strongest activations shown of a unit; Paper: nine (Fig. 2)
N_TOP = 9
#: Choice: at most so many training windows are searched for the strongest activations
N_SEARCHED = 8000


def strongest(n: int = 1) -> Keep:
    """Keep the ``n`` strongest activations of the whole layer in each window, with their values."""

    def keep(maps: Tensor, seen: Tensor) -> Tensor:
        flat = maps.flatten(1)
        found = flat.topk(min(n, flat.shape[1]), dim=1)
        return torch.zeros_like(flat).scatter(1, found.indices, found.values).view_as(maps)

    return keep


def places(units: Sequence[int], *axes_and_times: Sequence[int]) -> Keep:
    """Keep one activation per window: of the given unit, axis and time step; of units alone, their whole maps."""

    def keep(maps: Tensor, seen: Tensor) -> Tensor:
        at = (torch.arange(len(maps)), *(_own(i, seen) for i in (units, *axes_and_times)))
        return torch.zeros_like(maps).index_put(at, maps[at])

    return keep


def classes(index: Sequence[int]) -> Keep:
    """Keep 1 at one class per window: projects the score itself, whatever its sign."""

    def keep(maps: Tensor, seen: Tensor) -> Tensor:
        return torch.zeros_like(maps).index_put((torch.arange(len(maps)), _own(index, seen)), maps.new_ones(()))

    return keep


def _own(of_all: Sequence[int], seen: Tensor) -> Tensor:
    """What the windows that are ``seen`` have of one value for each window; ``ValueError`` for more or fewer values."""
    if len(of_all) != len(seen):
        raise ValueError(f"what is kept is said for {len(of_all)} windows, but {len(seen)} are projected")
    return torch.as_tensor(of_all if isinstance(of_all, Tensor) else np.asarray(of_all)).cpu()[seen]


def project(network: nn.Module, tap: str | Tap, x: np.ndarray | Tensor, keep: Keep, rule: str = "deconvnet") -> Tensor:
    """What of the input the kept outputs of a layer speak of, (window, axis, time), for windows of that shape in G.

    ``keep`` gets the layer's maps, ``CHUNK`` windows at once, and which windows these are, and returns what goes back;
    ``rule`` is one of ``RULES``, with one of ``SWITCHES`` behind it where max pooling is to be undone by others than
    the window's own. The network is used in evaluation mode and left as it was. Raises ``ValueError`` for an unknown
    layer or rule, listing the valid ones, for a ``keep`` of another shape or of other windows, where nothing leads from
    the layer back to the input, and for a rule other than "gradient" where more than rectifiers and linear layers lies
    between them.
    """
    rule, _, switched = rule.partition(", ")
    place, rectify = taps.find(network, tap), RULES[known("rule", rule, RULES)]
    guide = SWITCHES[known("set of switches", switched, SWITCHES)] if switched else None
    found, which, x = [], torch.arange(len(x)) // CHUNK, torch.as_tensor(x)
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    lent = x.roll(max(1, len(x) // 3), 0).split(CHUNK)
    with (
        taps.evaluating(network),
        backward.rectifiers(rectify) if rectify else nullcontext(),
        backward.switches(guide) if guide else nullcontext(),
    ):
        for chunk, batch in enumerate(x.split(CHUNK)):
            batch = batch.clone().requires_grad_(True)
            with torch.enable_grad():
                both = torch.cat([batch, lent[chunk]]) if guide is _lent else batch
                maps = taps.maps_of(network, place, both)[: len(batch)]
            if rectify:
                backward.refuse_others(maps, place.name)
            back = keep(maps.detach(), which == chunk)
            if back.shape != maps.shape:
                raise ValueError(f"keep returned {tuple(back.shape)}, but {place.name} has maps {tuple(maps.shape)}")
            found.append(backward.gradient_of(maps, batch, back).cpu())
    return torch.cat(found)


def top_of_layers(
    network: nn.Module, layers: Sequence[str | Tap], split: Split, n: int = N_TOP
) -> dict[str, xr.Dataset]:
    """The ``n`` strongest activations of every unit of some layers, by the layers' names, with where they are.

    Dims (unit, rank): ``window`` (index into the split), ``axis``, ``time`` (of the maps), ``value``. Paper: over all
    windows and places; Choice: at most one of each recording, because the next strongest would be the same movement
    half a window later. Fewer recordings than ``n`` give fewer ranks.
    """
    parts: dict[str, list[Tensor]] = {}
    for maps in taps.chunks(network, layers, split.x):
        for name, of in maps.items():
            value, at = of.flatten(2).max(dim=2)
            parts.setdefault(name, []).append(torch.stack([value, *torch.unravel_index(at, of.shape[2:])]).cpu())
    return {name: _top(*torch.cat(of, 1).numpy(), split.recording, n) for name, of in parts.items()}


def _top(value: np.ndarray, axis: np.ndarray, time: np.ndarray, recording: np.ndarray, n: int) -> xr.Dataset:
    """Out of every unit's largest activation in each window and where it is, (window, unit) each."""
    inside, units = [np.flatnonzero(recording == r) for r in np.unique(recording)], np.arange(value.shape[1])
    window = np.stack([own[value[own].argmax(0)] for own in inside])  # of each recording, what excites a unit most
    order = np.argsort(-value[window, units], axis=0, kind="stable")[:n]
    window = np.take_along_axis(window, order, 0).T
    at = window, units[:, None]
    found = {"window": window, "axis": axis[at].astype(int), "time": time[at].astype(int), "value": value[at]}
    return xr.Dataset({name: (("unit", "rank"), of) for name, of in found.items()}, coords={"unit": units})


def project_top(
    network: nn.Module, tap: str | Tap, split: Split, top: xr.Dataset, rules: Sequence[str] = tuple(RULES)
) -> xr.Dataset:
    """``top`` with ``projection`` (rule, unit, rank, axis, time) and the windows that caused them, ``signal`` in G."""
    signal, dims = split.x[top["window"].values], ("unit", "rank", "input_axis", "sample")
    x, units = signal.reshape(-1, *signal.shape[2:]), top["unit"].values.repeat(signal.shape[1])
    axis, time = (top[name].values.reshape(-1) for name in ("axis", "time"))
    back = [project(network, tap, x, places(units, axis, time), rule).numpy() for rule in rules]
    projection = np.reshape(back, (len(rules), *signal.shape))
    return top.assign(signal=(dims, signal), projection=(("rule", *dims), projection)).assign_coords(rule=list(rules))


def in_samples(network: nn.Module, tap: str | Tap, top: xr.Dataset, example: np.ndarray) -> xr.Dataset:
    """``top`` with its ``time`` in samples of windows like ``example`` (window, axis, time), also of shorter maps."""
    if taps.outputs(network, tap, example[:1]).shape[3] == example.shape[2]:
        return top
    at = (taps.positions(network, tap, example) + 0.5).clip(0, example.shape[2] - 1).astype(int)
    return top.assign(time=(top["time"].dims, at[top["time"].values]))


def searched(split: Split, at_most: int = N_SEARCHED) -> Split:
    """Every n-th window of a split, so that no more than ``at_most`` are left."""
    return split.every(-(-len(split) // at_most))


@kept("projections")
def projections(network: Network, windows: Windows, rules: Sequence[str] = tuple(RULES)) -> xr.Dataset:
    """:func:`project_top` of all units of SF-HF's layers, dims (layer, ...), over :func:`searched` training windows.

    Of other networks with ``layers`` too; ``time`` is in samples of the window.
    """
    split, model = searched(windows.train), network.model
    top = top_of_layers(model, model.layers, split)
    parts = [in_samples(model, la, project_top(model, la, split, of, rules), split.x[:8]) for la, of in top.items()]
    return xr.concat(parts, pd.Index(top, name="layer"))


def middling(found: xr.Dataset) -> xr.Dataset:
    """Of :func:`projections` one unit of middling strength a layer: dims (layer, rank[, rule], sample).

    ``signal``, its mean taken off, and ``projection`` are those of the axis that the activation is on.
    """
    unit = found["value"].isel(rank=0).argsort(axis=1)[:, found.sizes["unit"] // 2].drop_vars("unit")
    own = found.isel(unit=unit).transpose("layer", "rank", ...)
    own = own.isel(input_axis=own["axis"].astype(int))
    return own.assign(signal=own["signal"] - own["signal"].mean("sample"))


def around(values: np.ndarray, top: xr.Dataset, mixed: bool = False) -> np.ndarray:
    """Each activation's own axis, moved so that the activation's time step is in the middle: (..., sample).

    ``values`` is (..., axis, sample), ``top`` has ``time`` of the leading dimensions, in samples of the window; samples
    beyond the window are 0. The largest value lies on the activation's axis where the layer keeps axes apart; for
    ``mixed`` ones all axes are moved: (..., axis, sample).
    """
    length = values.shape[-1]
    if not mixed:
        axis = np.abs(values).max(-1, keepdims=True).argmax(-2, keepdims=True)
        values = np.take_along_axis(values, axis, -2)
    moved = np.zeros((*values.shape[:-1], 2 * length - 1), values.dtype)
    at = length - 1 - top["time"].values[..., None, None] + np.arange(length)
    np.put_along_axis(moved, at, values, -1)
    return moved if mixed else moved[..., 0, :]


def likeness(values: np.ndarray) -> np.ndarray:
    """How alike the projections of a unit's strongest activations are, or the windows themselves: (...).

    ``values`` is (..., rank, time) around the activation. Mean Pearson correlation over pairs of ranks; NaN where a
    unit has fewer than two that are not constant. Zeiler and Fergus: projections vary less than windows (Fig. 2).
    """
    first, second = np.triu_indices(values.shape[-2], 1)
    pairs = correlation(values.take(first, -2), values.take(second, -2))
    there = (~np.isnan(pairs)).sum(-1)
    return np.divide(np.nansum(pairs, -1), there, out=np.full(there.shape, np.nan), where=there > 0)


def likeness_table(found: Mapping[str, Sequence[xr.Dataset]]) -> pd.DataFrame:
    """:func:`likeness` of several kinds of networks' :func:`projections`: one row per kind and layer, with intervals.

    Columns "projections, RULE" and "windows", means over units.
    """
    tables = {}
    for kind, of in found.items():
        own = xr.concat(of, "seed")
        values = {f"projections, {rule}": own["projection"].sel(rule=rule) for rule in RULES}
        values["windows"] = own["signal"]
        alike = {name: likeness(around(value.values, own)) for name, value in values.items()}
        dims, layers = ("seed", "layer", "unit"), {"layer": own["layer"].values}
        tables[kind] = tabulated({name: xr.DataArray(v, layers, dims) for name, v in alike.items()}, "layer")
    return pd.concat(tables, names=["network"])
