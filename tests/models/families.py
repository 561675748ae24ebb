"""The decoder families that there are, at a tiny size, with what the battery compiles of each."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import plugins
from rlhf_jax.models.api import Model
from rlhf_jax.ops.masked import positions_from_mask

V = 11
FAMILIES = [name for name in plugins.names("models") if hasattr(plugins.find("models", name), "PRESETS")]


class Family(NamedTuple):
    module: object
    model: Model
    params: dict
    apply: object  # jitted (params, tokens, positions, mask, cache) -> (hidden, cache)
    logprobs: object  # jitted (params, hidden) -> log-probabilities
    gradient: object  # jitted (params, tokens, mask, weight) -> value, gradient of a weighted sum of log-probabilities squared


def random_params(model: Model, seed: int) -> dict:
    """Params with biases and norm scales away from 0 and 1, drawn without compiling `init`."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray((leaf.ndim == 1) + 0.15 * random.standard_normal(leaf.shape, np.float32)), shapes
    )


def config_of(name: str, **changes: object):
    return dataclasses.replace(plugins.find("models", name).PRESETS["quickstart"], vocab_size=V, **changes)


def make_family(name: str) -> Family:
    """A family at the quickstart size with 11 tokens; compiled on first use."""
    module = plugins.find("models", name)
    model = module.make(config_of(name))
    logprobs = jax.jit(lambda params, hidden: jax.nn.log_softmax(model.head(params, hidden)))

    def weighted(params: dict, tokens_BL: jax.Array, mask_BL: jax.Array, weight_BL: jax.Array) -> jax.Array:
        hidden, _ = model.apply(params, tokens_BL, positions_from_mask(mask_BL), mask_BL)
        return jnp.sum(weight_BL[..., None] * jnp.square(logprobs(params, hidden)))

    gradient = jax.jit(jax.value_and_grad(weighted))
    return Family(module, model, random_params(model, 0), jax.jit(model.apply), logprobs, gradient)
