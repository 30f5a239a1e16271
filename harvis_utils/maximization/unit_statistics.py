"""A network and the training windows turned into per-unit statistics and top windows (paper section 3.3).

The threshold ``th_eap`` is the mean plus two standard deviations of a unit's non-zero outputs over all training
windows, axes and time steps; the 95 % point is that of all its outputs, zeros included.

Choice: zero says that a unit is silent where its outputs are never negative. A unit that goes below zero (tanh, LSTM, a
linear layer, GELU) has no such value: its mean, deviation and threshold are those of all its outputs, and it is dead if
they are all the same.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import nn

from harvis_utils.data.windowing import Windows
from harvis_utils.networks import taps, trunks
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.networks.taps import Tap
from harvis_utils.parallel import progress, torch_device
from harvis_utils.settings import Settings
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network, of_networks

#: single-axis segments pushed through the trunk at once; bounds the memory
CHUNK = 4096
#: strongest segments kept per unit
N_TOP = 9
#: Choice: training segments, drawn at random; a filter has at most a few dozen weights
N_SEGMENTS = 20_000


class Largest:
    """The ``k`` largest values of each row of a stream of blocks (row, value): exact, in memory for twice as many.

    Values below ``floor`` count as ``floor``.
    """

    def __init__(self, n_rows: int, k: int, floor: float = -np.inf):
        self.k = k
        self._bound = np.full(n_rows, floor)
        self._held = [[np.full(k, floor, np.float32)] for _ in range(n_rows)]

    def add(self, block: np.ndarray) -> None:
        """Take in the next values, (row, value)."""
        for row, values in enumerate(block):
            held = self._held[row]
            held.append(values.compress(values > self._bound[row]))
            if sum(map(len, held)) > 2 * self.k:
                held[:] = [np.partition(np.concatenate(held), -self.k)[-self.k :]]
                self._bound[row] = held[0][0]

    def smallest(self, n: int = 1) -> np.ndarray:
        """The ``n`` smallest of the ``k`` largest values of each row, rising: (row, n)."""
        found = []
        for held in self._held:
            values = np.concatenate(held)
            first = len(values) - self.k
            found.append(np.partition(values, range(first, first + n))[first : first + n])
        return np.stack(found)


class _Layer:
    """What is known of a layer's units after some chunks of ``n_outputs`` outputs in all, each at least ``floor``."""

    def __init__(self, n_units: int, n_outputs: int, n_top: int, device: torch.device | str, floor: float = 0.0):
        self.n_outputs, self.n_top = n_outputs, n_top
        self.moments = torch.zeros((3, n_units), dtype=torch.float64, device=device)  # count, sum, sum of squares
        self.maximum = torch.full((n_units,), floor, device=device)
        self.minimum = torch.full((n_units,), torch.inf, device=device)
        self.top = torch.zeros((n_units, 0), device=device)
        self.who = torch.zeros((n_units, 0), dtype=torch.int64, device=device)
        self.at = 0.95 * (n_outputs - 1)  # the 95 % point's place among the sorted outputs
        self.largest = Largest(n_units, n_outputs - int(self.at), floor)

    def add(self, begin: int, maps: torch.Tensor) -> None:
        """The maps of the segments from ``begin`` on, (segment, unit, time)."""
        each = maps.transpose(0, 1).flatten(1)
        norm = torch.linalg.vector_norm(each, dim=1, dtype=torch.float64)
        self.moments += torch.stack([(each > 0).sum(1).double(), each.sum(1, dtype=torch.float64), norm.square()])
        self.maximum = torch.maximum(self.maximum, each.amax(1))
        self.minimum = torch.minimum(self.minimum, each.amin(1))
        self.largest.add(each.cpu().numpy())
        mean = maps.mean(2).T
        index = torch.arange(begin, begin + len(maps), device=maps.device).expand(len(mean), -1)
        both = torch.cat([self.top, mean], 1)
        self.top, order = both.topk(min(self.n_top, both.shape[1]), dim=1)
        self.who = torch.cat([self.who, index], 1).gather(1, order)

    def found(self, of: str = "segment") -> xr.Dataset:
        """The statistics; see :func:`collect`."""
        count, total, square = self.moments.cpu().numpy()
        minimum, maximum = self.minimum.cpu().numpy(), self.maximum.cpu().numpy()
        count = np.where(minimum < 0, self.n_outputs, count)
        dead = np.where(minimum < 0, minimum == maximum, count == 0)
        alive = np.where(dead, np.nan, count)
        mean = total / alive
        std = np.sqrt(np.maximum(square / alive - mean**2, 0))
        around = self.largest.smallest(min(2, self.largest.k)).astype(np.float64)
        columns = {
            "mean": mean,
            "std": std,
            "nonzero": count / self.n_outputs,
            "th_eap": mean + 2 * std,  # Paper: mean + 2 std of the non-zero outputs
            "p95": around[:, 0] + (around[:, -1] - around[:, 0]) * (self.at - int(self.at)),
            "maximum": maximum,
            "dead": dead,
            f"top_{of}": self.who.cpu().numpy(),
            "top_output": self.top.cpu().numpy(),
        }
        dims = ("unit", "rank")
        found = {name: (dims[: values.ndim], values) for name, values in columns.items()}
        return xr.Dataset(found, coords={"unit": np.arange(len(count))})


@torch.no_grad()
def collect(
    network: Trunk | nn.Module,
    windows: np.ndarray,
    device: torch.device | str = "cpu",
    n_top: int = N_TOP,
    place: str | Tap | None = None,
) -> xr.Dataset:
    """Statistics of every unit of a place, or of every layer of a trunk, streamed in chunks.

    A trunk is given single-axis segments (segment, time) in G, and computes on ``device``; any other network windows
    (window, axis, time) and a ``place``, and computes where it is. Returns a Dataset with dims (unit[, rank]), for a
    trunk (layer, unit[, rank]): ``mean`` and ``std`` of the non-zero outputs, ``nonzero`` (their share), ``th_eap``,
    ``p95``, ``maximum``, ``dead`` (never non-zero; ``th_eap`` is NaN then), and ``top_segment``, ``top_output``: the
    segments with the largest mean output. Where units see single axes, segment i is axis i % n of window i // n, of n
    axes; where they mix them, ``top_window`` are whole windows, and outputs of all axes of a map count as one unit's.
    Raises ``ValueError`` for an unknown place, windows that hold no finite numbers, and a trunk of uneven layers.
    """
    if isinstance(network, Trunk):
        trunk = network.to(device)
        if len({len(b) for b in trunk.biases}) > 1:
            raise ValueError("layers of this trunk differ in units; give the network itself and a place, one at a time")
        layers = [_Layer(len(b), math.prod(windows.shape), n_top, device) for b in trunk.biases]
        for begin in progress(range(0, len(windows), CHUNK), desc="statistics", leave=False):
            x = taps.as_tensor(windows[begin : begin + CHUNK]).to(device, trunk.biases[0].dtype)
            if not x.isfinite().all():
                raise ValueError(
                    f"segments {begin} to {begin + len(x) - 1} hold NaN or infinity; leave such windows out"
                )
            for layer, maps in zip(layers, trunk.feature_maps(x), strict=True):
                layer.add(begin, maps)
        return xr.concat([layer.found() for layer in layers], pd.Index(trunk.layers, name="layer"))
    if place is None or np.ndim(windows) != 3 or not len(windows):
        shape = tuple(np.shape(windows)) or type(windows).__name__
        raise ValueError(f"a network other than a trunk needs a place and windows (window, axis, time), not {shape}")
    (n_windows, n_axes, length), tap = windows.shape, taps.located(network, place, windows[:3])
    alone, layer = trunks.by_axis(network, tap, n_axes, length), None
    with taps.evaluating(network):
        for begin in progress(range(0, n_windows, taps.CHUNK), desc="statistics", leave=False):
            x = taps.as_windows(network, windows[begin : begin + taps.CHUNK])
            maps = taps.maps_of(network, tap, x)
            maps = maps.to(torch.promote_types(maps.dtype, torch.float32))  # a half has too few digits for a mean
            if not maps.isfinite().all():
                raise ValueError(f"{tap.name} is NaN or infinite for some windows: they are, or the network diverged")
            if layer is None:
                layer = _Layer(maps.shape[1], n_windows * maps[0, 0].numel(), n_top, maps.device, -np.inf)
            if alone:
                layer.add(begin * n_axes, maps.transpose(1, 2).flatten(0, 1))
            else:
                layer.add(begin, maps.flatten(2))
    return layer.found("segment" if alone else "window").assign_coords(layer=tap.name)


@kept("statistics", apart=("device",))
def statistics_of(network: Network, windows: Windows, *, device: str | None = None) -> xr.Dataset:
    """Statistics of one network over the training windows, dims (layer, unit[, rank]); see :func:`collect`."""
    return collect(network.trunk, windows.train.segments, torch_device(device))


def statistics(cfg: Settings, windows: Windows, networks: Sequence[Network]) -> xr.Dataset:
    """Statistics of all networks, dims (seed, layer, unit[, rank])."""
    return of_networks(networks, lambda net: statistics_of(net, windows, device=cfg.device))


@torch.no_grad()
def unexplained(trunk: Trunk, segments: np.ndarray, device: torch.device | str = "cpu") -> xr.DataArray:
    """1 - R^2 of every unit's output under the best linear filter of its receptive field: (layer, unit).

    ``segments`` are (segment, time) in G. Filters have an offset and as many weights as the receptive field has
    samples, by least squares in double precision. Outputs are rectified, so that units of the first layer are not
    linear either. NaN for a constant unit. Choice: outputs count where the receptive field lies inside the segment.
    """
    trunk, moments = trunk.to(device), {}
    for begin in range(0, len(segments), CHUNK):
        x = torch.as_tensor(segments[begin : begin + CHUNK], device=device)
        for layer, maps in zip(trunk.layers, trunk.feature_maps(x), strict=True):
            reach = trunk.receptive_field(layer)
            seen = x.unfold(1, reach, 1).flatten(0, 1).double()
            inside = maps[:, :, reach // 2 : reach // 2 + x.shape[1] - reach + 1]
            outputs = inside.transpose(1, 2).flatten(0, 1).double()
            both = torch.cat([torch.ones_like(seen[:, :1]), seen, outputs], 1)
            moments[layer] = moments.get(layer, 0) + both.T @ both
    rows = []
    for layer in trunk.layers:
        m, n = moments[layer].cpu().numpy(), 1 + trunk.receptive_field(layer)
        explained = (m[:n, n:] * np.linalg.lstsq(m[:n, :n], m[:n, n:], rcond=None)[0]).sum(0)
        squares, mean = np.diag(m)[n:], m[0, n:] / m[0, 0]
        total = squares - m[0, 0] * mean**2
        varies = total > 1e-9 * np.maximum(squares, 1e-30)
        rows.append(np.divide(squares - explained, total, out=np.full(len(total), np.nan), where=varies).clip(0, 1))
    return xr.DataArray(np.stack(rows), {"layer": list(trunk.layers)}, ("layer", "unit"), name="nonlinearity")


@kept("statistics", apart=("device",))
def nonlinearity(network: Network, windows: Windows, n: int = N_SEGMENTS, *, device: str | None = None) -> xr.Dataset:
    """:func:`unexplained` of one network's units on ``n`` training segments, as ``nonlinearity`` (layer, unit)."""
    segments = windows.train.segments
    some = segments[np.random.default_rng(0).permutation(len(segments))[:n]]
    return unexplained(network.trunk, some, torch_device(device)).to_dataset()
