"""Windows turned into a task without labels: which transformation was applied? Networks learn from the signal alone.

After Saeed, Ozcelebi and Lukkien (2019), who let wearable-sensor networks recognize transformations, with four of them
and one network head. What comes back are ordinary windows whose "activities" are the transformations, so that
:mod:`harvis_utils.training.supervised` trains them as it trains everything.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from harvis_utils.data.windowing import SPLITS, Split, Windows

#: pieces into which a window is cut to be scrambled
N_PIECES = 5
TRANSFORMATIONS = ("as it is", "turned over", "reversed in time", "scrambled")


def transformed(x: np.ndarray, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Windows (window, axis, time), each changed as ``which`` (window,) says: an index into ``TRANSFORMATIONS``.

    All axes of a window change alike. Scrambled windows have their ``N_PIECES`` pieces in another order; samples that
    make no whole piece stay at the end. Raises ``ValueError`` for an unknown transformation.
    """
    if not np.isin(which, np.arange(len(TRANSFORMATIONS))).all():
        raise ValueError(f"transformations are numbered 0 to {len(TRANSFORMATIONS) - 1}, not {np.unique(which)}")
    found = x.copy()
    found[which == 1] = -x[which == 1]
    found[which == 2] = x[which == 2][..., ::-1]
    length = x.shape[2] // N_PIECES
    for window in np.flatnonzero(which == 3):
        order = np.arange(N_PIECES)
        while (order == np.arange(N_PIECES)).all():  # the order it has is no other order
            order = rng.permutation(N_PIECES)
        pieces = x[window, :, : N_PIECES * length].reshape(len(x[window]), N_PIECES, length)
        found[window, :, : N_PIECES * length] = pieces[:, order].reshape(len(x[window]), -1)
    return found


def task(windows: Windows, seed: int = 0) -> Windows:
    """The windows, each changed by a transformation drawn at random, which is its class; splits and subjects stay."""
    rng = np.random.default_rng(seed)
    splits = {name: _changed(getattr(windows, name), rng) for name in SPLITS}
    return dataclasses.replace(windows, **splits, activities=TRANSFORMATIONS)


def _changed(split: Split, rng: np.random.Generator) -> Split:
    which = rng.integers(len(TRANSFORMATIONS), size=len(split))
    x = transformed(split.x, which, rng)
    series = np.ascontiguousarray(x.transpose(0, 2, 1)).reshape(-1, x.shape[1])  # window after window
    return dataclasses.replace(split, series=series, start=np.arange(len(x)) * split.length, activity=which)
