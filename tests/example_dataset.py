"""A complete data set module: two people walk and sit, one CSV file for each, 20 Hz, arm and leg, m/s^2.

Copied to ``harvis_utils/data/``, it is found by being there, and ``DATASET=example`` runs the whole chain on it.
"""

import numpy as np

from harvis_utils.data.archive import members_digest, parse_table
from harvis_utils.data.kinds import STANDARD_GRAVITY, Archive, Dataset, Recording

ACTIVITIES = ("walking", "sitting")

DIGESTS = {  # member of the archive -> its SHA-256, as sha256sum prints it
    "subject1_walking.csv": "48d3489816dd23679e332ed94c68d9aed823002abeeacabbcd74e261b8191a35",
    "subject1_sitting.csv": "c6ab0ec5d6debe10913c9bacf686fa625693d3cd59383f1997b72ba35ec37b0e",
    "subject2_walking.csv": "b2a9ea8d21a9b2c59966bc066a07d08d7ba0ad4b5a1bbdfea69392c923d7c36f",
    "subject2_sitting.csv": "d5873848eb837810da2f8862981bfebf2420e0fe68aa9a8955bdd8835434e7b5",
    "subject3_walking.csv": "c00897328a3dbd91016aa3405aa5d2c642780708a2ba71f4d8814b1f0c512e05",
    "subject3_sitting.csv": "7681e11681f9223bb2bf1e5ba7fc93cf9bf09cb8e1bc433eea138a050a760155",
}


def read(open_member):
    """Yield one recording per file: float32 (time, axis) in G."""
    for member in DIGESTS:
        subject, activity = member.removeprefix("subject").removesuffix(".csv").split("_")
        table = parse_table(open_member(member), columns=range(6), n_columns=6)
        yield Recording(int(subject), ACTIVITIES.index(activity), (table / STANDARD_GRAVITY).astype(np.float32))


DATASET = Dataset(
    name="example",
    title="Example",
    source="made by the tests",
    licence="MIT",
    rate_hz=20.0,
    activities=ACTIVITIES,
    axes=("arm x", "arm y", "arm z", "leg x", "leg y", "leg z"),
    split={"train": (1,), "val": (2,), "test": (3,)},
    read=read,
    archive=Archive(
        filename="example.zip",
        url="https://example.org/example.zip",
        members=tuple(DIGESTS),
        digest=members_digest(DIGESTS),
        member_digests=DIGESTS,
    ),
)
