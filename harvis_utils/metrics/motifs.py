"""Planted motifs and signals turned into recovery: how well does any signal reproduce a shape known to be there?

The measure is the normalized cross-correlation: the Pearson correlation between the motif and the equally long
piece of a signal that fits it best. It is blind to level and strength, but not to sign: an inverted motif is no
match.

Read it beside its controls only. A maximum over many signals and shifts is biased upward: among enough random
signals some piece resembles any short shape, the more so the shorter the shape. A match says something where it
exceeds that of equally many signals that cannot know the motif: the untouched start, a network with random weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.kinds import Dataset
from harvis_utils.data.windowing import Windows
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.settings import Settings
from harvis_utils.training.supervised import Network

#: pieces that range over no more than this (G) count as constant: they have no shape, only rounding errors
FLAT_G = 1e-6
_CHUNK = 4096  # signals at a time: bounds memory, changes no result


def ncc(shape: np.ndarray, signal: np.ndarray) -> float:
    """Best Pearson correlation, in [-1, 1], between ``shape`` (length,) and the pieces of ``signal`` (time,).

    All shifts where the shape lies inside the signal are tried; constant pieces count 0. Raises ``ValueError``
    as :func:`best_match` does.
    """
    return float(best_match([shape], np.asarray(signal)[None])[0, 0])


def best_match(shapes: Sequence[np.ndarray], signals: np.ndarray) -> np.ndarray:
    """:func:`ncc` of every shape with every signal: (shape, signal) from ``signals`` (signal, time).

    Raises ``ValueError`` for a constant shape, a shape longer than the signals, or values that are not finite.
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
        unit_shape = _unit_shape(np.asarray(shape, dtype=np.float64), signals.shape[1])
        for first in range(0, len(signals), _CHUNK):
            some = slice(first, first + _CHUNK)
            found = _correlations(unit_shape, signals[some])
            start[k, some] = found.argmax(axis=1)
            result[k, some] = found.max(axis=1)
    return result, start


def _unit_shape(shape: np.ndarray, n_time: int) -> np.ndarray:
    """``shape`` with its mean removed and a norm of 1."""
    if shape.ndim != 1 or not 2 <= len(shape) <= n_time:
        raise ValueError(f"a motif should be (length,) with 2 to {n_time} samples, not an array of shape {shape.shape}")
    if not np.isfinite(shape).all() or np.ptp(shape) <= FLAT_G:
        raise ValueError("a motif should be finite and not constant: a constant correlates with nothing")
    centred = shape - shape.mean()
    return centred / np.linalg.norm(centred)


def _correlations(unit_shape: np.ndarray, signals: np.ndarray) -> np.ndarray:
    """(signal, shift): Pearson correlation of the shape with each piece, 0 where the piece is constant."""
    pieces = np.lib.stride_tricks.sliding_window_view(signals, len(unit_shape), axis=1)
    flat = pieces.max(axis=2) - pieces.min(axis=2) <= FLAT_G
    pieces = pieces - pieces.mean(axis=2, keepdims=True)
    norm = np.where(flat, 1.0, np.linalg.norm(pieces, axis=2))
    return np.where(flat, 0.0, np.clip(pieces @ unit_shape / norm, -1.0, 1.0))


def recovery_table(
    names: Sequence[str], shapes: Sequence[np.ndarray], layers: Sequence[str], columns: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """One row per motif: its layer, its length, and for each column the best match among that column's signals.

    ``columns`` maps a heading ("proposed", "random weights", ...) to signals (signal, time); all in the same unit,
    G. How many signals each column chose among is in ``table.attrs["n_signals"]``: compare columns of equal
    numbers. Raises ``ValueError`` naming the column that is empty or unusable.
    """
    about = {"layer": list(layers), "length": [len(shape) for shape in shapes]}
    table = pd.DataFrame(about, index=pd.Index(names, name="motif"))
    for heading, signals in columns.items():
        if len(signals) == 0:
            raise ValueError(f"column {heading!r} has no signals to look for motifs in")
        try:
            table[heading] = best_match(shapes, signals).max(axis=1)
        except ValueError as error:
            raise ValueError(f"column {heading!r}: {error}") from error
    table.attrs["n_signals"] = {heading: len(signals) for heading, signals in columns.items()}
    return table


#: columns of :func:`motif_recovery` that are methods of :mod:`harvis_utils.maximization.paper_methods`
METHOD_COLUMNS = {"proposed": "L2+TV+EAP+clip", "naive": "naive", "L2+TV": "L2+TV"}


def motif_recovery(
    cfg: Settings,
    windows: Windows,
    networks: Sequence[Network],
    signals: xr.Dataset,
    random_signals: xr.Dataset,
    dataset: Dataset,
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
    truth, layers = dataset.motifs(), list(networks[0].trunk.layers)
    start = starting_signal(cfg.maximization, windows.train.length)
    columns = {
        name: signals["signal"].sel(preset="calibrated", technique=method) for name, method in METHOD_COLUMNS.items()
    }
    single = {dim: 0 for dim in ("preset", "technique") if dim in random_signals["signal"].dims}
    columns["random weights"] = random_signals["signal"].isel(single)
    # per column: (motif, seed, layer), the best match among the units
    best = {
        name: np.stack(
            [
                [
                    best_match(truth.shapes, of.sel(seed=net.seed, layer=layer).transpose("unit", "time").values).max(1)
                    for layer in layers
                ]
                for net in networks
            ]
        ).transpose(2, 0, 1)
        for name, of in columns.items()
    }
    rows = []
    for k, (motif, shape, first) in enumerate(zip(truth.names, truth.shapes, truth.layers, strict=True)):
        holding = layers[layers.index(first) :]
        row = {"motif": motif, "first layer": first, "length": len(shape)}
        row["n_signals"] = len(holding) * signals.sizes["unit"]
        for name, values in best.items():
            found = values[k][:, -len(holding) :]  # (seed, layer)
            over_seeds = found.max(1)
            row |= {
                name: float(over_seeds.mean()),
                f"{name} min": float(over_seeds.min()),
                f"{name} max": float(over_seeds.max()),
                f"{name} layer": holding[int(found.mean(0).argmax())],
            }
        row["starting sine"] = ncc(shape, start)
        rows.append(row)
    return pd.DataFrame(rows).set_index("motif")
