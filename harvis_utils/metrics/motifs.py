"""Planted motifs and signals turned into recovery: how well does any signal reproduce a shape known to be there?

The measure is the normalized cross-correlation: the Pearson correlation between the motif and the equally long
piece of a signal that fits it best. Level and strength do not count, the sign does: an inverted motif is no match.

A maximum over many signals and shifts is biased upward, the more so the shorter the shape. A match says something
where it exceeds that of equally many signals that cannot know the motif: the start, a network with random weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.kinds import Dataset
from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Windows
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.metrics import similarity
from harvis_utils.settings import Settings

#: signals at a time: bounds memory, changes no result
CHUNK = 4096
#: the "layer" of the view that takes the best of all layers whose receptive field holds a motif
ANY = "any"


def best_match(shapes: Sequence[np.ndarray], signals: np.ndarray) -> np.ndarray:
    """Best Pearson correlation, in [-1, 1], of each shape with the pieces of each signal: (shape, signal).

    ``signals`` are (signal, time); constant pieces count 0. Raises ``ValueError`` for a constant shape, a shape longer
    than the signals, or values that are not finite.
    """
    return best_places(shapes, signals)[0]


def best_places(shapes: Sequence[np.ndarray], signals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """:func:`best_match`, and the first sample of the piece that matches best, the earliest of equals.

    Two arrays (shape, signal). Raises ``ValueError`` as :func:`best_match` does.
    """
    signals = np.asarray(signals, dtype=np.float64)
    if signals.ndim != 2:
        raise ValueError(f"signals should be (signal, time), not an array of shape {signals.shape}")
    if not np.isfinite(signals).all():
        bad = int((~np.isfinite(signals).all(axis=1)).sum())
        raise ValueError(f"{bad} of {len(signals)} signals hold NaN or infinity; leave failed signals out first")
    result, start = np.empty((len(shapes), len(signals))), np.empty((len(shapes), len(signals)), dtype=np.int64)
    for k, shape in enumerate(shapes):
        wanted = _unit_shape(np.asarray(shape, dtype=np.float64), signals.shape[1])
        for first in range(0, len(signals), CHUNK):
            some = slice(first, first + CHUNK)
            pieces, norm = similarity.centred(
                np.lib.stride_tricks.sliding_window_view(signals[some], len(wanted), axis=1)
            )
            found = np.clip(pieces @ wanted / norm, -1.0, 1.0)  # (signal, shift)
            start[k, some] = found.argmax(axis=1)
            result[k, some] = found.max(axis=1)
    return result, start


def _unit_shape(shape: np.ndarray, n_time: int) -> np.ndarray:
    if shape.ndim != 1 or not 2 <= len(shape) <= n_time:
        raise ValueError(f"a motif should be (length,) with 2 to {n_time} samples, not an array of shape {shape.shape}")
    if not np.isfinite(shape).all() or np.ptp(shape) <= similarity.CONSTANT_G:
        raise ValueError("a motif should be finite and not constant: a constant correlates with nothing")
    return (shape - shape.mean()) / np.linalg.norm(shape - shape.mean())


def matches(truth: PlantedMotifs, signals: xr.DataArray) -> xr.Dataset:
    """Best match of each motif among the units of each layer that can hold it, and among all of these layers.

    ``signals`` has dims (..., layer, unit, time). Returns dims (motif, ..., layer), the last layer being ``ANY``:
    ``best`` (NaN where the receptive field is too short), ``unit``, ``first`` (the sample of the signal where the shape
    begins) and ``found_in`` (the layer). Raises ``ValueError`` for signals that are not finite or layers that miss one
    of the motifs'.
    """
    ordered = signals.transpose(..., "layer", "unit", "time")
    layers = [str(layer) for layer in ordered["layer"].values]
    if missing := sorted(set(truth.layers) - set(layers)):
        raise ValueError(f"motifs are held from {', '.join(missing)} on, but the signals are of {', '.join(layers)}")
    x = ordered.values
    shape = (len(truth.names), *x.shape[:-2])
    best, unit, first = np.full(shape, np.nan), np.full(shape, -1), np.full(shape, -1)
    for k, (motif, layer) in enumerate(zip(truth.shapes, truth.layers, strict=True)):
        for depth in range(layers.index(layer), len(layers)):  # all that can hold it
            own = x[..., depth, :, :]
            match, start = (v.reshape(own.shape[:-1]) for v in best_places([motif], own.reshape(-1, own.shape[-1])))
            at = match.argmax(-1, keepdims=True)
            best[k, ..., depth], unit[k, ..., depth] = match.max(-1), at[..., 0]
            first[k, ..., depth] = np.take_along_axis(start, at, -1)[..., 0]
    dims = ("motif", *ordered.dims[:-3], "layer")
    coords = {"motif": list(truth.names), "layer": layers}
    coords |= {d: ordered[d].values for d in ordered.dims[:-3] if d in ordered.coords}
    found = xr.Dataset({"best": (dims, best), "unit": (dims, unit), "first": (dims, first)}, coords=coords)
    found["found_in"] = xr.where(found["unit"] >= 0, found["layer"], "")
    over_all = found.isel(layer=found["best"].fillna(-2).argmax("layer")).drop_vars("layer").expand_dims(layer=[ANY])
    return xr.concat([found, over_all.transpose(*dims)], "layer")


#: columns of :func:`motif_recovery` that are methods of :mod:`harvis_utils.maximization.paper_methods`
METHOD_COLUMNS = {"proposed": "L2+TV+EAP+clip", "naive": "naive", "L2+TV": "L2+TV"}


def motif_recovery(
    cfg: Settings, windows: Windows, signals: xr.Dataset, random_signals: xr.Dataset, dataset: Dataset
) -> pd.DataFrame | None:
    """How well the units' signals reproduce each planted motif; ``None`` for data without planted motifs.

    One row per motif. For "proposed", "naive" and "L2+TV" (calibrated preset) and for "random weights" (the proposed
    method on the untrained networks): the best match among the signals of all units of the layers whose receptive
    field holds the motif, averaged over the seeds; "... min" and "... max" over the seeds; "... layer" the layer whose
    best unit, averaged over the seeds, matches best. These columns choose among equally many signals, given in
    ``n_signals`` (per seed). "starting sine" is the match of the start itself, one signal.

    ``signals`` has dims (seed, layer, preset, technique, unit, time); ``random_signals`` the same or (seed, layer,
    unit, time). Raises ``ValueError`` where a signal is not finite.
    """
    if dataset.motifs is None:
        return None
    truth, start = dataset.motifs(), starting_signal(cfg.maximization, windows.train.length)
    layers = [str(layer) for layer in signals["layer"].values]
    each = signals["signal"].sel(preset="calibrated", drop=True)
    columns = {name: each.sel(technique=method, drop=True) for name, method in METHOD_COLUMNS.items()}
    columns["random weights"] = random_signals["signal"].isel(preset=0, technique=0, drop=True, missing_dims="ignore")
    best = {name: matches(truth, of)["best"] for name, of in columns.items()}
    found = {"first layer": truth.layers, "length": [len(shape) for shape in truth.shapes]}
    found["n_signals"] = [signals.sizes["unit"] * (len(layers) - layers.index(first)) for first in truth.layers]
    table = pd.DataFrame(found, pd.Index(truth.names, name="motif"))
    for name, values in best.items():
        of_any = values.sel(layer=ANY).to_series().unstack("motif")
        table = table.assign(**{name: of_any.mean(), f"{name} min": of_any.min(), f"{name} max": of_any.max()})
        each = values.sel(layer=layers).mean("seed").to_series().unstack("layer")[layers]
        table[f"{name} layer"] = each.idxmax(axis=1)  # NaN where a layer cannot hold the motif
    return table.assign(**{"starting sine": best_match(truth.shapes, start[None])[:, 0]})
