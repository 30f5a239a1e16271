"""The training segments nearest to a piece of signal, exactly, out of millions of pieces (paper section 4.5, eq. 8).

A segment is one axis of one window, or a whole window where units mix its axes, and its distance to a query is that of
its best piece. Windows overlap, so pieces are taken from the series once and not once per window, and a piece that
equals the one before it counts once. SciPy's tree finds the pieces among which the best segments must be, or products
of matrices where pieces have all axes, too many numbers for a tree; the distances of those are computed in float64.
"""

import math

import numpy as np
import torch
from scipy.spatial import cKDTree

from harvis_utils.data.windowing import Split
from harvis_utils.parallel import progress, threads

#: queries searched together, which bounds the memory
QUERIES = 512
#: as many times n pieces are looked at first, and more where they are of fewer than n segments. Choice: by measurement
KEPT = 4
#: pieces of all axes compared with the queries at once, which bounds the memory
BLOCK = 20_000
#: share by which a distance is enlarged before what lies within it is asked for: rounding must lose no candidate
MARGIN = 1e-9


class PieceIndex:
    """All pieces of ``width`` samples in the windows of ``split``, ready to be searched.

    Pieces are of one axis each or, ``mixed``, of all axes together. Raises ``ValueError`` where ``width`` is longer
    than a window or there is no window.
    """

    def __init__(self, split: Split, width: int, mixed: bool = False):
        if not 0 < width <= split.length:
            raise ValueError(f"a piece of {width} samples does not fit windows of {split.length}")
        if not len(split):
            raise ValueError("there is no window to search")
        self.split, self.width, self.mixed = split, width, mixed
        self.n_samples, self.n_axes = len(split.series), 1 if mixed else split.series.shape[1]
        self.n_segments = len(split) * self.n_axes
        self._by_start = np.argsort(split.start, kind="stable")
        self._begun = np.append(0, np.cumsum(np.bincount(split.start, minlength=self.n_samples)))
        # (axes of a piece, axis * samples + position)
        flat = np.ascontiguousarray(split.series.T).reshape(-1, self.n_axes * self.n_samples)
        self._views = torch.from_numpy(flat).unfold(1, width, 1).transpose(0, 1)  # a piece in each row
        self.piece = self._distinct_pieces(flat)
        axis, position = np.divmod(self.piece, self.n_samples)
        # one of the segments that hold each piece: enough to count different ones
        self._segment = (self._begun[position + 1] - 1) * self.n_axes + axis
        if not mixed:
            self._tree = cKDTree(self._samples(self.piece).double().numpy(), balanced_tree=False, compact_nodes=False)

    def _samples(self, piece: np.ndarray) -> torch.Tensor:
        """What is measured in the pieces, (piece, axes * width) in G; torch gathers rows faster than NumPy."""
        return self._views.index_select(0, torch.from_numpy(piece)).flatten(1)

    def _distinct_pieces(self, flat: np.ndarray) -> np.ndarray:
        """Pieces that some window holds, without those that equal an earlier piece of the same windows."""
        at = np.flatnonzero(np.diff(self._windows(np.arange(self.n_samples)), axis=0)[0])
        piece = (np.arange(self.n_axes)[:, None] * self.n_samples + at).ravel()
        # Where no window starts, all windows that hold a piece also hold the piece one sample before it. If nothing
        # moved, that one is equal and earlier.
        moves = np.zeros(flat.shape[1], np.int32)
        np.cumsum((flat[:, 1:] != flat[:, :-1]).any(0), dtype=np.int32, out=moves[1:])
        moved = np.ones(flat.shape[1], bool)
        moved[1 : len(self._views)] = moves[self.width :] != moves[: -self.width]
        starts = np.diff(self._begun) > 0
        return piece[moved[piece] | np.tile(starts[at], self.n_axes)]

    def _windows(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and end of the windows, by start, that hold the pieces at ``position``."""
        first = np.maximum(position - (self.split.length - self.width), 0)
        return self._begun[first], self._begun[position + 1]

    def nearest(self, pieces: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ``n`` segments nearest to each of ``pieces`` (piece[, axis], width) in G, exactly.

        Returns distances d(u, i) (mean squared error in G^2, float64), segment indices (window * axes + axis, or the
        window) and offsets of the matching piece in its window, each (piece, n), sorted by distance, then by segment;
        of equal offsets the earliest. Raises ``ValueError`` for fewer segments than ``n`` and for non-finite pieces.
        """
        pieces = np.ascontiguousarray(pieces, dtype=np.float32)
        pieces = pieces.reshape(len(pieces), math.prod(pieces.shape[1:]))
        if self.n_segments < n:
            raise ValueError(f"{self.n_segments} training segments are fewer than the {n} neighbours wanted")
        if not np.isfinite(pieces).all():
            raise ValueError("a piece to be searched is not finite")
        unique, back = np.unique(pieces, axis=0, return_inverse=True)
        found = [np.empty((len(unique), n), kind) for kind in (np.float64, np.int64, np.int64)]
        for begin in progress(range(0, len(unique), QUERIES), desc="nearest windows", leave=False):
            block = unique[begin : begin + QUERIES]
            for k, within in enumerate(self._candidates(block.astype(np.float64), n)):
                for array, best in zip(found, self._best_segments(block[k], within, n), strict=True):
                    array[begin + k] = best
        return tuple(array[back.reshape(-1)] for array in found)

    def _ranked(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, float]:
        """The ``k`` nearest pieces of each query: distances, places in ``piece``, by how much rounding may mislead."""
        if not self.mixed:
            return *self._tree.query(queries, np.arange(1, k + 1), workers=threads()), 0.0
        x, largest = torch.from_numpy(queries), 0.0
        norm, best, where = x.square().sum(1, keepdim=True), x[:, :0], torch.empty((len(x), 0), dtype=torch.int64)
        for begin in range(0, len(self.piece), BLOCK):
            some = self._samples(self.piece[begin : begin + BLOCK]).double()
            squares = some.square().sum(1)
            both = torch.cat([best, norm + squares - 2 * x @ some.T], 1)
            index = torch.cat([where, torch.arange(begin, begin + len(some)).expand(len(x), -1)], 1)
            best, order = both.topk(min(k, both.shape[1]), largest=False)
            where, largest = index.gather(1, order), max(largest, float(squares.max()))
        # what the sums of squares may be wrong by; a root is most wrong near 0, and two are compared
        wrong = 2 * np.finfo(np.float64).eps * x.shape[1] * (largest + float(norm.max()))
        rounding = 2 * np.sqrt(wrong)
        return best.clamp(min=0).sqrt().numpy(), where.numpy(), rounding

    def _candidates(self, queries: np.ndarray, n: int) -> list[np.ndarray]:
        """For each query the pieces, in order, that are no farther than its ``n``-th different segment."""
        found: list[np.ndarray] = [np.empty(0, np.int64)] * len(queries)
        rest, kept = np.arange(len(queries)), KEPT * n
        while len(rest):
            every = kept >= len(self.piece)
            distances, places, rounding = self._ranked(queries[rest], min(kept, len(self.piece)))
            undecided = []
            for query, distance, place in zip(rest, distances, places, strict=True):
                first = np.sort(np.unique(self._segment[place], return_index=True)[1])  # of each segment the best piece
                reach = distance[first[n - 1]] * (1 + MARGIN) + rounding if len(first) >= n else np.inf
                if every or reach < distance[-1]:
                    found[query] = np.sort(self.piece[place[distance <= reach]])
                else:  # too few segments, or as many pieces at the same distance
                    undecided.append(query)
            rest, kept = np.array(undecided, np.int64), 4 * kept
        return found

    def _best_segments(self, query: np.ndarray, piece: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
        """Of the segments that hold candidate pieces the ``n`` best: distances, segments, offsets."""
        difference = self._samples(piece).double().numpy()
        difference -= query
        distance = np.einsum("ij,ij->i", difference, difference) / difference.shape[1]
        axis, position = np.divmod(piece, self.n_samples)
        first, end = self._windows(position)  # every window that contains the piece
        each = np.repeat(np.arange(len(piece)), end - first)
        nth = np.arange(len(each)) - np.repeat(np.cumsum(end - first) - (end - first), end - first)
        window = self._by_start[first[each] + nth]
        distance, segment = distance[each], window * self.n_axes + axis[each]
        offset = position[each] - self.split.start[window]
        # of each segment the best piece, the earliest of equals; then the best segments, of equals the first
        order = np.lexsort((offset, distance, segment))
        order = order[np.diff(segment[order], prepend=-1) > 0]
        order = order[np.argsort(distance[order], kind="stable")[:n]]
        return distance[order], segment[order], offset[order]


_latest: PieceIndex | None = None


def piece_index(split: Split, width: int, mixed: bool = False) -> PieceIndex:
    """The index of ``split``; the latest one is kept, because all searches of a run are in the same windows."""
    global _latest
    if _latest is None or _latest.split is not split or (_latest.width, _latest.mixed) != (width, mixed):
        _latest = None  # before the next one takes its memory
        _latest = PieceIndex(split, width, mixed)
    return _latest
