"""Random keys that are a function of the seed alone, whatever JAX's own switches say."""

import jax
import numpy as np

GENERATOR = "threefry2x32"
"""Keys of this generator are made whatever `jax_default_prng_impl` is: another one would give other
samples.
"""


def key(seed: int) -> jax.Array:
    """The key of a seed, of which the low 32 bits count.

    Equal to `jax.random.key(seed)` under JAX's defaults. The words are written down here because
    `jax.random.key` also reads `jax_default_prng_impl`, `jax_random_seed_offset` and, for large
    seeds, `jax_enable_x64`.
    """
    return jax.random.wrap_key_data(np.array([0, seed % 2**32], np.uint32), impl=GENERATOR)  # type: ignore[arg-type]
