"""Class scores of shifted windows turned into one answer for a stretch of a recording, and into F1.

A recording is cut into segments; the windows that lie wholly inside one vote. No window of another recording, and none
that reaches into the next segment, has a part in it. Segments that hold fewer windows than most, at a recording's end,
are left out.
"""

import numpy as np
import xarray as xr
from scipy.special import softmax

from harvis_utils.data.windowing import Split

#: what is added up over windows: (window, class) scores before softmax into votes
RULES = {
    "probabilities": lambda scores: softmax(scores, axis=-1),
    "scores": lambda scores: scores,
    "majority": lambda scores: np.eye(scores.shape[-1])[scores.argmax(-1)],
}


def segments(split: Split, samples: int, length: int) -> np.ndarray:
    """Numbers of the windows that vote together, (segment, window), in order of time.

    ``length`` is that of the windows in ``samples`` of a segment, which ``split.offset`` counts too.
    """
    order = np.lexsort((split.offset, split.recording))
    inside = order[split.offset[order] % samples + length <= samples]
    place = np.stack([split.recording[inside], split.offset[inside] // samples])
    _, first, many = np.unique(place, axis=1, return_index=True, return_counts=True)
    whole = first[many == many.max()]
    return inside[np.sort(whole)[:, None] + np.arange(many.max())]


def tally(scores: np.ndarray, split: Split, together: np.ndarray) -> xr.DataArray:
    """How many segments of each person and class (``true``) are taken for each class (``predicted``).

    ``scores`` (window, class) are those before softmax, ``together`` is from :func:`segments`. Over ``rule`` of
    :data:`RULES` and the number of ``windows`` that vote, the first ones of each segment. Of equal votes the class
    with the smaller number counts.
    """
    first, n_classes = together[:, 0], scores.shape[1]
    people, person = np.unique(split.subject[first], return_inverse=True)
    found = np.zeros((len(RULES), together.shape[1], len(people), n_classes, n_classes), int)
    for rule, votes in enumerate(RULES.values()):
        chosen = votes(scores[together]).cumsum(1).argmax(-1)
        for many in range(together.shape[1]):
            np.add.at(found[rule, many], (person, split.activity[first], chosen[:, many]), 1)
    at = {"rule": list(RULES), "windows": np.arange(together.shape[1]) + 1, "person": people}
    return xr.DataArray(found, at, ("rule", "windows", "person", "true", "predicted"))


def f1(counts: xr.DataArray) -> xr.DataArray:
    """F1 of every class from (..., true, predicted) counts, (..., true); NaN for classes that do not occur."""
    n = counts.sizes["true"]
    right = counts.isel(true=xr.DataArray(range(n), dims="class"), predicted=xr.DataArray(range(n), dims="class"))
    occurred = counts.sum("predicted").rename(true="class")
    said = counts.sum("true").rename(predicted="class")
    return (2 * right / (occurred + said)).where(occurred > 0)
