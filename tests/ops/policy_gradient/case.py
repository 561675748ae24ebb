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


TOKEN, SEQUENCE, ROWS = "token", "sequence", "rows"
SHAPES = {"shape_positive": (2.0, 3.0), "shape_negative": (3.0, 2.0)}
CISPO = {"flow": "logprob", "gate": "none"}
FIRST_HALF = (-0.107143, -0.157143)

# name, settings, mean, loss, gradient of the seven tokens: case 1 of the sheet, computed in float64
# and by the functions of TRL 1.16, verl, SkyRL, slime, AReaL or prime-rl where they have the loss.
PUBLISHED = [
    ("clip by rows", {}, SEQUENCE, -0.022917, (0, 0, -0.093750, -0.137500, 0, 0.091667, 0.350000)),
    ("clip", {}, TOKEN, -0.171429, (0, 0, *FIRST_HALF, 0, 0.078571, 0.300000)),
    ("dapo", {"high": 0.28}, TOKEN, -0.188571, (-0.177143, 0, *FIRST_HALF, 0, 0.078571, 0.300000)),
    ("dual clip", {"far": 3.0}, TOKEN, -0.257143, (0, 0, *FIRST_HALF, 0, 0.078571, 0)),
    ("two-sided", {"far": 4.0}, TOKEN, -0.185714, (0, 0, *FIRST_HALF, 0, 0.078571, 0)),
    ("cispo 2", CISPO | {"cap": 2.0}, TOKEN, 0.333135,
     (-0.177143, -0.285714, *FIRST_HALF, 0.017857, 0.078571, 0.142857)),
    ("cispo 5", CISPO | {"cap": 5.0}, TOKEN, 0.137401,
     (-0.177143, -0.357143, *FIRST_HALF, 0.017857, 0.078571, 0.300000)),
    ("cispo of verl", CISPO | {"floor": 0.8, "cap": 1.2}, TOKEN, 0.253556,
     (-0.171429, -0.171429, -0.114286, -0.157143, 0.057143, 0.078571, 0.085714)),
    ("band", CISPO | {"gate": "band", "floor": 0.8, "cap": 1.2}, TOKEN, 0.259748,
     (0, 0, 0, -0.157143, 0, 0.078571, 0)),
    ("icepop", CISPO | {"gate": "band", "floor": 0.5, "cap": 5.0}, TOKEN, 0.178518,
     (-0.177143, -0.357143, *FIRST_HALF, 0, 0.078571, 0.300000)),
    ("gspo", {"level": "sequence_mean", "low": 3e-4, "high": 4e-4}, SEQUENCE, -0.237899,
     (0, 0, 0, 0, *[0.087434] * 3)),
    ("gspo wide", {"level": "sequence_mean", "low": 0.3, "high": 0.3}, SEQUENCE, -0.370000,
     (*[-0.158075] * 4, *[0.087434] * 3)),
    ("gspo by tokens", {"level": "sequence_mean", "low": 0.3, "high": 0.3}, TOKEN, -0.497800,
     (*[-0.180657] * 4, *[0.074943] * 3)),
    ("gmpo", {"gate": "log_clip", "low": 0.4, "high": 0.4}, SEQUENCE, -0.191333,
     (-0.138934, 0, -0.138934, -0.138934, 0, 0.121468, 0.121468)),
    ("dppo tv", CISPO | {"gate": "total_variation", "low": 0.15, "high": 0.15, "cap": 20.0}, TOKEN, -0.069034,
     (-0.177143, 0, *FIRST_HALF, 0, 0.078571, 0.300000)),
    ("dppo tv, cap 3", CISPO | {"gate": "total_variation", "low": 0.15, "high": 0.15, "cap": 3.0}, TOKEN, 0.064736,
     (-0.177143, 0, *FIRST_HALF, 0, 0.078571, 0.214286)),
    ("dppo tv through the ratio", {"gate": "total_variation", "low": 0.15, "high": 0.15}, TOKEN, -0.062857,
     (-0.177143, 0, *FIRST_HALF, 0, 0.078571, 0.300000)),
    ("dppo kl", CISPO | {"gate": "binary_kl", "low": 0.05, "high": 0.05, "cap": 20.0}, TOKEN, -0.069034,
     (-0.177143, 0, *FIRST_HALF, 0, 0.078571, 0.300000)),
    ("sapo", {"gate": "soft"}, SEQUENCE, -0.596914,
     (-0.152789, -0.186433, -0.092300, -0.137157, 0.017910, 0.091414, 0.045419)),
    ("sapo by tokens", {"gate": "soft"}, TOKEN, -0.845940,
     (-0.174616, -0.213066, -0.105486, -0.156751, 0.015351, 0.078355, 0.038931)),
    ("vespo", CISPO | SHAPES | {"gate": "gamma", "level": "sequence"}, TOKEN, -0.367361,
     (*[-0.008736] * 4, *[0.080721] * 3)),
    ("reinforce, rows truncated", CISPO | {"level": "sequence", "cap": 2.0}, ROWS, 2.453649,
     (*[-1.0] * 4, *[0.288750] * 3)),
]  # fmt: skip
