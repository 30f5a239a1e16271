"""Units and concepts turned into IoU: network dissection (Bau, Zhou et al. 2017, section 2) for sensor windows.

A unit's *mask* are the samples where its output is among the largest 0.5 % of all it gives. It stands for a concept as
far as its mask and the concept's overlap: intersection over union (IoU), counted over all windows, axes and times. A
unit *detects* the concept with the largest IoU where that exceeds a threshold: 0.04 as in the source, or what the best
of as many concepts reaches by chance. A layer's *unique detectors* are the different concepts its units detect.

Units that see one axis at a time are compared axis by axis. Where a layer has merged the axes, its maps have one axis,
and a concept holds at a time where it holds on any axis.

An IoU cannot exceed the share of the smaller mask in the larger one. A concept that holds at more than 12.5 % of the
samples therefore has no detector at 0.04, whatever units do: :func:`ceiling`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from harvis_utils.metrics.intervals import interval
from harvis_utils.metrics.recovery import chance_point
from harvis_utils.networks import taps
from harvis_utils.networks.taps import CHUNK, Tap

#: Paper (Bau, Zhou et al. 2017, section 2.3): share of outputs above T_k, and the IoU from which a unit is a detector
SHARE, DETECTOR_IOU = 0.005, 0.04


#: maps (window, unit, axis, time) chunk by chunk, the same ones in the same order at every call
Stream = Callable[[], Iterator[Tensor]]


# --------------------------------------------------------------------------------------------------- outputs


def stream(network: nn.Module, layer: str | Tap, x: np.ndarray, device: torch.device | str = "cpu") -> Stream:
    """The maps of a layer for windows (window, axis, time), computed anew at each call; the network stays as it is."""

    def maps() -> Iterator[Tensor]:
        for begin in range(0, len(x), CHUNK):
            with taps.evaluating(network), torch.no_grad():  # closed before the chunk is handed over
                found = taps.maps_of(network, layer, torch.as_tensor(x[begin : begin + CHUNK], device=device))
            yield found

    return maps


def kept(of: Stream) -> Stream:
    """The same maps, computed once and held in memory."""
    chunks = list(of())
    return lambda: iter(chunks)


def rotated(of: Stream, rotation: np.ndarray) -> Stream:
    """Units replaced by mixtures of units: maps multiplied by ``rotation`` (new unit, unit).

    Choice: what is rotated are the outputs *after* the rectifier, and they are not rectified again. That is the linear
    map which the next layer could undo, so the layer holds the same information; rotating before the rectifier would
    make another network.
    """

    def maps() -> Iterator[Tensor]:
        for chunk in of():
            matrix = torch.as_tensor(rotation, dtype=chunk.dtype, device=chunk.device)
            yield torch.einsum("vu,wuat->wvat", matrix, chunk)

    return maps


# -------------------------------------------------------------------------------------------------- thresholds


@dataclass(frozen=True)
class Thresholds:
    """``t_k`` per unit, and ``rest``, its smallest output; (unit,) each."""

    t_k: np.ndarray
    rest: np.ndarray

    @property
    def seldom(self) -> np.ndarray:
        """Units that are at rest so often that T_k is their output at rest."""
        return self.t_k <= self.rest


def thresholds(of: Stream, share: float = SHARE) -> Thresholds:
    """T_k of every unit: the output that a ``share`` of all its outputs exceeds.

    Of n outputs it is the (floor(share n) + 1)-th largest, so without ties exactly floor(share n) exceed it; exact, in
    memory for those outputs alone. Raises ``ValueError`` for a share outside (0, 1), no window, or outputs that are
    not finite.
    """
    if not 0 < share < 1:
        raise ValueError(f"share = {share} should be between 0 and 1")
    n_outputs = sum(chunk[:, 0].numel() for chunk in of())
    if not n_outputs:
        raise ValueError("there are no windows to take thresholds from")
    rank = int(np.floor(share * n_outputs + 1e-9)) + 1
    top = rest = None
    for chunk in of():
        each = chunk.transpose(0, 1).flatten(1)
        if not torch.isfinite(each).all():
            raise ValueError("a unit's output is NaN or infinite; a network that diverged has no thresholds")
        low = each.amin(1)
        rest = low if rest is None else torch.minimum(rest, low)
        largest = each.topk(min(rank, each.shape[1]), dim=1, sorted=False).values
        top = largest if top is None else torch.cat([top, largest], 1)
        top = top.topk(min(rank, top.shape[1]), dim=1, sorted=False).values
    return Thresholds(top.amin(1).cpu().numpy(), rest.cpu().numpy())


def unit_masks(of: Stream, limits: Thresholds, n_axes: int, n_time: int) -> sparse.csr_matrix:
    """Where each unit's output is T_k or more: (unit, sample), samples being (window, axis, time) in that order.

    Maps of another length than the windows' are interpolated linearly to it (the source: bilinear), T_k having been
    taken before. Where T_k is the unit's output at rest, the mask are all outputs above that: nothing is strong about
    rest. Raises ``ValueError`` for maps that have neither the windows' axes nor a single one.
    """
    rows, columns, begin = [], [], 0
    t_k, rest = (torch.as_tensor(v)[:, None, None] for v in (limits.t_k, limits.rest))
    for chunk in of():
        n_windows, n_units, axes, time = chunk.shape
        if axes not in (1, n_axes):
            raise ValueError(
                f"these maps have {axes} axes, the windows {n_axes}: units are compared with concepts on each axis, or "
                "over all axes where a layer has merged them; name a layer before or after the one that merges some"
            )
        if time == 1:  # interpolating a single value would round it
            chunk = chunk.expand(-1, -1, -1, n_time)
        elif time != n_time:
            flat = chunk.reshape(n_windows * n_units, axes, time)
            chunk = F.interpolate(flat, n_time, mode="linear").reshape(n_windows, n_units, axes, n_time)
        t_k, rest = t_k.to(chunk.device), rest.to(chunk.device)
        on = (chunk >= t_k) & ((t_k > rest) | (chunk > rest))
        window, unit, axis, at = (v.cpu().numpy() for v in torch.nonzero(on, as_tuple=True))
        rows.append(unit)
        columns.append(((begin + window) * axes + axis) * n_time + at)
        begin += n_windows
    unit, sample = np.concatenate(rows), np.concatenate(columns)
    shape = (len(limits.t_k), begin * axes * n_time)
    return sparse.csr_matrix((np.ones(len(unit), np.float64), (unit, sample)), shape=shape)


# --------------------------------------------------------------------------------------------------------- IoU


def fitted(masks: np.ndarray, axes: int) -> np.ndarray:
    """Concept masks (concept, window, axis, time) for maps of so many axes: any axis counts where there is one."""
    return masks if masks.shape[2] == axes else masks.any(2, keepdims=True)


def iou(units: sparse.csr_matrix, concepts: np.ndarray) -> np.ndarray:
    """Intersection over union of every unit's mask and every concept's, (unit, concept); 0 where both are empty.

    ``units`` is (unit, sample), ``concepts`` (concept, window, axis, time) with as many samples.
    """
    flat = concepts.reshape(len(concepts), -1)
    return _ratio(units @ flat.T.astype(np.float64), units, flat.sum(1))


def _ratio(both: np.ndarray, units: sparse.csr_matrix, size: np.ndarray) -> np.ndarray:
    union = np.diff(units.indptr)[:, None] + size - both
    return both / np.maximum(union, 1)


def chance(
    units: sparse.csr_matrix, concepts: np.ndarray, n: int, rng: np.random.Generator, groups: np.ndarray | None = None
) -> np.ndarray:
    """Largest IoU over all concepts when these belong to other windows: (unit, draw).

    In each draw all concepts trade windows in the same way, which leaves each its share, its shape in time, its axes
    and its company; only that it happens in *these* windows is lost. With ``groups`` (window,) they trade within a
    group alone, and what the groups differ in stays. Choice: the maximum over concepts, because a unit's concept is the
    best of all of them too; a point per concept would let most units detect something.
    """
    flat = np.ascontiguousarray(concepts.reshape(len(concepts), -1).T.astype(np.float64))
    n_windows, size = concepts.shape[1], flat.sum(0)
    block = len(flat) // n_windows
    window, within = np.divmod(units.indices, block)
    found = np.zeros((units.shape[0], n))
    for draw in range(n):
        # the units' masks trade windows, which counts the same and moves less
        moved = _permutation(n_windows, groups, rng)[window] * block + within
        both = sparse.csr_matrix((units.data, moved, units.indptr), units.shape) @ flat
        found[:, draw] = _ratio(both, units, size).max(1)
    return found


def _permutation(n: int, groups: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """A random permutation of n windows, within groups where there are any."""
    if groups is None:
        return rng.permutation(n)
    order, found = np.argsort(groups, kind="stable"), np.empty(n, np.int64)
    found[order] = np.lexsort((rng.random(n), groups))
    return found


def ceiling(concept_share: np.ndarray, share: float = SHARE) -> np.ndarray:
    """The largest IoU possible between a mask of ``share`` and concepts of theirs: the smaller in the larger."""
    return np.minimum(concept_share, share) / np.maximum(np.maximum(concept_share, share), 1e-300)


def dissect(
    of: Stream,
    masks: np.ndarray,
    names: Sequence[str],
    n_draws: int,
    groups: np.ndarray,
    share: float = SHARE,
    limits: Thresholds | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """One layer dissected: ``iou`` (unit, concept), its nulls (unit, draw), and ``t_k``, ``seldom``, ``on`` (unit).

    ``masks`` is bool (concept, window, axis, time) for the windows that ``of`` streams, ``names`` the concepts'. The
    nulls are ``chance``, and ``chance_within`` ``groups`` (window,), the windows' activities. ``limits`` are thresholds
    from other windows, else they are taken from these. ``on`` is the share of samples in a unit's mask, ``seldom`` as
    in :class:`Thresholds`. Raises ``ValueError`` where maps and masks are not of the same windows.
    """
    limits = limits or thresholds(of, share)
    units = unit_masks(of, limits, *masks.shape[2:])
    own = masks if units.shape[1] == masks[0].size else fitted(masks, 1)
    if units.shape[1] != own[0].size:
        raise ValueError(f"maps of {units.shape[1]} samples and masks of {own[0].size} are not of the same windows")
    rng = np.random.default_rng(seed)
    return xr.Dataset(
        {
            "iou": (("unit", "concept"), iou(units, own)),
            "chance": (("unit", "draw"), chance(units, own, n_draws, rng)),
            "chance_within": (("unit", "draw"), chance(units, own, n_draws, rng, groups)),
            "t_k": ("unit", limits.t_k.astype(np.float64)),
            "seldom": ("unit", limits.seldom),
            "on": ("unit", np.diff(units.indptr) / units.shape[1]),
        },
        coords={"unit": np.arange(units.shape[0]), "concept": list(names)},
    )


# ---------------------------------------------------------------------------------------------------- detectors

#: how a unit becomes a detector: its IoU exceeds the source's threshold, what it reaches when windows trade places, or
#: what it reaches when only windows of one activity do. By the last it must have told windows of one activity apart, or
#: times in them, so that only waveforms can be detected
RULES = ("IoU > 0.04", "above chance", "above chance within an activity")


def detectors(found: xr.Dataset, quantile: float = 0.95) -> xr.Dataset:
    """Each unit's best concept and whether it detects it, from :func:`dissect`'s result; other dims are kept.

    ``concept`` (name) and ``best`` (its IoU) over (..., unit), ``limit`` (the IoU to be exceeded) and ``detector`` over
    (..., unit, rule), rules as in ``RULES``.
    """
    ordered = found["iou"].transpose(..., "concept")
    best = ordered.max("concept")
    limits = [xr.full_like(best, DETECTOR_IOU)]
    for null in ("chance", "chance_within"):
        draws = found[null].transpose(*best.dims, "draw").values
        limits.append(xr.DataArray(chance_point(draws, quantile), dims=best.dims, coords=best.coords))
    limit = xr.concat(limits, "rule").assign_coords(rule=list(RULES)).transpose(..., "rule")
    concept = found["concept"][ordered.argmax("concept")].drop_vars("concept")
    return xr.Dataset({"concept": concept, "best": best, "limit": limit, "detector": best > limit})


def unique(found: xr.Dataset, among: Sequence[str] | None = None) -> xr.DataArray:
    """How many different concepts the units detect, of all or ``among`` those: what :func:`detectors` has but units."""
    names = np.unique(found["concept"].values)
    of_name = [
        (found["detector"] & (found["concept"] == name)).any("unit").astype(int)
        for name in names
        if among is None or name in among
    ]
    return sum(of_name, start=xr.zeros_like(found["detector"].any("unit"), dtype=int))


def with_intervals(counts: xr.DataArray) -> pd.DataFrame:
    """Counts (seed, ...) as a long table: mean over networks and its interval, "low" and "high", and their number."""
    rest = [d for d in counts.dims if d != "seed"]
    stacked = counts.stack(case=rest) if rest else counts.expand_dims(case=[0]).transpose("seed", "case")
    rows = []
    for case, column in zip(stacked["case"].values, stacked.transpose("case", "seed").values, strict=True):
        mean, ends = interval(column.astype(float))
        low, high = ends or (np.nan, np.nan)
        rows.append((*case, mean, low, high, len(column)) if rest else (mean, low, high, len(column)))
    return pd.DataFrame(rows, columns=[*rest, "mean", "low", "high", "networks"])
