"""DSADS (UCI 256): 19 daily and sports activities of 8 subjects at 25 Hz, m/s^2 -> recordings in G.

``data/aNN/pN/sNN.txt`` holds 5 s of one activity and subject, 125 rows of 45 comma-separated columns; its 60
segments are consecutive pieces of one 5-minute recording, so they are joined again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from harvis_utils.data.archive import parse_table
from harvis_utils.data.kinds import STANDARD_GRAVITY, Archive, Dataset, Recording

N_ROWS, N_COLUMNS, N_SEGMENTS = 125, 45, 60
SUBJECTS = range(1, 9)
COLUMNS = (9, 10, 11, 36, 37, 38)  # Paper: accelerometers of right arm and left leg
OTHER_COLUMNS = (18, 19, 20, 27, 28, 29)  # left arm and right leg

ACTIVITIES = (
    "sitting", "standing", "lying on back", "lying on right side", "ascending stairs", "descending stairs",
    "standing in elevator", "moving in elevator", "walking in parking lot", "treadmill walking flat",
    "treadmill walking inclined", "treadmill running", "stepper", "cross trainer", "cycling horizontal",
    "cycling vertical", "rowing", "jumping", "basketball",
)  # fmt: skip


def members(activity: int, subject: int) -> list[str]:
    """Paths of one recording's segments in the archive, in the order of time."""
    return [f"data/a{activity + 1:02d}/p{subject}/s{s:02d}.txt" for s in range(1, N_SEGMENTS + 1)]


def read(open_member: Callable[[str], bytes], columns: tuple[int, ...] = COLUMNS) -> Iterator[Recording]:
    """One recording of (7500, 6) for each activity and subject."""
    for activity in range(len(ACTIVITIES)):
        for subject in SUBJECTS:
            segments = [
                parse_table(open_member(member), columns, n_columns=N_COLUMNS, n_rows=N_ROWS)
                for member in members(activity, subject)
            ]
            # Choice: gaps (all axes exactly 0, in a few recordings) stay in; the paper does not speak of them
            yield Recording(subject, activity, (np.concatenate(segments) / STANDARD_GRAVITY).astype(np.float32))


def read_other_side(open_member: Callable[[str], bytes]) -> Iterator[Recording]:
    """The same of the other side of the body: left arm and right leg."""
    return read(open_member, OTHER_COLUMNS)


ALL = tuple(m for activity in range(len(ACTIVITIES)) for subject in SUBJECTS for m in members(activity, subject))
# first 8 hexadecimal digits of every member's SHA-256, one line per recording: enough to name a culprit
_PINNED = Path(__file__).with_name("dsads_digests.txt").read_text(encoding="ascii").replace("\n", "")

DATASET = Dataset(
    name="dsads",
    title="Daily and Sports Activities (DSADS)",
    source="UCI Machine Learning Repository 256; Barshan, Altun, Tuncel (Bilkent University)",
    licence="CC BY 4.0",
    rate_hz=25.0,
    activities=ACTIVITIES,
    axes=tuple(f"{place} {axis}" for place in ("right arm", "left leg") for axis in "xyz"),
    split={"train": (1, 2, 3, 4, 5), "val": (6,), "test": (7, 8)},  # Paper: section 4.1
    read=read,
    archive=Archive(
        filename="daily+and+sports+activities.zip",
        url="https://archive.ics.uci.edu/static/public/256/daily+and+sports+activities.zip",
        members=ALL,
        digest="003a4413df151e2b12d06162197e0243ac1b9e4f49326d26eb9ab4f07225cd77",
        member_digests={member: _PINNED[8 * i : 8 * i + 8] for i, member in enumerate(ALL)},
    ),
)
#: the same people and movements, recorded on the other side of the body
OTHER_SIDE = dataclasses.replace(
    DATASET,
    name="dsads-other-side",
    title="Daily and Sports Activities (DSADS), other side of the body",
    axes=tuple(f"{place} {axis}" for place in ("left arm", "right leg") for axis in "xyz"),
    read=read_other_side,
)
