"""A-3PO's interpolation between behavior and current policy, arXiv 2512.06547: its α by age, and the runs
that have one.
"""

import jax.numpy as jnp

from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array, Batch


def age_interpolation(batch: Batch) -> Array:
    """α = (d − 1) / d of each token that is d updates old, and 0 for d = 0, float32 `[R, C]`.

    Raises Refusal for rows without ages.
    """
    if batch.age_RC is None:
        raise Refusal(
            "interpolation_by is 'age' and the rows have age_RC None; accepted: a loss within "
            "`updating.train_step`, which knows the version that is trained"
        )
    age_RC = jnp.maximum(batch.age_RC, 0).astype(jnp.float32)
    return jnp.maximum(age_RC - 1, 0.0) / jnp.maximum(age_RC, 1.0)


def check_interpolation(interpolation: float, by: str, *, stale: bool) -> None:
    """Raises Refusal for an interpolation in a run whose samples are not stale.

    Args:
      interpolation: of the config.
      by: `interpolation_by` of the config.
      stale: the run has a lag, a schedule of versions, or a clock that trains on older rounds.
    """
    if stale:
        return
    if interpolation:
        raise Refusal(
            f"algorithm.interpolation is {interpolation} in a run without a lag; accepted: 0, or a "
            "lag: (d - 1) / d for samples that are d updates old"
        )
    if by == "age":
        raise Refusal(
            "algorithm.interpolation_by is 'age' in a run without a lag; accepted: constant, or a lag"
        )
