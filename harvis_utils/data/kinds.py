"""Archives turned into recordings: (subject, activity) -> acceleration over time, in G.

A data set is one module of this package that defines ``DATASET``, a :class:`Dataset`; it is found by being there.
``<name>-approximate`` reads the same format from an archive whose digests do not match.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from harvis_utils.settings import APPROXIMATE, HarvisError, SettingsError

#: standard gravity; dividing m/s^2 by it gives G
STANDARD_GRAVITY = 9.80665


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


@dataclass(frozen=True)
class Dataset:
    """What a module of this package says about its data set.

    ``read`` turns the archive's files into recordings: it gets a function ``open_member(member) -> bytes``
    (``None`` for a data set without an archive) and yields :class:`Recording` objects. It parses a member before
    it opens the next and raises ``ValueError`` for bad content; whoever called it adds archive and member.
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
    archive: Archive | None = None  # None: made up, nothing to find or download
    made_up: bool = False
    motifs: Callable[[], object] | None = None  # ground truth, where there is one


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
        return "" if self.verified else "approximate data (archive not verified)"


def registry() -> dict[str, Dataset]:
    """All data sets by name: every module of this package that defines ``DATASET``."""
    names = sorted(m.name for m in pkgutil.iter_modules(sys.modules[__package__].__path__))
    modules = [importlib.import_module(f"{__package__}.{name}") for name in names]
    return {m.DATASET.name: m.DATASET for m in modules if hasattr(m, "DATASET")}


def check_name(name: str) -> Dataset:
    """The data set called ``name`` (with or without the suffix for unverified archives).

    Raises :class:`SettingsError` listing the valid names.
    """
    known = registry()
    base = name.removesuffix(APPROXIMATE)
    if base not in known or (base != name and known[base].archive is None):
        raise SettingsError(
            f"unknown data set {name!r}; valid data sets: {', '.join(known)}; with an archive that cannot be "
            f"verified: {', '.join(k + APPROXIMATE for k, d in known.items() if d.archive)}"
        )
    return known[base]
