"""A random direction in which to turn a basis of units, and how far: orthogonal matrices and their fractional powers.

Bau, Zhou et al. (2017), section 3.2: a layer's outputs, multiplied by an orthogonal matrix Q, hold all they held, and
the next layer could undo it; only the single units are others. If these mean less than the network's own, meaning is a
matter of the basis. Q^alpha goes from the identity (0) to Q (1) along the shortest way.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg

#: entries this small are rounding errors of a Schur form
TOLERANCE = 1e-9


def random_rotation(n: int, rng: np.random.Generator) -> np.ndarray:
    """A rotation (n, n) drawn uniformly (Haar) from all with determinant 1, float64."""
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    q = q * np.sign(np.diag(r))  # without this the QR routine's own habits would decide the distribution
    if np.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return q


def power(q: np.ndarray, alpha: float) -> np.ndarray:
    """``q`` to the power ``alpha``, real and orthogonal: each of its plane rotations by ``alpha`` times its angle.

    ``q`` is orthogonal (n, n) with determinant 1. The power 0 is the identity, exactly. Raises ``ValueError`` for a
    matrix that is no rotation.
    """
    q = np.asarray(q, dtype=np.float64)
    if q.ndim != 2 or q.shape[0] != q.shape[1] or not np.allclose(q @ q.T, np.eye(len(q)), atol=1e-8):
        raise ValueError(f"a rotation is a square orthogonal matrix, not one of shape {q.shape} with other columns")
    if alpha == 0:
        return np.eye(len(q))
    form, basis = linalg.schur(q, output="real")  # block-diagonal, because q is orthogonal
    turned, halves, i = np.eye(len(q)), [], 0
    while i < len(q):
        if i + 1 < len(q) and abs(form[i + 1, i]) > TOLERANCE:
            _turn(turned, i, i + 1, alpha * np.arctan2(form[i + 1, i], form[i, i]))
            i += 2
        else:
            if form[i, i] < 0:
                halves.append(i)
            i += 1
    if len(halves) % 2:
        raise ValueError("this orthogonal matrix has determinant -1: a reflection has no real fractional powers")
    for a, b in zip(halves[::2], halves[1::2], strict=True):  # two eigenvalues -1 are half a turn of their plane
        _turn(turned, a, b, alpha * np.pi)
    return basis @ turned @ basis.T


def _turn(matrix: np.ndarray, a: int, b: int, angle: float) -> None:
    c, s = np.cos(angle), np.sin(angle)
    matrix[np.ix_([a, b], [a, b])] = [[c, -s], [s, c]]
