"""How far units are from linear: what the best linear filter of their receptive field leaves unexplained (C11)."""

import numpy as np
import torch
import xarray as xr

from harvis_utils.data.windowing import Windows
from harvis_utils.maximization.unit_statistics import CHUNK
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.parallel import torch_device
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network

#: Choice: training segments, drawn at random; a filter has at most a few dozen weights
N_SEGMENTS = 20_000


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
            outputs = (
                maps[:, :, reach // 2 : reach // 2 + x.shape[1] - reach + 1].transpose(1, 2).flatten(0, 1).double()
            )
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
