"""The nearest training segments: ours beside brute force, faiss, scikit-learn's trees and stumpy.

Everybody searches the same pieces of generated signals among the same training windows and has to find the 50
nearest segments, where a segment's distance is that of its best offset. Distances are compared before times are.
Slow contenders search a sample of the pieces; times are per piece. What a contender prepares is timed by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks import measure
from harvis_utils.data.windowing import Split
from harvis_utils.metrics import nearest

#: pieces that a contender searches at most
SAMPLE = {"brute-force matrix products": 128, "faiss IndexFlatL2": 64, "scikit-learn brute": 32}
SAMPLE |= {"scikit-learn k-d tree": 8, "scikit-learn ball tree": 8, "stumpy mass_absolute": 8}
#: timed in turns, each so many times as often as the others
LIGHT, TURNS = ("ours", "brute-force matrix products", "faiss IndexFlatL2", "scikit-learn brute"), 3
#: what is prepared in fewer seconds is prepared as often as it is searched, and the median counts
QUICK_S = 10


def best_over_offsets(found: list[tuple[np.ndarray, np.ndarray]], n: int) -> np.ndarray:
    """Squared distances and segments of several offsets, (piece, n) each, as the n best segments: mean squared error.

    The n nearest segments are among the n nearest of their own best offset.
    """
    distance, segment = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    best = np.empty((len(distance), n))
    for i, (d, s) in enumerate(zip(distance, segment, strict=True)):
        order = np.argsort(d, kind="stable")
        _, first = np.unique(s[order], return_index=True)
        best[i] = d[order][np.sort(first)[:n]]
    return best


def brute_force(segments: np.ndarray, width: int, device: str) -> Callable:
    """|q|^2 + |w|^2 - 2 q.w by one matrix product per block of segments, the best of each kept on the way."""
    table = torch.as_tensor(segments, device=device)
    windows = table.unfold(1, width, 1)  # (segment, offset, width)
    norms = (windows**2).sum(-1)

    @torch.inference_mode()
    def search(pieces: np.ndarray, n: int) -> np.ndarray:
        q = torch.as_tensor(pieces, device=device)
        best = torch.full((len(q), n), torch.inf, device=device)
        for begin in range(0, len(table), 2048):
            some = windows[begin : begin + 2048]
            near = norms[begin : begin + 2048, :, None] - 2 * (some.reshape(-1, width) @ q.T).view(*some.shape[:2], -1)
            best = torch.cat([best, near.amin(1).T], 1).topk(n, dim=1, largest=False).values
        return ((best + (q**2).sum(1, keepdim=True)) / width).sort(1).values.cpu().numpy()

    return search


def faiss_flat(segments: np.ndarray, width: int) -> Callable:
    """One flat index per offset: exact, and each needs only the 50 best."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    indices = []
    for offset in range(segments.shape[1] - width + 1):
        index = faiss.IndexFlatL2(width)
        index.add(np.ascontiguousarray(segments[:, offset : offset + width]))
        indices.append(index)

    def search(pieces: np.ndarray, n: int) -> np.ndarray:
        return best_over_offsets([index.search(pieces, n) for index in indices], n) / width

    return search


def scikit_learn(segments: np.ndarray, width: int, algorithm: str) -> Callable:
    """One of scikit-learn's searches per offset."""
    from sklearn.neighbors import NearestNeighbors

    searches = [
        NearestNeighbors(algorithm=algorithm, n_jobs=torch.get_num_threads()).fit(segments[:, o : o + width])
        for o in range(segments.shape[1] - width + 1)
    ]

    def search(pieces: np.ndarray, n: int) -> np.ndarray:
        found = [s.kneighbors(pieces, n) for s in searches]
        return best_over_offsets([(d.astype(np.float64) ** 2, i) for d, i in found], n) / width

    return search


def stumpy_mass(split: Split, width: int) -> Callable:
    """stumpy's distance profile without normalization along the whole series, then the best of each window."""
    import stumpy

    series = np.ascontiguousarray(split.series.T.astype(np.float64))
    places = split.start[:, None] + np.arange(split.length - width + 1)

    def search(pieces: np.ndarray, n: int) -> np.ndarray:
        found = []
        for piece in pieces.astype(np.float64):
            profile = np.stack([stumpy.core.mass_absolute(piece, axis) for axis in series])
            best = (profile[:, places] ** 2).min(-1).ravel()
            found.append(np.sort(np.partition(best, n - 1)[:n]))
        return np.array(found) / width

    return search


def compare(split: Split, pieces: np.ndarray, n: int, rounds: int, device: str) -> dict:
    """Seconds to prepare, milliseconds per piece, largest difference to ours, and peak memory of each contender.

    ``pieces`` is (piece, width), all different; ours searches all of them, the others as many as SAMPLE says.
    """
    width, random = pieces.shape[1], np.random.default_rng(0)
    mixed = pieces[random.permutation(len(pieces))]
    segments = np.ascontiguousarray(split.segments, dtype=np.float32)
    prepare = {
        "ours": lambda: nearest.PieceIndex(split, width),
        "brute-force matrix products": lambda: brute_force(segments, width, device),
        "faiss IndexFlatL2": lambda: faiss_flat(segments, width),
        "scikit-learn brute": lambda: scikit_learn(segments, width, "brute"),
        "scikit-learn k-d tree": lambda: scikit_learn(segments, width, "kd_tree"),
        "scikit-learn ball tree": lambda: scikit_learn(segments, width, "ball_tree"),
        "stumpy mass_absolute": lambda: stumpy_mass(split, width),
    }
    table: dict[str, dict] = {}
    truth = np.empty(0)
    # what is light is timed in turns, so that a slow minute of the machine hits all of it; the trees of all offsets
    # take several GiB, so each of them gives its memory back before the next
    heavy = [name for name in prepare if name not in LIGHT]
    for group in (LIGHT, *([name] for name in heavy)):
        made: dict = {}
        build, ready = {}, {}
        for name in group:
            build[name] = lambda name=name, made=made: made.update({name: prepare[name]()})
            try:
                ready |= measure.alternate({name: build[name]}, 1)
            except ImportError as error:
                table[name] = {"left_out": f"does not install here: {error}"}
                del build[name]
        turns = rounds * (TURNS if group is LIGHT else 1)
        if sum(ready.values()) < QUICK_S:
            ready = measure.alternate(build, turns)
        some = {name: mixed[: SAMPLE.get(name, len(mixed))] for name in build}
        search = {name: lambda name=name, of=some, made=made: _searched(made[name], of[name], n) for name in build}
        found = {name: run() for name, run in search.items()}
        truth = found.get("ours", truth)
        for name, distance in found.items():
            # what is squared and subtracted loses in proportion to the sizes of both
            scale = (some[name] ** 2).mean(1, keepdims=True) + 1
            difference = np.abs(distance - truth[: len(distance)])
            table[name] = {
                "pieces": len(distance),
                "prepare_s": ready[name],
                "largest_difference_g2": float(difference.max()),
                "largest_relative_difference": float((difference / scale).max()),
            }
        for name, seconds in measure.alternate(search, turns).items():
            table[name]["ms_per_piece"] = seconds / len(some[name]) * 1e3
        made.clear()
        for name in build:
            table[name]["peak_mib"] = measure.peak_mib(
                lambda name=name, of=some: _searched(prepare[name](), of[name], n)
            )
    every = len(pieces)
    for entry in table.values():
        if "ms_per_piece" in entry:
            entry["all_pieces_s"] = entry["prepare_s"] + every * entry["ms_per_piece"] / 1e3
    for entry in table.values():
        if "all_pieces_s" in entry:
            entry["times_slower_than_ours"] = entry["all_pieces_s"] / table["ours"]["all_pieces_s"]
    return table


def _searched(made, pieces: np.ndarray, n: int):
    """Distances (piece, n) in G^2."""
    return made.nearest(pieces, n)[0] if isinstance(made, nearest.PieceIndex) else made(pieces, n)


def by_distance(split: Split, pieces: np.ndarray, n: int) -> list[dict]:
    """Milliseconds per piece of ours by the size of the piece: what is far from all data must not be the slow case."""
    index = nearest.PieceIndex(split, pieces.shape[1])
    size = np.sqrt((pieces.astype(np.float64) ** 2).mean(1))
    found = []
    for low, high in ((0, 0.1), (0.1, 0.5), (0.5, 1), (1, 2), (2, 5), (5, 10)):
        some = pieces[(size >= low) & (size < high)]
        if len(some):
            seconds = measure.alternate({"": lambda q=some: index.nearest(q, n)}, 3)[""]
            found.append(
                {"rms_from_g": low, "rms_to_g": high, "pieces": len(some), "ms_per_piece": seconds / len(some) * 1e3}
            )
    return found


def scaling(split: Split, pieces: np.ndarray, n: int) -> dict:
    """Seconds to prepare and to search over the share of training windows, with the fitted exponents."""
    sizes, prepare, search = [], [], []
    some = pieces[:: max(1, len(pieces) // 500)]
    for part in (8, 4, 2, 1):
        windows = len(split) // part
        short = Split(split.series, split.start[:windows], *(split.start[:windows],) * 4, length=split.length)
        made: dict = {}
        build = lambda s=short, m=made: m.update(it=nearest.PieceIndex(s, pieces.shape[1]))  # noqa: E731
        prepare.append(measure.alternate({"": build}, 1)[""])
        search.append(measure.alternate({"": lambda m=made: m["it"].nearest(some, n)}, 3)[""])
        sizes.append(windows)
    return {
        "windows": sizes,
        "prepare_s": prepare,
        "search_s": search,
        "prepare_exponent": measure.exponent(sizes, prepare),
        "search_exponent": measure.exponent(sizes, search),
        "pieces": len(some),
    }
