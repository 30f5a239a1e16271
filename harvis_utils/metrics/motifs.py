"""Planted motifs and signals turned into recovery: how well does any signal reproduce a shape known to be there?

The measure is the normalized cross-correlation: the Pearson correlation between the motif and the equally long
piece of a signal that fits it best. Level and strength do not count, the sign does: an inverted motif is no match.

A maximum over many signals and shifts is biased upward, the more so the shorter the shape. A match says something
where it exceeds that of equally many signals that cannot know the motif: the start, a network with random weights.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.data.kinds import Dataset
from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Windows
from harvis_utils.maximization.paper_methods import Target
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.metrics import explanation, similarity
from harvis_utils.metrics.explanation import Seen
from harvis_utils.networks.sfhf import Trunk
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
            every = np.lib.stride_tricks.sliding_window_view(signals[some], len(wanted), axis=1)
            pieces, norm = similarity.centred(every)
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


def isolated(shape: np.ndarray, length: int) -> np.ndarray:
    """Windows of zeros that hold a motif (time,), one for each place where it fits: (place, 1, length)."""
    n_places = length - len(shape) + 1
    windows = np.zeros((n_places, 1, length))
    for place in range(n_places):
        windows[place, 0, place : place + len(shape)] = shape
    return windows


def identification(
    place: Trunk | Target, layer: str, signals: xr.DataArray, truth: PlantedMotifs, th_eap: xr.DataArray
) -> xr.Dataset:
    """Whether signals show the motif that their unit prefers, dims (..., unit): ground truth without a threshold.

    What a unit prefers is measured, not assumed: the motif that alone in a window of zeros, at whichever place, gives
    the largest output (:func:`isolated`). What a signal shows is the motif that, slid past in its window of zeros,
    correlates best with the signal's strongest receptive-field piece (:func:`explanation.strongest_pieces`) as a whole:
    so long and short motifs, which have one energy, compete alike. Both choose among the motifs that the receptive
    field holds.

    ``place``, ``layer``, ``signals`` (..., unit, time) and ``th_eap`` are as in :func:`explanation.explained`, units of
    single axes only. Returns ``preferred`` and ``shown`` (numbers in ``truth.names``, -1 for none), ``match``
    (correlation with the preferred one), ``identified``, which is chance for flat signals and NaN for units that no
    motif excites more than a quiet window does, ``chance`` (1 / number of motifs), and ``lead``: by how much of its
    output the preferred motif excites the unit more than the next one.
    """
    length = signals.sizes["time"]
    seen = Seen.by(place, layer, length)
    if seen.target.axes > 1:
        raise ValueError("motifs are of one axis, but these units mix the axes of a window")
    held = [k for k, shape in enumerate(truth.shapes) if len(shape) <= seen.width]
    names, units = [d for d in signals.dims if d not in ("unit", "time")], signals["unit"].values
    x = explanation.in_windows(signals, names, seen.target, length)
    pieces, _, still = explanation.strongest_pieces(seen, units, x, th_eap.sel(unit=units).values)
    shapes, output, match = similarity.unit_norm(pieces[:, :, 0, 0]), [], []
    for k in held:
        windows = isolated(truth.shapes[k], length)
        output.append(seen.outputs(windows)[units].max(1))
        every = np.lib.stride_tricks.sliding_window_view(windows, seen.width, axis=2).reshape(-1, seen.width)
        match.append((shapes @ every.T).max(-1) / np.linalg.norm(truth.shapes[k]))
    quiet = seen.outputs(np.zeros((1, 1, length)))[units, 0]
    output, match = np.stack(output), np.where(still[None, :, :, 0], 0.0, np.stack(match))
    order, excited = np.sort(output, axis=0), output.max(0) > quiet
    preferred, shown = output.argmax(0), np.where(still[..., 0], -1, match.argmax(0))
    chance = 1 / len(held)
    right = np.where(shown < 0, chance, shown == preferred)
    lead = 1 - order[-2] / np.where(excited, order[-1], 1) if len(held) > 1 else np.ones(len(units))
    numbers = np.array([*held, -1])
    found = {
        "preferred": np.broadcast_to(np.where(excited, numbers[preferred], -1), right.shape),
        "shown": numbers[shown],
        "match": np.take_along_axis(match, preferred[None, None], 0)[0],
        "identified": np.where(excited, right, np.nan),
        "lead": np.broadcast_to(np.where(excited, lead, np.nan), right.shape),
        "chance": np.where(excited, chance, np.nan) * np.ones(right.shape),
    }
    shape, dims = [signals.sizes[d] for d in names], (*names, "unit")
    shaped = {name: (dims, of.reshape(*shape, len(units))) for name, of in found.items()}
    return xr.Dataset(shaped, {d: signals[d] for d in dims if d in signals.coords})
