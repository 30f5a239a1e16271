"""The search for nearest segments: ours beside brute force over all pieces of all windows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import measure
from harvis_utils.data.windowing import Split
from harvis_utils.metrics.nearest import PieceIndex
from harvis_utils.settings import SimilaritySettings


def pieces_of(split: Split, width: int, n: int) -> np.ndarray:
    """Pieces (piece, width) in G of one axis each, cut at random out of windows."""
    rng, windows = np.random.default_rng(0), split.x
    window, axis = rng.integers(len(windows), size=n), rng.integers(windows.shape[1], size=n)
    begin = rng.integers(split.length - width + 1, size=n)
    return windows[window[:, None], axis[:, None], begin[:, None] + np.arange(width)]


def by_brute_force(train: Split, pieces: Tensor, n: int) -> Tensor:
    """Distances in G^2 of the ``n`` segments nearest to each of ``pieces`` (piece, width): (piece, n).

    Every piece of the recordings is compared, and each window on each axis has its best one.
    """
    width = pieces.shape[1]
    views, starts = torch.as_tensor(train.series).T.unfold(1, width, 1), torch.as_tensor(train.start)
    found = []
    for piece in pieces:
        distance = (views - piece).square().mean(2)  # (axis, sample)
        best = -F.max_pool1d(-distance, train.length - width + 1, stride=1)[:, starts]
        found.append(best.flatten().topk(n, largest=False)[0])
    return torch.stack(found)


def compare(train: Split, test: Split, settings: SimilaritySettings, rounds: int, n_pieces: int = 2048) -> dict:
    """Seconds to prepare, and milliseconds a piece in a batch and one by one, of pieces out of test windows."""
    pieces, n = pieces_of(test, settings.piece, n_pieces), settings.n_similar
    index, few = PieceIndex(train, settings.piece), pieces[:8]
    found, expected = index.nearest(few, n)[0], by_brute_force(train, torch.as_tensor(few), n).numpy()
    runs = {
        "batch": lambda: index.nearest(pieces, n),
        "one by one": lambda: [index.nearest(piece[None], n) for piece in few],
        "brute force": lambda: by_brute_force(train, torch.as_tensor(few), n),
    }
    seconds = measure.alternate(runs, rounds)
    counts = {"batch": n_pieces, "one by one": len(few), "brute force": len(few)}
    return {
        "segments": index.n_segments,
        "pieces": len(index.piece),
        "prepare_s": measure.seconds(lambda: PieceIndex(train, settings.piece)),
        "largest_difference_g2": float(np.abs(found - expected).max()),
        "ms_per_piece": {name: seconds[name] / counts[name] * 1e3 for name in runs},
    }
