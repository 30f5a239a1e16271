"""MHEALTH (UCI 319): 12 activities of 10 subjects at 50 Hz, m/s^2 -> recordings in G.

``mHealth_subjectN.log`` holds 24 tab-separated columns, the last of them the label: 1 to 12, or 0 for time between
activities, which is dropped. Each unbroken run of one label is a recording of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from harvis_utils.data.archive import members_digest, parse_table
from harvis_utils.data.kinds import STANDARD_GRAVITY, Archive, Dataset, Recording

COLUMNS = (14, 15, 16, 5, 6, 7)  # Paper: accelerometers of right lower arm and left ankle
LABEL = 23

ACTIVITIES = (
    "standing", "sitting", "lying down", "walking", "climbing stairs", "waist bends forward",
    "frontal elevation of arms", "knees bending", "cycling", "jogging", "running", "jumping front and back",
)  # fmt: skip

DIGESTS = {
    "mHealth_subject1.log": "da8d1bbf644a206886333f945a1dd7fe5081382b3bb3ee42821f08ad765732e4",
    "mHealth_subject2.log": "20e288750fe9f4f0495686fabf1500bfe655a549f0d2c3a9be5aa6456461b8f1",
    "mHealth_subject3.log": "90ead135c9fa9f1188e3b1f7afc0c95899a0614a15917cf3590f52923d6e03fd",
    "mHealth_subject4.log": "3b66f87a292f4cc457aea18cb7e15a10c18055c803df27f5284c6a1c5751a469",
    "mHealth_subject5.log": "380e526a85bde64baebd1d1a2478c4cfad947a4ab994c8b39b8dcda195f78a30",
    "mHealth_subject6.log": "4b8bc81186229e096937f37f9ae070017ee653005b21f88fcd0504e9195f8926",
    "mHealth_subject7.log": "5e372b2fad64a3ebaadd103ec09cde68d448ef5b707b010d02f438b8b9203b1f",
    "mHealth_subject8.log": "c6ddb8926be4c193890a28cc84cafe35c16a4bc14f23c3e696d504643652a61b",
    "mHealth_subject9.log": "fa68f90a9dfeda47abce41ebc1dec8ce55f66dc56d513ab90a6ae20ad045f2c9",
    "mHealth_subject10.log": "382d3d7b58e1fe24679fb241fd7e48ce1992757f6b1b237a56cd660e8f1fabda",
}


def read(open_member: Callable[[str], bytes]) -> Iterator[Recording]:
    """One recording of (time, 6) for each unbroken run of one label of each subject."""
    for subject, member in enumerate(DIGESTS, start=1):
        table = parse_table(open_member(member), (*COLUMNS, LABEL), n_columns=24, delimiter="\t")
        signal, label = (table[:, :-1] / STANDARD_GRAVITY).astype(np.float32), table[:, -1]
        if strange := set(np.unique(label)) - set(range(len(ACTIVITIES) + 1)):
            raise ValueError(f"label {min(strange):g} is not one of 0 to {len(ACTIVITIES)}")
        starts = np.flatnonzero(np.diff(label, prepend=np.nan))
        for start, stop in zip(starts, [*starts[1:], len(label)], strict=True):
            if label[start] > 0:  # Paper: 0 is no activity
                yield Recording(subject, int(label[start]) - 1, signal[start:stop])


DATASET = Dataset(
    name="mhealth",
    title="Mobile Health (MHEALTH)",
    source="UCI Machine Learning Repository 319; Banos, Garcia, Saez (University of Granada)",
    licence="CC BY 4.0",
    rate_hz=50.0,
    activities=ACTIVITIES,
    axes=tuple(f"{place} {axis}" for place in ("right lower arm", "left ankle") for axis in "xyz"),
    split={"train": (1, 2, 3, 4, 5, 6, 7), "val": (8,), "test": (9, 10)},  # Paper: section 4.1
    read=read,
    archive=Archive(
        filename="mhealth+dataset.zip",
        url="https://archive.ics.uci.edu/static/public/319/mhealth+dataset.zip",
        members=tuple(DIGESTS),
        digest=members_digest(DIGESTS),
        member_digests=DIGESTS,
    ),
)
