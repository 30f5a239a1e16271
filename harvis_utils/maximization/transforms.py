"""Small changes that a visualized unit should not mind, drawn anew in every step: aids adapted to acceleration.

A transform turns windows (window, axis, time) in G and a generator into windows of the same shape; each window gets a
draw of its own (Mordvintsev et al. 2015; Olah et al. 2017, "transformation robustness"). Where images are shifted,
scaled and turned, a sensor starts at another moment, a person moves more strongly, a strap sits at another angle.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from harvis_utils.data import kinds

Transform = Callable[[Tensor, torch.Generator], Tensor]


def _uniform(n: int, generator: torch.Generator, x: Tensor) -> Tensor:
    """(n,) numbers in [-1, 1), drawn on the generator's device: the same on any other."""
    return (2 * torch.rand(n, generator=generator) - 1).to(x)


def shift(most: int) -> Transform:
    """Begin up to ``most`` samples earlier or later; what leaves at one end comes back at the other."""
    return lambda x, generator: shifted(x, torch.randint(-most, most + 1, (len(x),), generator=generator))


def shifted(x: Tensor, samples: Tensor) -> Tensor:
    """Each window moved later by its own number of samples, circularly: (window, axis, time), (window,)."""
    at = (torch.arange(x.shape[2]) - samples[:, None]) % x.shape[2]
    return x.gather(2, at.to(x.device)[:, None].expand_as(x))


def scale(share: float) -> Transform:
    """Times a factor between 1 - ``share`` and 1 + ``share``, one per window."""
    return lambda x, generator: x * (1 + share * _uniform(len(x), generator, x))[:, None, None]


def noise(std_g: float) -> Transform:
    """Plus white noise of this standard deviation in G."""
    return lambda x, generator: x + std_g * torch.randn(x.shape, generator=generator).to(x)


def warp(share: float) -> Transform:
    """Run through a window's middle earlier or later, by at most a ``share`` of its length; both ends stay."""

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        last = x.shape[2] - 1
        t = torch.arange(last + 1).to(x)
        by = share * last * _uniform(len(x), generator, x)[:, None]
        at = (t + by * torch.sin(torch.pi * t / last)).clamp(0, last)
        before = at.long().clamp(max=last - 1)[:, None].expand_as(x)
        first = x.gather(2, before)
        return first + (at[:, None] - before) * (x.gather(2, before + 1) - first)

    return transform


def background(windows: Tensor, share: float) -> Transform:
    """Plus ``share`` of a real window, another one for each window and step: ``windows`` (real window, axis, time).

    What excites a unit in any surroundings is sought, and units that are silent by themselves are heard. The gradient
    is then the mean one over real windows; times their second moment, for Gaussian ones, it is the covariance of window
    and output (Stein's lemma), a triggered average.
    """

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + share * windows[torch.randint(len(windows), (len(x),), generator=generator)].to(x)

    return transform


def rotate(degrees: float, sensors: Sequence[Sequence[int]]) -> Transform:
    """Turn each sensor's three axes together, by an angle of this standard deviation about a random direction.

    ``sensors`` are triples of axis indices; axes in none of them stay. Each window and sensor is turned by itself.
    """
    triples = checked_sensors(sensors)

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        about = torch.randn(len(x), len(triples), 3, generator=generator)
        angle = torch.randn(len(x), len(triples), generator=generator) * degrees * torch.pi / 180
        return rotated(x, rotations(about, angle).to(x), triples)

    return transform


def checked_sensors(sensors: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The triples, unless they are none or share an axis; raises ``ValueError`` then."""
    triples = tuple(tuple(triple) for triple in sensors)
    flat = [axis for triple in triples for axis in triple]
    if not triples or any(len(triple) != 3 for triple in triples) or len(set(flat)) != len(flat):
        raise ValueError(f"sensors should be triples of different axes, as ((0, 1, 2), (3, 4, 5)), not {sensors!r}")
    return triples


def sensors_of(axes: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Triples of axes named "<sensor> x", "<sensor> y", "<sensor> z", as indices; none of any other sensor."""
    named = [{axes[axis].rpartition(" ")[2]: axis for axis in of} for of in kinds.sensors_of(axes).values()]
    return tuple(tuple(of[letter] for letter in "xyz") for of in named if of.keys() == set("xyz"))


def rotations(about: Tensor, angle: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) by ``angle`` (...) in radians about directions (..., 3), after Rodrigues."""
    x, y, z = (about / about.norm(dim=-1, keepdim=True)).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    sine, rest = torch.sin(angle)[..., None, None], 1 - torch.cos(angle)[..., None, None]
    return torch.eye(3).to(about) + sine * cross + rest * (cross @ cross)


def rotated(x: Tensor, matrices: Tensor, sensors: Sequence[Sequence[int]]) -> Tensor:
    """Windows with each sensor's axes turned: (window, axis, time), (window, sensor, 3, 3)."""
    turned = x.clone()
    for k, triple in enumerate(sensors):
        turned[:, list(triple)] = matrices[:, k] @ x[:, list(triple)]
    return turned


def beside(x: np.ndarray, axes: Sequence[int], aids: Iterable[Transform], seed: int = 1) -> dict[str, np.ndarray]:
    """These axes of a window (axis, time) in G, as they are and after one draw of each transform: (axis, aid, time)."""
    drawn = [aid(torch.tensor(x)[None], torch.Generator().manual_seed(seed))[0, list(axes)] for aid in aids]
    return {"a real window": np.stack([x[list(axes)]] * len(drawn), 1), "after one draw": np.stack(drawn, 1)}
