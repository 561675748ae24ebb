"""Seven tokens in two rows, on which losses of many published codes were computed in float64."""

import numpy as np

MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
ADVANTAGE = np.array([[1.0], [-0.5]]) * MASK


def _log(*rows: tuple[float, ...]) -> np.ndarray:
    return np.log(np.array([[*row, *[1.0] * (4 - len(row))] for row in rows]))


BEHAVIOR = _log((0.5, 0.2, 0.8, 0.1), (0.4, 0.3, 0.05))
POLICY = _log((0.62, 0.5, 0.6, 0.11), (0.1, 0.33, 0.21))
PROXIMAL = _log((0.55, 0.42, 0.7, 0.1), (0.2, 0.3, 0.11))
REFERENCE = _log((0.5, 0.25, 0.75, 0.12), (0.3, 0.3, 0.06))


def divisor(mean: str) -> np.ndarray:
    """What the sum of losses is divided by, of each token: "token" their number, "sequence" the
    tokens of the row times the rows, "rows" the rows.
    """
    lengths = MASK.sum(1, keepdims=True)
    divisors = {"token": MASK.sum(), "sequence": 2 * lengths, "rows": 2}
    return np.broadcast_to(divisors[mean], MASK.shape)


def row(*values: float) -> np.ndarray:
    """Seven numbers as `[2, 4]`, with 0 at the token that is not there."""
    return np.array([*values, 0.0]).reshape(2, 4)
