"""The training segments nearest to a piece of signal, exactly, out of millions of pieces (paper section 4.5, eq. 8).

A segment is one axis of one window, and its distance to a query is that of its best piece. Windows overlap, so
pieces are taken from the series once and not once per window. They are put in an order in which similar pieces are
neighbours: a binary tree is learnt from a sample, each node cut at the median of its widest coordinate, and all
pieces walk down it. In this order they are cut into equal pages, pages make leaves, leaves make larger nodes, and
each of these has a box along the principal axes of the data. A search has four steps:

1. the pages with the nearest boxes give a query a distance within which its ``n`` segments must lie; queries much
   nearer than that to it let it search for them, a little further;
2. from the largest nodes down, those are kept whose boxes come nearer than that;
3. each leaf is compared with all the queries that kept it by one matrix product;
4. what lies within the distance is computed again in float64, for all queries, and the best of each segment kept.

Every piece is in a box and no box is left out that could hold a neighbour, so the result is exact whatever the
tree; a bad tree makes large boxes and a slow search. Principal axes make the boxes tight also for queries far from
all data. Rounding can only add candidates, never lose one: each comparison in float32 has a margin.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.spatial import cKDTree

from harvis_utils.data.windowing import Split
from harvis_utils.fast.sorting import TINY, median_tree, nth_of_different, stable_order
from harvis_utils.parallel import progress, workers

#: pieces of a page, and pages of a leaf, leaves of a node, and so on. Choice: by measurement
PAGE, BRANCH = 64, 8
#: nodes are joined to larger ones until no more than so many are left
TOP = 256
#: levels of the tree that orders the pieces, at most 16: its leaves are numbered in 16 bits
DEPTH = 15
#: pages looked into for the first estimate of each query
FIRST = 40
#: queries searched together, which bounds the memory; queries and leaves of one task of a worker
QUERIES, CHUNK, LEAVES = 2**14, 256, 128
#: a query leads neighbours that are nearer to it than this share of its reach, of at most FAR (G, root of the sum of
#: squares): to look a little further than a large reach is to find very many. It is one of so many, tried so often
SHARED, FAR, GROUP, ROUNDS = 0.05, 2.0, 8, 3
#: of each estimate, as many times n smallest pieces are looked at first. Choice: by measurement
KEPT = 8
#: pieces looked into together for first estimates
TOGETHER = 2**16
EPS = float(np.finfo(np.float32).eps)


class PieceIndex:
    """All pieces of ``width`` samples in the windows of ``split``, ready to be searched.

    Raises ``ValueError`` where ``width`` is longer than a window or there is no window.
    """

    def __init__(self, split: Split, width: int):
        if not 0 < width <= split.length:
            raise ValueError(f"a piece of {width} samples does not fit windows of {split.length}")
        if not len(split):
            raise ValueError("there is no window to search")
        self.split, self.width = split, width
        self.n_samples, self.n_axes = split.series.shape
        self.n_segments = len(split) * self.n_axes
        # The unit of all margins. With u = EPS / 2: a coordinate of w along an axis is off by less than width u |w|,
        # |v - w|^2 from products by less than (2 width + 6) u (|v| + |w|)^2. This is 2 (width + 8) u.
        self.slack = (width + 8) * EPS
        self._by_start = np.argsort(split.start, kind="stable")
        self._begun = np.append(0, np.cumsum(np.bincount(split.start, minlength=self.n_samples)))
        flat = np.ascontiguousarray(split.series.T).ravel()
        self._views = torch.from_numpy(flat).unfold(0, width, 1)  # (axis * samples + position, width)
        piece = self._distinct_pieces(flat)
        depth = min(DEPTH, len(piece).bit_length() - 1)
        sample = self._samples(piece[np.linspace(0, len(piece) - 1, 2**depth, dtype=np.int64)]).numpy()
        moments = np.cov(sample.T.astype(np.float64), ddof=0).reshape(width, width)
        self.axes = np.linalg.eigh(moments)[1][:, ::-1].astype(np.float32)
        self.height = 1  # levels of boxes above the pages
        while len(piece) > TOP * PAGE * BRANCH**self.height:
            self.height += 1
        with workers() as pool:
            self._fill(pool, self._in_order(pool, piece, sample))

    def _samples(self, piece: np.ndarray) -> torch.Tensor:
        """What is measured in the pieces, (piece, width) in G; torch gathers rows faster than NumPy."""
        return self._views.index_select(0, torch.from_numpy(piece))

    def _distinct_pieces(self, flat: np.ndarray) -> np.ndarray:
        """Pieces that some window holds, without those that equal an earlier piece of the same windows."""
        at = np.flatnonzero(np.diff(self._windows(np.arange(self.n_samples)), axis=0)[0])
        piece = (np.arange(self.n_axes)[:, None] * self.n_samples + at).ravel()
        # Where no window starts, all windows that hold a piece also hold the piece one sample before it. If nothing
        # moved, that one is equal and earlier.
        moves = np.zeros(len(flat), np.int32)
        np.cumsum(flat[1:] != flat[:-1], dtype=np.int32, out=moves[1:])
        moved = np.ones(len(flat), bool)
        moved[1 : len(self._views)] = moves[self.width :] != moves[: -self.width]
        starts = np.diff(self._begun) > 0
        return piece[moved[piece] | np.tile(starts[at], self.n_axes)]

    def _windows(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and end of the windows, by start, that hold the pieces at ``position``."""
        first = np.maximum(position - (self.split.length - self.width), 0)
        return self._begun[first], self._begun[position + 1]

    # --------------------------------------------------------------------------------------------- preparation

    def _in_order(self, pool: ThreadPoolExecutor, piece: np.ndarray, sample: np.ndarray) -> np.ndarray:
        """The pieces so that similar ones are neighbours, and equally similar ones in the order of time."""
        axes = torch.from_numpy(self.axes)
        widest, cut = median_tree(torch.mm(torch.from_numpy(sample), axes).numpy())

        def walk(begin: int) -> np.ndarray:
            some = self._samples(piece[begin : begin + 2**15])
            turned, n = torch.mm(axes.T, some.T).numpy().ravel(), len(some)
            row, column, node = widest * n, np.arange(n), np.ones(n, np.int64)
            for _ in range(len(cut).bit_length() - 1):
                node = 2 * node + (turned.take(row.take(node) + column) >= cut.take(node))
            return (node - len(cut)).astype(np.uint16)

        leaf = np.concatenate(list(pool.map(walk, range(0, len(piece), 2**15))))
        return piece[np.argsort(leaf, kind="stable")]

    def _fill(self, pool: ThreadPoolExecutor, piece: np.ndarray) -> None:
        """Pages, leaves and boxes of the pieces, with copies of the last one up to a whole number of largest nodes."""
        n, whole, leaf = len(piece), PAGE * BRANCH**self.height, PAGE * BRANCH
        self.piece = np.pad(piece, (0, -n % whole), mode="edge")
        # a window of each piece is enough for an upper bound of its segment's distance
        self.segment = np.empty(len(self.piece), np.uint32)
        # (w, |w|^2, 1) of each piece, w from the middle of its leaf: small numbers, small rounding
        self.data = np.empty((len(self.piece), self.width + 2), np.float32)
        self.middle = np.empty((len(self.piece) // leaf, self.width), np.float32)
        pages = np.empty((len(self.piece) // PAGE, 2 * self.width), np.float32)
        axes, ones = torch.from_numpy(self.axes), torch.ones(self.width)

        def fill(begin: int) -> None:
            some = slice(begin * leaf, (begin + LEAVES) * leaf)
            data = self._samples(self.piece[some])
            turned = torch.mm(axes.T, data.T).view(self.width, -1, PAGE)  # pieces last: what is contiguous goes fast
            low, high = turned.amin(2).numpy().T, turned.amax(2).numpy().T
            largest = np.sqrt((np.maximum(np.abs(low), np.abs(high)) ** 2).sum(1, keepdims=True))
            pages[some.start // PAGE : some.stop // PAGE] = np.hstack([low, -high]) - self.slack * largest
            by_leaf = data.view(-1, leaf, self.width)
            middle = by_leaf[:, ::BRANCH].mean(1)
            data = by_leaf.sub_(middle[:, None]).view(-1, self.width)
            self.middle[begin : begin + LEAVES] = middle
            self.data[some, :-2], self.data[some, -1] = data, 1
            self.data[some, -2] = torch.mv(data.square(), ones)
            axis, position = np.divmod(self.piece[some], self.n_samples)
            self.segment[some] = (self._begun[position + 1] - 1) * self.n_axes + axis

        list(pool.map(fill, range(0, len(self.middle), LEAVES)))
        # the copies are infinitely far from everything, and so are pages of copies alone
        self.data[n:, -2] = np.inf
        pages[-(-n // PAGE) :] = np.inf
        self.boxes = [pages]  # of each level from the pages up, (node, coordinate): least values, then -largest
        for _ in range(self.height):
            self.boxes.append(self.boxes[-1].reshape(-1, BRANCH, 2 * self.width).min(1))

    # -------------------------------------------------------------------------------------------------- search

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
        found = [np.empty((len(unique), n), kind) for kind in (np.float64, np.int64, np.int64)]
        blocks = [slice(begin, begin + QUERIES) for begin in range(0, len(unique), QUERIES)]
        with workers() as pool:
            for block in progress(blocks, desc="nearest windows", leave=False):
                self._search(pool, unique[block], [array[block] for array in found])
        return tuple(array[back.reshape(-1)] for array in found)

    def _search(self, pool: ThreadPoolExecutor, queries: np.ndarray, found: list[np.ndarray]) -> None:
        """The steps of the module's description; ``found`` are distances, segments and offsets to be written."""
        n, many = found[0].shape[1], len(self._views)
        turned = queries.astype(np.float64) @ self.axes
        q = np.hstack([turned, -turned]).astype(np.float32)
        leader, apart, reach = self._leaders(pool, queries, q, n)
        leaders = np.flatnonzero(leader == np.arange(len(queries)))
        others = np.flatnonzero(leader != np.arange(len(queries)))
        others = others[np.argsort(leader[others], kind="stable")]
        led_by = np.searchsorted(leaders, leader[others])
        leading, q, reach = queries[leaders], q[leaders], reach[leaders]

        def plan(begin: int) -> tuple[np.ndarray, np.ndarray]:
            some = slice(begin, begin + CHUNK)
            query, leaf = self._leaves_within(leading[some], q[some], reach[some])
            return query + begin, leaf

        begins = np.arange(0, len(leaders), CHUNK)
        query, leaf = (np.concatenate(parts) for parts in zip(*pool.map(plan, begins), strict=True))
        order = stable_order(leaf, len(self.middle))
        query, leaf = query[order], leaf[order]
        cuts = np.flatnonzero(np.diff(leaf, prepend=-1, append=-1))

        def compare(begin: int) -> list[np.ndarray]:
            query_, place = self._within(leading, reach, query, leaf, cuts[begin : begin + LEAVES + 1])
            task = query_ // CHUNK
            order = stable_order(task, len(begins))
            pairs = query_[order] * many + self.piece[place[order]]  # sorted as one number
            return np.split(pairs, np.cumsum(np.bincount(task, minlength=len(begins)))[:-1])

        parts = list(pool.map(compare, range(0, len(cuts) - 1, LEAVES)))

        def rank(begin: int) -> None:
            pairs = np.sort(np.concatenate([part[begin // CHUNK] for part in parts])) - begin * many
            candidates = np.divmod(pairs, many)
            mine = leaders[begin : begin + CHUNK]
            distance = self._distances(queries[mine], *candidates)
            best = self._best_segments(*candidates, distance, len(mine), n)
            theirs = slice(*np.searchsorted(led_by, (begin, begin + CHUNK)))
            led, by = others[theirs], led_by[theirs] - begin
            within = np.sqrt(best[0][:, -1] * self.width)[by] + 2 * apart[led]
            best_of_led = self._best_among_led(queries[led], by, within, *candidates, distance, n)
            for array, of_leaders, of_led in zip(found, best, best_of_led, strict=True):
                array[mine], array[led] = of_leaders, of_led

        size = sum(np.array([len(some) for some in part]) for part in parts)
        list(pool.map(rank, begins[np.argsort(-size)]))  # the longest first, or a worker would wait for the other

    def _best_among_led(self, queries, by, within, of, piece, distance, n: int):
        """The best segments of queries that are led: they choose among the candidates of their leaders.

        Query ``i`` is led by ``by[i]``. The candidates are pieces of leaders ``of``, sorted, at ``distance`` from
        them; what the query could want is ``within[i]`` of its leader.
        """
        size = np.bincount(of, minlength=by.max(initial=0) + 1)
        begin = (np.cumsum(size) - size)[by]
        size = size[by]
        each = np.repeat(np.arange(len(by)), size)
        at = np.arange(len(each)) + np.repeat(begin - (np.cumsum(size) - size), size)
        near = distance[at] * self.width <= ((1 + self.slack) * within**2 + TINY)[each]
        each, piece = each[near], piece[at[near]]
        return self._best_segments(each, piece, self._distances(queries, each, piece), len(by), n)

    def _leaders(self, pool: ThreadPoolExecutor, queries: np.ndarray, q: np.ndarray, n: int):
        """For each query the one that searches for it, itself or one near by, how far apart the two are, and how far
        leaders have to look: (query,) each.

        Where a leader has ``n`` segments within r, a query that is s away from it has them within r + s, and all that
        are so near to the query are within r + 2 s of the leader.
        """
        leader, reach = np.arange(len(queries)), np.empty(len(queries))
        apart, spread = np.zeros(len(queries)), np.zeros(len(queries))

        def estimate(which: np.ndarray) -> None:
            def one(begin: int) -> None:
                part = which[begin : begin + CHUNK]
                reach[part] = self._first_reach(queries[part], q[part], n)

            list(pool.map(one, range(0, len(which), CHUNK)))

        rest = cKDTree(queries, leafsize=GROUP).indices  # similar ones are neighbours
        for _ in range(ROUNDS):
            heads = rest[::GROUP]
            estimate(heads)
            head = np.repeat(heads, GROUP)[: len(rest)]
            away = np.sqrt(((queries[rest].astype(np.float64) - queries[head]) ** 2).sum(1))
            joins = away <= SHARED * np.minimum(reach[head], FAR)
            leader[rest[joins]], apart[rest[joins]] = head[joins], away[joins]
            np.maximum.at(spread, head[joins], away[joins])
            rest = rest[~joins]
        estimate(rest)
        return leader, apart, reach + 2 * spread

    def _bound(self, level: int, q: np.ndarray, query: np.ndarray, node: np.ndarray) -> np.ndarray:
        """Squared distance from queries to boxes, pair by pair; ``q`` holds coordinates, then their negatives."""
        gap = self.boxes[level].take(node, axis=0)
        gap -= q.take(query, axis=0)
        np.maximum(gap, 0, out=gap)
        return torch.mv(torch.from_numpy(gap).square_(), torch.ones(gap.shape[1])).numpy()

    def _first_reach(self, queries: np.ndarray, q: np.ndarray, n: int) -> np.ndarray:
        """A distance within which each query has ``n`` segments: that of the n-th in the pages first found."""
        reach, some, kept = np.full(len(q), np.inf), np.arange(len(q)), FIRST
        # pages of few segments are not enough; after all pages, infinite
        while len(some) and kept < FIRST + 4 * len(self.boxes[0]):
            size = max(1, TOGETHER // (PAGE * kept))
            for chosen in (some[begin : begin + size] for begin in range(0, len(some), size)):
                reach[chosen] = self._nth_distance(queries[chosen], self._nearest_pages(q[chosen], kept), n)
            some, kept = some[np.isinf(reach[some])], 4 * kept
        return reach

    def _nearest_pages(self, q: np.ndarray, kept: int) -> np.ndarray:
        """(query, page): about the ``kept`` nearest of each query, by a beam of nodes from the largest down."""
        node = np.tile(np.arange(len(self.boxes[-1])), (len(q), 1))
        for level in range(self.height, -1, -1):
            query = np.repeat(np.arange(len(q)), node.shape[1])
            bound = self._bound(level, q, query, node.ravel()).reshape(node.shape)
            beam = min(kept if level == 0 else -(-kept // 2), node.shape[1])
            node = np.take_along_axis(node, np.argpartition(bound, beam - 1, axis=1)[:, :beam], axis=1)
            if level:
                node = _children(node).reshape(len(q), -1)
        return node

    def _nth_distance(self, queries: np.ndarray, page: np.ndarray, n: int) -> np.ndarray:
        """An upper bound of each query's ``n``-th smallest distance among different segments in its pages."""
        v = queries[:, None] - self.middle[page // BRANCH]
        size = np.einsum("ijk,ijk->ij", v, v)[..., None]
        v = np.concatenate([-2 * v, np.ones_like(size), size], axis=2)
        near = (self.data.reshape(-1, PAGE, self.width + 2)[page] @ v[..., None])[..., 0]
        np.maximum(near, 0, out=near)
        # |w| <= |v| + d, so the rounding is below (2 width + 6) u (8 |v|^2 + 2 d^2)
        near += self.slack * (4 * near + 10 * size)
        near, segment = near.reshape(len(queries), -1), self.segment.reshape(-1, PAGE)[page].reshape(len(queries), -1)
        reach = np.full(len(queries), np.inf)
        # the smallest are enough where they are of n segments: a segment's best piece comes before its others
        for kept in (KEPT * n, near.shape[1]):
            rest = np.flatnonzero(np.isinf(reach))
            if len(rest) and n <= kept <= near.shape[1]:
                reach[rest] = nth_of_different(near[rest], segment[rest], n, kept)
        return reach

    def _leaves_within(self, queries: np.ndarray, q: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of query and leaf whose box is not farther than the query's reach."""
        far = np.sqrt((queries.astype(np.float64) ** 2).sum(1))
        limit = ((reach * (1 + self.slack) + self.slack * far) ** 2 + TINY).astype(np.float32)
        width = len(self.boxes[-1])
        query, node = np.repeat(np.arange(len(q)), width), np.tile(np.arange(width), len(q))
        for level in range(self.height, 0, -1):
            near = self._bound(level, q, query, node) <= limit[query]
            query, node = query[near], node[near]
            if level > 1:
                query, node = np.repeat(query, BRANCH), _children(node).ravel()
        return query, node

    def _within(self, queries: np.ndarray, reach: np.ndarray, query: np.ndarray, leaf: np.ndarray, cuts: np.ndarray):
        """Pairs of query and place of a piece that is not farther than the query's reach, rounding allowed for.

        ``query`` and ``leaf`` are all pairs, sorted by leaf; those of one leaf lie between two of ``cuts``.
        """
        some, size = slice(cuts[0], cuts[-1]), PAGE * BRANCH
        query, leaf, cuts = query[some], leaf[some], cuts - cuts[0]
        v, r = queries[query] - self.middle[leaf], reach[query]
        far = np.einsum("ij,ij->i", v, v).astype(np.float64)
        # |w| <= |v| + r, so the rounding is below (5 width + 15) u (|v|^2 + (|v| + r)^2)
        limit = r**2 - far + 3 * self.slack * (far + (np.sqrt(far) + r) ** 2) + TINY
        v = np.column_stack([-2 * v, np.ones_like(limit), -limit]).astype(np.float32)
        v, data = torch.from_numpy(v), torch.from_numpy(self.data)
        hits = []
        for a, b, k in zip(cuts[:-1].tolist(), cuts[1:].tolist(), leaf[cuts[:-1]].tolist(), strict=True):
            beyond = torch.mm(v[a:b], data[k * size : (k + 1) * size].T).numpy()
            hits.append(np.flatnonzero(beyond <= 0) + a * size)
        pair, place = np.divmod(np.concatenate(hits), size)
        return query[pair], leaf[pair] * size + place

    def _distances(self, queries: np.ndarray, query: np.ndarray, piece: np.ndarray) -> np.ndarray:
        """Mean squared error of pairs of query and piece, in float64."""
        difference = self._samples(piece).double().numpy()
        difference -= queries.take(query, axis=0)
        return np.einsum("ij,ij->i", difference, difference) / self.width

    def _best_segments(self, query: np.ndarray, piece: np.ndarray, distance: np.ndarray, n_queries: int, n: int):
        """Of all candidates: for each segment its best piece, for each query its ``n`` best segments.

        The candidates are sorted by query, then by axis and position.
        """
        axis, position = np.divmod(piece, self.n_samples)
        near = self._among_best(query, self._begun[position + 1] * self.n_axes + axis, distance, n_queries, n)
        query, axis, position, distance = query[near], axis[near], position[near], distance[near]
        # every window that contains the piece
        first, end = self._windows(position)
        each = np.repeat(np.arange(len(query)), end - first)
        nth = np.arange(len(each)) - np.repeat(np.cumsum(end - first) - (end - first), end - first)
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
        start = np.searchsorted(query[order], np.arange(n_queries))
        chosen = order[start[:, None] + np.arange(n)]
        return least[chosen], segment[chosen], offset[chosen]

    def _among_best(self, query: np.ndarray, segment: np.ndarray, distance: np.ndarray, n_queries: int, n: int):
        """Which candidates are not farther than their query's ``n``-th segment, one window of each piece counted.

        Candidates of one (query, segment) are neighbours. Distances are rounded to float32, which keeps their order.
        """
        begin = np.flatnonzero((np.diff(query, prepend=-1) != 0) | (np.diff(segment, prepend=-1) != 0))
        least = np.minimum.reduceat(distance, begin).astype(np.float32)
        ranked = np.sort(query[begin] << 32 | least.view(np.uint32))
        edge = np.searchsorted(ranked, np.arange(n_queries + 1) << 32)
        place = edge[:-1] + n - 1
        nth = ranked[np.minimum(place, len(ranked) - 1)].astype(np.uint32).view(np.float32)
        return distance.astype(np.float32) <= np.where(place < edge[1:], nth, np.inf)[query]


def _children(node: np.ndarray) -> np.ndarray:
    return node[..., None] * BRANCH + np.arange(BRANCH)


_latest: PieceIndex | None = None


def piece_index(split: Split, width: int) -> PieceIndex:
    """The index of ``split``; the latest one is kept, because all searches of a run are in the same windows."""
    global _latest
    if _latest is None or _latest.split is not split or _latest.width != width:
        _latest = None  # before the next one takes its memory
        _latest = PieceIndex(split, width)
    return _latest
