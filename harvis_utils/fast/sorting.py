"""Arrays put in order, as the search for nearest segments needs them (:mod:`harvis_utils.fast.nearest`)."""

from __future__ import annotations

import numpy as np

#: a distance below which float32 holds none
TINY = float(np.finfo(np.float32).tiny)


def stable_order(number: np.ndarray, end: int) -> np.ndarray:
    """The order that sorts numbers below ``end``, equals as they come; numbers of 16 bits are sorted fastest."""
    return np.argsort(number.astype(np.min_scalar_type(end)), kind="stable")


def nth_of_different(near: np.ndarray, segment: np.ndarray, n: int, kept: int) -> np.ndarray:
    """Root of the ``n``-th smallest value of different segments among the ``kept`` smallest of each row; else infinite.

    ``near`` (query, piece) are squared distances, not negative, ``segment`` whose they are.
    """
    if kept < near.shape[1]:
        smallest = np.argpartition(near, kept - 1, axis=1)[:, :kept]
        near, segment = (np.take_along_axis(a, smallest, axis=1) for a in (near, segment))
    # sorted by segment, then by distance, whose bits are in the order of their values
    key = segment.astype(np.uint64) << 32 | near.view(np.uint32)
    key.sort(axis=1)
    near = key.astype(np.uint32).view(np.float32)
    np.copyto(near[:, 1:], np.inf, where=key[:, 1:] >> 32 == key[:, :-1] >> 32)
    return np.sqrt(np.partition(near, n - 1, axis=1)[:, n - 1].astype(np.float64) + TINY)


def median_tree(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A binary tree on ``x`` (piece, coordinate), a power of two of pieces, each node cut at its median.

    Returns for each node the coordinate that is cut, the widest, and the least value of the second child. The root
    is node 1, the children of ``i`` are 2 i and 2 i + 1; node 0 is not used.
    """
    widest, cut = np.zeros(len(x), np.int64), np.zeros(len(x), x.dtype)
    nodes = 1
    while nodes < len(cut):
        x = x.reshape(nodes, len(cut) // nodes, -1)
        half = x.shape[1] // 2
        along = x[:, :: max(1, half // 128)].std(1).argmax(1)
        value = np.take_along_axis(x, along[:, None, None], axis=2)[..., 0]
        order = np.argpartition(value, half, axis=1)
        widest[nodes : 2 * nodes] = along
        cut[nodes : 2 * nodes] = np.take_along_axis(value, order[:, half : half + 1], axis=1)[:, 0]
        x = np.take_along_axis(x, order[..., None], axis=1)
        nodes *= 2
    return widest, cut
