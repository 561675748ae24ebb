"""Running a prompt once for all of its rows says what running it in every row says, in values and
in gradients.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import scoring
from rlhf_jax.types import Array, Params
from tests import tiny
from tests.tiny import C, G, P, Q, V

MODELS = {"gpt_neox": tiny.make_model("gpt_neox"), "llama": tiny.make_model("llama", num_layers=1)}


def rows(prompt_of_row: np.ndarray) -> tuple[Array, Array, Array, Array]:
    """Ragged prompts, padded on the left, and ragged completions; row r has prompt
    `prompt_of_row[r]`.
    """
    random = np.random.default_rng(0)
    prompts_PQ, num_rows = random.integers(3, V, (len(prompt_of_row), Q)), len(prompt_of_row)
    prompt_mask_PQ = np.arange(Q)[None] >= np.arange(len(prompt_of_row))[:, None] * 2 % Q
    mask_RC = np.arange(C)[None] < random.integers(1, C + 1, num_rows)[:, None]
    tokens_RC = np.where(mask_RC, random.integers(3, V, (num_rows, C)), 0)
    prompt_RQ = np.where(prompt_mask_PQ, prompts_PQ, 0)[prompt_of_row]
    arrays = (
        prompt_RQ.astype(np.int32),
        prompt_mask_PQ[prompt_of_row],
        tokens_RC.astype(np.int32),
        mask_RC,
    )
    return jax.tree.map(jnp.asarray, arrays)


@partial(jax.jit, static_argnames=("family", "rows_per_prompt"))
def outputs_and_gradient(
    params: Params, of_rows: tuple[Array, ...], family: str, rows_per_prompt: int
):
    """Outputs, and the gradient of a sum that weighs every position and row differently."""
    weight_RC = jnp.sin(jnp.arange(P * G * C, dtype=jnp.float32)).reshape(P * G, C)

    def total(params: Params):
        outputs = scoring.policy_outputs(
            params,
            *of_rows,
            jnp.float32(0.7),
            model=MODELS[family],
            rows_per_prompt=rows_per_prompt,
        )
        return jnp.sum(weight_RC * (outputs.logprob_RC + 0.3 * outputs.entropy_RC)), outputs

    return jax.grad(total, has_aux=True)(params)


@pytest.mark.parametrize("family", MODELS)
def test_a_prompt_run_once_is_the_prompt_run_in_every_row(family: str):
    params = tiny.make_params(MODELS[family])
    of_rows = rows(np.repeat(np.arange(P), G))
    gradient, outputs = outputs_and_gradient(params, of_rows, family, 1)
    shared_gradient, shared_outputs = outputs_and_gradient(params, of_rows, family, G)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), shared_outputs, outputs)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), shared_gradient, gradient
    )
    assert float(jnp.max(jnp.abs(outputs.logprob_RC))) > 0.5


def test_rows_of_other_prompts_would_be_seen():
    """The first prompt of a group is used for all of them: where prompts differ, so do the outputs."""
    params = tiny.make_params(MODELS["gpt_neox"])
    of_rows = rows(np.arange(P * G))
    _, outputs = outputs_and_gradient(params, of_rows, "gpt_neox", 1)
    _, shared_outputs = outputs_and_gradient(params, of_rows, "gpt_neox", G)
    difference_RC = jnp.abs(outputs.logprob_RC - shared_outputs.logprob_RC)
    assert float(jnp.max(difference_RC[0])) < 1e-5
    assert float(jnp.max(difference_RC[1])) > 1e-4
