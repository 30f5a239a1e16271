"""A network and the training windows turned into per-unit statistics and top windows (paper section 3.3).

The threshold ``th_eap`` is the mean plus two standard deviations of a unit's non-zero outputs over all training
windows, axes and time steps; the 95 % point is that of all its outputs, zeros included.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
import xarray as xr

from harvis_utils.data.windowing import Windows
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.parallel import progress, torch_device
from harvis_utils.settings import Settings
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network

#: single-axis segments pushed through the trunk at once; bounds the memory
CHUNK = 4096
#: strongest segments kept per unit
N_TOP = 9


def collect(trunk: Trunk, segments: np.ndarray, device: torch.device | str = "cpu", n_top: int = N_TOP) -> xr.Dataset:
    """Statistics of every unit of every layer over single-axis segments, streamed in chunks.

    ``segments`` is (segment, time) in G. Returns a Dataset with dims (layer, unit[, rank]): ``mean`` and ``std`` of
    the non-zero outputs, ``nonzero`` (their share), ``th_eap``, ``p95``, ``maximum``, ``dead`` (never non-zero;
    ``th_eap`` is NaN then), and ``top_segment``, ``top_output``: the segments with the largest mean output.
    """
    trunk = trunk.to(device)
    layers = progress(trunk.layers, desc="statistics", leave=False)
    found = {layer: _collect_layer(trunk, layer, segments, device, n_top) for layer in layers}
    return xr.concat([d.expand_dims(layer=[layer]) for layer, d in found.items()], "layer")


def _collect_layer(trunk: Trunk, layer: str, segments: np.ndarray, device, n_top: int) -> xr.Dataset:
    n_units = len(trunk.biases[trunk.depth(layer) - 1])
    n_outputs = segments.shape[0] * segments.shape[1]
    moments = torch.zeros((3, n_units), dtype=torch.float64, device=device)  # count, sum, sum of squares
    maximum = torch.zeros(n_units, device=device)
    coarse = torch.zeros((n_units, BINS), dtype=torch.int64, device=device)
    top = torch.full((n_units, 0), -1.0, device=device)
    who = torch.zeros((n_units, 0), dtype=torch.int64, device=device)
    for begin, maps in _stream(trunk, layer, segments, device):
        each = maps.transpose(0, 1).reshape(n_units, -1)
        norm = torch.linalg.vector_norm(each, dim=1, dtype=torch.float64)
        moments += torch.stack([(each > 0).sum(1).double(), each.sum(1, dtype=torch.float64), norm.square()])
        maximum = torch.maximum(maximum, each.amax(1))
        coarse += _histogram(_bits(each) >> 16, n_units)
        mean = maps.mean(2).T
        index = torch.arange(begin, begin + len(maps), device=device).expand(n_units, -1)
        top, order = torch.cat([top, mean], 1).topk(min(n_top, top.shape[1] + mean.shape[1]), dim=1)
        who = torch.cat([who, index], 1).gather(1, order)
    count, total, square = moments.cpu().numpy()
    dead = count == 0
    alive = np.where(dead, 1, count)
    mean = np.where(dead, np.nan, total / alive)
    std = np.where(dead, np.nan, np.sqrt(np.maximum(square / alive - (total / alive) ** 2, 0)))
    return xr.Dataset(
        {
            "mean": ("unit", mean),
            "std": ("unit", std),
            "nonzero": ("unit", count / n_outputs),
            "th_eap": ("unit", mean + 2 * std),  # Paper: mean + 2 std of the non-zero outputs
            "p95": ("unit", _quantile(0.95, coarse, trunk, layer, segments, device)),
            "maximum": ("unit", maximum.cpu().numpy()),
            "dead": ("unit", dead),
            "top_segment": (("unit", "rank"), who.cpu().numpy()),
            "top_output": (("unit", "rank"), top.cpu().numpy()),
        },
        coords={"unit": np.arange(n_units)},
    )


@torch.no_grad()
def _stream(trunk: Trunk, layer: str, segments: np.ndarray, device) -> Iterator[tuple[int, torch.Tensor]]:
    """Maps of one layer chunk by chunk: first segment's index, (segment, unit, time)."""
    for begin in range(0, len(segments), CHUNK):
        x = torch.as_tensor(segments[begin : begin + CHUNK], device=device)
        yield begin, trunk.feature_map(x, layer)


# An exact quantile of a stream too large to keep: outputs are not negative, so their bit patterns sort as they do.
# The first pass counts the upper 16 bits; the second counts the lower 16 bits of the values that share the upper
# bits of the wanted order statistic.

BINS = 1 << 16


def _bits(values: torch.Tensor) -> torch.Tensor:
    return (values + 0.0).contiguous().view(torch.int32)  # adding 0.0 turns -0.0 into 0.0


def _histogram(bins: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Counts per row of (row, value) integers below ``BINS``: (row, BINS)."""
    shifted = bins + torch.arange(n_rows, dtype=torch.int32, device=bins.device)[:, None] * BINS
    return torch.bincount(shifted.flatten(), minlength=n_rows * BINS).view(n_rows, BINS)


def _quantile(q: float, coarse: torch.Tensor, trunk: Trunk, layer: str, segments: np.ndarray, device) -> np.ndarray:
    """Linear-interpolation quantile of every unit's outputs, (unit,)."""
    n_units = len(coarse)
    at = q * (segments.shape[0] * segments.shape[1] - 1)
    ranks = [int(np.floor(at)), int(np.ceil(at))]
    below = coarse.cumsum(1)
    upper = [torch.searchsorted(below, torch.full((n_units, 1), r, device=device), right=True).int() for r in ranks]
    fine = [torch.zeros((n_units, BINS), dtype=torch.int64, device=device) for _ in ranks]
    for _, maps in _stream(trunk, layer, segments, device):
        bits = _bits(maps.transpose(0, 1).reshape(n_units, -1))
        for counts, wanted in zip(fine, upper, strict=True):
            row, column = torch.nonzero(bits >> 16 == wanted, as_tuple=True)
            lower = (bits[row, column] & (BINS - 1)) + row * BINS
            counts += torch.bincount(lower, minlength=n_units * BINS).view(n_units, BINS)
    found = []
    for rank, wanted, counts in zip(ranks, upper, fine, strict=True):
        before = torch.where(wanted > 0, below.gather(1, (wanted.long() - 1).clamp(min=0)), 0)
        lower = torch.searchsorted(counts.cumsum(1), rank - before, right=True).int()
        found.append(((wanted << 16) | lower).view(torch.float32)[:, 0].double().cpu().numpy())
    return found[0] + (found[1] - found[0]) * (at - np.floor(at))


@kept("statistics", apart=("device",))
def statistics_of(network: Network, windows: Windows, n_top: int = N_TOP, *, device: str | None = None) -> xr.Dataset:
    """Statistics of one network over the training windows, dims (layer, unit[, rank]); see :func:`collect`."""
    return collect(network.trunk, windows.train.segments, torch_device(device), n_top)


def statistics(cfg: Settings, windows: Windows, networks: list[Network]) -> xr.Dataset:
    """Statistics of all networks, dims (seed, layer, unit[, rank])."""
    found = [statistics_of(net, windows, device=cfg.device) for net in networks]
    return xr.concat(found, pd.Index([net.seed for net in networks], name="seed"))
