"""What is to become large: objectives as small functions of one forward pass, which add up and describe themselves.

An objective turns (network, windows) into one number per window. What it listens to are units of a tap
(:mod:`harvis_utils.networks.taps`) or the class scores::

    objective = channel("conv2", 5) - 0.1 * spectrum(power)
    objective(network, windows)  # (window,)
    (-objective).name            # "-(conv2 unit 5 - 0.1 * (cost of the spectrum))"

They are those of Olah et al. (2017), "Feature Visualization": neuron, channel, layer (DeepDream), class before and
after softmax, direction; and a unit's largest output. ``-objective`` is the same minimized; rectified units cannot
fall below zero, so a unit is minimized on its output *before* the ReLU (``norm_conv2`` of SF-HF), as in the source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harvis_utils.networks import taps
from harvis_utils.networks.taps import Tap


@dataclass(frozen=True)
class Seen:
    """One forward pass of ``network``: ``windows`` (window, axis, time) in G, ``maps`` by tap, what came ``out``."""

    windows: Tensor
    maps: Mapping[str, Tensor]  # each (window, unit, axis, time)
    out: Tensor
    network: nn.Module

    @property
    def scores(self) -> Tensor:
        """Class scores (window, class). Raises ``ValueError`` as :func:`taps.scores_of` does."""
        taps.settle(self.network, self.windows)
        return taps.as_scores(self.out)


@dataclass(frozen=True)
class Objective:
    """A function ``of`` one forward pass, (window,), with the ``places`` it listens to and a description, ``name``."""

    name: str
    places: tuple[str | Tap, ...]
    of: Callable[[Seen], Tensor]

    def __call__(self, network: nn.Module, x: Tensor) -> Tensor:
        """The objective of windows (window, axis, time) in G: (window,), with gradient."""
        found: dict[str, Tap] = {}
        for tap in (taps.find(network, place) for place in self.places):
            if found.setdefault(tap.name, tap) != tap:
                raise ValueError(f"two different taps are called {tap.name!r}; name them apart")
        with taps.record(network, list(found.values())) as maps:
            output = taps.run(network, taps.as_windows(network, x))
        out = next(iter(taps.tensors_of(output)), x.new_zeros(len(x), 0))
        return self.of(Seen(x, maps, out, network))

    def __add__(self, other: Objective) -> Objective:
        return self._joined(other, "+", 1)

    def __sub__(self, other: Objective) -> Objective:
        return self._joined(other, "-", -1)

    def _joined(self, other: Objective, sign: str, factor: int) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        second = f"({other.name})" if sign == "-" and " " in other.name else other.name
        places = tuple(dict.fromkeys((*self.places, *other.places)))
        return Objective(f"{self.name} {sign} {second}", places, lambda seen: self.of(seen) + factor * other.of(seen))

    def __mul__(self, factor: float | Tensor) -> Objective:
        """Times a number, or a tensor of numbers, one per window."""
        if isinstance(factor, bool) or not isinstance(factor, (int, float, Tensor)):
            return NotImplemented
        named = "a factor per window" if isinstance(factor, Tensor) else f"{factor:g}"
        return Objective(f"{named} * ({self.name})", self.places, lambda seen: factor * self.of(seen))

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        """The same, minimized."""
        return Objective(f"-({self.name})", self.places, lambda seen: -self.of(seen))


def _name(place: str | Tap) -> str:
    return place if isinstance(place, str) else place.name


def _numbers(which: int | Sequence[int]) -> str:
    return str(which) if isinstance(which, int) else ", ".join(str(int(u)) for u in which)


def _within(what: str, value: int, size: int, where: str) -> int:
    if not 0 <= value < size:
        raise ValueError(f"{where} has {what}s 0 to {size - 1}, not {value}")
    return value


Limit = float | Sequence[float] | Tensor | None


def of_units(
    maps: Tensor, unit: int | Sequence[int], where: str, axis: int | None = None, at_most: Limit = None
) -> Tensor:
    """Outputs of one unit, or of one unit per window: (window, unit, axis, time) -> (window, axis, time).

    ``axis`` keeps one sensor axis; outputs beyond ``at_most``, one number or one per window, count as that. Raises
    ``ValueError`` for units and axes that ``where`` does not have, and for another number of units than of windows.
    """
    units = [unit] * len(maps) if isinstance(unit, int) else [int(u) for u in unit]
    if len(units) != len(maps):
        raise ValueError(f"{len(units)} units, one per window, do not match {len(maps)} windows")
    for u in set(units):
        _within("unit", u, maps.shape[1], where)
    chosen = maps[torch.arange(len(maps), device=maps.device), torch.tensor(units, device=maps.device)]
    if axis is not None:
        chosen = chosen[:, [_within("axis", axis, maps.shape[2], where)]]
    if at_most is None:
        return chosen
    return torch.minimum(chosen, torch.as_tensor(at_most, dtype=maps.dtype, device=maps.device).view(-1, 1, 1))


def neuron(
    place: str | Tap, unit: int | Sequence[int], time: int | None = None, axis: int | None = None, at_most: Limit = None
) -> Objective:
    """Output of a unit at one sample (the middle one where not given), averaged over the axes unless one is named.

    ``unit`` may be a sequence: one unit per window of the batch. ``at_most`` is as in :func:`channel`.
    """

    def of(seen: Seen) -> Tensor:
        maps = of_units(seen.maps[_name(place)], unit, _name(place), axis, at_most)
        at = maps.shape[2] // 2 if time is None else _within("sample", time, maps.shape[2], _name(place))
        return maps[:, :, at].mean(1)

    at = "the middle sample" if time is None else f"sample {time}"
    on = "" if axis is None else f" of axis {axis}"
    return Objective(f"{_name(place)} unit {_numbers(unit)} at {at}{on}", (place,), of)


def channel(place: str | Tap, unit: int | Sequence[int], axis: int | None = None, at_most: Limit = None) -> Objective:
    """Mean of a unit's outputs over time, and over the axes unless one is named: the paper's f (section 3.1).

    Outputs beyond ``at_most``, one number or one per window, count as that (Activation Clipping, paper eq. 7).
    """

    def of(seen: Seen) -> Tensor:
        return of_units(seen.maps[_name(place)], unit, _name(place), axis, at_most).mean((1, 2))

    on = "" if axis is None else f" on axis {axis}"
    return Objective(f"{_name(place)} unit {_numbers(unit)}{on}", (place,), of)


def largest(place: str | Tap, unit: int | Sequence[int], axis: int | None = None, at_most: Limit = None) -> Objective:
    """A unit's largest output, wherever it lies; arguments as in :func:`channel`.

    What it excites is one piece of the window, where the mean asks for many at once.
    """

    def of(seen: Seen) -> Tensor:
        return of_units(seen.maps[_name(place)], unit, _name(place), axis, at_most).amax((1, 2))

    return Objective(f"largest output of {channel(place, unit, axis).name}", (place,), of)


def in_blocks(parts: Sequence[tuple[Objective, int]]) -> Objective:
    """Each objective for its number of windows, one block of the batch after the other.

    So units of several layers are optimized in one batch. Raises ``ValueError`` for another number of windows.
    """
    sizes = [n for _, n in parts]

    def of(seen: Seen) -> Tensor:
        if sum(sizes) != len(seen.windows):
            raise ValueError(f"blocks of {', '.join(map(str, sizes))} windows do not match {len(seen.windows)} windows")
        blocks = zip(*(v.split(sizes) for v in (seen.windows, seen.out, *seen.maps.values())), strict=True)
        found = []
        for (objective, _), (x, out, *maps) in zip(parts, blocks, strict=True):
            found.append(objective.of(Seen(x, dict(zip(seen.maps, maps, strict=True)), out, seen.network)))
        return torch.cat(found)

    places = tuple(dict.fromkeys(place for objective, _ in parts for place in objective.places))
    return Objective("; ".join(objective.name for objective, _ in parts), places, of)


def from_output(objective: Objective) -> Objective:
    """The same of a network whose own output are the maps of the one place that the objective listens to."""
    (place,) = objective.places
    return Objective(objective.name, (), lambda seen: objective.of(replace(seen, maps={_name(place): seen.out})))


def layer(place: str | Tap) -> Objective:
    """Mean square of all of a layer's outputs: dreaming (Mordvintsev et al. 2015), more of whatever is there."""
    return Objective(f"all of {_name(place)}", (place,), lambda seen: seen.maps[_name(place)].square().mean((1, 2, 3)))


def direction(place: str | Tap, vector: Sequence[float] | Tensor) -> Objective:
    """Outputs along a direction in activation space, (unit,), taken at length 1; averaged over axes and time.

    Raises ``ValueError`` for a direction of another length than the layer has units, and for zero.
    """
    along = torch.as_tensor(vector, dtype=torch.float32)
    if along.ndim != 1 or not torch.isfinite(along).all() or not along.norm() > 0:
        raise ValueError("a direction should be (unit,), finite and not zero")
    along = along / along.norm()

    def of(seen: Seen) -> Tensor:
        maps = seen.maps[_name(place)]
        if len(along) != maps.shape[1]:
            fault = f"a direction of {len(along)} units does not fit {_name(place)}, which has {maps.shape[1]}"
            raise ValueError(fault)
        return torch.einsum("nuat,u->nat", maps, along.to(maps)).mean((1, 2))

    return Objective(f"a direction in {_name(place)}", (place,), of)


def _of_class(scores: Tensor, which: int | Sequence[int]) -> Tensor:
    return of_units(scores[:, :, None, None], which, "the class layer")[:, 0, 0]


def class_score(which: int | Sequence[int]) -> Objective:
    """Score of a class before softmax; ``which`` may be a sequence: one class per window. Windows need all axes."""
    return Objective(f"class {_numbers(which)} before softmax", (), lambda seen: _of_class(seen.scores, which))


def class_probability(which: int | Sequence[int]) -> Objective:
    """Probability of a class after softmax. It rises too by lowering the others, and saturates (Olah et al. 2017)."""
    name = f"class {_numbers(which)} after softmax"
    return Objective(name, (), lambda seen: _of_class(seen.scores.softmax(1), which))


def spectrum(power: Tensor) -> Objective:
    """How much more power windows have at each frequency than real ones: mean of |X_f|^2 / power_f above 0 Hz.

    ``power`` is (frequency,) or (axis, frequency), that of real windows (:func:`mean_power`), which cost 1 on average.
    To be subtracted.
    """

    def of(seen: Seen) -> Tensor:
        found = torch.fft.rfft(seen.windows, norm="ortho").abs().square()[..., 1:]
        return (found / power.to(found)[..., 1:]).mean((1, 2))

    return Objective("cost of the spectrum", (), of)


def mean_power(windows: Tensor, floor: float = 1e-3) -> Tensor:
    """Mean power of windows (window, axis, time) per axis and frequency, (axis, frequency), in G^2.

    No frequency counts as holding less than ``floor`` of the strongest one above 0 Hz.
    """
    power = torch.fft.rfft(windows.double(), norm="ortho").abs().square().mean(0)
    return power.clamp(min=floor * power[..., 1:].amax(-1, keepdim=True)).float()


def mahalanobis(inverse: np.ndarray | Tensor) -> Objective:
    """How unlikely windows are: x' P x, averaged over the axes; up to constants minus the log of a Gaussian's density.

    ``inverse`` is P, (time, time): the inverse of real windows' second moment, each axis by itself. For a linear unit
    the cheapest window of a given output is then not its filter w but its *pattern* P^-1 w, what goes along with the
    output in real windows (Haufe et al. 2014). To be subtracted.
    """
    inverse = torch.as_tensor(inverse)
    return Objective("unlikeliness", (), lambda seen: ((x := seen.windows) @ inverse.to(x) * x).sum(2).mean(1))


def alike(place: str | Tap) -> Objective:
    """Mean cosine similarity of a window's Gram matrix (unit x unit) to those of the others: diversity.

    0 for a window that is alone. To be subtracted. Olah et al. (2017), after Gatys et al. (2015).
    """

    def of(seen: Seen) -> Tensor:
        maps = seen.maps[_name(place)].flatten(2)
        gram = F.normalize((maps @ maps.transpose(1, 2)).flatten(1), dim=1)
        others = 1 - torch.eye(len(maps)).to(gram)
        return ((gram @ gram.T) * others).sum(1) / max(len(maps) - 1, 1)

    return Objective(f"likeness in {_name(place)}", (place,), of)
