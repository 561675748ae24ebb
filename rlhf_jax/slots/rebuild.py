"""Keys and values of running rows, computed again under other params."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from rlhf_jax.models.api import Cache, Model
from rlhf_jax.models.common.layout import whole_params
from rlhf_jax.ops.masked import positions_from_mask
from rlhf_jax.slots.state import Slots
from rlhf_jax.types import Array, Params


def rebuild(
    params: Params,
    slots: Slots,
    prompt_tokens_SQ: Array,
    prompt_mask_SQ: Array,
    tokens_SW: Array,
    *,
    model: Model,
) -> Slots:
    """Runs prompt and completion of each live row as one prefill, in place of its keys and values.

    The completions are aligned on the right of the first W columns of the ring, and the next step
    writes the column after them. So the place in the ring is a function of W, whatever it was
    before. The random numbers, counts and last tokens stay.

    Args:
      params: of the policy, which will draw the next tokens.
      slots: are to be donated.
      prompt_tokens_SQ: int32, left-padded prompts of the live rows.
      prompt_mask_SQ: bool.
      tokens_SW: int32, the tokens of each live row but its last one, which was not fed yet; aligned
        on the right. W <= C is at least the number of them in every live row.
      model: the policy.
    """
    params = whole_params(model, params)
    width = tokens_SW.shape[1]
    live_S1 = ~slots.done_S[:, None]
    fed_S1 = slots.count_S[:, None] - 1
    mask_SW = jnp.arange(width)[None] >= width - fed_S1
    mask_SL = jnp.concatenate([prompt_mask_SQ, mask_SW], axis=1) & live_S1
    tokens_SL = jnp.concatenate([prompt_tokens_SQ, tokens_SW], axis=1)
    # Known to be empty while it is traced: the new columns attend to themselves alone, and are
    # written over the old ones.
    cache = Cache(
        slots.keys, slots.values, jnp.full_like(slots.position_SM, -1), np.zeros((), np.int32)
    )
    _, cache = model.apply(params, tokens_SL, positions_from_mask(mask_SL), mask_SL, cache)
    assert cache is not None
    return dataclasses.replace(
        slots,
        keys=cache.keys,
        values=cache.values,
        position_SM=cache.position_BM,
        step=jnp.int32(width % slots.num_positions),
    )
