"""What is tried beside the paper's own method: lists of variants, which are changed settings of the ascent.

* Readings fill in what the paper leaves open. Its step sizes cannot give its results (notebook 03), and it does not
  say whether the norms are sums or means. Which reading meets the paper's facts is chosen in
  :mod:`harvis_utils.paper.choosing`.
* Recipes change what the paper does not try to change, one thing at a time, then those that could help together.
* Visual variants climb by feature visualization instead: coordinates x aids x prior; and those that are to explain
  the unit (:data:`EXPLAINING`).

Each list was written before any of it was run on real data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harvis_utils.maximization.paper_methods import METHODS, PROPOSED, Method
from harvis_utils.settings import PRESETS, Step, VisualSettings

PAPERS = "the paper's method"
#: the recipe that notebook 09 chose on DSADS and judged on other networks (profile ``desk``), and what the method it
#: makes is called beside the paper's
OUR_RECIPE = "means"
OURS = "ours (means)"


@dataclass(frozen=True)
class Variant:
    """Changed settings of the paper's ascent; what is not said is as in the paper, at the calibrated step size."""

    name: str
    family: str = "reading"
    method: Method = METHODS[PROPOSED]  # of a recipe; readings are tried with FREE and PENALIZED
    weight: float = 0.1
    reduction: str = "sum"  # L2 and TV as sums, as written, or as means over the samples
    per_unit: bool = False  # penalties weigh in units of the unit's threshold
    quantile: float | None = None  # threshold: this quantile of the largest outputs of the windows that excite the unit
    n_starts: int = 1  # starting points, of which the one with the highest objective is kept
    jitter: int = 0  # samples by which the network sees the signal moved, another number in every step
    step: Step = PRESETS["calibrated"]
    periods: float = 1.0  # of the starting sine in a window


#: readings are tried with the methods that the paper's facts speak of; the first two have no penalty, so that reduction
#: and weight do not touch them
FREE = ("naive", "lowpass")
PENALIZED = ("L2+TV", "L2+TV+AAP", "L2+TV+EAP", "L2+TV+EAP+clip")

#: step sizes tried for each optimizer: the stated one, and a range in which X moves by about 0.1 to 100 G
STEP_SIZES = {
    "ascent": (1e-4, 0.03, 0.1, 0.3, 1.0),
    "momentum": (1e-4, 0.003, 0.01, 0.03, 0.1),
    "adam": (1e-4, 0.01, 0.03, 0.1, 0.3),
}


def reading(step: Step, reduction: str = "sum", weight: float = 0.1, periods: float = 1.0) -> Variant:
    """One way to fill in what the paper leaves open, named by its values."""
    how = f"{step.optimizer} {step.step_size:g}, decay {step.decay:g}"
    name = f"{how}, {reduction}, w {weight:g}, {periods:g} per."
    return Variant(name, weight=weight, reduction=reduction, step=step, periods=periods)


def departures(variant: Variant) -> int:
    """How many stated values a reading does not take as they stand; means count as one, because sums are written."""
    # Paper: what is stated; the optimizer is "gradient ascent", the starting sine's period is not stated
    stated = (variant.step.step_size == 1e-4, variant.step.decay == 0.995, variant.weight == 0.1)
    return sum(not as_stated for as_stated in (*stated, variant.reduction == "sum"))


def _grid(step_size: float, optimizer: str, reduction: str) -> list[Variant]:
    step = Step(optimizer, step_size, 0.995)
    weights = [reading(step, reduction, weight) for weight in (0.01, 0.1, 1.0)]
    slower = reading(Step(optimizer, step_size, 0.999), reduction)
    return [*weights, slower, reading(step, reduction, periods=2.0)]


#: every optimizer, step size, reduction and weight; other decays and starts at the stated weight
READINGS = tuple(
    one
    for optimizer, sizes in STEP_SIZES.items()
    for size in sizes
    for reduction in ("sum", "mean")
    for one in _grid(size, optimizer, reduction)
)


def by_step(readings: Sequence[Variant]) -> dict[Step, list[Variant]]:
    """The readings that share a step: they are climbed together and stored as one result."""
    return {step: [one for one in readings if one.step == step] for step in dict.fromkeys(r.step for r in readings)}


_PRIOR = Method(prior=True, eap=True, clip=True)

#: Choice: one change at a time, then those that could help together
RECIPES = (
    Variant(PAPERS, "paper"),
    Variant("weight 0.03", "weight", weight=0.03),
    Variant("weight 0.01", "weight", weight=0.01),
    Variant("means", "weight", reduction="mean"),
    Variant("weight per unit 0.1", "weight per unit", per_unit=True),
    Variant("weight per unit 0.03", "weight per unit", per_unit=True, weight=0.03),
    Variant("weight per unit 0.01", "weight per unit", per_unit=True, weight=0.01),
    Variant("threshold: median", "threshold", quantile=0.5),
    Variant("threshold: 90 %", "threshold", quantile=0.9),
    Variant("threshold: 99 %", "threshold", quantile=0.99),
    Variant("best of 5 starts", "starts", n_starts=5),
    Variant("jitter 2", "jitter", jitter=2),
    Variant("jitter 5", "jitter", jitter=5),
    Variant("prior 0.1", "prior", _PRIOR),
    Variant("prior 0.03", "prior", _PRIOR, 0.03),
    Variant("prior per unit 0.1", "prior", _PRIOR, per_unit=True),
    Variant("prior per unit 0.03", "prior", _PRIOR, 0.03, per_unit=True),
    Variant("prior per unit 0.01", "prior", _PRIOR, 0.01, per_unit=True),
    Variant("weight per unit 0.03, best of 5", "together", per_unit=True, weight=0.03, n_starts=5),
    Variant("prior per unit 0.1, best of 5", "together", _PRIOR, per_unit=True, n_starts=5),
    Variant("prior per unit 0.03, best of 5", "together", _PRIOR, 0.03, per_unit=True, n_starts=5),
    Variant("prior per unit 0.03, best of 5, jitter 2", "together", _PRIOR, 0.03, "sum", True, None, 5, 2),
    Variant("prior per unit 0.03, best of 5, 90 %", "together", _PRIOR, 0.03, "sum", True, 0.9, 5),
)


@dataclass(frozen=True)
class Visual:
    """One way to visualize; every number 0 switches its aid off.

    All start from the same noise, keep signals within the reach of real movement and, unless one says otherwise, count
    outputs up to the unit's threshold, as the paper's clipping does.
    """

    name: str
    family: str
    space: str = "frequency"  # coordinates: or "time", "principal" (directions of real windows), "phase" (MACO)
    objective: str = "channel"  # or "neuron": the middle sample alone; "largest": the largest output, wherever
    clip: bool = True  # outputs beyond the unit's threshold count as that
    shift: int = 0  # samples
    scale: float = 0.0  # share
    noise_g: float = 0.0
    rotate: float = 0.0  # degrees
    background: float = 0.0  # share of a real window that is added in each step
    spectral: float = 0.0  # weight of the cost of the spectrum, in units of the threshold
    unlikely: float = 0.0  # weight of x' P x, P from real windows' covariance, in units of each unit's threshold
    copies: int = 1  # signals per unit, of which the one with the highest objective is kept
    diversity: float = 0.0  # weight of the likeness of the copies, in units of the threshold
    prior: bool = False
    slope: float = 0.0  # backward slope of closed rectifiers in all steps; else they are woken in the first ones alone
    decay: float = 1.0  # of the step size


_AIDS = {"shift": 2, "scale": 0.2, "noise_g": 0.1, "rotate": 10.0}

#: Choice: coordinates x all aids x prior, each aid alone, other objectives
VISUAL = (
    Visual("time", "time", "time"),
    Visual("time, aids", "time", "time", **_AIDS),
    Visual("time, prior", "time", "time", prior=True),
    Visual("time, aids, prior", "time", "time", prior=True, **_AIDS),
    Visual("frequency", "frequency"),
    Visual("frequency, aids", "frequency", **_AIDS),
    Visual("frequency, prior", "frequency", prior=True),
    Visual("frequency, aids, prior", "frequency", prior=True, **_AIDS),
    Visual("shift", "one aid", shift=2),
    Visual("scale", "one aid", scale=0.2),
    Visual("noise", "one aid", noise_g=0.1),
    Visual("rotation", "one aid", rotate=10.0),
    Visual("spectral penalty", "one aid", spectral=0.1),
    Visual("best of 3", "several", copies=3),
    Visual("best of 3, diverse", "several", copies=3, diversity=1.0),
    Visual("no clipping", "objective", clip=False),
    Visual("neuron", "objective", objective="neuron"),
    Visual("neuron, prior", "objective", objective="neuron", prior=True),
    Visual("neuron, aids, prior", "objective", objective="neuron", prior=True, **_AIDS),
)

#: visual variants that are also run on networks with random weights. Choice
RANDOM = ("time", "time, aids, prior", "frequency", "frequency, aids, prior", "neuron, prior")

#: recipes and visual variants by name
BY_NAME = {one.name: one for one in (*RECIPES, *VISUAL)}


def tried(settings: VisualSettings) -> list[Visual]:
    """The visual variants that a profile tries."""
    return [one for one in VISUAL if not settings.only or {one.name, one.family} & {*settings.only}]
