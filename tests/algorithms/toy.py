"""A policy that is a table of logits, trained by an algorithm's own credit and loss on its own
fresh samples.

Words 0 ... 4, at most 4 of them, word 1 is the EOS, word 3 earns 1 each; a completion without EOS
scores -1 instead. The best completion is 3 3 3 EOS: reward 3. The uniform policy earns about -0.1;
one that never stops, -1; one that stops at once, 0.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.ops.logprobs import token_logprobs
from rlhf_jax.types import Algorithm, Array, Batch, Outputs, Samples, Scores
from rlhf_jax.updating import denominator

PROMPTS, SAMPLES, LENGTH, WORDS = 7, 5, 4, 5
EOS, PRIZE = 1, 3
TEMPERATURE = jnp.float32(0.9)
NUM_UPDATES = 150


def table_logprobs(table_CV: Array, tokens_RC: Array) -> tuple[Array, Array]:
    """Log-probability and entropy of each token; the table has a row a position."""
    num_rows = tokens_RC.shape[0]
    logits_NV = jnp.tile(table_CV, (num_rows, 1))
    logprob_N, entropy_N = token_logprobs(logits_NV, tokens_RC.reshape(-1), TEMPERATURE)
    return logprob_N.reshape(num_rows, LENGTH), entropy_N.reshape(num_rows, LENGTH)


def energies(table_CV: Array, tokens_RC: Array) -> Array:
    """1 − 2 p + Σ p² of each token, on-policy."""
    law_CV = jax.nn.softmax(table_CV / TEMPERATURE)
    chosen_RC = law_CV[jnp.arange(LENGTH)[None], tokens_RC]
    return 1 - 2 * chosen_RC + jnp.sum(jnp.square(law_CV), axis=1)[None]


def draw(table_CV: Array, key: Array) -> Samples:
    """Fresh samples of the table; the mask holds everything up to the first EOS, that one included."""
    num_rows = PROMPTS * SAMPLES
    tokens_BC = jax.random.categorical(
        key, table_CV[None] / TEMPERATURE, shape=(num_rows, LENGTH)
    ).astype(jnp.int32)
    ended_BC = jnp.cumsum(tokens_BC == EOS, axis=1) - (tokens_BC == EOS) > 0
    mask_BC = ~ended_BC
    logprob_BC, _ = table_logprobs(table_CV, tokens_BC)
    return Samples(
        prompt_tokens_BQ=jnp.ones((num_rows, 2), jnp.int32),
        prompt_mask_BQ=jnp.ones((num_rows, 2), bool),
        tokens_BC=jnp.where(mask_BC, tokens_BC, 0),
        mask_BC=mask_BC,
        behavior_logprob_BC=jnp.where(mask_BC, logprob_BC, 0.0),
        finished_B=jnp.any(mask_BC & (tokens_BC == EOS), axis=1),
        ordinal_B=jnp.arange(num_rows, dtype=jnp.int32) // SAMPLES,
        sample_index_B=jnp.arange(num_rows, dtype=jnp.int32) % SAMPLES,
        version_BC=jnp.zeros((num_rows, LENGTH), jnp.int32),
        temperature=TEMPERATURE,
        samples_per_prompt=SAMPLES,
    )


def judge(samples: Samples) -> Array:
    """The reward of each sample."""
    prizes_B = jnp.sum((samples.tokens_BC == PRIZE) & samples.mask_BC, axis=1, dtype=jnp.float32)
    return jnp.where(samples.finished_B, prizes_B, -1.0)


@jax.jit
def expected_reward(table_CV: Array, key: Array) -> Array:
    """Mean reward of 40 batches of fresh samples."""
    return jnp.mean(jax.vmap(lambda key: judge(draw(table_CV, key)))(jax.random.split(key, 40)))


def lift(algorithm: Algorithm, seed: int = 0) -> tuple[float, float]:
    """Expected reward before and after training; critics, where there are any, are tables too."""
    start = {"policy": jnp.zeros((LENGTH, WORDS)), "critic": jnp.zeros(LENGTH)}
    optimizer = optax.adam(0.05)
    stored_PS = judge(draw(start["policy"], jax.random.key(seed + 2))).reshape(PROMPTS, SAMPLES)

    def outputs_of(tables, batch: Batch) -> Outputs:
        logprob_RC, entropy_RC = table_logprobs(tables["policy"], batch.tokens_RC)
        return Outputs(
            logprob_RC, entropy_RC, jnp.broadcast_to(tables["critic"][None], batch.tokens_RC.shape)
        )

    def loss(tables, batch: Batch) -> Array:
        total = sum(
            function(outputs_of(tables, batch), batch)[0] for function in algorithm.losses.values()
        )
        return total / denominator(batch.mask_RC, algorithm.aggregation)

    def update(state, key):
        tables, moments = state
        samples = draw(tables["policy"], key)
        judged_B = judge(samples)
        given = {
            "reference_logprob_BC": table_logprobs(start["policy"], samples.tokens_BC)[0],
            "proximal_logprob_BC": samples.behavior_logprob_BC,
            "value_BC": jnp.broadcast_to(tables["critic"][None], samples.tokens_BC.shape),
        }
        needed = {
            name: array for name, array in given.items() if name.split("_")[0] in algorithm.needs
        }
        extra = {}
        if "gradient_energy" in algorithm.needs:
            extra = {"gradient_energy_BC": energies(tables["policy"], samples.tokens_BC)}
        if "reference_scores" in algorithm.needs:
            extra = {"reference_score_BS": jnp.repeat(stored_PS, SAMPLES, axis=0)}
        scores = replace(Scores(judged_B, judged_B, judged_B, extra=extra), **needed)
        batch = algorithm.credit(samples, scores)
        step, moments = optimizer.update(jax.grad(loss)(tables, batch), moments)
        return (optax.apply_updates(tables, step), moments), None

    keys = jax.random.split(
        jax.random.key(seed, impl="rbg"), NUM_UPDATES
    )  # compiles in half the time of the default
    (trained, _), _ = jax.jit(lambda state: jax.lax.scan(update, state, keys))(
        (start, optimizer.init(start))
    )
    fresh = jax.random.key(seed + 1)
    return float(expected_reward(start["policy"], fresh)), float(
        expected_reward(trained["policy"], fresh)
    )
