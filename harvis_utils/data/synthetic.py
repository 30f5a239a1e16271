"""A fixed seed turned into made-up recordings with planted motifs: the data set whose truth is known.

Ten made-up people wear two sensors and do eight made-up activities. A recording is a *background* (gravity, slow
sway, sensor noise) plus *motifs*, short shapes planted again and again. What a person's body decides (posture,
tempo, strength, noise) comes from a random stream that never sees the activity; the activity decides only *which*
shape goes to which axis. All shapes have zero sum and one energy, so that neither level nor variance tells the
activities apart: a network that recognizes them has learned the shapes.

The generator is frozen: a test pins a digest of all it makes. It was settled by whether a network can learn the
activities, before anyone looked at what Activation Maximization finds. :func:`variant` makes harder data sets of it,
:func:`shifted` one in which the test people have another body.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import pandas as pd

from harvis_utils.data import archive
from harvis_utils.data.kinds import Dataset, Recording, Recordings

# Choice: everything here; nothing in the paper corresponds to this data set.
SEED = 20240607
RATE_HZ = 30.0  # the rate of the windows, so that resampling leaves the shapes as they are
N_SAMPLES = 1920  # 64 s a recording: 127 windows
RESOLUTION_G = 1e-4  # readings are multiples of it, so that rounding errors cannot change them
NOISE_G = 0.05
ACTIVITIES = tuple(f"made-up {k}" for k in range(1, 9))
AXES = tuple(f"{place} {axis}" for place in ("right arm", "left leg") for axis in "xyz")
SPLIT = {"train": (1, 2, 3, 4, 5, 6), "val": (7, 8), "test": (9, 10)}
SUBJECTS = SPLIT["train"] + SPLIT["val"] + SPLIT["test"]

#: name -> (first layer whose receptive field holds the shape, shape in G for a person of strength 1). Found by a
#: numerical search for shapes of zero sum and equal energy that match neither one another nor a 30-sample sine.
MOTIFS: dict[str, tuple[str, tuple[float, ...]]] = {
    "short A": ("conv1", (-0.70, 0.83, -0.26, 0.42, -0.29)),
    "short B": ("conv1", (0.37, -0.81, 0.69, 0.20, -0.45)),
    "short C": ("conv1", (0.15, -0.08, 0.91, -0.78, -0.20)),
    "middle A": ("conv2", (0.0, 0.31, 0.11, -0.50, -0.63, 0.43, 0.68, -0.27, -0.13)),
    "middle B": ("conv2", (-0.33, 0.05, 0.81, 0.25, -0.31, -0.05, 0.39, -0.20, -0.61)),
    "middle C": ("conv2", (0.0, -0.35, -0.78, -0.06, 0.60, 0.55, 0.27, -0.23, 0.0)),
    "long A": ("conv3", (-0.04, 0.05, 0.35, 0.08, -0.37, -0.70, -0.46, -0.21, 0.08, 0.41, 0.44, 0.34, 0.03)),
    "long B": ("conv3", (0.45, 0.16, -0.59, -0.33, 0.14, 0.03, -0.02, 0.28, 0.56, 0.16, -0.53, -0.31, 0.0)),
    "long C": ("conv3", (0.0, 0.07, 0.21, 0.48, 0.62, 0.41, -0.05, -0.34, -0.44, -0.46, -0.34, -0.16, 0.0)),
}

#: the letters of an activity's short, middle and long shape. Every shape belongs to two or three activities, no two
#: activities have more than one shape in common, and each shape goes to two axes of its activity.
_TRIPLES = ("AAA", "ABB", "ACC", "BAB", "BBC", "BCA", "CAC", "CBA")
_LENGTHS = ("short", "middle", "long")


def activity_motifs(activity: int) -> tuple[str, ...]:
    """Names of the motifs that ``activity`` (an index into ``ACTIVITIES``) plants, one per axis."""
    names = [f"{length} {letter}" for length, letter in zip(_LENGTHS, _TRIPLES[activity], strict=True)]
    # the leg gets the three shapes in another order than the arm, and every activity another rotation
    return tuple(names[(axis + activity + axis // 3) % 3] for axis in range(len(AXES)))


@dataclass(frozen=True)
class Body:
    """What a recording has without its activity: the background, and where and how strongly motifs go."""

    background: np.ndarray  # (time, axis) in G
    centres: np.ndarray  # int (event, axis): the sample under a motif's middle
    scales: np.ndarray  # (event, axis): factor on the shape; 0 where an event leaves an axis out
    stretch: float = 1.0  # how much longer than written the shapes last


@dataclass(frozen=True)
class Shift:
    """What another body does differently with the same movements."""

    strength: float = 0.5  # factor on every shape
    spacing: float = 1.25  # factor on the time between events
    stretch: float = 1.2  # factor on the time that a shape lasts
    turn: float = 40.0  # degrees by which both sensors are turned about the axis (1, 1, 1)


@dataclass(frozen=True)
class PlantedMotifs:
    """The ground truth: each motif's shape and every place where it was planted.

    ``occurrences`` is a table of subject, activity (index), axis (index), start (sample in the recording, at
    ``RATE_HZ``), motif (name) and scale (factor on the shape).
    """

    names: tuple[str, ...]
    shapes: tuple[np.ndarray, ...]  # (time,) each, in G
    layers: tuple[str, ...]  # first layer whose receptive field holds the motif
    occurrences: pd.DataFrame

    def within(self, subject: int, activity: int, first: int, n_samples: int) -> list[tuple[int, int, int, str]]:
        """(axis, first sample, length, motif) of those whole in ``n_samples`` of a recording from ``first`` on."""
        length = {name: len(shape) for name, shape in zip(self.names, self.shapes, strict=True)}
        own = self.occurrences.query("subject == @subject and activity == @activity")
        found = ((o.axis, o.start - first, length[o.motif], o.motif) for o in own.itertuples())
        return [place for place in found if 0 <= place[1] <= n_samples - place[2]]

    def counts(self, activities: Sequence[str]) -> pd.DataFrame:
        """How often each motif (row) is planted in each activity (column), after its first layer and its samples."""
        planted = pd.Categorical.from_codes(self.occurrences["activity"], activities)
        table = pd.crosstab(self.occurrences["motif"], planted).reindex(self.names).rename_axis(columns=None)
        table.insert(0, "first layer", self.layers)
        table.insert(1, "samples", [len(shape) for shape in self.shapes])
        return table


def _stream(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([SEED, *key])))


def _slow_waves(rng, n: int, n_waves: int, hertz: tuple, amplitude: tuple, time_s: np.ndarray) -> np.ndarray:
    """(time, n): n sums of sines; frequencies, amplitudes and phases come from ``rng``, ``time_s`` is (time, 1)."""
    total = np.zeros((len(time_s), n))
    for _ in range(n_waves):
        f, phase = rng.uniform(*hertz, n), rng.uniform(0, 2 * np.pi, n)
        total += rng.uniform(*amplitude, n) * np.sin(2 * np.pi * f * time_s + phase)
    return total


def _turning_gravity(rng, time_s: np.ndarray) -> np.ndarray:
    """(time, 3): 1 G that wanders over the sphere from a random direction, by about half a radian a second."""
    up, other = rng.standard_normal((2, 3))
    up /= np.sqrt((up**2).sum())
    east = np.cross(up, other)
    east /= np.sqrt((east**2).sum())
    north = np.cross(up, east)
    tilt, turn = _slow_waves(rng, 2, 3, (0.02, 0.05), (0.8, 1.6), time_s).T[:, :, None]
    return np.cos(tilt) * up + np.sin(tilt) * (np.cos(turn) * east + np.sin(turn) * north)


def _turned(gravity: np.ndarray, degrees: float) -> np.ndarray:
    """(time, 3) seen by a sensor that was turned about (1, 1, 1), after Rodrigues."""
    about, angle = np.full(3, 3**-0.5), np.radians(degrees)
    along = np.outer(gravity @ about, about) * (1 - np.cos(angle))
    return np.cos(angle) * gravity + np.sin(angle) * np.cross(about, gravity) + along


def body(subject: int, session: int, noise_g: float = 0.0, prevalence: float = 1.0, shift: Shift | None = None) -> Body:
    """The background and the motif places of a subject's ``session``-th recording; the activity is not known here.

    ``noise_g`` is the standard deviation, in G, of noise added to its own ``NOISE_G``; each event of each axis is kept
    with probability ``prevalence``, dropped ones have a scale of 0. Everything else stays bit for bit, and all levels
    share what is drawn: the noise of one is that of another times a factor, and what one drops, every lower one drops.
    With a ``shift`` it is the same subject in another body: the same events in the same order, the same sway and noise.
    """
    person = _stream(1, subject)
    spacing, strength = person.uniform(22, 28), person.uniform(0.8, 1.2)  # samples between events; factor
    own = shift or Shift(1.0, 1.0, 1.0, 0.0)
    spacing, strength = spacing * own.spacing, strength * own.strength

    rng = _stream(2, subject, session)
    time_s = np.arange(N_SAMPLES)[:, None] / RATE_HZ
    # gravity turns slowly about each sensor: were it fixed, it would be the fingerprint of a recording, and with
    # one activity a recording a network would learn fingerprints that are worth nothing on other people
    directions = [_turning_gravity(rng, time_s) for _ in range(2)]
    gravity = np.hstack([_turned(of, shift.turn) if shift else of for of in directions])
    sway = _slow_waves(rng, len(AXES), 3, (0.1, 0.4), (0.01, 0.04), time_s)
    noise = NOISE_G * rng.standard_normal((N_SAMPLES, len(AXES)))

    n_events = int(N_SAMPLES / 20)  # more than fit; those beyond the end are dropped
    events = 10 + np.cumsum(spacing + rng.uniform(-2, 2, n_events))
    centres = np.rint(events[:, None] + rng.uniform(-2, 2, (n_events, len(AXES)))).astype(np.int64)
    scales = strength * rng.uniform(0.85, 1.15, centres.shape) * (rng.random(centres.shape) < 0.9)
    fits = centres.max(axis=1) < N_SAMPLES - 8
    background, centres, scales = gravity + sway + noise, centres[fits], scales[fits]
    if prevalence < 1:
        scales = np.where(_stream(4, subject, session).random(scales.shape) < prevalence, scales, 0.0)
    if noise_g > 0:
        background += noise_g * _stream(5, subject, session).standard_normal(background.shape)
    return Body(background, centres, scales, own.stretch)


def stretched(shape: Sequence[float], factor: float) -> np.ndarray:
    """A shape that lasts ``factor`` times as long, of an odd number of samples, zero sum and the same largest value."""
    shape = np.asarray(shape)
    if factor == 1:
        return shape
    n = 2 * int(factor * len(shape) / 2) + 1
    longer = np.interp(np.linspace(0, len(shape) - 1, n), np.arange(len(shape)), shape)
    longer -= longer.mean()
    return longer * (np.abs(shape).max() / np.abs(longer).max())


def plant(own: Body, activity: int) -> np.ndarray:
    """The recording (time, axis) in G, float32, of ``activity`` done by a body: background plus motifs."""
    signal = own.background.copy()
    for axis, name in enumerate(activity_motifs(activity)):
        shape = stretched(MOTIFS[name][1], own.stretch)
        for centre, scale in zip(own.centres[:, axis], own.scales[:, axis], strict=True):
            start = centre - len(shape) // 2
            signal[start : start + len(shape), axis] += scale * shape
    return (np.rint(signal / RESOLUTION_G) * RESOLUTION_G).astype(np.float32)


def order(subject: int) -> np.ndarray:
    """The activity of each of a subject's sessions: everybody does them in an own random order."""
    return _stream(3, subject).permutation(len(ACTIVITIES))


def _bodies(**changes: float) -> Iterator[tuple[int, int, Body]]:
    """Subject, activity and body of every recording, subject by subject in the order of the activities."""
    for subject in SUBJECTS:
        for activity, session in enumerate(np.argsort(order(subject))):
            yield subject, activity, body(subject, int(session), **changes)


def read(_=None, **changes: float) -> Iterator[Recording]:
    """Make all recordings, with :func:`body`'s ``changes``; there is no archive to open."""
    for subject, activity, own in _bodies(**changes):
        yield Recording(subject, activity, plant(own, activity))


@lru_cache
def motifs(**changes: float) -> PlantedMotifs:
    """The planted motifs and where they are, with :func:`body`'s ``changes``."""
    tables = []
    for subject, activity, own in _bodies(**changes):
        for axis, name in enumerate(activity_motifs(activity)):
            there = own.scales[:, axis] > 0
            start = own.centres[there, axis] - len(MOTIFS[name][1]) // 2
            row = {"subject": subject, "activity": activity, "axis": axis, "start": start, "motif": name}
            tables.append(pd.DataFrame(row | {"scale": own.scales[there, axis]}))
    layers, shapes = zip(*MOTIFS.values(), strict=True)
    return PlantedMotifs(tuple(MOTIFS), tuple(map(np.array, shapes)), layers, pd.concat(tables, ignore_index=True))


DATASET = Dataset(
    name="synthetic",
    title="made-up recordings with planted motifs",
    source="made by this package from a fixed seed; no person was measured",
    licence="MIT, like the code",
    rate_hz=RATE_HZ,
    activities=ACTIVITIES,
    axes=AXES,
    split=SPLIT,
    read=read,
    made_up=True,
    motifs=motifs,
)


def variant(noise_g: float = 0.0, prevalence: float = 1.0) -> Recordings:
    """The data set with noise added (standard deviation ``noise_g`` in G) and events thinned to ``prevalence``.

    It is in no registry; name, title, truth and digest are its own, and the name is part of the digest, so that not
    even equal recordings could pass for the plain ones. ``variant()`` is the plain data set itself. Raises
    ``ValueError`` for negative noise or a prevalence outside (0, 1].
    """
    if not (0 <= noise_g < np.inf and 0 < prevalence <= 1):
        raise ValueError(f"noise_g = {noise_g} should be 0 or more, and prevalence = {prevalence} in (0, 1]")
    changes = {f"noise+{noise_g:g}G": noise_g > 0, f"prevalence{prevalence:g}": prevalence < 1}
    if not any(changes.values()):
        return archive.generate(DATASET)
    name = "-".join([DATASET.name, *(change for change, there in changes.items() if there)])
    dataset = dataclasses.replace(
        DATASET,
        name=name,
        title=f"{DATASET.title}, changed: {noise_g:g} G of noise added, {prevalence:.0%} of the motifs planted",
        read=partial(read, noise_g=noise_g, prevalence=prevalence),
        motifs=partial(motifs, noise_g=noise_g, prevalence=prevalence),
    )
    made = archive.generate(dataset)
    return dataclasses.replace(made, digest=hashlib.sha256(f"{name} {made.digest}".encode()).hexdigest())


def _read_shifted(_=None) -> Iterator[Recording]:
    for subject in SUBJECTS:
        shift = Shift() if subject in SPLIT["test"] else None
        for activity, session in enumerate(np.argsort(order(subject))):
            yield Recording(subject, activity, plant(body(subject, int(session), shift=shift), activity))


def shifted() -> Recordings:
    """The data set with other bodies of the test people (:class:`Shift`); all other people stay bit for bit.

    Its ``digest`` is its own, and it knows no places of motifs. What the same person would have recorded in the same
    body as all others is the plain data set's recording: an exact counterfactual.
    """
    title = f"{DATASET.title}, the test people in another body"
    return archive.generate(
        dataclasses.replace(DATASET, name=f"{DATASET.name}-shifted", title=title, read=_read_shifted, motifs=None)
    )
