"""The smallest models, prompts and programs that tests of the core share; sizes are primes where no
mesh has to divide them.
"""

import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import registry, sampling
from rlhf_jax.devices import mesh as meshes
from rlhf_jax.models.api import Model
from rlhf_jax.types import Batch, Params, Prompts, Samples

P, G, Q, C, V = 2, 3, 5, 7, 11
EOS, PAD = 1, 0
MESHES = ((1, 8, 1), (2, 4, 1), (2, 2, 2))
FAMILIES = ("gpt_neox", "llama")


@lru_cache
def make_model(family: str = "gpt_neox", **changes) -> Model:
    """A decoder of width 8 with two layers."""
    module = registry.find("models", family)
    heads = {"num_kv_heads": 2} if family == "llama" else {}
    shape = (
        {"vocab_size": V, "width": 8, "num_layers": 2, "num_heads": 2, "ffn_width": 16}
        | heads
        | changes
    )
    return module.make(dataclasses.replace(module.PRESETS["quickstart"], **shape))


@lru_cache
def make_params(model: Model, seed: int = 0) -> Params:
    """Random params, drawn on the host (an `init` compiles for seconds), whose laws are neither
    flat nor certain.
    """
    leaves, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    random = np.random.default_rng(seed)
    scaled = [
        random.standard_normal(leaf.shape, np.float32) * (0.5 if leaf.ndim > 1 else 0.1)
        for leaf in leaves
    ]
    return jax.tree.unflatten(tree, [jnp.asarray(x if x.ndim > 1 else 1 + x) for x in scaled])


def make_prompts(num_prompts: int = P, seed: int = 0, first_ordinal: int = 16) -> Prompts:
    """Host arrays: left-padded prompts of 1 to Q tokens, the first of Q, the second of 1."""
    random = np.random.default_rng(seed)
    length_P = np.array([Q, 1, *random.integers(1, Q + 1, num_prompts)])[:num_prompts]
    mask_PQ = np.arange(Q)[None] >= Q - length_P[:, None]
    tokens_PQ = np.where(mask_PQ, random.integers(2, V, (num_prompts, Q)), PAD)
    ordinal_P = first_ordinal + np.arange(num_prompts)
    return Prompts(tokens_PQ.astype(np.int32), mask_PQ, ordinal_P.astype(np.int32))  # type: ignore[arg-type]


def law(samples_per_prompt: int = G, temperature: float = 0.7, length: int = C) -> sampling.Config:
    return sampling.Config(length, samples_per_prompt, temperature)


@lru_cache
def sampler(model: Model, config: sampling.Config):
    """`(params, prompts, key, version) -> Samples`, compiled once a test session."""
    return jax.jit(partial(sampling.sample, model=model, config=config, eos_id=EOS, pad_id=PAD))


def draw(
    model: Model,
    config: sampling.Config,
    prompts: Prompts,
    seed: int = 0,
    params: Params | None = None,
) -> Samples:
    params = make_params(model) if params is None else params
    return sampler(model, config)(params, prompts, jax.random.key(seed), np.int32(3))


def make_mesh(shape: tuple[int, int, int]) -> jax.sharding.Mesh:
    return meshes.make_mesh(meshes.Config(*shape))


def make_batch(num_rows: int, seed: int = 0) -> Batch:
    """Rows to learn from: ragged prompts, completions of very unequal lengths that begin with the
    longest.
    """
    random = np.random.default_rng(seed)
    prompts = make_prompts(num_rows, seed)
    length_R = np.array([C, 1, *random.integers(1, C + 1, num_rows)])[:num_rows]
    mask_RC = np.arange(C)[None] < length_R[:, None]
    tokens_RC = np.where(mask_RC, random.integers(1, V, (num_rows, C)), PAD)
    return Batch(
        prompt_tokens_RQ=prompts.tokens_PQ,
        prompt_mask_RQ=prompts.mask_PQ,
        tokens_RC=jnp.array(tokens_RC, jnp.int32),
        mask_RC=jnp.array(mask_RC),
        temperature=jnp.float32(0.7),
        behavior_logprob_RC=jnp.array(
            np.where(mask_RC, random.uniform(-3, -0.1, mask_RC.shape), 0), jnp.float32
        ),
        reference_logprob_RC=jnp.array(
            np.where(mask_RC, random.uniform(-3, -0.1, mask_RC.shape), 0), jnp.float32
        ),
        weight_R=jnp.array(
            np.repeat(random.integers(0, 2, -(-num_rows // 2)), 2)[:num_rows], jnp.float32
        ),
    )


def check_ends(samples: Samples) -> None:
    """The EOS is inside the mask, nothing is after it, and `finished_B` says whether there was one."""
    columns = map(np.asarray, (samples.tokens_BC, samples.mask_BC, samples.finished_B))
    for tokens_C, mask_C, finished in zip(*columns, strict=True):
        ends = np.flatnonzero((tokens_C == EOS) & mask_C)
        length = ends[0] + 1 if len(ends) else C
        assert finished == bool(len(ends))
        np.testing.assert_array_equal(mask_C, np.arange(C) < length)
        assert (tokens_C[length:] == PAD).all()
