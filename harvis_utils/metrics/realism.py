"""Signals turned into measures that doing nothing cannot win, each beside what real windows get.

Ssim (paper section 4.5) asks whether a signal is near *any* training window, and most windows are quiet. Here a
unit's signal is compared with its *reference windows* only: training segments (one axis of one window, or all axes
where units mix them) that bring the unit to its own threshold ``th_eap``. What they get against those of other people
says how near real signals are.

A window that excites a unit may be calm elsewhere, so ``matched_ssim`` is still won by a flat line, and kept to show
it. ``realism_p`` and ``distance_ratio`` compare only the pieces that excite the unit, relative to how much they move.
No measure is to be read alone: what each can be won by stands in :mod:`harvis_utils.metrics.signal_measures`.
"""

import numpy as np
import torch
import xarray as xr

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.fast import ascent
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.paper_methods import Target
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.metrics import signal_measures, similarity
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.parallel import torch_device
from harvis_utils.settings import Settings, SimilaritySettings
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network, of_networks

#: reference windows of a unit, drawn at random. Choice
N_REFERENCES = 400
#: where fewer segments reach the threshold, this many strongest ones are taken instead. Choice
N_STRONGEST = 50
#: decides which reference windows are drawn, the same for every network
SEED = 0
#: test segments among which the control "held-out-strong" looks for one that reaches the threshold
N_PROBED = 20_000
#: single-axis segments pushed through the trunk at once; bounds the memory
CHUNK = 1024


@torch.no_grad()
def references(
    place: Trunk | Target,
    th_eap: xr.DataArray,
    split: Split,
    settings: SimilaritySettings,
    device: torch.device | str = "cpu",
) -> xr.Dataset:
    """Reference windows of every unit and what they get among themselves, dims (layer, unit[, reference]).

    ``place`` is a trunk, or one place of any network; ``th_eap`` is (layer, unit), NaN for a dead unit. A unit's
    references are a random sample of the segments whose largest output reaches its threshold, spread over the subjects
    as evenly as they allow; where few do, the strongest segments. ``segment`` is their index, -1 beyond
    ``n_reference``; ``piece_start`` is where the piece begins that excites the unit most. ``distance`` (scaled) is that
    of each reference window to the ones *of other people*: neighbours in its own recording overlap or repeat it, and
    would make real windows look nearer to real ones than anything new can be. Raises ``ValueError`` for pieces longer
    than windows and where there is one subject only.
    """
    if settings.piece > split.length:
        raise ValueError(f"a piece of {settings.piece} samples does not fit windows of {split.length}")
    subjects = np.unique(split.subject)
    if len(subjects) < 2:
        raise ValueError(
            f"realism compares real windows with those of other people, but all training windows are of subject(s) "
            f"{', '.join(map(str, subjects)) or 'none'}; it needs a split with at least two training subjects"
        )
    segments, in_s, subject = _segments(place, split)
    layers, units = [str(layer) for layer in th_eap["layer"].values], th_eap["unit"].values
    outputs = largest_outputs(place, segments, layers, device)
    order = np.random.default_rng(SEED).permutation(len(segments))
    shape = (len(layers), len(units), N_REFERENCES + signal_measures.N_NEAREST)
    segment, begin = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    distance, on_cpu = np.full(shape, np.nan), place.to("cpu") if isinstance(place, Trunk) else place
    for i, j in np.ndindex(shape[:2]):
        layer, unit = layers[i], int(units[j])
        threshold = th_eap.sel(layer=layer, unit=unit).values
        if np.isnan(threshold):
            continue
        chosen = _chosen(outputs[layer][unit], threshold, subject, order)
        at = slice(len(chosen))
        maps = paper_methods.own_maps(on_cpu, layer, np.full(len(chosen), unit), segments[chosen])
        maps = signal_measures.in_time(maps, split.length).values
        begin[i, j, at], pieces = similarity.best_piece(in_s[chosen], maps, settings.piece)
        segment[i, j, at] = chosen
        among_themselves = signal_measures.scaled_distance(pieces, pieces)
        distance[i, j, at] = np.diag(signal_measures.to_others(among_themselves, subject[chosen]))
    dims, n = ("layer", "unit", "reference"), (segment >= 0).sum(-1).astype(np.int32)
    found = {"segment": (dims, segment), "piece_start": (dims, begin), "distance": (dims, distance)}
    return xr.Dataset(found | {"n_reference": (dims[:2], n)}, coords={"layer": layers, "unit": units})


@torch.no_grad()
def largest_outputs(
    place: Trunk | Target, segments: np.ndarray, layers: list[str] | None = None, device: torch.device | str = "cpu"
) -> dict[str, np.ndarray]:
    """Largest output of every unit for every segment, (unit, segment) by layer, in one pass.

    ``segments`` is (segment[, axis], time) in its unit. No map is kept.
    """
    if isinstance(place, Target):
        return {(layers or [str(place.place)])[0]: place.seen(segments, lambda maps, _: maps.amax((2, 3)).float()).T}
    trunk, layers = place.to(device), list(place.layers if layers is None else layers)
    depth = {layer: trunk.depth(layer) for layer in layers}
    found = {layer: np.empty((len(trunk.biases[d - 1]), len(segments)), np.float32) for layer, d in depth.items()}
    with ascent.exact_products(torch.device(device)):
        for begin in range(0, len(segments), CHUNK):
            x = torch.as_tensor(segments[begin : begin + CHUNK], device=device)
            for layer, maps in zip(trunk.layers[: max(depth.values())], trunk.feature_maps(x), strict=False):
                if layer in found:
                    found[layer][:, begin : begin + len(x)] = maps.amax(2).T.cpu().numpy()
    return found


def _chosen(output: np.ndarray, threshold: float, subject: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Reference windows of one unit out of its largest outputs, (segment,): indices in ascending order."""

    def strongest(among: np.ndarray, n: int) -> np.ndarray:
        return among[np.argsort(-output[among], kind="stable")[:n]]

    strong = order[output[order] >= threshold]
    if len(strong) < N_STRONGEST:
        found = strongest(np.arange(len(output)), N_STRONGEST)
    else:  # in turns, one of each subject that has one left
        each = [strong[subject[strong] == s][:N_REFERENCES] for s in np.unique(subject[strong])]
        turn = np.concatenate([np.arange(len(of_one)) for of_one in each])
        found = np.concatenate(each)[np.argsort(turn, kind="stable")][:N_REFERENCES]
    # every reference window must have others to be compared with when its own subject is left out
    most = np.bincount(subject[found]).argmax()
    missing = signal_measures.N_NEAREST - int((subject[found] != most).sum())
    if missing > 0:
        left = np.setdiff1d(np.flatnonzero(subject != most), found)
        found = np.concatenate([found, strongest(left, missing)])
    return np.sort(found)


def _segments(place: Trunk | Target, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What units see of windows, (segment[, axis], time), the same in s, and whose it is, as small numbers from 0."""
    subject = np.unique(split.subject, return_inverse=True)[1]
    if isinstance(place, Trunk):
        return split.segments, split.segments, np.repeat(subject, split.series.shape[1])
    mixed = place.axes > 1
    segments, in_s = (of.of_units(mixed) for of in (split, place.scale.split(split)))
    return segments, in_s, np.repeat(subject, len(segments) // len(split))


def measure(
    signals: xr.Dataset,
    statistics: xr.Dataset,
    place: Trunk | Target,
    split: Split,
    settings: SimilaritySettings,
    start: np.ndarray,
    found: xr.Dataset | None = None,
) -> xr.Dataset:
    """All measures of signals of one network, dims (..., layer, unit).

    ``signals`` holds ``signal`` and ``map`` as :func:`similarity.score` takes them, maps of ``place``: a trunk, or one
    place of any network (:func:`paper_methods.target_of`), whose scale says what stands for 1 G. ``statistics`` holds
    ``th_eap`` and ``dead`` over (layer, unit), of the training windows ``split``. ``start`` is ([axis,] time) or
    broadcasts to (..., layer, unit[, axis], time); ``found`` are the :func:`references`, made where not given.

    :mod:`harvis_utils.metrics.signal_measures` explains ``reached``, ``matched_ssim`` (G^2), ``scaled_distance`` (mean
    of the nearest), ``spectral_distance`` and ``displacement_g``. ``realism_p`` and ``distance_ratio`` are the rank of
    the scaled distance among those of real windows and its share of their median, both among the same windows, those
    of other people than each real one's: a ratio of 1 is as near as they are, and it grows where p says no more.

    Failed signals (beyond 10 G) have NaN distances but the smallest possible p: they are as unrealistic as can be,
    and must not drop out when methods are compared. Dead units have NaN everywhere.
    """
    dims = [*(d for d in signals["signal"].dims if d not in ("layer", "unit", "axis", "time")), "layer", "unit"]
    coords = {d: signals[d] for d in dims}
    which = {d: coords[d] for d in ("layer", "unit")}
    th_eap, dead = (statistics[name].sel(which).transpose("layer", "unit") for name in ("th_eap", "dead"))
    if found is None:
        found = references(place, th_eap, split, settings)
    found = found.sel(which).transpose("layer", "unit", "reference")
    _, segments, subject = _segments(place, split)
    every, start = signal_measures.in_rows(signals["signal"], dims), np.asarray(start)
    if isinstance(place, Target):
        every, start = (place.scale.signals(of).numpy() for of in (every, start))
    maps = signal_measures.in_rows(signal_measures.in_time(signals["map"], split.length), dims)
    x, maps = (of.reshape(-1, *dead.shape, *of.shape[1:]) for of in (every, maps))
    top, mixed = signal_measures.largest(signals["map"], dims).reshape(x.shape[:3]), every.ndim == 3
    amplitude = np.abs(every).reshape(len(every), -1).max(1).reshape(x.shape[:3])
    failed = ~(amplitude <= settings.fail_amplitude_g)  # NaN counts as failed
    names = ("realism_p", "distance_ratio", "scaled_distance", "matched_ssim", "spectral_distance")
    values = np.full((len(names), *failed.shape), np.nan)
    for i, j in np.argwhere(~dead.values):
        one = found.isel(layer=i, unit=j, reference=slice(int(found["n_reference"][i, j])))
        who, real, own = subject[one["segment"].values], segments[one["segment"].values], one["distance"].values
        excites = similarity.cut(real, one["piece_start"].values, settings.piece)
        at = np.flatnonzero(~failed[:, i, j])
        _, pieces = similarity.best_piece(x[at, i, j], maps[at, i, j], settings.piece)
        far, median = signal_measures.scaled_distance(pieces, excites), np.median(own)
        of_others = signal_measures.to_others(far, who)
        mean = signal_measures.mean_spectrum(similarity.power_spectrum(real, mixed))
        values[0, :, i, j] = 1 / (1 + len(own))  # what a failed signal gets
        values[:, at, i, j] = [
            signal_measures.realism_p(of_others, own),
            of_others.mean(1) / (median if median > 0 else np.nan),
            signal_measures.mean_nearest(far),
            signal_measures.mean_nearest(signal_measures.distances(pieces, real)),
            signal_measures.spectral_distance(similarity.power_spectrum(x[at, i, j], mixed), mean),
        ]
    measures = dict(zip(names, values, strict=True)) | {"failed": failed}
    measures["reached"] = signal_measures.reached(top, th_eap.where(~dead).values)
    shape = [signals.sizes[d] for d in dims]
    x = every.reshape(*shape, *every.shape[1:])
    x, start = (of.reshape(*shape, -1) for of in (x, np.broadcast_to(start, x.shape)))
    measures["displacement_g"] = signal_measures.displacement(x, start)
    result = xr.Dataset({name: (dims, of.reshape(shape)) for name, of in measures.items()}, coords)
    return result.assign(dead=(("layer", "unit"), dead.values))


def activation(measured: xr.Dataset) -> xr.DataArray:
    """Share of its threshold that a signal brings its unit to, at most 1: more is not better. NaN for dead units."""
    return measured["reached"].clip(max=1)


def nearness(measured: xr.Dataset) -> xr.DataArray:
    """1 / (1 + distance ratio): 0.5 is as near to real windows as they are to one another, 0 a failed signal.

    Bounded and without gaps, so that methods with failures can be compared unit by unit. NaN for dead units.
    """
    near = 1 / (1 + measured["distance_ratio"])
    return xr.where(measured["failed"] & ~measured["dead"], 0.0, near)


@kept("realism", apart=("device",))
def references_of(
    network: Network, windows: Windows, th_eap: xr.DataArray, settings: SimilaritySettings, *, device: str | None = None
) -> xr.Dataset:
    """:func:`references` of one network among its training windows; ``th_eap`` is (layer, unit)."""
    return references(network.trunk, th_eap, windows.train, settings, torch_device(device))


@kept("realism", apart=("device",))
def realism_of(
    network: Network,
    windows: Windows,
    signals: xr.Dataset,
    statistics: xr.Dataset,
    start: np.ndarray,
    settings: SimilaritySettings,
    *,
    device: str | None = None,
) -> xr.Dataset:
    """Measures of one network's ``signal`` and ``map``, dims (..., layer, unit); see :func:`measure`."""
    found = references_of(network, windows, statistics["th_eap"], settings, device=device)
    return measure(signals, statistics, network.trunk, windows.train, settings, start, found)


def realism(
    cfg: Settings, windows: Windows, networks: list[Network], statistics: xr.Dataset, signals: xr.Dataset
) -> xr.Dataset:
    """Measures of all methods' ``signals``, dims (seed, preset, technique, layer, unit); missing ones are made."""
    start = starting_signal(cfg.maximization, windows.train.length)
    about = signals[["signal", "map"]], statistics[["th_eap", "dead"]]
    return of_networks(
        networks, lambda net, *own: realism_of(net, windows, *own, start, cfg.similarity, device=cfg.device), *about
    )


def controls(
    cfg: Settings, windows: Windows, networks: list[Network], statistics: xr.Dataset, random_signals: xr.Dataset
) -> xr.Dataset:
    """Measures of all :func:`control_signals`, dims (seed, control, layer, unit); missing ones are made.

    ``random_signals`` has dims (seed, layer, unit, time): the proposed method on the untrained networks. Other than
    in :func:`similarity.controls` it is judged by the *trained* unit, its outputs and its threshold, because the
    reference windows are the trained unit's: does any pretty signal do, or must it be this unit's?
    """
    start = starting_signal(cfg.maximization, windows.train.length)
    about = statistics["th_eap"], random_signals[["signal", "map"]]
    made = of_networks(networks, lambda net, *own: control_signals(net, windows, *own, start), *about)
    return realism(cfg, windows, networks, statistics, made)


@kept("realism")
def control_signals(
    network: Network, windows: Windows, th_eap: xr.DataArray, random_signals: xr.Dataset, start: np.ndarray
) -> xr.Dataset:
    """One signal per control, layer and unit: ``signal`` and ``map`` over (control, layer, unit, time).

    Those of :func:`similarity.control_signals`, all with maps of the trained trunk, and "held-out-strong".
    """
    made = similarity.control_signals(network, windows, random_signals, start)[["signal", "map"]]
    return with_held_out_strong(network.trunk, made, th_eap, windows.test, network.seed)


def with_held_out_strong(
    place: Trunk | Target, made: xr.Dataset, th_eap: xr.DataArray, split: Split, seed: int = 0
) -> xr.Dataset:
    """The controls that :func:`similarity.controls_at` made with maps of this ``place``, and "held-out-strong"."""
    random = {"control": "random-weights"}
    made = made[["signal", "map"]].copy(deep=True)
    made["map"].loc[random] = similarity.own_maps(place, made["signal"].sel(random).values).values
    own = held_out_strong(place, th_eap, split, seed)
    strong = made.sel(random).copy(data={"signal": own, "map": similarity.own_maps(place, own).values})
    return xr.concat([made, strong.assign_coords(control="held-out-strong")], "control")


def held_out_strong(place: Trunk | Target, th_eap: xr.DataArray, split: Split, seed: int) -> np.ndarray:
    """A segment that reaches each unit's threshold, drawn at random: (layer, unit[, axis], time) float32 in its unit.

    Each unit's own draw from :data:`N_PROBED` random segments; where none reaches it, the strongest of them.
    """
    segments = split.of_units(isinstance(place, Target) and place.axes > 1)
    rng = np.random.default_rng((SEED, seed))
    segments = segments[rng.permutation(len(segments))[:N_PROBED]]
    outputs = largest_outputs(place, segments, [str(layer) for layer in th_eap["layer"].values])
    output = np.stack([outputs[layer][th_eap["unit"].values] for layer in outputs])
    strong = output >= th_eap.transpose("layer", "unit").values[:, :, None]
    drawn = np.where(strong, rng.random(strong.shape, np.float32), -1).argmax(-1)
    return segments[np.where(strong.any(-1), drawn, output.argmax(-1))]
