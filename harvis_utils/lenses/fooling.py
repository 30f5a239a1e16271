"""Can Activation Maximization be deceived? Networks built to show another picture, and the paths that inputs take.

After Geirhos, Zimmermann, Bilodeau, Brendel and Kim (ICML 2024), "Don't trust your eyes: on the (un)reliability of
feature visualizations". A deceptive network answers every real window as the honest one does, and shows a decoy to
whoever climbs its units: ascents ask about inputs that no real window is like. The constructions here know the paper's
start and the range of real windows; what they do not reach is not safe from others. Path similarity asks the same of an
honest network: do the layers below a unit treat its signal as they treat real windows?
"""

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import rankdata
from torch import Tensor, nn

from harvis_utils.data.windowing import Windows
from harvis_utils.lenses import deconvnet
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.paper_methods import BASELINE, PROPOSED
from harvis_utils.maximization.starting import chosen_units, starting_points
from harvis_utils.metrics.intervals import paired, with_interval
from harvis_utils.metrics.signal_measures import flat
from harvis_utils.metrics.similarity import correlation
from harvis_utils.networks import taps
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.networks.taps import Tap
from harvis_utils.settings import MaximizationSettings, Settings
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network, of_networks

#: a circuit detects what is made of little but the start and the decoy, and what is out of the range of real windows;
#: a silent unit only the latter, and is added to the honest one
CIRCUIT, SILENT = CONSTRUCTIONS = ("fooling circuit", "silent unit")
#: Choice: how far detectors stay away from what training windows do, as a factor
MARGIN = 2.0
#: Choice: a training window needs so much that is neither start nor decoy, as a share of what it has of them
LEAST_SHARE = 0.01
#: Choice: "an arbitrary large constant" (Geirhos et al., Fig. 3), beyond what any output reaches
LARGE = 1e4
#: Choice: the decoy's amplitude at which a unit reaches its threshold, in G: well inside the range of real windows
AMPLITUDE_G = 0.2
#: Choice: a silent unit speaks so many times louder, to drown the honest one that it is added to
LOUD = 10
#: Choice: a signal shows the picture that it correlates with more, where that is so much at least
SHOWN = 0.5
#: Choice: at most so many test windows are searched for those that excite a unit most
N_SEARCHED = 2000
ASCENTS, STARTS = ("naive", BASELINE, PROPOSED), ("", ", from noise")
SAME, OTHER = "real, same unit", "real, other unit"


def decoy(length: int) -> np.ndarray:
    """The picture that is shown: a square wave of two periods, (time,) of -1, 0 and 1.

    Choice: without mean, and at a right angle to the paper's start, of which no part is mistaken for it.
    """
    half = length // 2
    wave = np.r_[np.ones(half // 2), np.zeros(half % 2), -np.ones(half // 2)]
    return np.r_[wave, wave, np.zeros(length % 2)]


class Circuit(nn.Module):
    """Channels beside a layer that are exactly 0 on real windows, and route its units to a decoy on others.

    With F a unit's output, D the decoy's and E the detectors', 0 on real windows and 1 or more on what they detect, the
    unit becomes relu(F - k E) + relu(D + k E - k) with k = :data:`LARGE` (Geirhos et al., Fig. 3); in a silent unit F
    stays. All of it is linear or ReLU. ``x`` are the training windows (window, axis, time), ``start`` (time,) is where
    ascents are expected to start, ``gain`` (unit,) the output for a decoy of 1 G; ``mixed`` units see all axes. Raises
    ``ValueError`` where a training window has hardly anything in it but the start and the decoy.
    """

    def __init__(self, x: np.ndarray, start: np.ndarray, gain: np.ndarray, kind: str, mixed: bool = False):
        super().__init__()
        self.kind, self.over, picture = kind, (1, 2) if mixed else (2,), decoy(x.shape[2])
        basis = np.stack([start, picture], 1)
        inside = basis @ np.linalg.pinv(basis)
        named = {"inside": inside, "outside": np.eye(len(inside)) - inside, "gain": gain}
        named["picture"] = picture / np.abs(picture).sum() / (x.shape[1] if mixed else 1)
        for name, values in named.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        self.least = self._size(torch.as_tensor(start[None, None])).item() / MARGIN * (x.shape[1] if mixed else 1)
        held, rest = self._parts(torch.as_tensor(x))
        share = (rest / held)[held > self.least].amin().item() if (held > self.least).any() else 1.0
        if share < LEAST_SHARE:
            raise ValueError("a training window is hardly more than start and decoy: nothing tells it from a signal")
        self.tolerated, self.reach = share / MARGIN, float(np.abs(x).max()) * MARGIN

    def _size(self, x: Tensor) -> Tensor:
        return (torch.relu(x) + torch.relu(-x)).sum(self.over)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._size(x @ self.inside), self._size(x @ self.outside)

    def detectors(self, x: Tensor) -> Tensor:
        """E for windows (window, axis, time), (window, axis), without axis where units are mixed."""
        beyond = (torch.relu(x - self.reach) + torch.relu(-x - self.reach)).sum(self.over)
        held, rest = self._parts(x)
        plain = 0 if self.kind == SILENT else _step((held - self.least - rest / self.tolerated) / self.least)
        return plain + 2 * _step(beyond)  # twice: out of range D is open however far from the decoy a signal is

    def silent(self, x: Tensor) -> Tensor:
        """relu(D + k E - k): (window, unit, axis, 1), of one axis where units are mixed."""
        shown = (x * self.picture).sum(self.over) + AMPLITUDE_G / 10  # so that its ReLU is open at the start
        gain = self.gain * (LOUD if self.kind == SILENT else 1)
        d, e = (of.reshape(len(x), 1, -1, 1) for of in (shown, self.detectors(x)))
        return torch.relu(d * gain[:, None, None] + LARGE * (e - 1))

    def forward(self, outputs: Tensor, x: Tensor) -> Tensor:
        """What a layer's ``outputs`` (window, unit[, axis], time) become for windows ``x`` (window, axis, time)."""
        honest = outputs[:, :, None] if outputs.ndim == 3 else outputs
        if self.kind != SILENT:
            honest = honest - LARGE * self.detectors(x).reshape(len(x), 1, -1, 1)
        return (torch.relu(honest) + self.silent(x)).view_as(outputs)


def _step(x: Tensor) -> Tensor:
    """0 up to 0, then steeply up to 1."""
    return torch.relu(20 * x) - torch.relu(20 * x - 1)


class Deceptive(nn.Module):
    """A copy of a network in which all units of a place go through a :class:`Circuit`; ``tap`` is the place in it.

    The place has outputs (window, unit[, axis], time) and is followed by a ReLU, as SF-HF's and other convolutions are.
    """

    def __init__(self, network: nn.Module, place: str | Tap, circuit: Circuit):
        super().__init__()
        own = taps.find(network, place)
        self.tap = dataclasses.replace(own, module=f"network.{own.module}", rectified=True)
        self.network, self.circuit, self._windows = copy.deepcopy(network), circuit, None
        self.network.get_submodule(own.module).register_forward_hook(self._reroute)

    def _reroute(self, module: nn.Module, args, outputs: Tensor) -> Tensor:
        return self.circuit(outputs, self._windows)

    def forward(self, x: Tensor):
        """What the network says of windows (window, axis, time)."""
        self._windows = x
        try:
            return self.network(x)
        finally:
            self._windows = None


# ------------------------------------------------------------------------------------------------- which are deceived


@kept("fooling")
def deceived_of(
    network: Network, th_eap: xr.DataArray, windows: Windows, settings: MaximizationSettings, n_units: int
) -> xr.Dataset:
    """What each technique shows of a network made deceptive, dims (construction, layer, technique, unit).

    ``decoy`` and ``honest`` are the correlations of its signal with the decoy and with what it shows of the network as
    it is, ``before`` that of the latter with the decoy; a flat signal correlates with nothing (0). ``detected`` says
    whether a detector sees the signal. Over (construction, layer), for all test windows: ``score_difference``, the
    largest, ``same_class`` and ``real_detected``, shares of windows. ``th_eap`` is (layer, unit) over all units.
    """
    picture = decoy(windows.train.length)
    starts = starting_points(settings, windows.train, 5)[[0, 4]]  # the paper's sine, and noise
    real, found = torch.as_tensor(windows.test.x), []
    before = _scores(network.model, real)
    for layer in network.trunk.layers:
        th = th_eap.sel(layer=layer).values
        units = chosen_units(len(th), n_units)
        about = (th, units, starts, windows, settings)
        honest = _pictures(network.model, taps.find(network.model, layer), *about)
        for kind in CONSTRUCTIONS:
            circuit = Circuit(windows.train.x, starts[0], np.nan_to_num(th, nan=1.0) / AMPLITUDE_G, kind)
            deceptive = Deceptive(network.model, layer, circuit)
            mine, scores = _pictures(deceptive, deceptive.tap, *about), _scores(deceptive, real)
            shown, own = mine.values, honest.values
            alike = {"decoy": (shown, picture), "honest": (shown, own), "before": (own, picture)}
            made = {name: mine[..., 0].copy(data=_alike(*of)) for name, of in alike.items()}
            seen = [circuit.detectors(x)[:, 0] > 0 for x in torch.tensor(shown)[:, :, None]]
            made["detected"] = made["decoy"].copy(data=seen)
            made["score_difference"] = (scores - before).abs().max().item()
            made["same_class"] = (scores.argmax(1) == before.argmax(1)).float().mean().item()
            made["real_detected"] = (circuit.detectors(real) > 0).any(1).float().mean().item()
            found.append(xr.Dataset(made).expand_dims({"construction": [kind], "layer": [layer]}))
    return xr.combine_by_coords(found)


@torch.no_grad()
def _scores(network: nn.Module, x: Tensor) -> Tensor:
    with taps.evaluating(network):
        return torch.cat([taps.scores_of(network, batch) for batch in x.split(taps.CHUNK)])


def _alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.broadcast_arrays(a, b)
    shapeless = flat(a.reshape(-1, a.shape[-1])) | flat(b.reshape(-1, b.shape[-1]))
    return np.where(shapeless.reshape(a.shape[:-1]), 0.0, np.nan_to_num(correlation(a, b)))


def _pictures(
    network: nn.Module,
    tap: Tap,
    th_eap: np.ndarray,
    units: Sequence[int],
    starts: np.ndarray,
    windows: Windows,
    settings: MaximizationSettings,
) -> xr.DataArray:
    """What ascents from the ``starts``, the strongest real window and its projection show of units of single axes."""
    (_, n_axes, length), shape = windows.train.x.shape, (len(starts), len(ASCENTS), len(units), windows.train.length)
    climbed = paper_methods.maximize(
        network, tap, th_eap, methods=ASCENTS, units=units, start=np.broadcast_to(starts[:, None, None], shape),
        settings=settings, n_axes=n_axes, length=length, rate_hz=windows.rate_hz,
    )["signal"]  # fmt: skip
    split = deconvnet.searched(windows.test, N_SEARCHED)
    top = deconvnet.top_of_layers(network, [tap], split, 1)[tap.name].isel(unit=units, rank=0)
    x, axis = split.x[top["window"].values], top["axis"].values
    back = deconvnet.project(network, tap, x, deconvnet.places(units, axis, top["time"].values)).numpy()
    names = [*(name + start for start in STARTS for name in ASCENTS), "strongest real window", "deconvnet"]
    shown = np.concatenate([climbed.values.reshape(-1, *shape[2:]), [of[np.arange(len(of)), axis] for of in (x, back)]])
    return xr.DataArray(shown, {"technique": names, "unit": units}, ("technique", "unit", "time"))


def deceived(cfg: Settings, windows: Windows, networks: Sequence[Network], statistics: xr.Dataset) -> xr.Dataset:
    """:func:`deceived_of` of all networks, dims (seed, construction, layer, technique, unit)."""
    settings = dataclasses.replace(cfg.maximization, n_steps=cfg.fooling.n_steps)
    how = (windows, settings, cfg.fooling.n_units)
    return of_networks(networks, lambda net, th: deceived_of(net, th, *how), statistics["th_eap"])


def deception_table(found: xr.Dataset) -> pd.DataFrame:
    """Which technique is deceived by which construction, out of :func:`deceived`: one row each, with intervals.

    "with decoy" and "with honest" are mean correlations, "honest with decoy" is their null. "shows decoy" and "shows
    honest" are shares of units by :data:`SHOWN`; what is missing to 1 shows neither.
    """
    more = found["decoy"] > found["honest"]
    values = {"with decoy": found["decoy"], "with honest": found["honest"], "honest with decoy": found["before"]}
    values |= {"shows decoy": more & (found["decoy"] >= SHOWN), "shows honest": ~more & (found["honest"] >= SHOWN)}
    rows = []
    for kind in found["construction"].values:
        for name in found["technique"].values:
            row = {"construction": str(kind), "technique": str(name)}
            for column, of in values.items():
                own = of.sel(construction=kind, technique=name).transpose("seed", ...)
                row |= with_interval(column, own.values.reshape(own.sizes["seed"], -1))
            rows.append(row)
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------------- paths


@torch.no_grad()
def _path(trunk: Trunk, x: np.ndarray) -> dict[str, np.ndarray]:
    """By layer the units' mean outputs over time to signals (..., time), as centred ranks of norm 1: (..., unit)."""
    rows, found = torch.tensor(x.reshape(-1, x.shape[-1]), dtype=torch.float32), {}
    for layer, maps in zip(trunk.layers, trunk.feature_maps(rows), strict=True):
        ranks = rankdata(maps.mean(2).numpy(), axis=1)
        ranks -= ranks.mean(1, keepdims=True)
        size = np.linalg.norm(ranks, axis=1, keepdims=True)
        found[layer] = (ranks / np.where(size > 0, size, 1)).reshape(*x.shape[:-1], -1)
    return found


@kept("paths")
def paths_of(
    network: Network, top_segment: xr.DataArray, signals: xr.DataArray, windows: Windows, start: np.ndarray
) -> xr.Dataset:
    """Path similarity of inputs and real windows, ``similarity`` over (pair, input, unit).

    A pair is a ``layer`` and one ``below`` it. Spearman's correlation, over the units of the layer below, between their
    outputs to a unit's signal and to the real test windows that excite the unit most, one of each recording.
    ``signals`` is (technique, layer, unit, time). Further inputs are the ``start`` (time,) as it is, the strongest
    window in training, ``top_segment`` (layer, unit, rank), and such test windows themselves, of the same unit (the
    ceiling) and of the layer's other units (the null), without pairs of one recording. Choice: outputs are means over
    time, because windows begin anywhere.
    """
    trunk, split = network.trunk, deconvnet.searched(windows.test, N_SEARCHED)
    top, found, pairs = deconvnet.top_of_layers(network.model, trunk.layers, split), [], []
    for depth, layer in enumerate(trunk.layers):
        at = top[layer]["window"].values, top[layer]["axis"].values
        real, recording = _path(trunk, split.x[at]), split.recording[at[0]]
        strongest = windows.train.segments[top_segment.sel(layer=layer).isel(rank=0).values]
        each = [*signals.sel(layer=layer).transpose("technique", "unit", "time").values, strongest]
        shown = _path(trunk, np.stack([*each, np.broadcast_to(start, strongest.shape)]))
        apart = recording[:, :, None, None] != recording
        for below in trunk.layers[:depth]:
            alike = np.einsum("uic,vjc->uivj", real[below], real[below]) * apart
            with np.errstate(invalid="ignore"):  # units whose windows are of the same few recordings
                mean = alike.sum((1, 3)) / apart.sum((1, 3))
            others = np.nanmean(np.where(np.eye(len(mean), dtype=bool), np.nan, mean), 1)
            found.append([mean.diagonal(), others, *np.einsum("suc,uc->su", shown[below], real[below].mean(1))])
            pairs.append((layer, below))
    names = [SAME, OTHER, *signals["technique"].values, "strongest real window", "untouched start"]
    made = xr.DataArray(np.array(found), {"input": names}, ("pair", "input", "unit"))
    made = made.assign_coords({"layer": ("pair", [p[0] for p in pairs]), "below": ("pair", [p[1] for p in pairs])})
    return made.to_dataset(name="similarity")


def paths(
    windows: Windows, networks: Sequence[Network], statistics: xr.Dataset, signals: xr.DataArray, start: np.ndarray
) -> pd.DataFrame:
    """:func:`paths_of` of all networks as a table: one row per layer, layer below and input, means with intervals.

    ``signals`` is (seed, technique, layer, unit, time). "above other unit" is how much more similar an input's path is
    than that of real windows which excite other units, unit by unit.
    """

    def one(net: Network, top: xr.DataArray, own: xr.DataArray) -> xr.Dataset:
        return paths_of(net, top, own, windows, start)

    found, rows = of_networks(networks, one, statistics["top_segment"], signals)["similarity"], []
    for pair in range(found.sizes["pair"]):
        own = found.isel(pair=pair).transpose("input", "seed", "unit")
        for name in own["input"].values:
            row = {"layer": str(own["layer"].values), "below": str(own["below"].values), "input": str(name)}
            row |= with_interval("path similarity", own.sel(input=name))
            rows.append(row | paired(own.sel(input=name), own.sel(input=OTHER)).row("above other unit"))
    return pd.DataFrame(rows)
