"""New rows: the prefill of their prompts, and their insertion into slots."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax import sampling
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.adapters import Versions, of_rows
from rlhf_jax.slots.state import Slots
from rlhf_jax.slots.versions import whole
from rlhf_jax.types import Array, Params, Prompts


@struct.dataclass
class Prefilled:
    """Prompts whose keys and values are known, and that are in no slot yet."""

    keys: tuple[Array, ...]  # one a layer, each [P, J, Q, K]
    values: tuple[Array, ...]
    position_PQ: Array  # int32, -1 on pads
    logits_PV: Array  # of the first token
    length_P: Array  # int32, tokens


@struct.dataclass
class Admission:
    """The rows that are inserted, by slot. A slot that gets none has prompt -1."""

    prompt_S: Array  # int32, index of the row's prompt among the prefilled ones; -1: the slot stays
    ordinal_S: Array  # int32, index of the prompt in the prompt stream
    sample_index_S: Array  # int32, index of the row among the samples of its prompt
    # int32, the place of the row's version among adapters side by side; all rows of a prompt have
    # one. None: all rows have the params that are given.
    version_S: Array | None = None

    def version_of_prompts(self, num_prompts: int) -> Array | None:
        """The version of each prompt `[P]`: that of its rows, 0 where it has none; None: as
        `version_S`.
        """
        if self.version_S is None:
            return None
        is_mine_PS = self.prompt_S[None] == jnp.arange(num_prompts)[:, None]
        return jnp.max(jnp.where(is_mine_PS, self.version_S[None], 0), axis=1)


def prefill(
    params: Params | Versions, prompts: Prompts, version_P: Array | None = None, *, model: Model
) -> Prefilled:
    """Runs each prompt once.

    Args:
      params: of the policy, which will draw the first tokens.
      prompts: P prompts of Q positions, left-padded.
      version_P: int32, of params of several versions the place of each prompt's.
      model: the policy.
    """
    gathered, num_versions = whole(model, params)
    params = of_rows(gathered, version_P, num_versions)
    logits_PV, cache = sampling.prefill(params, prompts, model, prompts.tokens_PQ.shape[1], 1)
    return Prefilled(
        keys=cache.keys,
        values=cache.values,
        position_PQ=cache.position_BM,
        logits_PV=logits_PV,
        length_P=prompts.mask_PQ.sum(axis=-1, dtype=jnp.int32),
    )


def take(prefilled: Prefilled, index: Array) -> Prefilled:
    """One of the prompts, P = 1.

    Args:
      prefilled: P prompts.
      index: int32 scalar.
    """
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index, 1), prefilled)


def insert(
    slots: Slots,
    prefilled: Prefilled,
    admission: Admission,
    key: Array,
    *,
    temperature: float,
    eos_id: int | tuple[int, ...],
) -> Slots:
    """Puts rows into slots, and draws the first token of each.

    Rows are copied by a `where` over the prompt's columns. It costs about as much as a loop of row
    copies, is one program for any number of rows, and stays on its shard. A scatter costs two to
    four times as much on a CPU.

    Args:
      slots: are to be donated. What a slot held before is lost.
      prefilled: the prompts.
      admission: the rows.
      key: as in `sampling.uniforms`.
      temperature: as in `sampling.sample_token`.
      eos_id: the token that ends a row, or several of them.
    """
    eos_ids = eos_id if isinstance(eos_id, tuple) else (eos_id,)
    chosen_S, version_S = admission.prompt_S >= 0, admission.version_S
    prompt_S = jnp.maximum(admission.prompt_S, 0)
    num_positions, prompt_columns = slots.num_positions, slots.prompt_columns
    uniform_SC = sampling.uniforms(
        key, admission.ordinal_S, admission.sample_index_S, num_positions
    ).T
    token_S, logprob_S = sampling.sample_token(
        prefilled.logits_PV[prompt_S], uniform_SC[:, 0], temperature
    )

    def chosen(new: Array, old: Array) -> Array:
        """The new rows in the slots that get one."""
        return jnp.where(chosen_S.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    def with_prompts(old: Array, prompts: Array) -> Array:
        rows = chosen(prompts[prompt_S], old[:, :, :prompt_columns])
        return jax.lax.dynamic_update_slice(old, rows, (0, 0, 0, 0))

    if version_S is not None:
        assert slots.version_S is not None, "the slots hold no versions"
        slots = dataclasses.replace(slots, version_S=chosen(version_S, slots.version_S))
    ring_SC = jnp.full_like(uniform_SC, -1, jnp.int32)
    position_SM = jnp.concatenate([prefilled.position_PQ[prompt_S], ring_SC], axis=1)
    ends_S = sampling.is_any(token_S, eos_ids) | (num_positions == 1)
    return dataclasses.replace(
        slots,
        keys=tuple(map(with_prompts, slots.keys, prefilled.keys)),
        values=tuple(map(with_prompts, slots.values, prefilled.values)),
        position_SM=chosen(position_SM, slots.position_SM),
        token_S=chosen(token_S, slots.token_S),
        logprob_S=chosen(logprob_S, slots.logprob_S),
        fresh_S=slots.fresh_S | chosen_S,
        count_S=jnp.where(chosen_S, 1, slots.count_S),
        length_S=chosen(prefilled.length_P[prompt_S], slots.length_S),
        done_S=chosen(ends_S, slots.done_S),
        uniform_SC=chosen(uniform_SC, slots.uniform_SC),
    )
