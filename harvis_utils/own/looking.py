"""A place of anyone's network, the windows it is shown, and what the lenses say of it, each part stored by itself.

Nothing is measured here: every part is what a function of the rooms above gives, for some units of one place. Where
that is refused, ``ValueError`` says why.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import nn

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses import ablation, cards, concepts, deconvnet, dissection, occlusion, triggered
from harvis_utils.maximization import paper_methods, starting, unit_statistics
from harvis_utils.maximization.coordinates import Scale
from harvis_utils.maximization.paper_methods import PROPOSED, Target
from harvis_utils.metrics import embedding, explanation, realism, similarity
from harvis_utils.networks import taps, trunks
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.networks.taps import Tap
from harvis_utils.paper import climbing
from harvis_utils.paper.variants import BY_NAME, EXPLAINER
from harvis_utils.settings import (
    DissectionSettings,
    ExplanationSettings,
    HarvisError,
    MaximizationSettings,
    ReadingSettings,
    SimilaritySettings,
    VisualSettings,
    WindowSettings,
)
from harvis_utils.store.results import kept

#: Choice: a signal stops once its remaining steps cannot move it by more than a fifth of what counts as flat
CLIMBING, VISUAL = MaximizationSettings(tolerance_g=ReadingSettings.tolerance_g), VisualSettings()
#: Choice: numbers of windows that a lens holds at once, those that are labelled or searched, and those of their pieces
MOST_NUMBERS, MOST_LABELLED, MOST_PIECES = 20_000_000, 1_000_000, 20_000_000
#: Choice: windows that are covered, places of the cover in each, and more axes than this are covered by sensor
N_COVERED, N_CENTRES, N_SINGLE = 4, 60, 6
#: Choice: windows on which units are silenced, and on which it is asked whether the network is trained
N_SILENCED, N_JUDGED = 500, 2000
#: Choice: a trained network's share of right answers is above that with shuffled names by so much at least; on training
#: windows it is expected to go so far of the way from guessing to all right
LEAST_ABOVE, LEAST_TRAINED = 0.05, 0.75
#: Choice: held-out segments of each group within which they are paired, and of all where pieces are compared, at least
PER_GROUP, FEWEST_SEGMENTS = 10, 1000
#: Choice: sums of answers to noise that tell one network from another: 8 of 4 digits miss hardly a change of 1 in 10^4
N_SUMS = 8
#: what stands beside signals, with those of :data:`triggered.REFERENCES`
FLAT, HELD_OUT, IN_S = "flat zero", "held-out window that excites it", "2 standard deviations"


class ExplainError(HarvisError, ValueError):
    """What cannot be explained: the message says what does not fit and what to do."""


# ------------------------------------------------------------------------------------------------ what is looked at


@dataclass(frozen=True)
class Looked:
    """A place of a network, the windows that it is shown, and what follows of both.

    ``scale`` is None where windows are in G; ``unit`` is what signals are drawn in, ``IN_S`` where axes have different
    ones; ``width`` is how many samples one output sees, None where whole windows are compared; ``trunk`` is the network
    up to the place, where that is one. ``key`` is the address: weights, structure, what the network gives for noise,
    the place, and the windows.
    """

    key: str
    network: nn.Module
    tap: Tap
    windows: Windows
    scale: Scale | None
    unit: str
    by_axis: bool
    width: int | None
    trunk: Trunk | None

    @property
    def caveat(self) -> str:
        """What is to be known of the windows."""
        return self.windows.caveat

    @property
    def name(self) -> str:
        """The place's name."""
        return self.tap.name

    @cached_property
    def target(self) -> Target:
        """The place's units as a function of signals."""
        n_axes, length = self.windows.train.x.shape[1:]
        return paper_methods.target_of(self.network, self.tap, n_axes, length, self.scale)

    @cached_property
    def some(self) -> Windows:
        """The windows, every n-th where all would be too many numbers."""
        return self.windows.every(every(self.windows.train, MOST_NUMBERS))

    @property
    def start(self) -> np.ndarray:
        """The paper's sine in the windows' unit, (time,), or (axis, time) where units mix axes."""
        sine = torch.tensor(starting.starting_signal(CLIMBING, self.windows.train.length))
        signal = self.target.scale.windows(sine.expand(self.target.axes, -1)).numpy()
        return signal if self.target.axes > 1 else signal[0]

    @cached_property
    def similarity(self) -> SimilaritySettings:
        """The paper's, with pieces that fit and no more neighbours than there are windows."""
        found = SimilaritySettings()
        piece = min(found.piece, self.windows.train.length)
        return replace(found, piece=piece, n_similar=min(found.n_similar, len(self.searched.train)))

    @cached_property
    def searched(self) -> Windows:
        """Windows among which nearest ones are searched."""
        return self.windows.every(every(self.windows.train, MOST_LABELLED))

    @cached_property
    def explanation(self) -> ExplanationSettings:
        """Fewer segments and larger groups where there are few, or where all would be too many numbers."""
        found, split = ExplanationSettings(), self.some.test
        width = self.width or split.length
        of_one = (split.length - width + 1) * width * self.target.axes
        n = min(found.n_segments, len(split.of_units(self.target.axes > 1)), max(PER_GROUP, MOST_PIECES // of_one))
        groups = tuple(min(most, max(1, math.isqrt(n // PER_GROUP))) for most in found.n_groups)
        return replace(found, n_segments=n, n_groups=groups)

    def in_s(self, signals: np.ndarray) -> np.ndarray:
        """Signals (..., [axis,] time) in s, where 0.05 is flat; of one axis at least two-dimensional."""
        return self.target.scale.signals(np.asarray(signals, np.float64)).numpy()

    def drawn(self, signals: np.ndarray) -> np.ndarray:
        """Signals as they are drawn, in ``unit``."""
        return self.in_s(signals) if self.unit == IN_S else np.asarray(signals)

    def seen(self, units: Sequence[int], signals: np.ndarray) -> xr.Dataset:
        """Signals (unit[, axis], time) in their unit with each one's own map: ``signal`` and ``map``."""
        x = np.ascontiguousarray(signals, np.float32)
        maps = paper_methods.own_maps(self.target, self.name, np.array(units), x).rename(row="unit")
        dims = ("unit", "axis", "time") if self.target.axes > 1 else ("unit", "time")
        return xr.Dataset({"signal": (dims, x), "map": maps}, {"unit": list(units), "time": np.arange(x.shape[-1])})


def every(split: Split, most: int) -> int:
    """Every how many-th window holds at most so many numbers."""
    return _times(len(split) * split.length * split.series.shape[1], most)


def looked(network: nn.Module, place: str | Tap, windows: Windows) -> Looked:
    """What is looked at, where everything fits together; see :func:`explain`. Raises ``ValueError`` where it does not.

    A place that is named, not a tap, is taken behind the rectifier that its output goes to.
    """
    if not isinstance(network, nn.Module):
        raise ExplainError(f"the network should be a torch.nn.Module, not a {type(network).__name__}")
    if not isinstance(windows, Windows):
        raise ExplainError(
            f"windows should be made by harvis_utils.data.arrays.from_arrays, not be a {type(windows).__name__}"
        )
    x = windows.train.x
    n_axes, length = x.shape[1:]
    try:
        with taps.evaluating(network), torch.no_grad():
            taps.run(network, taps.as_windows(network, x[:2]))
    except HarvisError:  # it says which layout fits
        raise
    except Exception as refusal:
        raise ExplainError(
            f"the network does not take windows of {n_axes} axes ({', '.join(windows.axes)}) and {length} samples "
            f"({refusal}): give it the channels that it was trained on, in its layout (taps.WithLayout)"
        ) from refusal
    if place == "last conv":
        place = _last_convolution(network, x[:2])
    tap = taps.located(network, place, x[:3]) if isinstance(place, Tap) else taps.behind(network, place, x[:3])
    by_axis, scale, unit = trunks.by_axis(network, tap, n_axes, length), None, "G"
    if windows.units:
        series, known = windows.train.series, set(windows.units.values())
        same = set(windows.units) == {name.rpartition(" ")[0] for name in windows.axes} and len(known) == 1
        unit = known.pop() if same else IN_S
        scale = Scale.of(series.reshape(-1, 1), unit) if by_axis else Scale.of(series, unit, windows.axes)
    try:
        trunk = trunks.trunk_of(network, tap, x[:50]) if by_axis and scale is None else None
    except ValueError:  # then its network is climbed itself
        trunk = None
    about = Looked("", network, tap, windows, scale, unit, by_axis, None, trunk)
    width = taps.footprint(network, tap, x[:2])
    try:
        explanation.Seen.by(about.target, tap.name, length, width)
        inputs = width * about.target.axes * (length - width + 1)
        width = width if width < length and FEWEST_SEGMENTS * inputs <= MOST_PIECES else None
    except ValueError:  # its maps do not say where they look
        width = None
    return replace(about, key=_key(network, tap, windows, scale, width), width=width)


def _last_convolution(network: nn.Module, x: np.ndarray) -> str:
    """The name of the convolution that runs last."""
    ran: list[str] = []
    with taps.evaluating(network), torch.no_grad():
        hooks = [
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        ]
        try:
            taps.run(network, taps.as_windows(network, x))
        finally:
            for hook in hooks:
                hook.remove()
    if not ran:
        raise ExplainError("no convolution runs in this network; name a place, as taps.places(network, x) lists them")
    return ran[-1]


def judged(network: nn.Module, windows: Windows, even_untrained: bool = False) -> dict[str, dict[str, float]]:
    """How well activities are told in "train" and "test" windows: shares of windows and, ``mean``, over activities.

    ``commonest`` and ``guessing`` are what one answer always has of the two. Output k is activity k, further outputs
    are wrong. Nothing for a network without class scores. Raises ``ValueError``, unless ``even_untrained``, for fewer
    outputs than activities, and where training windows are told no better than with names shuffled.
    """
    n, found, rng = len(windows.activities), {}, np.random.default_rng(0)
    for name in ("train", "test"):
        split = getattr(windows, name)
        split = split.every(_times(len(split), N_JUDGED))
        with taps.evaluating(network), torch.no_grad():
            try:
                parts = torch.as_tensor(split.x).split(taps.CHUNK)
                scores = torch.cat([taps.scores_of(network, part).cpu() for part in parts])
            except ValueError:
                return {}
        if (given := scores.shape[1]) < n and not even_untrained:
            raise ExplainError(
                f"the network has {given} outputs, the windows have {n} activities ({', '.join(windows.activities)}): "
                "leave out windows of those it does not know; even_untrained=True looks at it all the same"
            )
        told = pd.crosstab(split.activity, scores.argmax(1).numpy(), normalize="index")
        each, rows = told.reindex(columns=range(max(n, given)), fill_value=0.0).to_numpy(), np.arange(len(told))
        share, right = np.bincount(split.activity)[told.index] / len(split), each[rows, told.index]
        of_names = {"windows": share @ right, "commonest": share.max(), "mean": right.mean(), "guessing": 1 / len(told)}
        found[name] = {key: float(value) for key, value in of_names.items()}
        if name == "test" or even_untrained:
            continue
        orders = list(itertools.permutations(range(n))) if n <= 6 else [rng.permutation(n) for _ in range(999)]
        shuffled = np.array([each[rows, np.asarray(order)[told.index]].mean() for order in orders])
        if right.mean() < shuffled.mean() + LEAST_ABOVE or (shuffled > right.mean() + 1e-9).mean() > 0.05:
            raise ExplainError(
                "the network tells activities of training windows no better than with their names shuffled: "
                f"{right.mean():.0%} right, averaged over activities. It is not trained, or on other units, "
                f"or its outputs are not {', '.join(windows.activities)}; even_untrained=True looks at it all the same"
            )
    return found


def _times(n: int, most: int) -> int:
    return max(1, -(-n // most))


def _digits(values: torch.Tensor) -> str:
    """What tells the answers of one network from those of another: their shape, norm, and sums with random signs.

    Each is rounded: the network's code counts, rounding of another thread does not.
    """
    flat = values.detach().cpu().double().flatten()
    signs = torch.randn(N_SUMS, len(flat), generator=torch.Generator().manual_seed(0), dtype=torch.float64).sign()
    norm = float(flat.norm())
    sums = (signs @ (flat / norm if norm else flat)).tolist()
    return f"{tuple(values.shape)} {norm:.3e} {' '.join(f'{one + 0.0:.4f}' for one in sums)}"


def _key(network: nn.Module, tap: Tap, windows: Windows, scale: Scale | None, width: int | None) -> str:
    """The address of what is looked at."""
    noise = trunks.noise(*windows.train.x.shape[1:])
    with taps.watching(network) as watched, torch.no_grad():
        torch.manual_seed(0)  # where what lies behind the place draws
        given = taps.tensors_of(taps.run(watched, taps.as_windows(watched, noise)), every=True)
    answers = [_digits(of) for of in (taps.outputs(network, tap, noise), *given)]
    said = (repr(network), dataclasses.astuple(tap), windows.digest, width, answers)
    found = hashlib.sha256(repr(said).encode())
    for name, value in itertools.chain(network.named_parameters(), network.named_buffers()):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found.update(name.encode() + content)
    for part in (scale.zero, scale.one) if scale else ():
        found.update(part.numpy().tobytes())
    return found.hexdigest()[:20]


# -------------------------------------------------------------------------------------------------- parts, each kept


@kept("explained")
def thresholds(of: Looked) -> xr.Dataset:
    """:func:`unit_statistics.collect` of all units, over all training windows."""
    return unit_statistics.collect(of.network, of.windows.train.x, place=of.tap).drop_vars("layer")


@kept("explained")
def climbed(of: Looked, units: Sequence[int], th_eap: np.ndarray, settings: MaximizationSettings) -> xr.Dataset:
    """``signal`` and ``map`` of the paper's method for some units; ``th_eap`` is (unit,) of all."""
    about = {"methods": [PROPOSED], "units": list(units), "settings": settings, "scale": of.scale}
    about |= {"length": of.windows.train.length, "rate_hz": of.windows.rate_hz}
    if of.trunk is not None:
        made = paper_methods.maximize(of.trunk, of.trunk.layers[-1], th_eap, **about)
    else:
        made = paper_methods.maximize(of.network, of.tap, th_eap, n_axes=len(of.windows.axes), **about)
    return made[["signal", "map"]].sel(technique=PROPOSED, drop=True).drop_attrs()


@kept("explained")
def likeliest(of: Looked, units: Sequence[int], th_eap: np.ndarray, settings: VisualSettings) -> xr.Dataset:
    """``signal`` and ``map`` of the likeliest trigger for some units; ``th_eap`` is (unit,) of all."""
    windows, axes = replace(of.some, train=of.target.scale.split(of.some.train)), of.target.axes
    about = (climbing.Viewed(of.target), [(None, th_eap[list(units)])], windows, BY_NAME[EXPLAINER], list(units))
    (made,) = climbing.visualized(*about, settings, n_axes=axes)
    made = of.target.scale.windows(torch.as_tensor(made)).numpy()
    return of.seen(units, made if axes > 1 else made[:, 0])


@kept("explained")
def references(of: Looked, units: Sequence[int], th_eap: np.ndarray) -> xr.Dataset:
    """What stands beside signals: ``signal`` and ``map`` over (technique, unit, ...), ``strongest`` (unit, example)."""
    train = of.some.train
    start = of.in_s(of.start).reshape(of.target.axes, -1)
    found = triggered.references(of.target, of.name, train, start, of.explanation, of.width).sel(unit=list(units))
    made = {name: found["signal"].sel(reference=name).values for name in found["reference"].values.tolist()}
    zero = of.target.scale.zero.numpy() if of.target.axes > 1 else of.target.scale.zero.numpy()[0]
    made[FLAT] = np.broadcast_to(zero, made["spectrum noise"].shape)
    limits = xr.DataArray(th_eap[None], {"layer": [of.name], "unit": np.arange(len(th_eap))}, ("layer", "unit"))
    made[HELD_OUT] = realism.held_out_strong(of.target, limits.sel(unit=list(units)), of.some.test, seed=0)[0]
    both = xr.concat([of.seen(units, x) for x in made.values()], pd.Index(made, name="technique"))
    return both.assign(strongest=found["strongest"].drop_attrs())


@kept("explained")
def told(of: Looked, signals: xr.DataArray, th_eap: np.ndarray) -> xr.Dataset:
    """What is kept of :func:`explanation.explained` of signals (technique, unit[, example], ...), held-out windows."""
    limits = xr.DataArray(th_eap, {"unit": np.arange(len(th_eap))}, ("unit",))
    found = explanation.explained(of.target, of.name, signals, of.some.test, limits, of.explanation, of.width)
    return found[["accuracy", "accuracy of others", "specificity", "identified"]]


@kept("explained")
def near(of: Looked, made: xr.Dataset, statistics: xr.Dataset) -> xr.Dataset:
    """:func:`realism.measure` of signals (technique, unit, ...): ``activation`` and ``nearness``."""
    own, limits = (one.expand_dims(layer=[of.name]) for one in (made, statistics))
    found = realism.measure(own, limits, of.target, of.some.train, of.similarity, of.start).isel(layer=0, drop=True)
    return xr.Dataset({"activation": realism.activation(found), "nearness": realism.nearness(found)})


@kept("explained")
def nearest(of: Looked, made: xr.Dataset, statistics: xr.Dataset) -> xr.Dataset:
    """What the atlas asks of :func:`similarity.score` of the method's signals (unit, ...)."""
    units = made["unit"].values
    statistics = statistics.sel(unit=units)
    start = of.seen(units, np.broadcast_to(of.start, made["signal"].shape))["map"]
    own, limits = (one.expand_dims(layer=[of.name]) for one in (made.assign(start_map=start), statistics))
    found = similarity.score(own, limits, of.start, of.searched, of.similarity, of.scale).isel(layer=0, drop=True)
    return found[["failed", "dead", "piece_start", "segment", "offset", "distance"]].isel(neighbour=slice(1))


@kept("explained")
def placed(of: Looked, made: xr.Dataset, scores: xr.Dataset) -> xr.Dataset:
    """``positions`` (unit, coordinate) of the method's signals on the atlas. Raises ``ValueError`` where there is none.

    Failed and silent units have no place.
    """
    signals = of.in_s(made["signal"].values)
    out = (scores["failed"] | scores["dead"]).values
    signals[out] = np.nan
    return xr.Dataset({"positions": (("unit", "coordinate"), embedding.embed(signals))}, {"unit": made["unit"]})


@kept("explained")
def projected(of: Looked, units: Sequence[int], rule: str) -> xr.Dataset:
    """The units' strongest windows, and what comes back of them by a rule."""
    (top,) = deconvnet.top_of_layers(of.network, [of.tap], of.some.train, cards.N_WINDOWS).values()
    return deconvnet.project_top(of.network, of.tap, of.some.train, top.sel(unit=list(units)), (rule,))


@kept("explained")
def named(of: Looked, units: Sequence[int]) -> xr.Dataset:
    """:func:`dissection.dissect` of the units; concepts that are rules in G have none where windows are not in G."""
    split = of.windows.train.every(every(of.windows.train, MOST_LABELLED))
    known = concepts.of_windows(of.windows, split)
    left_out = {f"concept {name}": why for name, why in known.left_out.items()}
    if of.scale is not None:
        known, why = known.only(concepts.ACTIVITY), "they are rules in G, and values are in another unit"
        left_out = {"concepts of waveforms": why}
    elif of.windows.rate_hz != WindowSettings.rate_hz:
        left_out["concepts of waveforms"] = (
            f"their rules count samples as at {WindowSettings.rate_hz:g} Hz: at {of.windows.rate_hz:g} Hz an edge or a "
            "peak is of another length"
        )
    parts = taps.chunks(of.network, [of.tap], split.x)
    maps = torch.cat([maps[:, list(units)].cpu() for chunk in parts for maps in chunk.values()])
    about = {} if maps.shape[3] == split.length else {"positions": taps.positions(of.network, of.tap, split.x[:3])}
    n = DissectionSettings.n_draws
    found = dissection.dissect(maps, known.masks, known.names, n, None, split.recording, **about)
    return found.assign_coords(unit=list(units)).assign_attrs(left_out=json.dumps(left_out))


@kept("explained")
def silenced(of: Looked, units: Sequence[int]) -> xr.Dataset:
    """:func:`ablation.drops` of the units, on test windows."""
    split = of.some.test.every(_times(len(of.some.test), N_SILENCED))
    return ablation.drops(of.network, [of.tap], split, len(of.windows.activities), units).isel(layer=0, drop=True)


@kept("explained")
def covered(of: Looked) -> xr.Dataset:
    """:func:`occlusion.drops` of the likeliest class of some test windows, and ``window``, their numbers."""
    windows, test = of.windows, of.some.test
    sensors = occlusion.by_sensor(windows.axes)
    groups = {name: (axis,) for axis, name in enumerate(windows.axes)}
    groups = sensors if N_SINGLE < len(groups) > len(sensors) else groups
    some = np.unique(np.linspace(0, len(test) - 1, N_COVERED).round().astype(int))
    some = some[np.argsort(test.activity[some], kind="stable")]
    with taps.evaluating(of.network), torch.no_grad():
        classes = taps.scores_of(of.network, test.x[some]).argmax(1).cpu().numpy()
    step = _times(test.length, N_CENTRES)
    occluder = occlusion.Occluder(width=1 + 2 * (test.length // 20))
    found = occlusion.drops(of.network, test.x[some], classes, groups, occluder, of.tap, step)
    time = np.arange(0, test.length, step)
    return found.assign_coords(time=time, window=some).assign(predicted=("window", classes))
