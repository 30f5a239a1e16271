"""Objective and penalties turned into the signal that excites a unit most (paper section 3).

    X* = argmax f(X) - w R(X),    X <- X + eta d/dX (f - w R),    eta <- gamma eta

``f`` is the mean of the unit's feature map, ``R`` the sum of the penalties a method uses. A signal is one sensor
axis, because SF-HF treats the axes separately. All units of a layer and all methods run as one batch: row by row
the rows never mix, so a batch gives what single runs give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.signal
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional as F

from harvis_utils import activations, artifacts, config
from harvis_utils.config import MaximizationSettings, Settings
from harvis_utils.models import Trunk
from harvis_utils.training import Network
from harvis_utils.windows import Windows

STAGE = artifacts.Stage("signals", notebook="03_maximization", modules=("models.sfhf", "maximization"))


# -------------------------------------------------------------------------------------- methods and presets


@dataclass(frozen=True)
class Method:
    """Which penalties a method adds, whether it clips, and what it does to X after every step."""

    l2: bool = False
    tv: bool = False
    aap: bool = False
    eap: bool = False
    clip: bool = False
    after: str = "nothing"  # "lowpass" or "unit-norm"


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


@dataclass(frozen=True)
class Preset:
    """A reading of the paper's step sizes."""

    optimizer: str  # a key of OPTIMIZERS
    step_size: float  # eta
    decay: float  # gamma


OPTIMIZERS = {"ascent": torch.optim.SGD, "adam": torch.optim.Adam}

PRESETS: dict[str, Preset] = {
    # Paper: the stated values, plain gradient ascent; their sum is 0.02, so X can hardly move
    "literal": Preset("ascent", 1e-4, 0.995),
    # Choice: the reading that reproduces the paper's results on nearly every count
    "calibrated": Preset("adam", 0.1, 0.995),
}


def _known(kind: str, name: str, valid: Sequence[str]) -> str:
    if name not in valid:
        raise ValueError(f"unknown {kind} {name!r}; valid {kind}s: {', '.join(map(str, valid))}")
    return name


# --------------------------------------------------------------------------------------------- the penalties


def l2_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each signal: (signal, time) in G -> (signal,). Paper eq. 3 with p = 2."""
    return torch.linalg.vector_norm(x, dim=-1)


def total_variation(x: Tensor) -> Tensor:
    """Sum of the absolute differences of neighbours: (signal, time) in G -> (signal,). Paper eq. 4."""
    return x.diff(dim=-1).abs().sum(-1)


def _mean_excess(values: Tensor, threshold: Tensor | float) -> Tensor:
    excess = F.relu(values - threshold)
    return excess.sum(-1) / (excess > 0).sum(-1).clamp(min=1)


def aap(x: Tensor, th_aap_g: float) -> Tensor:
    """Abnormal Amplitude Penalty: mean excess of ``|x|`` over ``th_aap_g`` among samples beyond it, else 0.

    (signal, time) in G -> (signal,). Paper section 4.4; Choice: the mean, by analogy with EAP.
    """
    return _mean_excess(x.abs(), th_aap_g)


def eap(maps: Tensor, th_eap: Tensor) -> Tensor:
    """Extreme Activation Penalty: mean excess over ``th_eap`` among outputs beyond it, else 0. Paper eq. 6.

    ``maps`` (signal, time) are unclipped outputs, ``th_eap`` is (signal,); returns (signal,).
    """
    return _mean_excess(maps, th_eap[:, None])


def clipped(maps: Tensor, th_eap: Tensor) -> Tensor:
    """Activation Clipping: outputs above ``th_eap`` count as ``th_eap`` and pass no gradient. Paper eq. 7.

    Choice: the paper's th_max and th_eap are taken as equal.
    """
    return torch.where(maps > th_eap[:, None], th_eap[:, None], maps)


# ------------------------------------------------------------------------------------------------ the engine


def starting_signal(settings: MaximizationSettings, length: int) -> np.ndarray:
    """The sine every signal starts from, (time,) in G."""
    time = np.arange(length) / length
    return (settings.start_amplitude_g * np.sin(2 * np.pi * settings.start_periods * time)).astype(np.float32)


def lowpass_matrix(length: int, cutoff_hz: float, order: int, rate_hz: float) -> np.ndarray:
    """Zero-phase Butterworth low-pass filter of ``length`` samples as a (time, time) matrix: y = M x."""
    sections = scipy.signal.butter(order, cutoff_hz, fs=rate_hz, output="sos")
    return scipy.signal.sosfiltfilt(sections, np.eye(length), axis=0)


def unit_maps(trunk: Trunk, layer: str, unit: Tensor, x: Tensor) -> Tensor:
    """Feature map of one unit per signal: x (signal, time), unit (signal,) -> (signal, time).

    The last layer is computed for the wanted unit of each signal only.
    """
    depth = trunk.depth(layer)
    h = x[:, None, None, :]
    for w, b in zip(trunk.weights[: depth - 1], trunk.biases, strict=False):
        h = F.relu(F.conv2d(h, w[:, :, None, :], b, padding=(0, w.shape[2] // 2)))
    w, b = trunk.weights[depth - 1], trunk.biases[depth - 1]
    kernel, length = w.shape[2], x.shape[1]
    padded = F.pad(h[:, :, 0, :], (kernel // 2, kernel // 2))
    taps = torch.bmm(w[unit].transpose(1, 2), padded)  # (signal, tap, time): each tap's product before shifting
    shifted = torch.stack([taps[:, k, k : k + length] for k in range(kernel)])
    return F.relu(shifted.sum(0) + b[unit][:, None])


def maximize(
    trunk: Trunk,
    layer: str,
    th_eap: np.ndarray,
    *,
    methods: Sequence[str] = tuple(METHODS),
    units: Sequence[int] | None = None,
    preset: str | Preset = "calibrated",
    settings: MaximizationSettings | None = None,
    length: int = 30,
    rate_hz: float = 30.0,
    start: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> xr.Dataset:
    """Signals that excite units of ``layer`` most, all methods and units in one batch.

    ``th_eap`` is (unit,) over all units of the layer; NaN (a dead unit) means no threshold. ``start`` is (time,) or
    (method, unit, time) in G, by default the paper's sine. Returns a Dataset with ``signal`` and ``map`` over
    (method, unit, time) and the history of ``objective``, ``activation``, ``l2``, ``tv``, ``aap``, ``eap`` and
    ``amplitude_g`` over (method, unit, step). Unknown layers, methods, units and presets raise ``ValueError``
    listing the valid ones.
    """
    settings = settings or MaximizationSettings()
    n_units = len(trunk.biases[trunk.depth(layer) - 1])
    units = range(n_units) if units is None else [_known("unit", u, range(n_units)) for u in units]
    recipes = [METHODS[_known("method", m, tuple(METHODS))] for m in methods]
    if isinstance(preset, str):
        preset = PRESETS[_known("preset", preset, tuple(PRESETS))]
    trunk = trunk.to(device, dtype)
    shape = (len(recipes), len(units), length)
    start = starting_signal(settings, length) if start is None else start
    x = torch.tensor(np.broadcast_to(start, shape).reshape(-1, length), dtype=dtype, device=device)
    unit = torch.tensor(list(units), device=device).repeat(len(recipes))
    threshold = torch.as_tensor(np.asarray(th_eap), dtype=dtype, device=device).nan_to_num(nan=torch.inf)[unit]
    ascent = _Ascent(trunk, layer, unit, threshold, recipes, settings, rate_hz, length)

    ascent.project(x)
    x.requires_grad_()
    kind = {"ascent": torch.optim.SGD, "adam": torch.optim.Adam}[
        _known("optimizer", preset.optimizer, ("ascent", "adam"))
    ]
    optimizer = kind([x], lr=preset.step_size, maximize=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, preset.decay)
    kept = {s: None for s in recorded_steps(settings.n_steps)}
    for step in config.progress(range(settings.n_steps), desc=f"maximizing {layer}", leave=False):
        optimizer.zero_grad(set_to_none=True)
        terms = ascent.terms(x)
        terms["objective"].sum().backward()
        if step in kept:
            kept[step] = _snapshot(terms)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            ascent.project(x)
    with torch.no_grad():
        kept[settings.n_steps] = _snapshot(ascent.terms(x))
        maps = unit_maps(trunk, layer, unit, x)
    return _labelled(x, maps, kept, shape, list(methods), list(units))


class _Ascent:
    """What the rows of a batch have in common and where they differ: masks of penalties, clipping, projections."""

    def __init__(self, trunk, layer, unit, threshold, recipes, settings, rate_hz, length):
        def rows(values) -> Tensor:
            each = torch.tensor(list(values), dtype=threshold.dtype, device=threshold.device)
            return each.repeat_interleave(len(unit) // len(recipes))

        self.trunk, self.layer, self.unit, self.threshold = trunk, layer, unit, threshold
        self.weight, self.th_aap = settings.weight, settings.th_aap_g
        self.uses = {name: rows(float(getattr(m, name)) for m in recipes) for name in ("l2", "tv", "aap", "eap")}
        self.clips = rows(float(m.clip) for m in recipes) > 0
        self.filtered = rows(float(m.after == "lowpass") for m in recipes) > 0
        self.normed = rows(float(m.after == "unit-norm") for m in recipes) > 0
        matrix = lowpass_matrix(length, settings.lowpass_hz, settings.lowpass_order, rate_hz)
        self.lowpass = torch.tensor(matrix.copy(), dtype=threshold.dtype, device=threshold.device)
        self.filters, self.norms = bool(self.filtered.any()), bool(self.normed.any())

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """Objective and its parts, each (signal,), at x (signal, time)."""
        maps = unit_maps(self.trunk, self.layer, self.unit, x)
        counted = torch.where(self.clips[:, None], clipped(maps, self.threshold), maps)
        found = {
            "activation": counted.mean(1),
            "l2": l2_norm(x),
            "tv": total_variation(x),
            "aap": aap(x, self.th_aap),
            "eap": eap(maps, self.threshold),  # Paper: on the unclipped map
        }
        # Paper: R is the plain sum of the penalties in use
        penalty = sum(self.uses[name] * found[name] for name in self.uses)
        return found | {"objective": found["activation"] - self.weight * penalty, "amplitude_g": x.abs().amax(1)}

    def project(self, x: Tensor) -> None:
        """Filter or normalize, in place, the rows whose method asks for it."""
        if self.filters:
            x[self.filtered] = x[self.filtered] @ self.lowpass.T
        if self.norms:
            chosen = x[self.normed]
            x[self.normed] = chosen / l2_norm(chosen).clamp(min=1e-12)[:, None]


def recorded_steps(n_steps: int, n: int = 60) -> list[int]:
    """Steps whose history is kept: 0, the last one, and about ``n`` between them, evenly spaced in log time."""
    return sorted({0, n_steps, *np.unique(np.geomspace(1, max(n_steps, 1), n).astype(int)).tolist()})


def _snapshot(terms: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy().copy() for name, value in terms.items()}


def _labelled(x, maps, kept, shape, methods, units) -> xr.Dataset:
    def arrange(a: Tensor):
        return (("method", "unit", "time"), a.detach().cpu().numpy().reshape(shape))

    steps = sorted(kept)
    history = {
        name: (("method", "unit", "step"), np.stack([kept[s][name] for s in steps], -1).reshape(*shape[:2], -1))
        for name in kept[steps[0]]
    }
    return xr.Dataset(
        {"signal": arrange(x), "map": arrange(maps), **history},
        coords={"method": methods, "unit": units, "step": steps, "time": np.arange(shape[2])},
    )


# -------------------------------------------------------------------------------------------- stored signals

#: methods run on untrained networks, as a control
CONTROL_METHODS = ("L2+TV+EAP+clip",)


def signals(
    cfg: Settings,
    windows: Windows,
    networks: list[Network],
    statistics: xr.Dataset,
    methods: Sequence[str] = tuple(METHODS),
    presets: Sequence[str] = tuple(PRESETS),
) -> xr.Dataset:
    """Signals of all networks and layers, dims (seed, layer, preset, method, unit, time); missing ones are made.

    One stored result per network, layer and preset, so that a kill loses at most one of them.
    """

    def folder(net: Network, layer: str, preset: str) -> Path:
        th_eap = statistics["th_eap"].sel(seed=net.seed, layer=layer).values

        def build(part: Path) -> None:
            found = maximize(
                net.trunk,
                layer,
                th_eap,
                methods=methods,
                preset=preset,
                settings=cfg.maximization,
                length=cfg.windows.length,
                rate_hz=cfg.windows.rate_hz,
                device=config.torch_device(cfg.device),
            )
            artifacts.write_dataset(part / "signals.nc", found)

        about = artifacts.provenance(
            cfg, data=windows.digest, caveat=windows.caveat, seed=net.seed, layer=layer, preset=preset
        )
        return STAGE.obtain(key(cfg, windows, net, layer, preset, methods), build, about)

    return _stacked(networks, presets, folder)


def load_signals(
    cfg: Settings,
    windows: Windows,
    networks: list[Network],
    methods: Sequence[str] = tuple(METHODS),
    presets: Sequence[str] = tuple(PRESETS),
) -> xr.Dataset:
    """The signals that notebook 03 made; a missing one raises :class:`artifacts.ArtifactError`."""
    return _stacked(networks, presets, lambda net, la, p: STAGE.require(key(cfg, windows, net, la, p, methods)))


def key(cfg: Settings, windows: Windows, network: Network, layer: str, preset: str, methods: Sequence[str]) -> str:
    """Address of the signals of one network, layer and preset."""
    settings = [cfg.maximization, cfg.windows, layer, preset, list(methods)]
    return STAGE.key(settings, activations.key(windows, network))


def _stacked(networks: list[Network], presets: Sequence[str], folder) -> xr.Dataset:
    def one(net: Network, layer: str) -> xr.Dataset:
        found = [artifacts.read_dataset(folder(net, layer, preset) / "signals.nc") for preset in presets]
        return xr.concat([d.expand_dims(preset=[p]) for d, p in zip(found, presets, strict=True)], "preset")

    stacked = [
        xr.concat([one(net, layer).expand_dims(layer=[layer]) for layer in net.trunk.layers], "layer").expand_dims(
            seed=[net.seed]
        )
        for net in networks
    ]
    return xr.concat(stacked, "seed")
