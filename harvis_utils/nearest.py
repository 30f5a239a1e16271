"""The training segments nearest to a piece of signal, exactly, out of millions of pieces (paper section 4.5, eq. 8).

A segment is one axis of one window, and its distance to a query is that of its best piece. Windows overlap, so
pieces are taken from the series once and not once per window. They are sorted into a tree of boxes along the
principal axes of the data. A search descends it for all queries at once:

1. a beam of the nearest boxes gives each query a distance within which its neighbours must lie;
2. every leaf that comes nearer than that is compared with all its queries by one matrix product;
3. what lies within that distance is computed again in float64, and the best of each segment kept.

Principal axes make the boxes tight also for queries far from all data, where a tree in the original coordinates
prunes nothing. Rounding can only add candidates, never lose one: each comparison in float32 has a margin.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from harvis_utils import config, engine
from harvis_utils.windows import Split

#: children of a node
BRANCH = 8
#: a node with fewer pieces is not divided. Choice: by measurement
LEAF = 1500
#: boxes kept at each level, and leaves looked into, for the first estimate of each query
BEAM, FIRST_LEAVES = 8, 4
#: queries searched together; bounds the memory of the lists of pairs
QUERIES = 2048
BAR = {"desc": "nearest windows", "leave": False}
EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Level:
    """Boxes of one level of the tree, (node, coordinate) each; ``begin`` is (node + 1,), the first piece of each."""

    low: np.ndarray
    high: np.ndarray
    begin: np.ndarray


class PieceIndex:
    """All pieces of ``width`` samples in the windows of ``split``, ready to be searched.

    Raises ``ValueError`` where ``width`` is longer than a window or there is no window.
    """

    def __init__(self, split: Split, width: int):
        if not 0 < width <= split.length:
            raise ValueError(f"a piece of {width} samples does not fit windows of {split.length}")
        if not len(split):
            raise ValueError("there is no window to search")
        self.split, self.width, self.n_axes = split, width, split.series.shape[1]
        self.n_segments = len(split) * self.n_axes
        self._by_start = np.argsort(split.start, kind="stable")
        self._starts = split.start[self._by_start]
        # positions at which some window has a piece
        open_windows = np.zeros(len(split.series) + 1, np.int64)
        np.add.at(open_windows, split.start, 1)
        np.add.at(open_windows, split.start + split.length - width + 1, -1)
        at = np.flatnonzero(np.cumsum(open_windows[:-1]) > 0)
        self._views = np.lib.stride_tricks.sliding_window_view(split.series, width, axis=0)  # (position, axis, width)
        self.center, self.axes = self._principal_axes(at)
        self.piece = (at[:, None] * self.n_axes + np.arange(self.n_axes)).ravel()  # position * n_axes + axis
        self.data = np.empty((len(self.piece), width), np.float32)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:

            def turn(begin: int) -> None:
                some = self._views[at[begin : begin + 2**15]].reshape(-1, width)
                self.data[begin * self.n_axes : begin * self.n_axes + len(some)] = self._turned(some)

            list(pool.map(turn, range(0, len(at), 2**15)))
            self.levels = self._sort_into_boxes(pool)
        last = self.levels[-1]
        # distances inside a leaf are taken from its middle: small numbers, small rounding
        self.middle = (last.low + last.high) / 2
        self.data -= np.repeat(self.middle, np.diff(last.begin), axis=0)
        self.norm = np.einsum("ij,ij->i", self.data, self.data)
        self.radius = np.sqrt(np.maximum.reduceat(self.norm, last.begin[:-1]))

    def _principal_axes(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        some = self._views[at[:: max(1, len(at) // 20_000)]].reshape(-1, self.width).astype(np.float64)
        _, axes = np.linalg.eigh(np.cov(some.T).reshape(self.width, self.width))
        return some.mean(0), axes[:, ::-1]

    def _turned(self, pieces: np.ndarray) -> np.ndarray:
        """In principal axes; in float64, so that nothing but the last rounding is lost."""
        return ((pieces.astype(np.float64) - self.center) @ self.axes).astype(np.float32)

    def _sort_into_boxes(self, pool: ThreadPoolExecutor) -> list[Level]:
        """Divide the pieces again and again into equal shares along the widest coordinate of each node."""
        n, depth = len(self.data), 1
        while n / BRANCH**depth > LEAF:
            depth += 1
        begins = [np.arange(BRANCH**level + 1) * n // BRANCH**level for level in range(depth + 1)]
        for begin in begins[:-1]:
            list(pool.map(self._divide, begin[:-1], begin[1:]))
        leaves = begins[-1][np.r_[True, np.diff(begins[-1]) > 0]]  # fewer pieces than leaves: none is empty
        levels = []
        for begin in begins[1:]:
            begin = begin if len(leaves) == len(begins[-1]) else leaves
            low, high = (f.reduceat(self.data, begin[:-1]) for f in (np.minimum, np.maximum))
            levels.append(Level(low, high, begin))
            if begin is leaves:
                break
        return levels

    def _divide(self, a: int, b: int) -> None:
        """Sort the pieces a to b along their widest coordinate."""
        if b - a < 2:
            return
        part = self.data[a:b]
        widest = int(part[:: max(1, (b - a) // 2000)].std(0).argmax())
        order = np.argsort(part[:, widest])
        self.data[a:b], self.piece[a:b] = part[order], self.piece[a:b][order]

    # ------------------------------------------------------------------------------------------------- search

    def nearest(self, pieces: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ``n`` segments nearest to each of ``pieces`` (piece, width) in G, exactly.

        Returns distances d(u, i) (mean squared error in G^2, float64), segment indices (window * axes + axis) and
        offsets of the matching piece in its window, each (piece, n), sorted by distance, then by segment; of equal
        offsets the earliest. Raises ``ValueError`` for fewer segments than ``n`` and for non-finite pieces.
        """
        pieces = np.ascontiguousarray(pieces, dtype=np.float32)
        if self.n_segments < n:
            raise ValueError(f"{self.n_segments} training segments are fewer than the {n} neighbours wanted")
        if not np.isfinite(pieces).all():
            raise ValueError("a piece to be searched is not finite")
        unique, back = np.unique(pieces, axis=0, return_inverse=True)
        back = back.reshape(-1)
        found = [np.empty((len(unique), n), kind) for kind in (np.float64, np.int64, np.int64)]
        workers = torch.get_num_threads()
        size = min(QUERIES, -(-len(unique) // workers))
        blocks = [slice(begin, begin + size) for begin in range(0, len(unique), size)] if size else []
        with engine.threads_inside(1), ThreadPoolExecutor(workers) as pool:
            searched = pool.map(lambda some: self._search(unique[some], n), blocks)
            for some, block in zip(blocks, config.progress(searched, total=len(blocks), **BAR), strict=True):
                for array, values in zip(found, block, strict=True):
                    array[some] = values
        return tuple(array[back] for array in found)

    def _search(self, queries: np.ndarray, n: int):
        q = self._turned(queries)
        # what rounding can do to a distance: both ends were rounded once
        far = np.sqrt((q.astype(np.float64) ** 2).sum(1)) + np.sqrt((self._largest() ** 2).sum())
        reach = self._first_reach(q, n) + 4 * EPS * far
        query, leaf = self._leaves_within(q, reach)
        query, place = self._within(q, reach, query, leaf)
        return self._best_segments(queries, query, self.piece[place], n)

    def _largest(self) -> np.ndarray:
        top = self.levels[0]
        return np.maximum(np.abs(top.low.min(0)), np.abs(top.high.max(0)))

    def _bound(self, level: int, q: np.ndarray, query: np.ndarray, node: np.ndarray) -> np.ndarray:
        """Squared distance from queries to boxes, pair by pair."""
        boxes, at = self.levels[level], q[query]
        gap = np.maximum(boxes.low[node] - at, at - boxes.high[node])
        np.maximum(gap, 0, out=gap)
        return np.einsum("ij,ij->i", gap, gap)

    def _children(self, level: int, node: np.ndarray) -> np.ndarray:
        return node[..., None] * BRANCH + np.arange(BRANCH)

    def _first_reach(self, q: np.ndarray, n: int) -> np.ndarray:
        """A distance within which each query has ``n`` segments: that of the n-th best in the leaves first found."""
        every = np.arange(len(q))[:, None]
        node = np.broadcast_to(np.arange(len(self.levels[0].low)), (len(q), len(self.levels[0].low)))
        for level in range(len(self.levels)):
            bound = self._bound(level, q, np.broadcast_to(every, node.shape).ravel(), node.ravel()).reshape(node.shape)
            keep = min(BEAM if level + 1 < len(self.levels) else FIRST_LEAVES, node.shape[1])
            node = np.take_along_axis(node, np.argpartition(bound, keep - 1, axis=1)[:, :keep], axis=1)
            if level + 1 < len(self.levels):
                node = self._children(level, node).reshape(len(q), -1)
        begin = self.levels[-1].begin
        reach = np.empty(len(q))
        for i, leaves in enumerate(node):
            near = []
            for k in leaves:
                v, some = q[i] - self.middle[k], slice(begin[k], begin[k + 1])
                size = float(np.sqrt(v @ v))
                near.append(self.norm[some] - 2 * (self.data[some] @ v) + (size**2 + self._margin(size, k)))
            place = np.concatenate([np.arange(begin[k], begin[k + 1]) for k in leaves])
            reach[i] = self._nth_segment(np.concatenate(near), place, n)
        return np.sqrt(np.maximum(reach, 0))

    def _margin(self, size, leaf: int):
        """What rounding can do to |q|^2 + |w|^2 - 2 q.w in float32, for queries at ``size`` from a leaf's middle."""
        return (self.width + 8) * EPS * (size + float(self.radius[leaf])) ** 2

    def _nth_segment(self, near: np.ndarray, place: np.ndarray, n: int) -> float:
        """The ``n``-th smallest distance among different segments; infinite where there are fewer."""
        per_segment = self.split.length - self.width + 1
        kept = min(n * per_segment, len(near))  # among so many pieces are at least n segments
        best = np.argpartition(near, kept - 1)[:kept]
        best = best[np.argsort(near[best])]
        piece = self.piece[place[best]]
        # one window of each piece is enough for an upper bound
        window = np.searchsorted(self._starts, piece // self.n_axes, side="right")
        _, first = np.unique(window * self.n_axes + piece % self.n_axes, return_index=True)
        return float(near[best[np.sort(first)[n - 1]]]) if len(first) >= n else np.inf

    def _leaves_within(self, q: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of query and leaf whose box is not farther than the query's reach."""
        limit = (reach * (1 + 8 * EPS)) ** 2
        width = len(self.levels[0].low)
        query, node = np.repeat(np.arange(len(q)), width), np.tile(np.arange(width), len(q))
        for level in range(len(self.levels)):
            if level:
                query, node = np.repeat(query, BRANCH), self._children(level, node).ravel()
            near = self._bound(level, q, query, node) <= limit[query]
            query, node = query[near], node[near]
        return query, node

    def _within(self, q: np.ndarray, reach: np.ndarray, query: np.ndarray, leaf: np.ndarray):
        """Pairs of query and place of a piece that is not farther than the query's reach, rounding allowed for."""
        order = np.argsort(leaf, kind="stable")
        query, leaf = query[order], leaf[order]
        cuts = np.flatnonzero(np.diff(leaf, prepend=-1, append=-1))
        begin = self.levels[-1].begin
        data, norm = torch.from_numpy(self.data), torch.from_numpy(self.norm)[:, None]
        queries, places = [], []
        for a, b in zip(cuts[:-1], cuts[1:], strict=True):
            k, who = int(leaf[a]), query[a:b]
            from_middle = q[who] - self.middle[k]
            size = np.sqrt(np.einsum("ij,ij->i", from_middle, from_middle))
            limit = (reach[who] ** 2 + self._margin(size, k) - size**2).astype(np.float32)
            some = slice(begin[k], begin[k + 1])
            near = torch.addmm(norm[some], data[some], torch.from_numpy(from_middle.T), alpha=-2)
            place, at = (near <= torch.from_numpy(limit)).nonzero(as_tuple=True)
            queries.append(who[at.numpy()])
            places.append(place.numpy() + begin[k])
        return np.concatenate(queries), np.concatenate(places)

    def _best_segments(self, queries: np.ndarray, query: np.ndarray, piece: np.ndarray, n: int):
        """Of all candidates, in float64: for each segment its best piece, for each query its ``n`` best segments."""
        position, axis = piece // self.n_axes, piece % self.n_axes
        difference = self._views[position, axis].astype(np.float64) - queries[query]
        distance = np.einsum("ij,ij->i", difference, difference) / self.width
        # every window that contains the piece
        first = np.searchsorted(self._starts, position - (self.split.length - self.width), side="left")
        count = np.searchsorted(self._starts, position, side="right") - first
        each = np.repeat(np.arange(len(piece)), count)
        nth = np.arange(len(each)) - np.repeat(np.cumsum(count) - count, count)
        window = self._by_start[first[each] + nth]
        query, distance = query[each], distance[each]
        segment = window * self.n_axes + axis[each]
        offset = position[each] - self.split.start[window]
        # the best piece of each (query, segment), the earliest of equals
        key = query * self.n_segments + segment
        order = np.argsort(key)
        key, distance, offset = key[order], distance[order], offset[order]
        begin = np.flatnonzero(np.diff(key, prepend=-1))
        least = np.minimum.reduceat(distance, begin)
        size = np.diff(begin, append=len(key))
        offset = np.minimum.reduceat(np.where(distance == np.repeat(least, size), offset, self.split.length), begin)
        query, segment = np.divmod(key[begin], self.n_segments)
        # the best segments of each query; lexsort is stable, so equals stay in the order of segments
        order = np.lexsort((least, query))
        start = np.searchsorted(query[order], np.arange(len(queries)))
        chosen = order[start[:, None] + np.arange(n)]
        return least[chosen], segment[chosen], offset[chosen]


_latest: PieceIndex | None = None


def piece_index(split: Split, width: int) -> PieceIndex:
    """The index of ``split``; the latest one is kept, because all searches of a run are in the same windows."""
    global _latest
    if _latest is None or _latest.split is not split or _latest.width != width:
        _latest = None  # before the next one takes its memory
        _latest = PieceIndex(split, width)
    return _latest
