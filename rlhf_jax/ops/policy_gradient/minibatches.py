"""Parts of a batch that are known in an update only: weights with mean 1 over its minibatch, and the
ages of its tokens.

With w the truncated weights of a minibatch (`ops/corrections.py`), n their number and v the updates that
the params being trained have had

    weights with mean 1     w n / Σ w         Σ and n over tokens, or over completions where each has one weight
    age of a token          v − version       in updates; the version is that of the params that drew it

The means are of the whole minibatch, before it is split into micro-batches, and over all devices that hold
rows of it. verl names the first `rollout_is_batch_normalize` (its docs/algo/rollout_corr).
"""

from dataclasses import replace

import jax.numpy as jnp

from rlhf_jax.ops.masked import masked_count, masked_sum, select
from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.types import Array, Batch


def weight_sums(weight_BC: Array, mask_BC: Array, level: str) -> tuple[Array, Array]:
    """The sum of each row's weights and the number of them, float32 `[B]` each.

    Args:
      weight_BC: of tokens; at a level of completions all tokens of a row have one weight.
      mask_BC: True at tokens of the completion.
      level: of the correction: "token" counts a row's tokens, the others count the row once.
    """
    assert_shapes(weight_BC=weight_BC, mask_BC=mask_BC)
    sum_B, count_B = masked_sum(weight_BC, mask_BC, dim=1), masked_count(mask_BC, dim=1)
    if level == "token":
        return sum_B, count_B
    return sum_B / jnp.maximum(count_B, 1.0), jnp.minimum(count_B, 1.0)


def of_minibatch(batch: Batch, version: Array) -> Batch:
    """The batch with weights of mean 1 over its rows and the ages of its tokens, where credit asked for
    them; another batch as it is.

    Args:
      batch: all rows of a minibatch. Rows that do not count have no weight in the mean.
      version: int32, updates that the params being trained have had.
    """
    if batch.weight_sum_R is not None and batch.weight_count_R is not None:
        assert batch.staleness_RC is not None
        counted_R = (
            jnp.ones_like(batch.weight_sum_R) if batch.counted_R is None else batch.counted_R
        )
        total = jnp.sum(batch.weight_sum_R * counted_R)
        count = jnp.sum(batch.weight_count_R * counted_R)
        # Without a row that counts there is no mean, and no gradient either.
        factor = jnp.where(total > 0, count / jnp.where(total > 0, total, 1.0), 1.0)
        batch = replace(batch, staleness_RC=batch.staleness_RC * factor)
    if batch.version_RC is None:
        return batch
    return replace(batch, age_RC=select(version - batch.version_RC, batch.mask_RC))
