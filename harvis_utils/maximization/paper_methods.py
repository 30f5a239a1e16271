"""Objective and penalties turned into the signal that excites a unit most (paper section 3).

    X* = argmax f(X) - w R(X),    X <- X + eta d/dX (f - w R),    eta <- gamma eta

``f`` is the mean of the unit's feature map, ``R`` the sum of the penalties a method uses. A signal is one sensor axis,
because SF-HF treats the axes separately. :mod:`harvis_utils.fast.ascent` climbs all signals at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.signal
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional as F

from harvis_utils.fast import ascent
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.networks.sfhf import Trunk, known
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
    prior: bool = False  # not the paper's: a norm in which what real windows seldom do counts more
    clip: bool = False
    after: str = "nothing"  # "lowpass" or "unit-norm"


#: L2 and TV as they are written, or over the number of their terms
REDUCTIONS = ("sum", "mean")
#: the terms of R, as fields of :class:`Method` and of :class:`ascent.Rows`
PENALTIES = ("l2", "tv", "aap", "eap", "prior")

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
#: methods run on untrained networks, as a control
CONTROL_METHODS = (PROPOSED,)


def lowpass_matrix(length: int, cutoff_hz: float, order: int, rate_hz: float) -> np.ndarray:
    """Zero-phase Butterworth low-pass filter of ``length`` samples as a (time, time) matrix: y = M x."""
    sections = scipy.signal.butter(order, cutoff_hz, fs=rate_hz, output="sos")
    return scipy.signal.sosfiltfilt(sections, np.eye(length), axis=0)


def unit_maps(trunk: Trunk, layer: str, unit: Tensor, x: Tensor) -> Tensor:
    """Feature map of one unit per signal: x (signal, time), unit (signal,) -> (signal, time).

    The last layer is computed for the wanted unit of each signal only.
    """
    depth = trunk.depth(layer)
    h = trunk.feature_map(x, trunk.layers[depth - 2]) if depth > 1 else x[:, None]
    w, b = trunk.weights[depth - 1], trunk.biases[depth - 1]
    kernel = w.shape[2]
    padded = F.pad(h, (kernel // 2, kernel // 2))
    taps = torch.bmm(w[unit].transpose(1, 2), padded)  # (signal, tap, time): each tap's product before shifting
    shifted = torch.stack([taps[:, k, k : k + x.shape[1]] for k in range(kernel)])
    return F.relu(shifted.sum(0) + b[unit][:, None])


def maximize(
    trunk: Trunk,
    layer: str,
    th_eap: np.ndarray,
    *,
    methods: Sequence[str] = tuple(METHODS),
    units: Sequence[int] | None = None,
    preset: str | Step = "calibrated",
    settings: MaximizationSettings | None = None,
    length: int = 30,
    rate_hz: float = 30.0,
    start: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    block_bytes: int | None = None,
    workers: int | None = None,
) -> xr.Dataset:
    """Signals that excite units of ``layer`` most, all methods and units in one batch.

    ``th_eap`` is (unit,) over all units of the layer; NaN (a dead unit) means no threshold. ``start`` is (time,),
    (technique, unit, time) or, for several starting points, (start, technique, unit, time), in G; by default the
    paper's sine. Returns a Dataset with ``signal`` and ``map`` over (technique, unit, time), the history of
    :data:`ascent.TERMS` over (technique, unit, step) and ``steps``, those taken before nothing could move by
    ``settings.tolerance_g`` any more; several starting points give a leading dimension ``start``. Unknown layers,
    methods, units, presets and optimizers raise ``ValueError`` listing the valid ones.

    ``workers`` shares are computed at once, by default one on each of torch's threads; ``block_bytes`` bounds the
    memory of each (see :func:`harvis_utils.fast.ascent.climb`).
    """
    settings = settings or MaximizationSettings()
    n_units = len(trunk.biases[trunk.depth(layer) - 1])
    units = range(n_units) if units is None else [known("unit", u, range(n_units)) for u in units]
    recipes = [METHODS[known("method", m, METHODS)] for m in methods]
    if isinstance(preset, str):
        preset = PRESETS[known("preset", preset, PRESETS)]
    start = starting_signal(settings, length) if start is None else np.asarray(start)
    starts = (len(start),) if start.ndim == 4 else ()
    shape = (*starts, len(recipes), len(units), length)
    weights = penalty_weights(settings.weight, settings.reduction, length)
    rows = climbing_rows(recipes, list(units), np.asarray(th_eap), weights, math.prod(starts))
    record = recorded_steps(settings.n_steps)
    workers = workers or (torch.get_num_threads() if torch.device(device).type == "cpu" else 1)
    lock, total, title = threading.Lock(), len(rows) * settings.n_steps, f"maximizing {layer}"
    with progress(total=total, desc=title, leave=False, unit="step", unit_scale=True) as bar:

        def tick(n: int) -> None:
            with lock:
                bar.update(n)

        found = ascent.climb(
            trunk,
            layer,
            rows,
            np.broadcast_to(start, shape).reshape(-1, length),
            preset,
            n_steps=settings.n_steps,
            record=record,
            tolerance_g=settings.tolerance_g,
            th_aap_g=settings.th_aap_g,
            lowpass=lowpass_matrix(length, settings.lowpass_hz, settings.lowpass_order, rate_hz),
            device=device,
            dtype=dtype,
            block_bytes=block_bytes,
            workers=workers,
            tick=tick,
        )
    dims = (*(("start",) if starts else ()), "technique", "unit")
    arrays = {"signal": ("time", found.signal), "map": ("time", found.map)}
    arrays |= {name: ("step", values) for name, values in found.history.items()}
    return xr.Dataset(
        {name: ((*dims, dim), values.reshape(*shape[:-1], -1)) for name, (dim, values) in arrays.items()}
        | {"steps": (dims, found.steps.reshape(shape[:-1]))},
        coords={"technique": list(methods), "unit": list(units), "step": record, "time": np.arange(length)},
    )


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
) -> ascent.Rows:
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
    return ascent.Rows(
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
