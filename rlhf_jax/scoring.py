"""Scores samples: log-probabilities and values of a role's model, and the reward with its
missing-EOS rule and its penalty on long completions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import chex
import jax.numpy as jnp

from rlhf_jax.config import Natural, NonNegative, Unbounded
from rlhf_jax.models.api import Cache, Model, repeat_cache, repeat_rows
from rlhf_jax.models.common.head import split_head
from rlhf_jax.models.common.layout import current
from rlhf_jax.models.common.stacking import stacked_cache
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.logprobs import (
    OfLogits,
    chunked_token_logprobs,
    token_energies,
    token_logprobs,
)
from rlhf_jax.ops.masked import positions_from_mask, select
from rlhf_jax.ops.policy_gradient.row_weights import row_ratio
from rlhf_jax.ops.sharded_logprobs import sharded_token_logprobs
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array, Outputs, Params, Samples, Scores

MAX_LOGITS = 1 << 22
"""Logits that a device holds at once, in elements (16 MiB of float32): larger heads run in chunks,
so that R x C x V never exists whole.
"""


@dataclass(frozen=True)
class Overlong:
    """The penalty on long completions of DAPO (Yu et al. 2025, arXiv 2503.14476, equation 13), which
    is added to the score.

    With C the longest length, it falls from 0 at C - buffer tokens to -factor at C tokens, and is
    -factor where a completion was cut.
    """

    buffer: Natural = 0  # tokens before the longest length in which the penalty grows; 0: none
    factor: NonNegative = 1.0  # the largest penalty, in the unit of the score; the paper's


@dataclass(frozen=True)
class Config:
    """The missing-EOS rule: a completion that never ended gets `score` *instead*, in the unit that
    `credit` sees.

    Async RLHF (Noukhovitch et al., 2024, arXiv 2410.18252): -1 for TL;DR, -10 for chat, none for
    GSM8K.
    """

    replace_missing_eos: bool = True  # a completion without an EOS gets the score below
    # in SFT standard deviations for a learned reward
    missing_eos_score: Annotated[float, Unbounded("a score has any origin and scale")] = -1.0
    overlong: Overlong = field(default_factory=Overlong)


def completion_hidden(
    params: Params,
    prompt_tokens_RQ: Array,
    prompt_mask_RQ: Array,
    tokens_RC: Array,
    mask_RC: Array,
    model: Model | ValueModel,
    rows_per_prompt: int = 1,
) -> Array:
    """Hidden states that predict the completion, `[R, C, D]`: those of the last prompt position and
    of all tokens but the last.

    Args:
      params: of the model.
      prompt_tokens_RQ, prompt_mask_RQ: left-padded prompts.
      tokens_RC, mask_RC: completions.
      model: a policy or a value model.
      rows_per_prompt: rows come in groups of this size, each of one prompt, which is run once.
    """
    prompt_length = prompt_tokens_RQ.shape[1]
    tokens_RE, mask_RE = tokens_RC[:, :-1], mask_RC[:, :-1]
    mask_RL = jnp.concatenate([prompt_mask_RQ, mask_RE], axis=1)
    positions_RL = positions_from_mask(mask_RL)
    if rows_per_prompt == 1:
        tokens_RL = jnp.concatenate([prompt_tokens_RQ, tokens_RE], axis=1)
        return model.apply(params, tokens_RL, positions_RL, mask_RL)[0][:, prompt_length - 1 :]
    prompts = (prompt_tokens_RQ, positions_RL[:, :prompt_length], prompt_mask_RQ)
    tokens_PQ, positions_PQ, mask_PQ = (
        a.reshape(-1, rows_per_prompt, prompt_length)[:, 0] for a in prompts
    )
    empty = stacked_cache(model.init_cache(tokens_PQ.shape[0], mask_RL.shape[1]), params)
    last_PD, cache = _last_hidden(model.apply(params, tokens_PQ, positions_PQ, mask_PQ, empty))
    hidden_RED, _ = model.apply(
        params,
        tokens_RE,
        positions_RL[:, prompt_length:],
        mask_RE,
        repeat_cache(cache, rows_per_prompt),
    )
    return jnp.concatenate([repeat_rows(last_PD, rows_per_prompt)[:, None], hidden_RED], axis=1)


def _last_hidden(applied: tuple[Array, Cache | None]) -> tuple[Array, Cache]:
    hidden_PQD, cache = applied
    assert cache is not None
    return hidden_PQD[:, -1], cache


def policy_outputs(
    params: Params,
    prompt_tokens_RQ: Array,
    prompt_mask_RQ: Array,
    tokens_RC: Array,
    mask_RC: Array,
    temperature: Array,
    *,
    model: Model,
    rows_per_prompt: int = 1,
    max_logits: int = MAX_LOGITS,
) -> Outputs:
    """Log-probability of each completion token under softmax(logits / temperature), and the entropy
    of that distribution, `[R, C]` in nats; 0 where the mask is false.

    Args:
      params ... mask_RC, rows_per_prompt: see `completion_hidden`.
      temperature: float32 scalar, of the sampling distribution.
      max_logits: logits that a device holds at once, in elements.
    """
    rows = (prompt_tokens_RQ, prompt_mask_RQ, tokens_RC, mask_RC)
    hidden_RCD = completion_hidden(params, *rows, model, rows_per_prompt)
    num_rows, length, width = hidden_RCD.shape
    logprob_N, entropy_N = _token_logprobs(
        hidden_RCD.reshape(num_rows * length, width),
        params,
        tokens_RC.reshape(-1),
        temperature,
        model,
        max_logits,
    )
    return Outputs(
        logprob_RC=jnp.where(mask_RC, logprob_N.reshape(num_rows, length), 0.0),
        entropy_RC=jnp.where(mask_RC, entropy_N.reshape(num_rows, length), 0.0),
    )


def _token_logprobs(
    hidden_ND: Array,
    params: Params,
    tokens_N: Array,
    temperature: Array,
    model: Model,
    max_logits: int,
    of_logits: OfLogits = token_logprobs,
) -> tuple[Array, Array]:
    """Log-probabilities and entropies `[N]`, or what `of_logits` gives in their place: by each device of
    the rows that it holds, where the function is traced for a mesh that shards them.
    """
    layout = current()
    if layout is None:
        return chunked_token_logprobs(
            hidden_ND,
            lambda hidden: model.head(params, hidden),
            tokens_N,
            temperature,
            max_chunk_elements=max_logits,
            of_logits=of_logits,
        )
    head = split_head(model, params, hidden_ND, layout)
    return sharded_token_logprobs(
        hidden_ND,
        head.function,
        head.params,
        tokens_N,
        temperature,
        max_chunk_elements=max_logits,
        shards=layout.shards,
        param_layout=head.layout,
        of_logits=of_logits,
    )


def sample_logprobs(params: Params, samples: Samples, *, model: Model) -> Array:
    """Log-probabilities of samples under a role's params, float32 nats `[B, C]`; 0 under the mask.

    Args:
      params: of the reference, or of the policy for the proximal log-probabilities.
      samples: B rows; the logits are divided by their temperature.
      model: of the role.
    """
    outputs = policy_outputs(
        params,
        samples.prompt_tokens_BQ,
        samples.prompt_mask_BQ,
        samples.tokens_BC,
        samples.mask_BC,
        samples.temperature,
        model=model,
        rows_per_prompt=samples.samples_per_prompt,
    )
    return outputs.logprob_RC


def sample_gradient_energy(params: Params, samples: Samples, *, model: Model) -> Array:
    """Energy of each token in the gradient of its completion, float32 `[B, C]`; 0 under the mask.

    With p the distribution that the token a is drawn from, and w = π / π_behavior of the whole
    completion:

        w² (1 − 2 p_a + Σ_v p_v²) = w² ‖∂ log p_a / ∂z‖²        z the logits over the temperature

    Summed over a completion it stands for the squared norm of the gradient of w log π in the params
    (VCPO, arXiv 2602.17616; the proxy is that of verl's optimal_token_baseline).

    Args:
      params: of the policy.
      samples: B rows; the logits are divided by their temperature.
      model: of the policy.
    """
    columns = (samples.prompt_tokens_BQ, samples.prompt_mask_BQ, samples.tokens_BC, samples.mask_BC)
    hidden_BCD = completion_hidden(params, *columns, model, samples.samples_per_prompt)
    hidden_ND = hidden_BCD.reshape(-1, hidden_BCD.shape[-1])
    logprob_N, energy_N = _token_logprobs(
        hidden_ND,
        params,
        samples.tokens_BC.reshape(-1),
        samples.temperature,
        model,
        MAX_LOGITS,
        token_energies,
    )
    shape, mask_BC = samples.tokens_BC.shape, samples.mask_BC
    weight_B = row_ratio(logprob_N.reshape(shape), samples.behavior_logprob_BC, mask_BC)
    return select(jnp.square(weight_B)[:, None] * energy_N.reshape(shape), mask_BC)


def critic_outputs(
    params: Params,
    prompt_tokens_RQ: Array,
    prompt_mask_RQ: Array,
    tokens_RC: Array,
    mask_RC: Array,
    *,
    model: ValueModel,
    rows_per_prompt: int = 1,
) -> Outputs:
    """The critic's value of the text before each completion token.

    Args:
      params: of the critic.
      prompt_tokens_RQ, prompt_mask_RQ: left-padded prompts.
      tokens_RC, mask_RC: completions.
      model: of the critic.
      rows_per_prompt: as in `completion_hidden`.

    Returns Outputs with `value_RC`, float32; 0 where the mask is false.
    """
    rows = (prompt_tokens_RQ, prompt_mask_RQ, tokens_RC, mask_RC)
    value_RC = model.value(params, completion_hidden(params, *rows, model, rows_per_prompt))
    return Outputs(value_RC=jnp.where(mask_RC, value_RC, 0.0))


def sample_values(params: Params, samples: Samples, *, model: ValueModel) -> Array:
    """Values of samples under a critic, float32 `[B, C]`; 0 where the mask is false.

    Args:
      params: of the critic.
      samples: B rows.
      model: of the critic.
    """
    outputs = critic_outputs(
        params,
        samples.prompt_tokens_BQ,
        samples.prompt_mask_BQ,
        samples.tokens_BC,
        samples.mask_BC,
        model=model,
        rows_per_prompt=samples.samples_per_prompt,
    )
    return outputs.value_RC


def make_scores(raw_B: Array, finished_B: Array, mean: float, std: float, config: Config) -> Scores:
    """Standardises a raw reward and applies the missing-EOS rule; `mean` 0 and `std` 1 leave a
    verifiable reward as it is.

    Args:
      raw_B: raw rewards.
      finished_B: bool, true where the completion ended with an EOS.
      mean, std: of the raw reward over samples of the SFT policy.
      config: of the missing-EOS rule.

    Raises AssertionError for rewards that are not one number a completion: others would broadcast.
    """
    chex.assert_rank(raw_B, 1)
    chex.assert_equal_shape([raw_B, finished_B])
    standardized_B = (raw_B.astype(jnp.float32) - mean) / std
    score_B = standardized_B
    if config.replace_missing_eos:
        score_B = jnp.where(finished_B, standardized_B, jnp.float32(config.missing_eos_score))
    return Scores(raw_B=raw_B, standardized_B=standardized_B, score_B=score_B)


def make_summed_scores(
    raw: Mapping[str, Array],
    units: Mapping[str, tuple[float, float, float]],
    finished_B: Array,
    config: Config,
) -> Scores:
    """The scores of a sum of rewards: each standardised by its own unit, weighted and added.

    Args:
      raw: `[B]` by label.
      units: (weight, mean, standard deviation) by label; they are added in this order.
      finished_B: for the missing-EOS rule, which replaces the sum.
      config: of that rule.

    Returns Scores whose raw and standardised scores are the sum, with the standardised terms.
    """
    terms = {
        label: make_scores(raw[label], finished_B, mean, std, config)
        for label, (_, mean, std) in units.items()
    }
    sum_B = sum(weight * terms[label].standardized_B for label, (weight, _, _) in units.items())
    scores = make_scores(jnp.asarray(sum_B), finished_B, 0.0, 1.0, config)
    return scores.replace(terms={label: term.standardized_B for label, term in terms.items()})  # type: ignore[attr-defined]


def overlong_penalty(mask_BC: Array, finished_B: Array, config: Overlong) -> Array:
    """The penalty on long completions, float32 `[B]`, 0 or negative.

    Args:
      mask_BC: true on the tokens of completions, of at most C tokens.
      finished_B: bool, true where the completion ended with an EOS.
      config: with a buffer of 1 or more.

    Example: C = 8, buffer 4, factor 1: completions of 4, 5 and 8 tokens get 0, -0.25 and -1.
    """
    check_overlong(config, mask_BC.shape[1])
    length_B = mask_BC.sum(axis=1).astype(jnp.float32)
    free = mask_BC.shape[1] - config.buffer
    ramp_B = jnp.minimum(0.0, (free - length_B) / config.buffer)
    return jnp.where(finished_B, ramp_B, -1.0) * config.factor


def with_overlong(scores: Scores, mask_BC: Array, finished_B: Array, config: Config) -> Scores:
    """Adds the penalty on long completions to the score; scores unchanged where there is none.

    Where the missing-EOS rule replaces the score of a completion without an EOS, that score stands
    instead of the reward and of the penalty.

    Args:
      scores: of samples, the missing-EOS rule applied.
      mask_BC: true on the tokens of completions.
      finished_B: bool, true where the completion ended with an EOS.
      config: of the rules.
    """
    if not config.overlong.buffer:
        return scores
    penalty_B = overlong_penalty(mask_BC, finished_B, config.overlong)
    if config.replace_missing_eos:
        penalty_B = jnp.where(finished_B, penalty_B, 0.0)
    return scores.replace(score_B=scores.score_B + penalty_B, overlong_B=penalty_B)  # type: ignore[attr-defined]


def check_overlong(
    config: Overlong, max_completion_tokens: int, where: str = "scoring.overlong"
) -> None:
    """Raises Refusal for a buffer that is longer than a completion may be.

    Args:
      config: of the penalty.
      max_completion_tokens: C.
      where: its dotted key, for messages.
    """
    if config.buffer > max_completion_tokens:
        raise Refusal(
            f"{where}.buffer is {config.buffer}; accepted: 0 (no penalty) to the "
            f"{max_completion_tokens} tokens of the longest completion"
        )
