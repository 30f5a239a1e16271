"""What is tried beside the paper's own method: other settings of its ascent, and another way to climb.

* Readings fill in what the paper leaves open. Its step sizes cannot give its results (notebook 03), and it does not
  say whether the norms are sums or means, nor how large its network's outputs are beside them. Which reading meets the
  paper's facts is chosen in :mod:`harvis_utils.paper.choosing`.
* Visual variants climb by feature visualization instead, and are to explain the unit (:data:`EXPLAINING`). The one that
  does is the *likeliest trigger*.

Each list was written before any of it was run on real data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from harvis_utils.settings import PRESETS, ReadingSettings, Step, VisualSettings


@dataclass(frozen=True)
class Variant:
    """A reading of the paper's ascent; what is not said is as in the paper, at the calibrated step size."""

    name: str
    weight: float = 0.1
    reduction: str = "sum"  # L2 and TV as sums, as written, or as means over the samples
    per_unit: bool = False  # penalties weigh in units of the unit's threshold
    step: Step = PRESETS["calibrated"]
    periods: float = 1.0  # of the starting sine in a window


#: readings are tried with the methods that the paper's facts speak of; the first two have no penalty, so that reduction
#: and weight do not touch them
FREE = ("naive", "lowpass")
PENALIZED = ("L2+TV", "L2+TV+AAP", "L2+TV+EAP", "L2+TV+EAP+clip")

#: Paper: the step size, its decay and the weight as they are stated
STATED = (1e-4, 0.995, 0.1)
#: how the penalties are read: L2 and TV as sums or as means, and sums in units of the unit's threshold. The last stands
#: for the scale of the network, which the paper leaves open: outputs half as large halve what is gained against them
SUM, MEAN, SCALED = "sum", "mean", "sum x th"


def reading(step: Step, penalties: str = SUM, weight: float = 0.1, periods: float = 1.0) -> Variant:
    """One way to fill in what the paper leaves open, named by its values."""
    how = f"{step.optimizer} {step.step_size:g}, decay {step.decay:g}"
    name = f"{how}, {penalties}, w {weight:g}, {periods:g} per."
    reduction, scaled = ("mean" if penalties == MEAN else "sum"), penalties == SCALED
    return Variant(name, weight=weight, reduction=reduction, per_unit=scaled, step=step, periods=periods)


def penalties(variant: Variant) -> str:
    """How a reading takes the penalties: :data:`SUM`, :data:`MEAN` or :data:`SCALED`."""
    return SCALED if variant.per_unit else {"sum": SUM, "mean": MEAN}[variant.reduction]


def departures(variant: Variant) -> float:
    """How far a reading lies from what is stated, in factors of ten; 0 takes everything as it stands.

    The sum of the distances on a log scale of step size, decay (as 1 - gamma, over which the steps add up) and weight.
    Choice: what is no number counts as one factor of ten each: another optimizer than gradient ascent (Adam, whose
    steps do not grow with the gradient), means instead of the sums that are written, penalties in units of the
    threshold. The starting sine's period is not stated.
    """
    step, (size, decay, weight) = variant.step, STATED
    numbers = (step.step_size / size, (1 - step.decay) / (1 - decay), variant.weight / weight)
    others = (step.optimizer != "ascent", variant.reduction != "sum", variant.per_unit)
    return round(sum(abs(math.log10(ratio)) for ratio in numbers) + sum(others), 9)


def readings(settings: ReadingSettings) -> tuple[Variant, ...]:
    """The readings that are tried: step sizes of each optimizer x penalties x weights.

    Another decay and a start of two periods are tried at the stated weight of sums. The stated step size is tried with
    the stated weight alone: it moves a signal by 0.02 G at most.
    """
    found = []
    for optimizer in ("ascent", "adam"):
        for size in getattr(settings, optimizer):
            step, slower = (Step(optimizer, size, decay) for decay in (STATED[1], 0.999))
            for how in (SUM, MEAN, SCALED):
                weights = settings.mean_weights if how == MEAN else settings.weights
                weights = STATED[2:] if size == STATED[0] else weights
                found += [reading(step, how, weight) for weight in weights]
            found += [reading(slower), reading(step, periods=2.0)]
    return tuple(found)


def by_step(readings: Sequence[Variant]) -> dict[Step, list[Variant]]:
    """The readings that share a step: they are climbed together and stored as one result."""
    return {step: [one for one in readings if one.step == step] for step in dict.fromkeys(r.step for r in readings)}


@dataclass(frozen=True)
class Visual:
    """One way to visualize; every number 0 switches its aid off.

    All start from the same noise, keep signals within the reach of real movement (real magnitudes need no bound) and,
    unless one says otherwise, count outputs up to the unit's threshold, as the paper's clipping does.
    """

    name: str
    family: str
    space: str = "frequency"  # coordinates: or "principal" (directions of real windows), "phase" (MACO)
    objective: str = "channel"  # or "neuron": the middle sample alone; "largest": the largest output, wherever
    clip: bool = True  # outputs beyond the unit's threshold count as that
    background: float = 0.0  # share of a real window that is added in each step
    spectral: float = 0.0  # weight of the cost of the spectrum, in units of the threshold
    unlikely: float = 0.0  # weight of x' P x, P from real windows' covariance, in units of each unit's threshold
    copies: int = 1  # signals per unit, of which the one with the highest objective is kept
    prior: bool = False
    slope: float = 0.0  # backward slope of closed rectifiers in all steps; else they are woken in the first ones alone
    decay: float = 1.0  # of the step size


_LIKELY = {"space": "principal", "objective": "neuron"}

#: visual variants that are to explain their unit, as made-up data alone suggested them. Which one does is chosen by
#: :func:`most_explaining` on networks that judge nothing. Choice: the aims that are less than a mean over the map, what
#: keeps a signal likely among real windows, what wakes units, and what of it could help together
EXPLAINING = (
    Visual("one position", "aim", objective="neuron"),
    Visual("one position, no clipping", "aim", objective="neuron", clip=False),
    Visual("largest output", "aim", objective="largest"),
    Visual("largest output, no clipping", "aim", objective="largest", clip=False),
    Visual("spectrum as norm", "likely", **_LIKELY, spectral=0.1),
    Visual("covariance as norm", "likely", **_LIKELY, unlikely=0.5),
    Visual("covariance as norm, no clipping", "likely", **_LIKELY, clip=False, unlikely=1.0),
    Visual("covariance as norm, largest output", "likely", "principal", "largest", unlikely=0.5),
    Visual("real magnitudes (MACO), best of 4", "likely", "phase", "neuron", clip=False, copies=4),
    Visual("learned prior", "likely", **_LIKELY, prior=True),
    Visual("covariance as norm, backward slope", "awake", **_LIKELY, unlikely=0.5, slope=0.3),
    Visual("surroundings", "awake", **_LIKELY, clip=False, unlikely=1.0, background=1.0),
    Visual("surroundings, clipping", "awake", **_LIKELY, unlikely=0.5, background=1.0),
    Visual(
        "surroundings, shrinking steps", "together", **_LIKELY, clip=False, unlikely=1.0, background=1.0, decay=0.98
    ),
    Visual("surroundings, prior", "together", **_LIKELY, clip=False, unlikely=1.0, background=1.0, prior=True),
    Visual("covariance as norm, best of 4", "together", **_LIKELY, unlikely=0.5, copies=4),
)
#: the method that explains: among signals that bring the unit to its threshold, the one likeliest among real windows;
#: and the variant that makes it. :func:`most_explaining` chose it (DSADS and approximate MHEALTH, profile ``desk``, two
#: networks each that were trained on the test people, 16 units a layer). List and rule were fixed first. While the
#: search ran, the measure's pairs came to be matched in level too, because the untouched sine did well without; then
#: "surroundings" had won
LIKELIEST_TRIGGER = "likeliest trigger"
EXPLAINER = "covariance as norm, best of 4"
#: differences of accuracy that count for nothing. Choice
SAME_ACCURACY = 0.005

#: visual variants by name
BY_NAME = {one.name: one for one in EXPLAINING}


def levers(variant: Visual) -> int:
    """How much a visual variant does beside plain ascent on the clipped mean over the map, in frequency space."""
    plain = Visual(variant.name, variant.family)
    return sum(getattr(variant, part.name) != getattr(plain, part.name) for part in fields(Visual))


def most_explaining(accuracy: Mapping[str, float]) -> str:
    """The variant whose signals explain their units best, by name.

    ``accuracy`` is machine interpretability (:func:`harvis_utils.metrics.explanation.explained`), both judges' mean,
    averaged over units, then networks, then layers, then data sets; nothing else chooses. Those less than
    :data:`SAME_ACCURACY` below the best count as equal; of equals it is the one with the fewest :func:`levers`, then
    the best, then the first of the list.
    """
    best = max(accuracy.values())
    equal = [one for one in EXPLAINING if one.name in accuracy and best - accuracy[one.name] < SAME_ACCURACY]
    return min(equal, key=lambda one: (levers(one), -accuracy[one.name])).name


def tried(settings: VisualSettings) -> list[Visual]:
    """The visual variants that a profile tries."""
    return [one for one in EXPLAINING if not settings.only or {one.name, one.family} & {*settings.only}]
