"""Archives turned into recordings: (subject, activity) -> acceleration over time, in G.

A data set is one module that defines ``DATASET``, a :class:`Dataset`; it is found by being there, in this package or in
the folder that ``HARVIS_DATASETS`` names. ``<name>-approximate`` reads the same format from an archive whose digests do
not match.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from harvis_utils.settings import APPROXIMATE, HarvisError, Settings, SettingsError, WindowSettings, anchored

#: standard gravity; dividing m/s^2 by it gives G
STANDARD_GRAVITY = 9.80665

#: Choice: outside it, the median length of a sensor's acceleration is not that of bodies that rest or move evenly
PLAUSIBLE_G = (0.7, 1.4)
#: Choice: no accelerometer worn by people reads more
LARGEST_G = 100.0
#: Choice: seconds of a person below which nothing can be learned of them
SHORTEST_S = 10.0


class DataError(HarvisError, RuntimeError):
    """An archive that is missing, damaged or not what it should be; the message names archive and member."""


@dataclass(frozen=True)
class Recording:
    """One subject doing one activity: ``signal`` is (time, axis) in G at the data set's own rate."""

    subject: int
    activity: int  # index into Dataset.activities
    signal: np.ndarray  # float32 (time, axis), G


@dataclass(frozen=True)
class Archive:
    """Where a data set's files come from and how they are recognized.

    ``members`` are paths inside the archive, without any prefix folder a packer may have added. ``digest`` is their
    ``archive.members_digest``; ``member_digests`` maps them to their SHA-256, or its first digits, to name a culprit.
    """

    filename: str
    url: str
    members: tuple[str, ...]
    digest: str
    member_digests: Mapping[str, str] = field(default_factory=dict)
    most_bytes: int = 2**28  # a larger member, and an archive four times as large, is refused before it is read


@dataclass(frozen=True)
class Dataset:
    """What a module says about its data set.

    ``read`` turns the archive's files into recordings: it gets a function ``open_member(member) -> bytes``
    (``None`` for a data set without an archive) and yields :class:`Recording` objects. Bytes are read by
    ``archive.parse_table(content, ...)``, ``np.load(io.BytesIO(content))`` or after ``content.decode()``. It parses a
    member before it opens the next and raises ``ValueError`` for bad content; who called it adds archive and member.

    Axes are named "<sensor> <component>": the name before the last blank says which of them belong together.
    """

    name: str
    title: str
    source: str  # where it comes from and who made it, one line
    licence: str
    rate_hz: float
    activities: tuple[str, ...]
    axes: tuple[str, ...]  # "right arm x", ...: the paper's N_S axes
    split: Mapping[str, tuple[int, ...]]  # "train", "val", "test" -> subjects
    read: Callable[[Callable[[str], bytes] | None], Iterable[Recording]]
    archive: Archive | None = None  # None: made up, or own data that lie somewhere else; nothing to download
    made_up: bool = False
    motifs: Callable[[], object] | None = None  # ground truth, where there is one
    windows: WindowSettings | None = None  # how it is cut, instead of as the profile says
    pieces: int | None = None  # samples of the windows that recordings consist of, end to end; nothing crosses them
    units: Mapping[str, str] = field(default_factory=dict)  # sensor -> unit, of those that are not in G

    def __post_init__(self):
        """Refuse a description that could not be used, or would break a page."""
        said = {"name": [self.name], "title": [self.title], "activities": self.activities, "axes": self.axes}
        for what, names in said.items():
            for name in names:
                if not isinstance(name, str) or not name.strip() or not name.isprintable() or "<" in name:
                    raise SettingsError(f"data set {self.name!r}: {what}: {name!r} is no plain text of one line")
            if not names or len(set(names)) != len(names):
                raise SettingsError(f"data set {self.name!r}: {what} should be names, each once, not {names!r}")
        if not re.fullmatch(r"[\w.+-]+", self.name) or self.name.endswith(APPROXIMATE) or not self.name[0].isalnum():
            raise SettingsError(f"data set {self.name!r}: its name becomes a folder's; use letters, digits, - and _")
        if not isinstance(self.split, Mapping) or set(self.split) != {"train", "val", "test"}:
            raise SettingsError(f"data set {self.name!r}: split should map train, val and test to people")
        if not (isinstance(self.rate_hz, int | float) and 0 < self.rate_hz < np.inf):
            raise SettingsError(f"data set {self.name!r}: rate_hz should be a number above 0, not {self.rate_hz!r}")

    @property
    def sensors(self) -> dict[str, tuple[int, ...]]:
        """The axes of each sensor, as indices."""
        return sensors_of(self.axes)


def sensors_of(axes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The axes of each sensor, as indices: "<sensor> <component>" each, in any order; names of one word share one."""
    found: dict[str, tuple[int, ...]] = {}
    for axis, name in enumerate(axes):
        sensor = name.rpartition(" ")[0]
        found[sensor] = (*found.get(sensor, ()), axis)
    return found


@dataclass(frozen=True)
class Recordings:
    """A data set in memory: its description, its recordings, and what is known about where they came from."""

    name: str  # ends in "-approximate" when the archive was not verified
    dataset: Dataset
    items: tuple[Recording, ...]
    verified: bool
    digest: str  # SHA-256 over what was read

    @property
    def caveat(self) -> str:
        """What every page made from these data has to say; empty for verified real data."""
        if self.dataset.made_up:
            return "made-up data"
        others = "".join(f"; {sensor or 'values'} in {unit}, not G" for sensor, unit in self.dataset.units.items())
        if not self.dataset.archive:
            return f"own data, not verified{others}"
        return ("" if self.verified else "approximate data (archive not verified)") + others

    def implausible(self) -> list[str]:
        """What a reader should know of unverified recordings before believing a threshold in G; mostly nothing."""
        found, seconds = [], dict.fromkeys((s for part in self.dataset.split.values() for s in part), 0.0)
        for item in self.items:
            seconds[item.subject] += len(item.signal) / self.dataset.rate_hz
        short = [f"{subject} ({of:.3g} s)" for subject, of in seconds.items() if of < SHORTEST_S]
        if short:
            found.append(f"people with less than {SHORTEST_S:g} s of recordings: {', '.join(short[:5])}")
        for sensor, axes in self.dataset.sensors.items():
            if sensor in self.dataset.units:
                continue
            of_sensor = [item.signal[:, list(axes)] for item in self.items]
            largest = max(float(np.abs(signal).max()) for signal in of_sensor)
            if largest > LARGEST_G:
                found.append(f"{sensor or 'the sensor'} reads up to {largest:.3g} G")
            lengths = [np.linalg.norm(signal.astype(float), axis=1) for signal in of_sensor]
            median = float(np.median(np.concatenate(lengths)))
            # fewer than three axes may lie across gravity; of more, some say it again
            least, most = PLAUSIBLE_G[0] * (len(axes) >= 3), PLAUSIBLE_G[1] * max(1, len(axes) / 3) ** 0.5
            if not least <= median <= most:
                why = {9.80665: "m/s^2", 1000.0: "mg", 9806.65: "mm/s^2"}
                unit = next((u for factor, u in why.items() if PLAUSIBLE_G[0] < median / factor < most), "")
                why = f"as if it were in {unit}" if unit else "gravity was taken out, or the unit is another one: unit="
                why += "" if unit else f"{{{sensor!r}: ...}}"
                found.append(f"{sensor or 'the sensor'} has a median length of {median:.3g} G, not about 1 G: {why}")
        return found

    def warned(self) -> Recordings:
        """The same, with a warning where unverified recordings are implausible."""
        if not (self.verified or self.dataset.made_up) and (found := self.implausible()):
            warnings.warn(f"{self.name}: {'; '.join(found)}. Thresholds in G may mean nothing here", stacklevel=3)
        return self


def own_modules() -> list[Path]:
    """Modules of the folder that ``HARVIS_DATASETS`` names, none where it names none."""
    folder = anchored("HARVIS_DATASETS")
    if folder and not folder.is_dir():
        raise SettingsError(f"HARVIS_DATASETS names {folder}, which is no folder; name one with data-set modules")
    return sorted(folder.glob("*.py")) if folder else []


def registry(unusable: dict[str, str] | None = None) -> dict[str, Dataset]:
    """All data sets by name: every module of this package, and of the folder of own ones, that defines ``DATASET``.

    A module that cannot be used stops no other data set; ``unusable`` is told why, by the module's name.
    """
    unusable, path = {} if unusable is None else unusable, sys.modules[__package__].__path__
    own = {module.stem: module for module in own_modules()}
    names = sorted(m.name for m in pkgutil.iter_modules(path))
    for module in own.values():
        if str(module.parent) not in path:
            path.append(str(module.parent))
            importlib.invalidate_caches()
    names += [name for name in own if name not in names]
    found: dict[str, Dataset] = {}
    for name in names:
        try:
            module = importlib.import_module(f"{__package__}.{name}")
        except (Exception, SystemExit) as error:  # anything may be wrong with somebody's module
            unusable[name] = f"{name}.py: {type(error).__name__}: {error}"
            continue
        dataset = getattr(module, "DATASET", None)
        if name in own and not own[name].samefile(module.__file__):
            unusable[name] = f"{own[name]} has the name of a module of the package; call it otherwise"
        elif dataset is not None and not isinstance(dataset, Dataset):
            unusable[name] = f"{name}.py: DATASET is a {type(dataset).__name__}, not a kinds.Dataset"
        elif dataset is not None and dataset.name in found:
            unusable[dataset.name] = f"{name}.py defines {dataset.name!r} once more; call one of the two otherwise"
        elif dataset is not None:
            found[dataset.name] = dataset
    return found


def check_name(name: str) -> Dataset:
    """The data set called ``name`` (with or without the suffix for unverified archives).

    Raises :class:`SettingsError` listing the valid names, or why its module cannot be used.
    """
    unusable: dict[str, str] = {}
    known, base = registry(unusable), name.removesuffix(APPROXIMATE)
    if base in unusable:
        raise SettingsError(f"data set {base!r} cannot be used: {unusable[base]}")
    if base not in known or (base != name and known[base].archive is None):
        others = f"; modules that cannot be used: {'; '.join(unusable.values())}" if unusable else ""
        raise SettingsError(
            f"unknown data set {name!r}; valid data sets: {', '.join(known)}; with an archive that cannot be "
            f"verified: {', '.join(k + APPROXIMATE for k, d in known.items() if d.archive)}{others}"
        )
    return known[base]


def fitted(cfg: Settings) -> Settings:
    """The same settings with the data set's own windows, where it says how it is to be cut."""
    windows = check_name(cfg.dataset).windows
    return replace(cfg, windows=windows) if windows else cfg
