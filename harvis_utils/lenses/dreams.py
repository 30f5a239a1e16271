"""Real windows turned into dreams of another class and into the smallest changes that reach it, side by side.

Both start from the same window and lead to the same class, the one that the smallest change reaches. A dream goes on
until the class is as sure as it can be, an adversarial example stops at the border (seed of both: Olah et al. 2017;
Szegedy et al. 2014). What they become is judged by the network itself, by the other networks, trained on the same
windows, and by the learned prior, which knows windows only.

The smallest change is searched for with DeepFool (Moosavi-Dezfooli et al. 2016), bisection and steps along the border:
an upper bound on the true one. Choice: L2, in G RMS over all samples of all axes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.maximization import coordinates, objectives, visualization
from harvis_utils.maximization.priors import Denoiser
from harvis_utils.metrics.intervals import with_interval
from harvis_utils.networks import taps
from harvis_utils.networks.backward import gradient_of
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.settings import DreamSettings, Settings
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network, of_networks

#: DeepFool goes a little beyond the linearized border
OVERSHOOT = 0.02
BISECTIONS = 20
#: Choice: how far another class must lead, as a share of the largest score, to be beyond the border: a hundred times
#: what rounding makes of a score, which other threads, batches and machines round otherwise
MARGIN = 1e-4


@dataclass(frozen=True)
class Flips:
    """``signal`` (window, axis, time) in G just beyond the border, its class ``after``, the class ``before``.

    ``rms_g`` is the size of the change, (window,); NaN, and the signal unchanged, where no flip was found.
    """

    signal: np.ndarray
    before: np.ndarray
    after: np.ndarray
    rms_g: np.ndarray


def rms(change: Tensor | np.ndarray):
    """Root mean square over axes and samples: (..., axis, time) in G -> (...)."""
    return (change**2).mean((-2, -1)) ** 0.5


def smallest_change(network: nn.Module, x: np.ndarray | Tensor, n_steps: int = 30, n_along: int = 6) -> Flips:
    """The smallest change found that gives windows (window, axis, time) another class than the network gives them now.

    All windows at once: DeepFool until the class changes, at most ``n_steps``; bisection on the straight line back;
    where DeepFool met no slope, bisection on the lines to the batch's windows of other classes; then ``n_along`` times
    a search along the border's normal at the point found, kept where it is nearer.
    """
    x = torch.as_tensor(x, dtype=torch.float32, device=taps.device_of(network)).clone()
    with taps.evaluating(network):
        before = _class(network, x)
        best = _bisected(network, x, _deepfool(network, x, before, n_steps) - x, before)
        best = _towards_others(network, x, best, before)
        for _ in range(n_along):
            _, normal = _nearest_border(network, best, before)
            along = normal / _each(normal.flatten(1).norm(dim=1).clamp(min=1e-12))
            # to where the plane of the border is nearest to x, and as far again, so that a bent border is crossed
            tried = _bisected(network, x, 2 * _each(((best - x) * along).sum((1, 2))) * along, before)
            nearer = (rms(tried - x) < rms(best - x)) & _beyond(network, tried, before)
            best = torch.where(_each(nearer), tried, best)
        flipped = _beyond(network, best, before)
        after = torch.where(flipped, _class(network, best), before)
    x, best, before, after, flipped = (of.cpu() for of in (x, best, before, after, flipped))
    signal = torch.where(_each(flipped), best, x)
    return Flips(signal.numpy(), before.numpy(), after.numpy(), rms(signal - x).where(flipped, torch.nan).numpy())


def _each(values: Tensor) -> Tensor:
    """A number of each window, (window,), for all its samples."""
    return values[:, None, None]


@torch.no_grad()
def _class(network: nn.Module, x: Tensor) -> Tensor:
    return taps.scores_of(network, x).argmax(1)


@torch.no_grad()
def _beyond(network: nn.Module, x: Tensor, before: Tensor) -> Tensor:
    """Whether another class than ``before`` leads by more than :data:`MARGIN`, (window,)."""
    scores = taps.scores_of(network, x)
    lead = scores.gather(1, before[:, None]) - scores
    return lead.amin(1) < -_least(scores)


def _least(scores: Tensor) -> Tensor:
    """What another class must lead by, (window,)."""
    return MARGIN * scores.detach().abs().amax(1)


def _nearest_border(network: nn.Module, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """How far the class whose linearized border is nearest is from leading by enough, (window,), and its gradient."""
    x = x.detach().requires_grad_()
    scores = taps.scores_of(network, x)
    lead = scores.gather(1, before[:, None]) - scores  # (window, class)
    slopes = torch.stack([gradient_of(lead[:, k].sum(), x, keep=True) for k in range(lead.shape[1])], 1)
    far = lead.detach().abs() / slopes.flatten(2).norm(dim=2).clamp(min=1e-12)
    every, nearest = torch.arange(len(x)), far.scatter(1, before[:, None], torch.inf).argmin(1)
    return lead.detach()[every, nearest] + _least(scores), -slopes[every, nearest]


def _deepfool(network: nn.Module, x: Tensor, before: Tensor, n_steps: int) -> Tensor:
    """Windows whose class has changed, as far as that was reached; those go no farther."""
    found = x.clone()
    for _ in range(n_steps):
        there = ~_beyond(network, found, before)
        if not there.any():
            break
        lead, down = _nearest_border(network, found[there], before[there])
        size = (lead.abs() + 1e-6) / down.flatten(1).square().sum(1).clamp(min=1e-12)
        found[there] += (1 + OVERSHOOT) * _each(size) * down
    return found


def _towards_others(network: nn.Module, x: Tensor, found: Tensor, before: Tensor) -> Tensor:
    """``found``, where that has not changed its class the nearest border on the lines to windows of other classes."""
    found = found.clone()
    for i in torch.nonzero(~_beyond(network, found, before))[:, 0].tolist():
        others = x[before != before[i]]
        if len(others):
            tried = _bisected(network, x[[i]].expand_as(others), others - x[i], before[[i]].expand(len(others)))
            found[i] = tried[rms(tried - x[i]).argmin()]
    return found


@torch.no_grad()
def _bisected(network: nn.Module, x: Tensor, change: Tensor, before: Tensor) -> Tensor:
    """The point on the line from x to x + change that lies just beyond the border; x + change where that does not."""
    low, high = x.new_zeros(len(x)), x.new_ones(len(x))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        changed = _beyond(network, x + _each(middle) * change, before)
        low, high = torch.where(changed, low, middle), torch.where(changed, middle, high)
    return x + _each(high) * change


@torch.no_grad()
def predicted(network: nn.Module, x: np.ndarray) -> np.ndarray:
    """Class of each window, (window,)."""
    with taps.evaluating(network):
        return _class(network, torch.tensor(x)).cpu().numpy()


def random_change(shape: tuple[int, ...], rms_g: np.ndarray, seed: int) -> np.ndarray:
    """White noise (window, axis, time) of exactly these sizes (window,): the control for a change of that size."""
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return noise * (rms_g / rms(noise))[:, None, None].astype(np.float32)


#: white noise, and the change that it is as large as
NOISES = {"noise of that size": "smallest change", "noise as large as the dream": "dream"}
#: what becomes of a window: itself, the nearest point found beyond the border to another class, ascents of that class's
#: score, without the prior and with a step of denoising after each, and white noise as large as two of these changes
VARIANTS = (
    *("window", "smallest change", "noise of that size"),
    *("dream", "dream with prior", "noise as large as the dream"),
)


def choose(networks: Sequence[Network], split: Split, n: int, seed: int = 0) -> np.ndarray:
    """``n`` windows that every network classifies correctly, as many of each class as can be: indices, ascending.

    Raises ``ValueError`` where there are not as many.
    """
    order = np.random.default_rng(seed).permutation(len(split))[: 100 * n]
    right = np.stack([predicted(net.model, split.x[order]) == split.activity[order] for net in networks])
    order = order[right.all(0)]
    if len(order) < n:
        raise ValueError(f"{n} windows that all networks classify correctly are wanted, but {len(order)} were found")
    turn = pd.Series(order).groupby(split.activity[order]).cumcount()  # how many of its class come before each
    return np.sort(order[np.argsort(turn.values, kind="stable")[:n]])


@kept("dreams")
def dream(
    network: Network, windows: Windows, chosen: np.ndarray, settings: DreamSettings, denoiser: Denoiser
) -> xr.Dataset:
    """All :data:`VARIANTS` of ``chosen`` test windows, dims (variant, window, axis, time).

    ``before`` and ``after`` (window,) are the classes of the window and beyond the border.
    """
    x = np.ascontiguousarray(windows.test.x[chosen])
    flipped = smallest_change(network.model, x)
    bound = visualization.amplitude_bound(windows.train, 1.0)
    found = {"window": x, "smallest change": flipped.signal}
    shared = {name: getattr(settings, name) for name in ("prior_rate", "n_steps", "step_size", "seed")}
    score, space = objectives.class_score(flipped.after.tolist()), coordinates.in_frequency(x.shape[2], bound)
    for name, of_prior in (("dream", None), ("dream with prior", denoiser)):
        found[name] = visualization.visualize(network.model, score, x, space, prior=of_prior, **shared).signal
    for k, (name, of) in enumerate(NOISES.items()):
        found[name] = x + random_change(x.shape, rms(found[of] - x), settings.seed + network.seed + k)
    signal = ("variant", "window", "axis", "time"), np.stack([found[name] for name in VARIANTS]).astype(np.float32)
    classes = {"before": ("window", flipped.before), "after": ("window", flipped.after)}
    return xr.Dataset({"signal": signal} | classes, {"variant": list(VARIANTS)})


def dreams(
    cfg: Settings, windows: Windows, networks: Sequence[Network], chosen: np.ndarray, denoiser: Denoiser
) -> xr.Dataset:
    """:func:`dream` of chosen test windows for all networks, dims (seed, variant, window, axis, time)."""
    return of_networks(networks, lambda net: dream(net, windows, chosen, cfg.dreams, denoiser), title="dreams")


@kept("flips")
def flips(network: Network, windows: Windows, chosen: np.ndarray) -> xr.Dataset:
    """Size ``rms_g`` (window,) of the smallest change found for each of ``chosen`` test windows, NaN where none was."""
    found = smallest_change(network.model, np.ascontiguousarray(windows.test.x[chosen]))
    return xr.Dataset({"rms_g": ("window", found.rms_g)})


def measures(networks: Sequence[Network], made: xr.Dataset, denoiser: Denoiser) -> xr.Dataset:
    """What became of the windows, dims (seed, variant, window).

    ``size_g``: size of the change in G RMS. ``own``: whether the network itself sees the class the smallest change led
    to, ``others``: the share of the other networks that do (NaN where there are none). ``unreal_g``: G RMS that the
    prior would change, ``along``: cosine between the change and the smallest one. NaN where no flip was found.
    """
    dims = ("seed", "variant", "window")
    x = made["signal"].transpose(*dims, "axis", "time").values
    after, flat = made["after"].transpose("seed", "window").values[:, None], x.reshape(-1, *x.shape[3:])
    # (network, seed, variant, window)
    as_after = np.stack([predicted(net.model, flat).reshape(x.shape[:3]) == after for net in networks])
    every = range(len(networks))
    own = as_after[every, every].astype(float)
    others = (as_after.sum(0) - own) / (len(every) - 1 or np.nan)
    with torch.no_grad():
        cleaned = denoiser(torch.tensor(flat)).numpy().reshape(x.shape)
    change = x - x[:, [VARIANTS.index("window")]]
    small = change[:, [VARIANTS.index("smallest change")]]
    norms = np.sqrt((change**2).sum((3, 4)) * (small**2).sum((3, 4)))
    along = (change * small).sum((3, 4)) / np.where(norms > 0, norms, np.nan)
    values = {"size_g": rms(change), "own": own, "others": others, "unreal_g": rms(cleaned - x), "along": along}
    coords = {name: made[name].values for name in dims[:2]}
    return xr.Dataset({name: (dims, v) for name, v in values.items()}, coords).where(made["after"] != made["before"])


#: the measures that are shown, and what stands at their axes
MEASURES = {
    "size_g": "change [G RMS]",
    "own": "its network sees the other class",
    "others": "other networks see it",
    "unreal_g": "what the prior would change [G RMS]",
}


def sizes(measured: xr.Dataset, windows: Windows, untrained: Sequence[Network], chosen: np.ndarray) -> pd.DataFrame:
    """G RMS with its interval of the smallest change, by trained and untrained networks, and of windows' movement."""
    real = np.ascontiguousarray(windows.test.x[chosen])
    found = {
        "trained": measured["size_g"].sel(variant="smallest change").values,
        "random weights": np.stack([flips(net, windows, chosen)["rms_g"] for net in untrained]),
        "the windows' own movement": (real - real.mean(2, keepdims=True)).std((1, 2))[None],
    }
    return pd.DataFrame([with_interval("G RMS", of) for of in found.values()], index=list(found))


def of_units(
    network: Network, units: Sequence[tuple[str, int]], maximum: xr.DataArray, start: np.ndarray, real: Split, **how
) -> dict[str, np.ndarray]:
    """Signals made for units, and single axes of ``real`` windows that excite them most and least: (unit, row, time).

    A unit is a layer and a number. Made from ``start`` (4, 1, time) are a maximum, two that should differ in what the
    layer does, likeness counting a tenth of the unit's ``maximum`` (layer, unit), and a minimum; all in G. ``how`` is
    as :func:`visualization.visualize` takes it.
    """
    segments, recording = real.segments[:, None], np.repeat(real.recording, real.x.shape[1])
    made, strongest, weakest = [], [], []
    for layer, unit in units:
        view = visualization.PerAxis(network.model, layer)
        objective = objectives.neuron(view.tap(layer, before_relu=True), unit)
        scale = 0.1 * float(maximum.sel(layer=layer, unit=unit))
        differing = objective - scale * objectives.alike(view.tap(layer))
        four = objectives.in_blocks([(objective, 1), (differing, 2), (-objective, 1)])
        made.append(visualization.visualize(view, four, start, **how).signal[:, 0])
        most, least = visualization.extremes(visualization.scores(view, objective, segments), recording, 3)
        strongest.append(segments[most, 0])
        weakest.append(segments[least, 0])
    found = {"made": made, "real, strongest": strongest, "real, weakest": weakest}
    return {kind: np.stack(of) for kind, of in found.items()}


def of_classes(
    network: SFHF, classes: Sequence[int], start: np.ndarray, real: np.ndarray, ways: Mapping[str, dict]
) -> dict[str, np.ndarray]:
    """The ``real`` window (window, axis, time) with each class's highest score, and ascents of it: (axis, class, time).

    Ascents begin at ``start`` (class, axis, time) in G; each of the ``ways`` says how, as
    :func:`visualization.visualize` takes it.
    """
    best = [visualization.scores(network, objectives.class_score(k), real).argmax() for k in classes]
    score, found = objectives.class_score(classes), {"strongest real window": real[best]}
    found |= {name: visualization.visualize(network, score, start, **how).signal for name, how in ways.items()}
    return {name: x.swapaxes(0, 1) for name, x in found.items()}
