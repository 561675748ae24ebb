"""A segment: a few decode steps of all slots."""

import dataclasses

import jax
import jax.numpy as jnp

from rlhf_jax.models.api import Model
from rlhf_jax.models.common.adapters import Versions, of_rows
from rlhf_jax.sampling import is_any, sample_token
from rlhf_jax.slots.state import Emitted, Slots
from rlhf_jax.slots.versions import whole
from rlhf_jax.types import Array, Params


def segment(
    params: Params | Versions,
    slots: Slots,
    *,
    model: Model,
    temperature: float,
    eos_id: int | tuple[int, ...],
    pad_id: int,
    num_steps: int,
) -> tuple[Slots, Emitted]:
    """Decodes `num_steps` tokens in each slot, or until no slot is live.

    Args:
      params: of the policy, which draw every token of the segment; of several versions each row
        is drawn by its own.
      slots: are to be donated.
      model: the policy.
      temperature: as in `sampling.sample_token`.
      eos_id: the token that ends a row, or several of them.
      pad_id: in place of a token where a slot draws none.
      num_steps: most decode steps; T is one more.

    Returns the slots after the steps, and what they drew.
    """
    params, num_versions = whole(model, params)
    eos_ids = eos_id if isinstance(eos_id, tuple) else (eos_id,)
    num_slots = slots.token_S.shape[0]
    first_S = slots.fresh_S
    shape_TS = (num_steps + 1, num_slots)
    emitted = Emitted(
        tokens_TS=jnp.full(shape_TS, pad_id, jnp.int32)
        .at[0]
        .set(jnp.where(first_S, slots.token_S, pad_id)),
        logprob_TS=jnp.zeros(shape_TS, jnp.float32)
        .at[0]
        .set(jnp.where(first_S, slots.logprob_S, 0.0)),
        live_TS=jnp.zeros(shape_TS, bool).at[0].set(first_S),
        ended_S=slots.done_S,
    )
    slots = dataclasses.replace(slots, fresh_S=jnp.zeros_like(first_S))

    def goes_on(loop: tuple[Array, Slots, Emitted]) -> Array:
        row, slots, _ = loop
        return (row <= num_steps) & jnp.any(~slots.done_S)

    def step(loop: tuple[Array, Slots, Emitted]) -> tuple[Array, Slots, Emitted]:
        row, slots, emitted = loop
        live_S = ~slots.done_S
        of_slots = of_rows(params, slots.version_S, num_versions)
        slots, logprob_S = decode(of_slots, slots, model, temperature, eos_ids)
        emitted = dataclasses.replace(
            emitted,
            tokens_TS=emitted.tokens_TS.at[row].set(jnp.where(live_S, slots.token_S, pad_id)),
            logprob_TS=emitted.logprob_TS.at[row].set(jnp.where(live_S, logprob_S, 0.0)),
            live_TS=emitted.live_TS.at[row].set(live_S),
        )
        return row + 1, slots, emitted

    _, slots, emitted = jax.lax.while_loop(goes_on, step, (jnp.int32(1), slots, emitted))
    return slots, dataclasses.replace(emitted, ended_S=slots.done_S)


def decode(
    params: Params, slots: Slots, model: Model, temperature: float, eos_ids: tuple[int, ...]
) -> tuple[Slots, Array]:
    """One decode step of all slots. Those that are done keep their token.

    Args:
      params: of the policy.
      slots: of which `token_S` are fed.
      model: the policy.
      temperature: as in `sampling.sample_token`.
      eos_ids: the tokens that end a row.

    Returns the slots after the step, and the log-probabilities of their new tokens `[S]`.
    """
    live_S = ~slots.done_S
    position_S1 = (slots.length_S + slots.count_S - 1)[:, None]
    hidden_S1D, cache = model.apply(
        params, slots.token_S[:, None], position_S1, live_S[:, None], slots.cache()
    )
    assert cache is not None
    # A row that has all of its C numbers used is done, and reads its last one again.
    next_S1 = jnp.minimum(slots.count_S, slots.num_positions - 1)[:, None]
    uniform_S = jnp.take_along_axis(slots.uniform_SC, next_S1, axis=1)[:, 0]
    token_S, logprob_S = sample_token(model.head(params, hidden_S1D[:, 0]), uniform_S, temperature)
    count_S = slots.count_S + live_S
    ends_S = is_any(token_S, eos_ids) | (count_S == slots.num_positions)
    return dataclasses.replace(
        slots,
        keys=cache.keys,
        values=cache.values,
        position_SM=cache.position_BM,
        step=slots.step + 1,
        token_S=jnp.where(live_S, token_S, slots.token_S),
        count_S=count_S,
        done_S=slots.done_S | (live_S & ends_S),
    ), logprob_S
