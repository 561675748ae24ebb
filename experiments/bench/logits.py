"""Memory of an update's head beside the array of logits that it never makes: positions x vocabulary
in float32.

What XLA sets aside for the gradient of the summed token log-probabilities (its `temp_size`),
compiled and not run. It holds a sum of the head's gradient, which has nothing to do with positions:
that is told apart.

    python -m experiments.bench.logits
"""

import os
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import measure
from rlhf_jax.ops.logprobs import chunked_token_logprobs
from rlhf_jax.scoring import MAX_LOGITS

CASES = [
    (4096, 50_304, 768),
    (4096, 50_304, 2048),
    (16_384, 128_256, 2048),
]  # positions, vocabulary, width


def temporary_bytes(positions: int, vocab_size: int, width: int, max_chunk_elements: int) -> int:
    """Bytes beyond arguments and results of the gradient in hidden states and head."""

    def loss(hidden_ND: jax.Array, kernel_DV: jax.Array, tokens_N: jax.Array) -> jax.Array:
        logprob_N, entropy_N = chunked_token_logprobs(
            hidden_ND,
            lambda hidden: jnp.dot(hidden, kernel_DV, preferred_element_type=jnp.float32),
            tokens_N,
            jnp.float32(1.0),
            max_chunk_elements=max_chunk_elements,
        )
        return logprob_N.sum() + 0.0 * entropy_N.sum()

    shapes = [
        jax.ShapeDtypeStruct((positions, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocab_size), jnp.float32),
        jax.ShapeDtypeStruct((positions,), jnp.int32),
    ]
    analysis: Any = (
        jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile().memory_analysis()
    )
    return analysis.temp_size_in_bytes


def case(positions: int, vocab_size: int, width: int) -> dict[str, Any]:
    whole = 4 * positions * vocab_size
    chunked = temporary_bytes(positions, vocab_size, width, MAX_LOGITS)
    at_once = temporary_bytes(positions, vocab_size, width, positions * vocab_size)
    gradient = 4 * vocab_size * width
    return {
        "case": f"{positions} x {vocab_size}, width {width}",
        "whole_megabytes": round(whole / 1e6, 1),
        "chunked_megabytes": round(chunked / 1e6, 1),
        "in_one_chunk_megabytes": round(at_once / 1e6, 1),
        "gradient_of_the_head_megabytes": round(gradient / 1e6, 1),
        "chunked_to_whole": round(chunked / whole, 4),
        "chunked_beyond_gradient_to_whole": round((chunked - gradient) / whole, 4),
    }


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    measure.report("logits", [case(*shape) for shape in CASES], os.getloadavg(), options.output)


if __name__ == "__main__":
    main()
