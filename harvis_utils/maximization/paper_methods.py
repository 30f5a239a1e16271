"""Objective and penalties turned into the signal that excites a unit most (paper section 3).

    X* = argmax f(X) - w R(X),    X <- X + eta d/dX (f - w R),    eta <- gamma eta

``f`` is the mean of the unit's feature map, ``R`` the sum of the penalties a method uses. A signal is one sensor axis
where a unit sees them one by one, as in SF-HF's convolutions. :mod:`harvis_utils.maximization.ascent` climbs signals of
any place in any network, and says what this means for units that mix axes; :mod:`harvis_utils.fast.ascent` those of
per-axis trunks, sooner.
"""

import copy
import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
import scipy.signal
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional as F

from harvis_utils.fast import ascent
from harvis_utils.fast.gradients import Rows
from harvis_utils.maximization.ascent import climb
from harvis_utils.maximization.coordinates import Scale
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.networks import taps, trunks
from harvis_utils.networks.layouts import PlaceError
from harvis_utils.networks.sfhf import Trunk, known
from harvis_utils.networks.taps import Tap
from harvis_utils.parallel import progress, torch_device
from harvis_utils.settings import PRESETS, MaximizationSettings, Settings, Step
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network


@dataclass(frozen=True)
class Method:
    """Which penalties a method adds, whether it clips, and what it does to X after every step."""

    l2: bool = False
    tv: bool = False
    aap: bool = False
    eap: bool = False
    clip: bool = False
    after: str = "nothing"  # "lowpass" or "unit-norm"


#: L2 and TV as they are written, or over the number of their terms
REDUCTIONS = ("sum", "mean")
#: the terms of R, as fields of :class:`Method` and of :class:`Rows`
PENALTIES = ("l2", "tv", "aap", "eap")

#: Paper: sections 3.2, 3.3 and 4.4; the names are the paper's
METHODS: dict[str, Method] = {
    "naive": Method(),
    "L2+TV": Method(l2=True, tv=True),
    "L2+TV+AAP": Method(l2=True, tv=True, aap=True),
    "L2+TV+EAP": Method(l2=True, tv=True, eap=True),
    "L2+TV+clip": Method(l2=True, tv=True, clip=True),
    "L2+TV+EAP+clip": Method(l2=True, tv=True, eap=True, clip=True),
    "lowpass": Method(after="lowpass"),  # Choice: no other penalty beside the filter
    "unit-norm": Method(after="unit-norm"),
}
PROPOSED, BASELINE = "L2+TV+EAP+clip", "L2+TV"
#: row-steps from which on a network that is no trunk is climbed by several threads. Choice: then copying it pays
SHARED = 20_000
#: methods run on untrained networks, as a control
CONTROL_METHODS = (PROPOSED,)


def lowpass_matrix(length: int, cutoff_hz: float, order: int, rate_hz: float) -> np.ndarray:
    """Zero-phase Butterworth low-pass filter of ``length`` samples as a (time, time) matrix: y = M x.

    Raises ``ValueError`` for a cut-off that is not below half the rate, and for too few samples.
    """
    if not 0 < cutoff_hz < rate_hz / 2:
        said = f"a low-pass filter at {cutoff_hz:g} Hz needs a rate above {2 * cutoff_hz:g} Hz, not {rate_hz:g}"
        raise ValueError(f"{said}; give another lowpass_hz, or leave that method out")
    sections = scipy.signal.butter(order, cutoff_hz, fs=rate_hz, output="sos")
    try:
        return scipy.signal.sosfiltfilt(sections, np.eye(length), axis=0)
    except ValueError as error:
        fault = f"{length} samples are too few for a low-pass filter of order {order}; leave that method out ({error})"
        raise ValueError(fault) from error


def unit_maps(trunk: Trunk, layer: str, unit: Tensor, x: Tensor) -> Tensor:
    """Feature map of one unit per signal: x (signal, time), unit (signal,) -> (signal, time).

    The last layer is computed for the wanted unit of each signal only.
    """
    depth = trunk.depth(layer)
    h = trunk.feature_map(x, trunk.layers[depth - 2]) if depth > 1 else x[:, None]
    w, b = trunk.weights[depth - 1], trunk.biases[depth - 1]
    kernel = w.shape[2]
    padded = F.pad(h, (kernel // 2, kernel // 2))
    products = torch.bmm(w[unit].transpose(1, 2), padded)  # (signal, tap, time): each tap's product before shifting
    shifted = torch.stack([products[:, k, k : k + x.shape[1]] for k in range(kernel)])
    return F.relu(shifted.sum(0) + b[unit][:, None])


@dataclass(frozen=True)
class Target:
    """Units as a function of signals: ``maps`` turns signals (row, axis, time) in s into (row, unit, axis, time).

    ``axes`` is how many a signal has: one where units see single axes. ``scale`` says what s is. ``at`` is the sample
    of the signal that each of the maps' samples is about, None where it is the sample of the same number or cannot be
    told. ``network`` and ``place`` are what the target was made of.
    """

    maps: Callable[[Tensor], Tensor]
    n_units: int
    axes: int
    scale: Scale
    network: Trunk | nn.Module
    place: str | Tap
    at: np.ndarray | None = None

    @torch.no_grad()
    def seen(self, signals: np.ndarray, keep: Callable[[Tensor, slice], Tensor]) -> np.ndarray:
        """What ``keep`` takes of the maps of some rows, and which rows they are, for all of ``signals``.

        These are (row[, axis], time) in the windows' unit.
        """
        trunk = isinstance(self.network, Trunk)
        device = self.network.weights[0].device if trunk else taps.device_of(self.network)
        x, found = self.scale.signals(signals.reshape(len(signals), self.axes, -1)), []
        with nullcontext() if trunk else taps.evaluating(self.network), ascent.exact_products(device):
            for begin in range(0, len(x), taps.CHUNK):
                rows = slice(begin, begin + taps.CHUNK)
                found.append(keep(self.maps(x[rows].to(device)), rows).cpu())
        return torch.cat(found).numpy()


@torch.no_grad()
def own_maps(place: Trunk | Target, layer: str, unit: np.ndarray, signals: np.ndarray) -> xr.DataArray:
    """The map that each signal's own unit has for it: (row[, map_axis], time or map_time).

    ``signals`` are (row[, axis], time) in the windows' unit, ``unit`` is (row,).
    """
    unit, length = torch.as_tensor(unit), signals.shape[-1]
    if isinstance(place, Trunk):
        x = torch.tensor(np.ascontiguousarray(signals), dtype=torch.float32, device=place.weights[0].device)
        return xr.DataArray(unit_maps(place, layer, unit, x).cpu().numpy(), dims=("row", "time"))
    maps = place.seen(signals, lambda of, rows: of[torch.arange(len(of)), unit[rows]])
    seen, coords = map_dims(place, maps.shape, length)
    return xr.DataArray(maps.reshape(len(maps), *maps.shape[-len(seen) :]), coords, ("row", *seen))


def map_dims(target: Target, shape: tuple[int, ...], length: int) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Names and coordinates of the last dimensions of maps (row[, axis], time) of signals of ``length`` samples."""
    time = "time" if target.at is None and shape[-1] == length else "map_time"
    seen = (time,) if len(shape) == 2 or shape[1] == 1 else ("map_axis", time)
    return seen, {} if target.at is None else {time: target.at}


def target_of(
    network: Trunk | nn.Module,
    layer: str | Tap,
    n_axes: int | None,
    length: int,
    scale: Scale | None = None,
    at: np.ndarray | None = None,
) -> Target:
    """The units of a layer, for windows of ``n_axes`` axes (a trunk's have one).

    A place that treats all axes of a network alike is shown another signal on each of them. ``at`` is the sample of
    the window that each of its maps' samples is about, by default what :func:`taps.positions` finds, None where it
    cannot tell.

    Raises ``ValueError`` for an unknown layer and for axes that are treated alike but have different scales.
    """
    scale = scale or Scale()
    if isinstance(network, Trunk):
        scale, n_units = scale.shared(), len(network.biases[network.depth(layer) - 1])
        about = (n_units, 1, scale, network, layer)
        return Target(lambda x: network.feature_map(scale.windows(x)[:, 0], layer)[:, :, None], *about)
    example = trunks.noise(n_axes, length)
    tap = taps.located(network, layer, example)
    if at is None:
        try:
            at = taps.positions(network, tap, example)
        except PlaceError:  # signals need it not, and what does (in_time of measures) says that it is missing
            at = None
    at = None if np.array_equal(at, np.arange(length)) else at
    alone = trunks.by_axis(network, tap, n_axes, length)
    axes, scale = (1, scale.shared()) if alone else (n_axes, scale)

    def maps(x: Tensor) -> Tensor:
        windows = scale.windows(x)
        if alone:  # each axis of a window is another signal
            windows = F.pad(windows, (0, 0, 0, 0, 0, -len(x) % n_axes)).view(-1, n_axes, length)
        found = taps.maps_of(network, tap, taps.as_windows(network, windows)).to(x.dtype)
        return found.transpose(1, 2).flatten(0, 1)[: len(x), :, None] if alone else found

    with torch.no_grad(), taps.evaluating(network):
        n_units = maps(torch.zeros(2, axes, length, device=taps.device_of(network))).shape[1]
    return Target(maps, n_units, axes, scale, network, layer, at)


def maximize(
    network: Trunk | nn.Module,
    layer: str | Tap,
    th_eap: np.ndarray,
    *,
    methods: Sequence[str] = tuple(METHODS),
    units: Sequence[int] | None = None,
    preset: str | Step = "calibrated",
    settings: MaximizationSettings | None = None,
    n_axes: int | None = None,
    length: int | None = None,
    rate_hz: float = 30.0,
    start: np.ndarray | None = None,
    scale: Scale | None = None,
    at: np.ndarray | None = None,
    fast: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    block_bytes: int | None = None,
    workers: int | None = None,
    **aids,
) -> xr.Dataset:
    """Signals that excite units of ``layer`` most, all methods, units and starts in one batch.

    ``network`` is a trunk, for signals of ``length`` samples (by default the paper's 30), or any module that takes
    windows (window, ``n_axes``, ``length``); ``layer`` any of its places. ``th_eap`` is (unit,) over all units of the
    layer; NaN (a dead unit) means no threshold. ``start`` is, or broadcasts to, (technique, unit, time) or, for several
    starting points, (start, technique, unit, time), in the windows' unit; by default the paper's sine. ``scale`` says
    what 1 G is where that unit is another one.

    Returns a Dataset with ``signal`` and ``map`` over (technique, unit, time), the history of :data:`gradients.TERMS`
    (of signals in ``scale``) over (technique, unit, step) and ``steps``, those taken before nothing could move by
    ``settings.tolerance_g`` any more; several starting points give a leading dimension ``start``. A unit that mixes
    ``n_axes`` axes has an ``axis`` before the time of ``start`` and ``signal``; a map of several axes has ``map_axis``,
    one that looks elsewhere than at the sample of the same number ``map_time``, ``at`` (:func:`target_of`). Unknown
    layers, methods, units, presets and optimizers raise ``ValueError`` listing the valid ones.

    A trunk is climbed by :mod:`harvis_utils.fast.ascent`: in ``workers`` shares at once, by default one on each of
    torch's threads; ``block_bytes`` bounds the memory of each. Everything else, a trunk with a ``scale``, with ``aids``
    (arguments of :func:`harvis_utils.maximization.ascent.climb`) or not ``fast`` too, is climbed by that; without aids
    on a CPU, where it takes long (:data:`SHARED`), in as many shares, by copies of the network. Signals are computed in
    ``device`` and ``dtype``, what a module computes where it is and in its own precision.
    """
    settings = settings or MaximizationSettings()
    if isinstance(network, Trunk):
        network, length = network.to(device, dtype), length or 30
    elif n_axes is None or length is None:
        raise ValueError("a network other than a trunk needs n_axes and length, how many axes and samples windows have")
    else:
        device = taps.device_of(network)
    target = target_of(network, layer, n_axes, length, scale, at)
    units = range(target.n_units) if units is None else units
    units = taps.unit_numbers(units, target.n_units, getattr(layer, "name", layer))
    recipes = [METHODS[known("method", m, METHODS)] for m in methods]
    if np.shape(th_eap)[-1:] != (target.n_units,):
        raise ValueError(f"th_eap should be (unit,) of all {target.n_units} units of {layer}, not {np.shape(th_eap)}")
    if isinstance(preset, str):
        preset = PRESETS[known("preset", preset, PRESETS)]
    inner = (length,) if target.axes == 1 else (target.axes, length)
    if start is None:
        start = starting_signal(settings, length)
    elif scale is not None:
        start = target.scale.signals(start).numpy()
    start = np.asarray(start)
    starts = (len(start),) if start.ndim == len(inner) + 3 else ()
    shape = (*starts, len(recipes), len(units), *inner)
    if not np.isfinite(start).all() or start.shape[-1:] not in ((), (1,), (length,)):
        raise ValueError(f"start should be finite signals of {length} samples, as {shape} or what broadcasts to it")
    if dtype not in (torch.float32, torch.float64) or not math.isfinite(settings.weight):
        raise ValueError(f"signals need a finite weight and float32 or float64, not {settings.weight} and {dtype}")
    weights = penalty_weights(settings.weight, settings.reduction, length)
    rows = climbing_rows(recipes, list(units), np.asarray(th_eap), weights, math.prod(starts))
    x = np.broadcast_to(start, shape).reshape(len(rows), *inner)
    record, filters = recorded_steps(settings.n_steps), any(recipe.after == "lowpass" for recipe in recipes)
    lock, total, title = threading.Lock(), len(rows) * settings.n_steps, f"maximizing {getattr(layer, 'name', layer)}"
    with progress(total=total, desc=title, leave=False, unit="step", unit_scale=True) as bar:

        def tick(n: int) -> None:
            with lock:
                bar.update(n)

        filtering = (length, settings.lowpass_hz, settings.lowpass_order, rate_hz)
        how = {"n_steps": settings.n_steps, "record": record, "tolerance_g": settings.tolerance_g, "tick": tick}
        how |= {"th_aap_g": settings.th_aap_g, "lowpass": lowpass_matrix(*filtering) if filters else None}
        if isinstance(network, Trunk) and fast and scale is None and not aids:
            workers = workers or (torch.get_num_threads() if torch.device(device).type == "cpu" else 1)
            how |= {"device": device, "dtype": dtype, "block_bytes": block_bytes, "workers": workers}
            found = ascent.climb(network, layer, rows, x, preset, **how)
        else:
            begin = torch.tensor(x.reshape(len(rows), target.axes, length), device=device, dtype=dtype)
            evaluating = nullcontext() if isinstance(network, Trunk) else taps.evaluating(network)
            with evaluating, ascent.exact_products(begin.device):
                n_copies = 0
                if begin.device.type == "cpu" and not aids and len(rows) * settings.n_steps >= SHARED:
                    n_copies = (workers or torch.get_num_threads()) - 1
                others = [target_of(of, layer, n_axes, length, scale, at) for of in _copies(network, n_copies)]
                found = climb([of.maps for of in (target, *others)], rows, begin, preset, **how, **aids)
    signal, outputs = found.signal, found.map
    if lost := int(np.isnan(signal).reshape(len(rows), -1).any(1).sum()):
        said = (
            f"{lost} of {len(rows)} signals are NaN: so are gradients where a network divides by a window's own spread"
        )
        warnings.warn(said, stacklevel=2)
    if scale is not None:
        signal = target.scale.windows(torch.as_tensor(signal)).numpy()
    dims = (*(("start",) if starts else ()), "technique", "unit")
    seen, places = map_dims(target, outputs.shape, length)
    arrays = {
        "signal": (("time",) if target.axes == 1 else ("axis", "time"), signal.reshape(shape)),
        "map": (seen, outputs.reshape(*shape[: len(dims)], *outputs.shape[-len(seen) :])),
    }
    arrays |= {n: (("step",), values.reshape(*shape[: len(dims)], -1)) for n, values in found.history.items()}
    made = xr.Dataset(
        {name: ((*dims, *own), values) for name, (own, values) in arrays.items()}
        | {"steps": (dims, found.steps.reshape(shape[: len(dims)]))},
        coords={"technique": list(methods), "unit": list(units), "step": record, "time": np.arange(length)} | places,
    )
    if scale is not None:
        made["signal"].attrs["units"] = scale.unit
    return made


def _copies(network: Trunk | nn.Module, n: int) -> list[Trunk | nn.Module]:
    """Copies of a network for other threads, because hooks are a network's own; none of one that cannot be copied."""
    try:
        return [copy.deepcopy(network) for _ in range(n)]
    except Exception:  # whatever its own parts raise: then one thread climbs all rows
        return []


def penalty_weights(weight: float, reduction: str, length: int) -> dict[str, float]:
    """What each of ``PENALTIES`` is multiplied with, one weight for all (paper section 3.2).

    "sum" takes L2 and TV as written. "mean" divides them by their number of terms: L2 becomes the root mean square of
    ``length`` samples. Raises ``ValueError`` for another reduction.
    """
    known("reduction", reduction, REDUCTIONS)
    share = {"l2": length**-0.5, "tv": 1 / (length - 1)} if reduction == "mean" else {}
    return {name: weight * share.get(name, 1.0) for name in PENALTIES}


def climbing_rows(
    recipes: Sequence[Method],
    units: Sequence[int],
    thresholds: np.ndarray,
    weights: Mapping[str, np.ndarray | float],
    n_starts: int = 1,
) -> Rows:
    """One row per starting point, method and unit, in this order.

    ``thresholds`` is (all units of the layer,) or (method, all units); NaN (a dead unit) means none. ``weights`` maps
    each of ``PENALTIES`` to its weight where a method uses it: a number, or what broadcasts to (method, unit).
    """
    shape = (len(recipes), len(units))

    def flat(values) -> torch.Tensor:
        return torch.tensor(np.broadcast_to(values, shape).reshape(-1)).repeat(n_starts)

    def flags(name: str) -> np.ndarray:
        return np.array([getattr(m, name) for m in recipes])[:, None]

    limits = np.where(np.isnan(thresholds), np.inf, thresholds)[..., list(units)]
    return Rows(
        unit=flat(np.asarray(units)),
        threshold=flat(limits.astype(np.float64)),
        **{name: flat(flags(name) * np.asarray(weights[name], np.float64)) for name in PENALTIES},
        clips=flat(flags("clip")),
        filtered=flat(flags("after") == "lowpass"),
        normed=flat(flags("after") == "unit-norm"),
    )


def recorded_steps(n_steps: int, n: int = 60) -> list[int]:
    """Steps whose history is kept: 0, the last one, and about ``n`` between them, evenly spaced in log time."""
    return sorted({0, n_steps, *np.unique(np.geomspace(1, max(n_steps, 1), n).astype(int)).tolist()})


def lowpass_failures(
    trunk: Trunk,
    th_eap: xr.DataArray,
    cutoffs_hz: Sequence[float],
    settings: MaximizationSettings,
    limit_g: float,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Share of units whose signal ends beyond ``limit_g`` under the low-pass method, a row for each layer and cut-off.

    ``th_eap`` is (layer, unit). At most 1,000 steps are taken.
    """
    rows, about = [], {"methods": ["lowpass"], "device": device}
    for layer, hz in product(trunk.layers, cutoffs_hz):
        changed = replace(settings, lowpass_hz=hz, n_steps=min(1000, settings.n_steps))
        found = maximize(trunk, layer, th_eap.sel(layer=layer).values, settings=changed, **about)
        share = float((found["amplitude_g"].isel(step=-1) > limit_g).mean())
        rows.append({"layer": layer, "cut-off [Hz]": hz, f"share of units beyond {limit_g:g} G": share})
    return pd.DataFrame(rows)


@kept("signals", apart=("device",))
def signals_of(
    network: Network,
    layer: str,
    th_eap: np.ndarray,
    methods: Sequence[str],
    step: Step,
    settings: MaximizationSettings,
    length: int,
    rate_hz: float,
    *,
    device: str | None = None,
) -> xr.Dataset:
    """Signals of all units of one layer; see :func:`maximize`."""
    about = {"settings": settings, "length": length, "rate_hz": rate_hz, "device": torch_device(device)}
    return maximize(network.trunk, layer, th_eap, methods=methods, preset=step, **about)


def signals(
    cfg: Settings,
    networks: list[Network],
    statistics: xr.Dataset,
    methods: Sequence[str] = tuple(METHODS),
    presets: Sequence[str] = tuple(PRESETS),
) -> xr.Dataset:
    """Signals of all networks and layers, dims (seed, layer, preset, technique, unit, time).

    ``statistics`` has dims (seed, layer, unit). Each network, layer and preset is stored by itself: a kill loses one.
    """

    def one(net: Network, layer: str, preset: str) -> xr.Dataset:
        th_eap = statistics["th_eap"].sel(seed=net.seed, layer=layer).values
        about = (PRESETS[preset], cfg.maximization, cfg.windows.length, cfg.windows.rate_hz)
        made = signals_of(net, layer, th_eap, tuple(methods), *about, device=cfg.device)
        return made.expand_dims(seed=[net.seed], layer=[layer], preset=[preset])

    made = [[[one(net, layer, preset) for preset in presets] for layer in net.trunk.layers] for net in networks]
    return xr.combine_nested(made, ["seed", "layer", "preset"])
