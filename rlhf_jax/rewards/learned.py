"""A learned reward: a value head read at the last token of prompt and completion, the EOS included.

`score_tokens` is the one way to read a reward model: it is trained, standardised and used through
it. A published reward model keeps the convention of its trainer: transformers finds the last token
by `pad_token_id`, so that a model whose padding is its EOS was trained to be read at the token
before the EOS (`padding_id` of the model's config).
"""

from dataclasses import dataclass

import jax.numpy as jnp

from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.masked import last_index, positions_from_mask, select
from rlhf_jax.ops.once import once
from rlhf_jax.rewards.api import ModelReward
from rlhf_jax.types import Array, Params, Samples

KIND = "model"


@dataclass(frozen=True)
class Config:
    """A learned reward has no settings of its own: its origin and scale are measured when it is
    trained.
    """


@once
def make(value_model: ValueModel, config: Config | None = None) -> ModelReward:
    """The reward `(params, samples) -> raw scores [B]`, float32, differentiable in the params.

    Args:
      value_model: backbone and value head, whose params the reward takes.
      config: has no settings.
    """
    del config

    def reward(params: Params, samples: Samples) -> Array:
        tokens_BL = jnp.concatenate([samples.prompt_tokens_BQ, samples.tokens_BC], axis=1)
        mask_BL = jnp.concatenate([samples.prompt_mask_BQ, samples.mask_BC], axis=1)
        return score_tokens(value_model, params, tokens_BL, mask_BL)

    return reward


def score_tokens(
    value_model: ValueModel, params: Params, tokens_BL: Array, mask_BL: Array
) -> Array:
    """The value `[B]` at each row's last unmasked token, float32; masked columns may be anywhere
    and hold anything.

    A row whose completion is empty is read at its last prompt token. Rows must have at least one
    unmasked token. Where the model has a `padding_id`, the last unmasked token that is not this id
    is read; a row of this id alone is read at its last.

    Args:
      value_model: the network.
      params: of it.
      tokens_BL: int32, prompt and completion.
      mask_BL: True at their tokens.
    """
    hidden_BLD, _ = value_model.apply(
        params, select(tokens_BL, mask_BL), positions_from_mask(mask_BL), mask_BL
    )
    last_B = last_index(mask_BL)
    if value_model.padding_id >= 0:
        before_B = last_index(mask_BL & (tokens_BL != value_model.padding_id))
        last_B = jnp.where(before_B >= 0, before_B, last_B)
    hidden_BD = jnp.take_along_axis(hidden_BLD, last_B[:, None, None], axis=1)[:, 0]
    return value_model.value(params, hidden_BD)
