"""Signals turned into measures that doing nothing cannot win, each beside what real windows get.

Ssim (paper section 4.5) asks whether a signal is near *any* training window, and most windows are quiet. Here a
unit's signal is compared with its *reference windows* only: training segments (one axis of one window) that bring
the unit to its own threshold ``th_eap``. What they get themselves, each against those of other people, says how near
a real signal would be.

That alone is not enough: a window that excites a unit may be calm elsewhere, and zero is nearer in G^2 to a moving
signal than most moving signals are. ``matched_ssim`` (:func:`distances`) is therefore still won by a flat line, and
kept to show it. :func:`scaled_distance` compares only the pieces that excite the unit, relative to how much they move;
``realism_p`` and ``distance_ratio`` rest on it. No measure is to be read alone: what each can still be won by stands
in its function.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.special import rel_entr
from torch.nn import functional as F

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.fast import ascent
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.metrics import similarity
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.parallel import torch_device
from harvis_utils.settings import Settings, SimilaritySettings
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network

#: reference windows of a unit, drawn at random. Choice
N_REFERENCES = 400
#: where fewer segments reach the threshold, this many strongest ones are taken instead. Choice
N_STRONGEST = 50
#: nearest reference windows whose distances are averaged. Choice: few, because the windows are few too
N_NEAREST = 5
#: pieces that move less than this (standard deviation in G) count as moving this much. Choice: a sensor's noise
REST_G = 0.01
#: decides which reference windows are drawn, the same for every network
SEED = 0
#: test segments among which the control "held-out-strong" looks for one that reaches the threshold
N_PROBED = 20_000
#: single-axis segments pushed through the trunk at once; bounds the memory
CHUNK = 1024

CONTROLS = similarity.CONTROLS | {
    "held-out-strong": "a real test window that reaches the unit's threshold, drawn at random",
}

# ----------------------------------------------------------------------------------------- measures of a signal


def reached(top: np.ndarray, th_eap: np.ndarray) -> np.ndarray:
    """Largest output as a share of the unit's threshold; NaN where the unit is dead (paper section 5, Fig. 4).

    Cannot be won by doing nothing: a unit at rest stays far below 1. Can be won by sheer amplitude, so it is good
    news up to 1 only, and only beside a small distance.
    """
    return top / np.where(th_eap > 0, th_eap, np.nan)


def displacement(signals: np.ndarray, start: np.ndarray) -> np.ndarray:
    """RMS in G between (..., time) signals and their start, which is broadcast.

    0 unmasks a method that returns its start. It is no merit by itself: anything can move far.
    """
    return np.sqrt(((signals.astype(np.float64) - start) ** 2).mean(-1))


def spread(signals: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Mean pairwise RMS distance of results over that of their starts: (start, ..., time) -> (...,).

    ``starts`` is (start, time) or of the shape of ``signals``. Below 1 a method finds the same signal wherever it
    starts; 1: it kept its starts apart, as one that does nothing does. Can be won by forgetting the start for
    anything else that is always the same, a flat line too. Raises ``ValueError`` without two different starts.
    """
    if starts.ndim == 2:
        starts = starts.reshape(len(starts), *(1,) * (signals.ndim - 2), starts.shape[-1])
    if len(signals) != len(starts):
        raise ValueError(f"{len(signals)} signals per unit do not match {len(starts)} starting points")
    before = _pairwise_rms(np.broadcast_to(starts, signals.shape))
    if not (before > 0).all():
        raise ValueError("spread needs at least two different starting points")
    return _pairwise_rms(signals) / before


def _pairwise_rms(signals: np.ndarray) -> np.ndarray:
    a, b = np.triu_indices(len(signals), 1)
    return displacement(signals[a], signals[b].astype(np.float64)).mean(0) if len(a) else np.zeros(signals.shape[1:-1])


def distances(pieces: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """d(u, i) of paper eq. 8, all pairs: (piece, w) in G, (segment, time) in G -> (piece, segment) in G^2.

    The mean squared error at the best offset, in float64. Its mean over the nearest reference windows is
    ``matched_ssim``: Ssim at matched activation. Every window compared with excites the unit, so quiet windows are
    not there to be near to, and noise or amplitude cannot win. Nevertheless it *can be won by doing nothing*: by a
    flat line beside a window's calm stretch, and by any blur, which is nearer to real signals than they are to one
    another.
    """
    pieces, segments = pieces.astype(np.float64), segments.astype(np.float64)
    width = pieces.shape[1]
    best = np.full((len(pieces), len(segments)), np.inf)
    for offset in range(segments.shape[1] - width + 1):
        view = segments[:, offset : offset + width]
        error = pieces @ (-2 * view.T)
        error += (view**2).sum(1)
        np.minimum(best, error, out=best)
    best += (pieces**2).sum(1)[:, None]
    return np.maximum(best, 0) / width  # rounding may leave equal pieces a little below 0


def scaled_distance(pieces: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Mean squared error over the mean variance of the two: (piece, w), (window, w) in G -> (piece, window).

    Between the piece of a signal and those of real windows, each the one that excites the unit most. 0 is equal,
    about 2 is unrelated, a constant is at 2 or more from all that moves; shape, amplitude and level count.

    Cannot be won by doing nothing: a flat line or a blur pays for the movement it lacks (unless the unit's real
    windows are at rest, where being at rest at the same level is right). Can be won by a piece that looks real while
    the unit hardly answers, so read it beside ``reached``, and by a signal that is real in these samples only.
    """
    pieces, real = pieces.astype(np.float64), real.astype(np.float64)
    error = (pieces**2).mean(1)[:, None] + (real**2).mean(1) - 2 * pieces @ real.T / pieces.shape[1]
    scale = (pieces.var(1)[:, None] + real.var(1)) / 2
    return np.maximum(error, 0) / np.maximum(scale, REST_G**2)


def _mean_nearest(distance: np.ndarray) -> np.ndarray:
    """Mean of the smallest distances: (piece, window) -> (piece,)."""
    k = min(N_NEAREST, distance.shape[1])
    return np.sort(np.partition(distance, k - 1, axis=1)[:, :k], axis=1).mean(1)


def _to_others(distance: np.ndarray, subject: np.ndarray) -> np.ndarray:
    """The same with the subject of window i left out in column i: (piece, window) -> (piece, window).

    So a piece and window i can be compared by what they get among the same windows.
    """
    found = np.empty_like(distance)
    for s in np.unique(subject):
        found[:, subject == s] = _mean_nearest(distance[:, subject != s])[:, None]
    return found


def realism_p(of_others: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Share of real windows at least as far from the others as the signal: (signal, window), (window,) -> (signal,).

    ``of_others[n, i]`` is the signal's distance to the reference windows of other people than window i's, ``real[i]``
    that of window i itself: both are measured against the same windows. p = (1 + number at least as far) /
    (1 + number), so real signals have p about uniform and nonsense 1 / (1 + number). Ties, up to rounding, count as
    at least as far.

    Of the scaled distance it cannot be won by doing nothing or by amplitude. It is one-sided: the commonest shape gets
    p near 1, so p says "not nonsense", and 0.9 is no better than 0.5. It saturates at both ends; ``distance_ratio``
    does not.
    """
    as_far = (real >= of_others) | np.isclose(real, of_others, rtol=1e-9, atol=1e-12)
    return (1 + as_far.sum(1)) / (1 + len(real))


def spectral_distance(share: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distance (base 2, 0 to 1) of power spectra without mean, (..., frequency), to one, (frequency,).

    A constant signal has no spectrum (NaN, see :func:`similarity.power_spectrum`) and counts as 1, the farthest; all
    are NaN where the reference has none.

    Cannot be won by doing nothing: a constant is farthest, the start has one frequency. Can be won by noise of the
    right colour, which has the *mean* spectrum as no single real window has it: less than what real windows get is
    no merit.
    """
    if np.isnan(reference).any():
        return np.full(share.shape[:-1], np.nan)
    middle = (share + reference) / 2
    divergence = (rel_entr(share, middle) + rel_entr(reference, middle)).sum(-1) / 2 / np.log(2)
    return np.where(np.isnan(divergence), 1.0, np.sqrt(np.clip(divergence, 0, 1)))


def _mean_spectrum(share: np.ndarray) -> np.ndarray:
    """Mean over the windows that have a spectrum, each counting alike: (window, frequency) -> (frequency,)."""
    moving = share[~np.isnan(share[:, 0])]
    return moving.mean(0) if len(moving) else np.full(share.shape[1], np.nan)


# ------------------------------------------------------------------------------------------ the reference windows


def references(
    trunk: Trunk,
    th_eap: xr.DataArray,
    split: Split,
    settings: SimilaritySettings,
    device: torch.device | str = "cpu",
) -> xr.Dataset:
    """Reference windows of every unit and what they get among themselves, dims (layer, unit[, reference]).

    ``th_eap`` is (layer, unit), NaN for a dead unit. A unit's references are a random sample of the segments whose
    largest output reaches its threshold, spread over the subjects as evenly as they allow; where few do, the
    strongest segments. ``segment`` is their index, -1 beyond ``n_reference``; ``piece_start`` is where the piece
    begins that excites the unit most; ``n_strong`` counts the segments that reach the threshold. ``ssim`` (G^2),
    ``distance`` (scaled) and ``spectral_distance`` are those of each reference window to the ones *of other people*:
    neighbours in its own recording overlap or repeat it, and would make real windows look nearer to real ones than
    anything new can be. Raises ``ValueError`` where there is one subject only.
    """
    _check(split, settings.piece)
    segments, subject = split.segments, _subjects(split)
    layers, units = [str(layer) for layer in th_eap["layer"].values], th_eap["unit"].values
    outputs = largest_outputs(trunk, segments, layers, device)
    order = np.random.default_rng(SEED).permutation(len(segments))
    shape = (len(layers), len(units), N_REFERENCES + N_NEAREST)
    chosen, begin = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    own = {name: np.full(shape, np.nan) for name in ("ssim", "distance", "spectral_distance")}
    n_strong = np.zeros(shape[:2], np.int32)
    for i, j in np.ndindex(shape[:2]):
        output, threshold = outputs[layers[i]][units[j]], th_eap.sel(layer=layers[i], unit=units[j]).values
        if np.isnan(threshold):
            continue
        segment = _chosen(output, threshold, subject, order)
        at = slice(len(segment))
        x, who, n_strong[i, j] = segments[segment], subject[segment], (output >= threshold).sum()
        start, pieces = _best_pieces(trunk, layers[i], units[j], x, settings.piece)
        chosen[i, j, at], begin[i, j, at] = segment, start
        own["ssim"][i, j, at] = np.diag(_to_others(distances(pieces, x), who))
        own["distance"][i, j, at] = np.diag(_to_others(scaled_distance(pieces, pieces), who))
        share = similarity.power_spectrum(x)
        for s in np.unique(who):
            n = np.flatnonzero(who == s)
            own["spectral_distance"][i, j, n] = spectral_distance(share[n], _mean_spectrum(share[who != s]))
    dims = ("layer", "unit", "reference")
    return xr.Dataset(
        {
            "segment": (dims, chosen),
            "piece_start": (dims, begin),
            **{name: (dims, values) for name, values in own.items()},
            "n_reference": (dims[:2], (chosen >= 0).sum(-1).astype(np.int32)),
            "n_strong": (dims[:2], n_strong),
        },
        coords={"layer": layers, "unit": units},
    )


@torch.no_grad()
def largest_outputs(
    trunk: Trunk, segments: np.ndarray, layers: list[str] | None = None, device: torch.device | str = "cpu"
) -> dict[str, np.ndarray]:
    """Largest output of every unit for every segment, (unit, segment) by layer, in one pass through the trunk.

    ``segments`` is (segment, time) in G. No map is kept.
    """
    device = torch.device(device)
    trunk, layers = trunk.to(device), list(trunk.layers if layers is None else layers)
    depth = max(trunk.depth(layer) for layer in layers)
    found = {
        layer: np.empty((len(trunk.biases[trunk.depth(layer) - 1]), len(segments)), np.float32) for layer in layers
    }
    with ascent._exact_products(device):
        for begin in range(0, len(segments), CHUNK):
            h = torch.as_tensor(segments[begin : begin + CHUNK], device=device)[:, None, None, :]
            for layer, w, b in zip(trunk.layers[:depth], trunk.weights, trunk.biases, strict=False):
                h = F.relu(F.conv2d(h, w[:, :, None, :], b, padding=(0, w.shape[2] // 2)))
                if layer in found:
                    found[layer][:, begin : begin + len(h)] = h.amax((2, 3)).T.cpu().numpy()
    return found


def _chosen(output: np.ndarray, threshold: float, subject: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Reference windows of one unit out of its largest outputs, (segment,): indices in ascending order."""
    strong = order[output[order] >= threshold]
    if len(strong) < N_STRONGEST:
        found = _strongest(output, np.arange(len(output)), N_STRONGEST)
    else:  # in turns, one of each subject that has one left
        each = [strong[subject[strong] == s][:N_REFERENCES] for s in np.unique(subject[strong])]
        turn = np.concatenate([np.arange(len(of_one)) for of_one in each])
        found = np.concatenate(each)[np.argsort(turn, kind="stable")][:N_REFERENCES]
    # every reference window must have others to be compared with when its own subject is left out
    most = np.bincount(subject[found]).argmax()
    missing = N_NEAREST - int((subject[found] != most).sum())
    if missing > 0:
        left = np.setdiff1d(np.flatnonzero(subject != most), found)
        found = np.concatenate([found, _strongest(output, left, missing)])
    return np.sort(found)


def _strongest(output: np.ndarray, among: np.ndarray, n: int) -> np.ndarray:
    return among[np.argsort(-output[among], kind="stable")[:n]]


@torch.no_grad()
def _best_pieces(trunk: Trunk, layer: str, unit: int, x: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Begin and samples of the piece of each signal (signal, time) under which the unit's output sums highest."""
    unit_of_each = torch.full((len(x),), int(unit))
    maps = paper_methods.unit_maps(trunk.to("cpu"), layer, unit_of_each, torch.tensor(x)).numpy()
    return similarity.best_piece(x, maps, length)


def _subjects(split: Split) -> np.ndarray:
    """Subject of every segment, as small numbers from 0: (segment,)."""
    return np.repeat(np.unique(split.subject, return_inverse=True)[1], split.series.shape[1])


def _check(split: Split, piece: int) -> None:
    if piece > split.length:
        raise ValueError(f"a piece of {piece} samples does not fit windows of {split.length}")
    subjects = np.unique(split.subject)
    if len(subjects) < 2:
        raise ValueError(
            f"realism compares real windows with those of other people, but all training windows are of subject(s) "
            f"{', '.join(map(str, subjects)) or 'none'}; it needs a split with at least two training subjects"
        )


# ---------------------------------------------------------------------------------------------- all measures


def measure(
    signals: xr.Dataset,
    statistics: xr.Dataset,
    trunk: Trunk,
    split: Split,
    settings: SimilaritySettings,
    start: np.ndarray,
    found: xr.Dataset | None = None,
) -> xr.Dataset:
    """All measures of signals of one network, dims (..., layer, unit).

    ``signals`` holds ``signal`` (G) and ``map`` over (..., layer, unit, time), maps of ``trunk``; ``statistics``
    holds ``th_eap`` and ``dead`` over (layer, unit), of the training windows ``split``. ``start`` is (time,) or
    broadcasts to (..., layer, unit, time); ``found`` are the :func:`references`, made where not given.

    ``reached``, ``matched_ssim`` (G^2), ``scaled_distance`` (mean of the nearest), ``spectral_distance`` and
    ``displacement_g`` are explained in the functions above. ``realism_p`` and ``distance_ratio`` are the rank of the
    scaled distance among those of real windows and its share of their median: 1 is as near as they are, and it goes
    on growing where p has no more to say. ``ssim_p`` and ``ssim_ratio`` are the same of ``matched_ssim``, and can be
    won by doing nothing as it can. Ranks and ratios compare on the same windows, those of other people than each
    real one's. Medians of real windows, ``reference_ssim``, ``reference_distance`` and
    ``reference_spectral_distance``, ``n_reference`` and ``n_strong`` are per (layer, unit).

    Failed signals (beyond 10 G) have NaN distances but the smallest possible p: they are as unrealistic as can be,
    and must not drop out when methods are compared. Dead units have NaN everywhere.
    """
    dims = [d for d in signals["signal"].dims if d not in ("layer", "unit", "time")] + ["layer", "unit"]
    ordered = signals[["signal", "map"]].transpose(*dims, "time")
    per_unit = statistics[["th_eap", "dead"]].sel(layer=ordered["layer"], unit=ordered["unit"])
    per_unit = per_unit.transpose("layer", "unit")
    th_eap, dead = per_unit["th_eap"].values, per_unit["dead"].values
    if found is None:
        found = references(trunk, per_unit["th_eap"], split, settings)
    found = found.sel(layer=ordered["layer"], unit=ordered["unit"]).transpose("layer", "unit", "reference")
    segments, subject = split.segments, _subjects(split)
    x, maps = ordered["signal"].values, ordered["map"].values
    shape = tuple(ordered.sizes[d] for d in dims)
    x, maps = (v.reshape(-1, *shape[-2:], v.shape[-1]) for v in (x, maps))
    failed = ~(np.abs(x).max(-1) <= settings.fail_amplitude_g)  # NaN counts as failed
    names = {
        "ssim": ("matched_ssim", "ssim_ratio", "ssim_p"),
        "distance": ("scaled_distance", "distance_ratio", "realism_p"),
    }
    values = {name: np.full(x.shape[:-1], np.nan) for name in (*sum(names.values(), ()), "spectral_distance")}
    width = settings.piece
    for i, j in zip(*np.nonzero(~dead), strict=True):
        one = found.isel(layer=i, unit=j, reference=slice(int(found["n_reference"][i, j])))
        who, real = subject[one["segment"].values], segments[one["segment"].values]
        excites = np.take_along_axis(real, one["piece_start"].values[:, None] + np.arange(width), axis=1)
        at = np.flatnonzero(~failed[:, i, j])
        _, pieces = similarity.best_piece(x[at, i, j], maps[at, i, j], width)
        for of, far in (("ssim", distances(pieces, real)), ("distance", scaled_distance(pieces, excites))):
            (nearest, ratio, p), own = names[of], one[of].values
            to_others, median = _to_others(far, who), np.median(own)
            values[nearest][at, i, j] = _mean_nearest(far)
            values[ratio][at, i, j] = to_others.mean(1) / median if median > 0 else np.nan
            values[p][:, i, j] = 1 / (1 + len(own))  # what a failed signal gets
            values[p][at, i, j] = realism_p(to_others, own)
        mean = _mean_spectrum(similarity.power_spectrum(real))
        values["spectral_distance"][at, i, j] = spectral_distance(similarity.power_spectrum(x[at, i, j]), mean)
    values |= {"reached": reached(maps.max(-1), np.where(dead, np.nan, th_eap)), "failed": failed}
    values["displacement_g"] = displacement(ordered["signal"].values, np.asarray(start))
    result = xr.Dataset({n: (dims, v.reshape(shape)) for n, v in values.items()}, {d: ordered[d] for d in dims})
    return result.assign(
        dead=(("layer", "unit"), dead),
        n_reference=found["n_reference"],
        n_strong=found["n_strong"],
        reference_ssim=found["ssim"].median("reference"),
        reference_distance=found["distance"].median("reference"),
        reference_spectral_distance=found["spectral_distance"].median("reference"),
    )


# ---------------------------------------------------------------------------------------------- the two axes


def activation(measured: xr.Dataset) -> xr.DataArray:
    """Share of its threshold that a signal brings its unit to, at most 1: more is not better. NaN for dead units."""
    return measured["reached"].clip(max=1)


def nearness(measured: xr.Dataset) -> xr.DataArray:
    """1 / (1 + distance ratio): 0.5 is as near to real windows as they are to one another, 0 a failed signal.

    Bounded and without gaps, so that methods with failures can be compared unit by unit. NaN for dead units.
    """
    near = 1 / (1 + measured["distance_ratio"])
    return xr.where(measured["failed"] & ~measured["dead"], 0.0, near)


#: a method has to be good on both; each alone is easily won
AXES = {"activation": activation, "nearness": nearness}


# -------------------------------------------------------------------------------------------- stored results


@kept("realism", apart=("device",))
def references_of(
    network: Network,
    windows: Windows,
    th_eap: xr.DataArray,
    settings: SimilaritySettings,
    *,
    device: str | None = None,
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


@kept("realism", apart=("device",))
def controls_of(
    network: Network,
    windows: Windows,
    random_signals: xr.Dataset,
    statistics: xr.Dataset,
    start: np.ndarray,
    settings: SimilaritySettings,
    *,
    device: str | None = None,
) -> xr.Dataset:
    """Measures of one network's :data:`CONTROLS`, dims (control, layer, unit); see :func:`controls`."""
    signals = control_signals(network, windows, statistics, random_signals, start)
    found = references_of(network, windows, statistics["th_eap"], settings, device=device)
    return measure(signals, statistics, network.trunk, windows.train, settings, start, found)


def realism(
    cfg: Settings, windows: Windows, networks: list[Network], statistics: xr.Dataset, signals: xr.Dataset
) -> xr.Dataset:
    """Measures of all methods, dims (seed, preset, technique, layer, unit); missing ones are made.

    ``signals`` has dims (seed, layer, preset, technique, unit, time).
    """
    return _each(realism_of, cfg, windows, networks, statistics, signals)


def controls(
    cfg: Settings, windows: Windows, networks: list[Network], statistics: xr.Dataset, random_signals: xr.Dataset
) -> xr.Dataset:
    """Measures of all :data:`CONTROLS`, dims (seed, control, layer, unit); missing ones are made.

    ``random_signals`` has dims (seed, layer, unit, time): the proposed method on the untrained networks. Other than
    in :func:`similarity.controls` it is judged by the *trained* unit, its outputs and its threshold, because the
    reference windows are the trained unit's: does any pretty signal do, or must it be this unit's?
    """
    return _each(controls_of, cfg, windows, networks, statistics, random_signals)


def _each(one, cfg: Settings, windows: Windows, networks: list[Network], statistics, signals) -> xr.Dataset:
    """Each network's measures by ``one``, a kept function: dims (seed, ...)."""
    start, found = starting_signal(cfg.maximization, windows.train.length), []
    for net in networks:
        chosen = (signals[["signal", "map"]], statistics[["th_eap", "dead"]])
        made, own = (of.sel(seed=net.seed, drop=True) for of in chosen)
        found.append(one(net, windows, made, own, start, cfg.similarity, device=cfg.device))
    return xr.concat(found, pd.Index([net.seed for net in networks], name="seed"))


def control_signals(
    network: Network, windows: Windows, statistics: xr.Dataset, random_signals: xr.Dataset, start: np.ndarray
) -> xr.Dataset:
    """One signal per control, layer and unit: ``signal`` and ``map`` over (control, layer, unit, time).

    Those of :func:`similarity.control_signals`, all with maps of the trained trunk, and "held-out-strong".
    """
    made = similarity.control_signals(network, windows, random_signals, start)[["signal", "map"]]
    random = {"control": "random-weights"}
    made["map"].loc[random] = similarity.own_maps(network.trunk, made["signal"].sel(random).values)
    own = held_out_strong(network.trunk, statistics["th_eap"], windows.test, network.seed)
    strong = made.sel(random).copy(data={"signal": own, "map": similarity.own_maps(network.trunk, own)})
    return xr.concat([made, strong.assign_coords(control="held-out-strong")], "control")


def held_out_strong(trunk: Trunk, th_eap: xr.DataArray, split: Split, seed: int) -> np.ndarray:
    """A segment that reaches each unit's threshold, drawn at random: (layer, unit, time) float32 in G.

    Each unit's own draw from :data:`N_PROBED` random segments; where none reaches it, the strongest of them.
    """
    segments, rng = split.segments, np.random.default_rng((SEED, seed))
    segments = segments[rng.permutation(len(segments))[:N_PROBED]]
    outputs = largest_outputs(trunk, segments, [str(layer) for layer in th_eap["layer"].values])
    output = np.stack([outputs[layer][th_eap["unit"].values] for layer in outputs])
    strong = output >= th_eap.transpose("layer", "unit").values[:, :, None]
    drawn = np.where(strong, rng.random(strong.shape, np.float32), -1).argmax(-1)
    return segments[np.where(strong.any(-1), drawn, output.argmax(-1))]
