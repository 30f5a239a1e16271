"""The search as its definition says it: what every fast one must equal."""

import numpy as np


def naive_search(pieces, segments, n):
    """Every piece, every segment, every offset; both (..., [axis,] time)."""
    result, width = [], pieces.shape[-1]
    for piece in pieces.astype(np.float64):
        rows = []
        for i, segment in enumerate(segments.astype(np.float64)):
            offsets = range(segment.shape[-1] - width + 1)
            errors = [((segment[..., j : j + width] - piece) ** 2).mean() for j in offsets]
            rows.append((min(errors), i, int(np.argmin(errors))))
        result.append(sorted(rows)[:n])
    return (np.array([[r[k] for r in rows] for rows in result]) for k in range(3))
