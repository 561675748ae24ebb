"""The decoder families that there are, and those of `--component`, at a tiny size, with what the
battery compiles of each.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import registry
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.family import find
from rlhf_jax.ops.masked import positions_from_mask
from tests import components

V = 11
QUICK = {
    "xla_backend_optimization_level": 0
}  # halves the time to compile, which is most of the battery's time
FAMILIES = [
    name for name in registry.names("models") if hasattr(registry.find("models", name), "PRESETS")
]
SUBJECTS = components.own("models") or FAMILIES
"""The families that the batteries test: of the package, or of the command line alone."""


class Family(NamedTuple):
    module: object
    model: Model
    params: dict
    apply: object  # jitted (params, tokens, positions, mask, cache) -> (hidden, cache)
    logprobs: object  # jitted (params, hidden) -> log-probabilities
    # jitted (params, tokens, mask, weight) -> value, gradient of a weighted sum of
    # log-probabilities squared
    gradient: object


def random_params(model: Model, seed: int) -> dict:
    """Params with biases and norm scales away from 0 and 1, drawn without compiling `init`."""
    random = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.Array) -> jax.Array:
        mean = leaf.ndim == 1 and path[-1].key != "weight"  # Gemma's norms multiply by 1 + weight
        return jnp.asarray(mean + 0.15 * random.standard_normal(leaf.shape, np.float32))

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def config_of(name: str, **changes: object):
    """The quickstart's shape with 11 tokens, one layer where all are alike and Llama has two;
    windows end within the rows.
    """
    own = {
        **{family: {"num_layers": 1} for family in ("mistral", "qwen2", "qwen3", "olmo2", "phi3")},
        **{family: {"sliding_window": 3} for family in ("gemma2", "gemma3", "olmo3")},
    }
    found = find(name)
    preset = found.presets[found.usual]
    return dataclasses.replace(preset, vocab_size=V, **(own.get(name, {}) | changes))


def quick_jit(function):
    return jax.jit(function, compiler_options=QUICK)


def make_family(name: str) -> Family:
    """A family at the quickstart size with 11 tokens; compiled on first use."""
    module = find(name)
    model = module.make(config_of(name))

    def logprobs(params: dict, hidden: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(model.head(params, hidden))

    def weighted(
        params: dict, tokens_BL: jax.Array, mask_BL: jax.Array, weight_BL: jax.Array
    ) -> jax.Array:
        hidden, _ = model.apply(params, tokens_BL, positions_from_mask(mask_BL), mask_BL)
        return jnp.sum(weight_BL[..., None] * jnp.square(logprobs(params, hidden)))

    gradient = quick_jit(jax.value_and_grad(weighted))
    return Family(
        module,
        model,
        random_params(model, 0),
        quick_jit(model.apply),
        quick_jit(logprobs),
        gradient,
    )
