"""Pools of slots of the smallest sizes, and the static sampler's samples of the same prompts."""

import jax
import numpy as np

from rlhf_jax import sampling
from rlhf_jax.models.api import Model
from rlhf_jax.ops.once import bound
from rlhf_jax.runtime.inflight.pool import SlotPool
from rlhf_jax.runtime.inflight.programs import Config
from rlhf_jax.types import Params, Prompts, Samples
from tests import tiny

P, G = 4, 3
"""Groups of 3 in slots whose number is no multiple of it: one group is often partly admitted."""


def prompts_of(round_index: int) -> Prompts:
    return tiny.make_prompts(P, round_index, 16 + P * round_index)


def make_pool(
    model: Model,
    num_slots: int,
    segment_steps: int,
    temperature: float = 0.7,
    mesh: jax.sharding.Mesh | None = None,
    eos_id: int | tuple[int, ...] = tiny.EOS,
    num_compactions: int = 0,
) -> SlotPool:
    law = sampling.Config(tiny.C, G, temperature, num_compactions)
    config = Config(law, eos_id, tiny.PAD, num_slots, segment_steps, P)
    mesh = mesh or tiny.make_mesh((1, 1, 1))
    return SlotPool(model, config, prompts_of, jax.random.key(0), mesh)


def static(
    model: Model,
    params: Params,
    round_index: int,
    temperature: float = 0.7,
    eos_id: int | tuple[int, ...] = tiny.EOS,
) -> Samples:
    """The same rows by `sampling.sample`."""
    law = tiny.law(G, temperature)
    settings = {"model": model, "config": law, "eos_id": eos_id, "pad_id": tiny.PAD}
    sample = jax.jit(bound(sampling.sample, **settings))
    return sample(params, prompts_of(round_index), jax.random.key(0), np.int32(0))


def check_same(found: Samples, expected: Samples) -> None:
    """Tokens and all that follows from them are equal, log-probabilities near."""
    for name in ("tokens_BC", "mask_BC", "finished_B", "ordinal_B", "sample_index_B"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(found.prompt_tokens_BQ, expected.prompt_tokens_BQ)
    np.testing.assert_array_equal(found.prompt_mask_BQ, expected.prompt_mask_BQ)
    np.testing.assert_allclose(found.behavior_logprob_BC, expected.behavior_logprob_BC, atol=5e-5)
