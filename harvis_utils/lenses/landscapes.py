"""Small functions made of ReLUs whose highest point is known, to see where plain ascent fails and where others do.

Each is a network of one or two inputs within ±1. Backward slopes help where rectifiers are closed (``flat``, ``gate``)
or where the wrong ones are open (``two hills``, ``race``), and mislead where a closed rectifier is what holds the top
(``tent``): what comes back through it then points away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from harvis_utils.lenses import slopes
from harvis_utils.lenses.slopes import SLOPES, Ascent
from harvis_utils.maximization import ascent
from harvis_utils.settings import Step

BOUND = 1.0
#: a start is a success if it comes to this share of the highest value
SUCCESS = 0.99
#: Choice: moves of at most about a tenth of the box where all is open, shrinking to a hundredth of that
STEPS = {"ascent": Step("ascent", 0.1, 0.96), "adam": Step("adam", 0.1, 0.96)}
N_STEPS = 100
#: weights and biases of a linear layer
Layer = tuple[Sequence[Sequence[float]], Sequence[float]]


@dataclass(frozen=True)
class Landscape:
    """A function (point, dimension) -> (point, 1) within ±1, its highest value and where it is.

    ``layers`` are linear, with ReLUs between, and at the end where ``rectified``.
    """

    name: str
    idea: str
    maximum: float
    at: tuple[float, ...]
    layers: tuple[Layer, ...]
    rectified: bool

    @cached_property
    def network(self) -> nn.Sequential:
        """The function."""
        modules: list[nn.Module] = []
        for weights, biases in self.layers:
            linear = nn.Linear(len(weights[0]), len(weights))
            linear.weight.data, linear.bias.data = torch.tensor(weights), torch.tensor(biases)
            modules += [linear, nn.ReLU()]
        return nn.Sequential(*(modules if self.rectified else modules[:-1])).requires_grad_(False)

    @property
    def n_dims(self) -> int:
        """Number of inputs."""
        return len(self.at)


def landscapes() -> list[Landscape]:
    """All of them; flat parts first, then local maxima, then tops that a closed rectifier holds."""
    ideas = {
        "flat": "one rectifier, closed in three quarters of the box",
        "gate": "two closed layers in a row: flat but for the corner where all inputs are at their highest",
        "two hills": "a low hill whose foot covers half the box, a higher one beyond",
        "race": "two patterns compete for the input; the weaker one is open first",
        "tent": "a top inside the box, held by a rectifier that is closed on one side of it",
        "tent on a plain": "a pyramid of absolute values on a flat floor: the floor needs a slope, the pyramid dies of "
        "a large one",
    }
    flat = (([[1.0]], [-0.5]),)
    gate = ([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]), ([[1.0, 1.0]], [-1.0])
    hills = ([[-1.0], [2.5]], [0.0, -0.5]), ([[1.0, 1.0]], [0.0])
    race = ([[1.0, -0.5], [-1.5, 2.0]], [0.4, -1.5]), ([[1.0, 1.0]], [0.0])
    tent = ([[1.0], [1.0]], [1.0, -0.2]), ([[1.0, -2.0]], [0.0])
    sides = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    plain = (sides, [-0.3, 0.3, -0.3, 0.3]), ([[-1.0, -1.0, -1.0, -1.0]], [0.6])
    functions = [
        (0.5, (1.0,), flat, True),
        (1.0, (1.0, 1.0), gate, True),
        (2.0, (1.0,), hills, False),
        (2.0, (-1.0, 1.0), race, False),
        (1.2, (0.2,), tent, False),
        (0.6, (0.3, 0.3), plain, True),
    ]
    return [Landscape(*named, *function) for named, function in zip(ideas.items(), functions, strict=True)]


def starts(n_dims: int, n: int = 144) -> Tensor:
    """About ``n`` starting points spread evenly over the box, none on an axis or a corner: (point, dimension)."""
    side = round(n ** (1 / n_dims))
    ticks = torch.linspace(-BOUND, BOUND, 2 * side + 1)[1::2]
    return torch.cartesian_prod(*[ticks] * n_dims).reshape(-1, n_dims) * 0.997


def _last(landscape: Landscape) -> str:
    return str(len(landscape.network) - 1)


def climb(landscape: Landscape, slope: float, step: Step, start: Tensor, n_steps: int = N_STEPS) -> Ascent:
    """Climb one landscape from each of ``start`` (point, dimension) under a backward slope, within ±1."""
    return slopes.ascend_units(landscape.network, _last(landscape), [0], start, step, n_steps, slope, BOUND)


def path(landscape: Landscape, slope: float, step: Step, start: Tensor, n_steps: int = N_STEPS) -> np.ndarray:
    """Where the ascents from ``start`` (point, dimension) pass: (step, point, dimension)."""
    field = slopes.unit_field(landscape.network, _last(landscape), torch.zeros(len(start), dtype=torch.int64), slope)
    inside = {"after": lambda x, rows: x.clamp(-BOUND, BOUND)}
    steps = ascent.path(lambda x, *_: field(x)[1], start.clamp(-BOUND, BOUND), step, n_steps, **inside)
    return torch.stack([x.clone() for *_, x in steps]).numpy()


def surface(landscape: Landscape, n: int = 101) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (n,) and the function on their grid: (n,) or, rows being the second input, (n, n)."""
    ticks = torch.linspace(-BOUND, BOUND, n)
    points = torch.cartesian_prod(*[ticks] * landscape.n_dims).view(-1, landscape.n_dims).flip(1)
    return ticks.numpy(), landscape.network(points).view([n] * landscape.n_dims).numpy()


def ascents(n_dims: int, by: Sequence[float] = (0.0, 0.3, 1.0)) -> tuple[dict, dict, dict]:
    """Functions of so many inputs by name: their :func:`surface`, :func:`path` by slope and name (Adam), and top."""
    start, chosen = starts(n_dims, 12), {la.name: la for la in landscapes() if la.n_dims == n_dims}
    paths = {f"slope {s:g}": {name: path(la, s, STEPS["adam"], start) for name, la in chosen.items()} for s in by}
    return {name: surface(la) for name, la in chosen.items()}, paths, {name: la.at for name, la in chosen.items()}


def successes(n_starts: int = 144, optimizers: Sequence[str] = tuple(STEPS)) -> pd.DataFrame:
    """Share of starting points from which each function's highest value is found: (function and optimizer, slope)."""
    rows = {}
    for landscape, name in product(landscapes(), optimizers):
        points, enough = starts(landscape.n_dims, n_starts), SUCCESS * landscape.maximum
        reached = (climb(landscape, slope, STEPS[name], points).maximum >= enough for slope in SLOPES)
        rows[landscape.name, name] = [float(found.float().mean()) for found in reached]
    index = pd.MultiIndex.from_tuples(rows, names=["function", "optimizer"])
    return pd.DataFrame(list(rows.values()), index, pd.Index(SLOPES, name="backward slope"))
