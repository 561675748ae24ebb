"""The door of an algorithm's credit: shapes when it is traced, values before the first update that
uses them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import chex
import jax.numpy as jnp
import numpy as np

from rlhf_jax import scoring
from rlhf_jax.devices import distributed
from rlhf_jax.refusal import ComponentError, RewardError, at_fault
from rlhf_jax.rewards.common import host_rewards
from rlhf_jax.runtime.spec import ProgramSpec, Reward
from rlhf_jax.types import Algorithm, Array, Batch, Samples, Scores

FINITE = ("advantage_RC", "return_RC", "weight_R", "score_R", "staleness_RC")
"""Fields that credit makes, and that must be finite in every row; those of tokens where the mask is
true.
"""
RAW, ROWS, SCORE = "raw", "sample_R", "score"
FAULTS = (RAW, SCORE, ROWS, *FINITE)
"""The faults that one number tells, a bit each."""


def raw_scores(reward: Reward, samples: Samples, of_model: Array | None) -> Any:
    """The raw scores of a round: an array `[B]`, or of a sum {label: array}.

    Args:
      reward: whose scores on text are asked for here.
      samples: of the round.
      of_model: scores of the reward model, where there is one.

    Raises RewardError for what is not one finite number a sample.
    """
    if reward.host is None and not reward.terms:
        return of_model
    count = samples.tokens_BC.shape[0]
    given = {} if reward.host is None else reward.host(samples)
    if not reward.terms:
        return host_rewards.numbers(
            f"the reward {reward.name}", given, count, when=when(samples)
        ).astype(np.float32)
    raw: dict[str, Any] = {} if of_model is None else {reward.model_label: of_model}
    for label, values in given.items():
        raw[label] = host_rewards.numbers(
            f"the reward {label}", values, count, when=when(samples)
        ).astype(np.float32)
    return raw


def scores_of(
    spec: ProgramSpec, samples: Samples, raw: Any, outputs: Mapping[str, Array]
) -> Scores:
    """Returns the scores of a round: the reward in its units, and the outputs of the other scores.

    Args:
      spec: gives the reward's units and the missing-EOS rule.
      samples: of the round.
      raw: raw scores as `raw_scores` gives them.
      outputs: by `dataflow.Score.output`. Those that `Scores` has no field for become its `extra`.

    Raises AssertionError for an output that has another shape than its name says.
    """
    reward, finished_B = spec.reward, samples.finished_B
    if reward.terms:
        scores = scoring.make_summed_scores(raw, reward.units, finished_B, spec.scoring)
    else:
        scores = scoring.make_scores(raw, finished_B, reward.mean, reward.std, spec.scoring)
    for output, array in outputs.items():
        like = samples.tokens_BC if output.endswith("_BC") else finished_B
        chex.assert_equal_shape([array, like], custom_message=f"the score {output}")
    known = {field.name for field in dataclasses.fields(Scores)}  # type: ignore[arg-type]
    extra = {output: array for output, array in outputs.items() if output not in known}
    fields = {output: array for output, array in outputs.items() if output in known}
    return scores.replace(**fields, extra=extra)  # type: ignore[attr-defined]


def when(samples: Samples) -> str:
    """The round of samples, as a message goes on; by the places of their prompts in the stream."""
    num_prompts = samples.tokens_BC.shape[0] // samples.samples_per_prompt
    return f" in round {int(distributed.fetch(samples.ordinal_B).min()) // num_prompts}"


def credited(algorithm: Algorithm, samples: Samples, scores: Scores) -> Batch:
    """The batch that an algorithm's credit makes of a round, with the shapes that its fields' names
    say.

    Raises ComponentError for what credit raises, and for a batch of other rows than
    `rows_per_prompt` of each prompt.
    """
    who = f"the algorithm {algorithm.name}"
    with at_fault(who, when=" in credit"):
        batch = algorithm.credit(samples, scores)
    if not isinstance(batch, Batch):
        raise ComponentError(f"{who}: credit gave a {type(batch).__name__}; accepted: a Batch")
    num_prompts, each = (
        samples.tokens_BC.shape[0] // samples.samples_per_prompt,
        samples.samples_per_prompt,
    )
    per_prompt = algorithm.rows_per_prompt(each)
    sizes = {
        "R": num_prompts * per_prompt,
        "Q": samples.prompt_tokens_BQ.shape[1],
        "C": samples.tokens_BC.shape[1],
    }
    arrays = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)} | {
        f"figures[{name!r}]_R": figure for name, figure in batch.figures.items()
    }
    for name, array in arrays.items():
        letters = name.rpartition("_")[2]
        if array is None or not set(letters) <= sizes.keys():
            continue
        shape = tuple(sizes[letter] for letter in letters)
        if jnp.shape(array) != shape:
            raise ComponentError(
                f"{who}: credit gave {name} of shape {jnp.shape(array)}; accepted: {shape}, "
                f"{per_prompt} rows "
                f"(rows_per_prompt) of each of {num_prompts} prompts"
            )
    if batch.sample_R is not None and not jnp.issubdtype(batch.sample_R.dtype, jnp.integer):
        raise ComponentError(
            f"{who}: credit gave sample_R of {batch.sample_R.dtype}; accepted: integers, rows of "
            "samples"
        )
    return batch


def faults(raw: Mapping[str, Array], scores: Scores, batch: Batch) -> Array:
    """The faults of a round's scores and rows as one int32, a bit for each of `FAULTS`."""
    found = {RAW: jnp.any(jnp.stack([jnp.any(~jnp.isfinite(raw_B)) for raw_B in raw.values()]))}
    found[SCORE] = jnp.any(~jnp.isfinite(scores.score_B))
    if batch.sample_R is not None:
        found[ROWS] = jnp.any((batch.sample_R < 0) | (batch.sample_R >= scores.score_B.shape[0]))
    for name in FINITE:
        values = getattr(batch, name)
        if values is not None:
            found[name] = jnp.any(wrong_rows(values, batch.mask_RC))
    bits = [
        found[name].astype(jnp.int32) << place for place, name in enumerate(FAULTS) if name in found
    ]
    return jnp.sum(jnp.stack(bits))


def wrong_rows(values: Array, mask_RC: Array) -> Array:
    """True for rows with a value that is not finite; of tokens' values, under the mask."""
    wrong = ~jnp.isfinite(values)
    return wrong if values.ndim == 1 else jnp.any(wrong & mask_RC, axis=1)


def refuse(
    bits: int,
    algorithm: Algorithm,
    raw: Mapping[str, Array],
    batch: Batch,
    round_said: str,
    texts: Callable[[int], tuple[str, str]] | None,
) -> NoReturn:
    """Raises the error of the first fault that `faults` found.

    Args:
      raw: of each reward, by its name.
      round_said: the round, as `when` says it.
      texts: gives a sample's prompt and completion, for the message.

    Raises RewardError for a score that is not finite, ComponentError for rows of the algorithm.
    """
    name = next(name for place, name in enumerate(FAULTS) if bits >> place & 1)
    if name == RAW:
        for reward, raw_B in raw.items():
            host_rewards.numbers(
                f"the reward {reward}", distributed.fetch(raw_B), raw_B.shape[0], texts, round_said
            )
    if name in (RAW, SCORE):
        raise RewardError(
            f"the score of a completion{round_said} is not finite, though its rewards are: see "
            "their units"
        )
    who = f"the algorithm {algorithm.name}"
    if name == ROWS:
        count = next(iter(raw.values())).shape[0]
        sample_R = np.asarray(distributed.fetch(batch.sample_R))
        row = int(np.flatnonzero((sample_R < 0) | (sample_R >= count))[0])
        raise ComponentError(
            f"{who}: credit gave sample_R[{row}] = {sample_R[row]}{round_said}; accepted: 0 to "
            f"{count - 1}"
        )
    wrong = np.flatnonzero(
        np.asarray(distributed.fetch(wrong_rows(getattr(batch, name), batch.mask_RC)))
    )
    raise ComponentError(
        f"{who}: credit gave {name} that is not finite in {wrong.size} of "
        f"{batch.tokens_RC.shape[0]} rows{round_said}, "
        f"first in row {wrong[0]}"
    )
