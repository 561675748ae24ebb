"""Checks of an algorithm's credit: of shapes when it is traced, of values before the first update
that uses them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NoReturn

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax import scoring
from rlhf_jax.dataflow import STORED
from rlhf_jax.devices import distributed, sharding
from rlhf_jax.ops.scalars import Scalars, at, scalars_of, scalars_of_function, with_values
from rlhf_jax.refusal import ComponentError, RewardError, at_fault
from rlhf_jax.rewards.common import host_rewards
from rlhf_jax.runtime.spec import ProgramSpec, Reward
from rlhf_jax.types import Algorithm, Array, Batch, Samples, Scores

FINITE = ("advantage_RC", "return_RC", "weight_R", "score_R", "staleness_RC")
"""Fields of credit's batch that must be finite in every row; fields of tokens, where the mask is
true.
"""
RAW, ROWS, SCORE = "raw", "sample_R", "score"
FAULTS = (RAW, SCORE, ROWS, *FINITE)
"""The faults that one integer holds, a bit each."""
HostScores = Array | np.ndarray
RawScores = HostScores | Mapping[str, HostScores]
"""Raw scores `[B]` of a round; of a sum of rewards, by label."""


SCALARS = ("scoring.missing_eos_score", "scoring.overlong.factor", "reward.mean", "reward.std")
"""Fields of a `ProgramSpec` that are arguments of the compiled credit; so are weights of terms."""


def credit_scalars(spec: ProgramSpec) -> dict[str, dict[str, float]]:
    """The numbers of a round's credit that its compiled program takes as arguments."""
    weights = (f"reward.terms.{index}.weight" for index in range(len(spec.reward.terms)))
    return {
        "algorithm": scalars_of_function(spec.algorithm.credit),
        "spec": scalars_of(spec, (*SCALARS, *weights)),
    }


def rows(
    samples: Samples,
    raw: Array | Mapping[str, Array],
    outputs: Mapping[str, Array],
    scalars: Mapping[str, Scalars],
    *,
    spec: ProgramSpec,
    mesh: Mesh,
) -> tuple[Scores, Batch]:
    """Returns the scores of a round and the rows to train on, sharded over a mesh.

    Args:
      samples: of the round.
      raw: raw scores as `raw_scores` gives them.
      outputs: of the other scores, as `scores_of` takes them.
      scalars: as `credit_scalars` gives them.
      spec: of the program.
      mesh: where the policy trains.

    Raises as `apply_credit`.
    """
    spec = with_values(spec, scalars["spec"])
    algorithm = dataclasses.replace(
        spec.algorithm, credit=at(spec.algorithm.credit, scalars["algorithm"])
    )
    scores = scores_of(spec, samples, raw, outputs)
    batch = apply_credit(algorithm, samples, scores)
    return scores, jax.lax.with_sharding_constraint(batch, sharding.row_shardings(batch, mesh))


def raw_scores(reward: Reward, samples: Samples, model_scores_B: Array | None) -> RawScores:
    """The raw scores of a round: an array `[B]`, or of a sum {label: array}.

    Args:
      reward: its `host`, where it has one, scores the samples here.
      samples: of the round.
      model_scores_B: of the reward model; None without one.

    Raises RewardError for scores that are not one finite number per sample.
    """
    if reward.host is None and not reward.terms:
        assert model_scores_B is not None
        return model_scores_B
    count = samples.tokens_BC.shape[0]
    outputs = {} if reward.host is None else reward.host(samples)
    if not reward.terms:
        return host_rewards.numbers(
            f"the reward {reward.name}", outputs, count, when=round_text(samples)
        ).astype(np.float32)
    raw: dict[str, HostScores] = (
        {} if model_scores_B is None else {reward.model_label: model_scores_B}
    )
    for label, values in outputs.items():
        raw[label] = host_rewards.numbers(
            f"the reward {label}", values, count, when=round_text(samples)
        ).astype(np.float32)
    return raw


def scores_of(
    spec: ProgramSpec,
    samples: Samples,
    raw: Array | Mapping[str, Array],
    outputs: Mapping[str, Array],
) -> Scores:
    """Returns the scores of a round: the reward in its units, and the outputs of the other scores.

    Args:
      spec: gives the reward's units and the missing-EOS rule.
      samples: of the round.
      raw: raw scores as `raw_scores` gives them.
      outputs: by `dataflow.Score.output`, and stored scores by `dataflow.STORED`. Those that
        `Scores` has no field for become its `extra`.

    Raises AssertionError for an output whose shape differs from that of its name.
    """
    scores, finished_B = reward_scores(spec.reward, spec.scoring, samples, raw), samples.finished_B
    for output, array in outputs.items():
        if output in STORED.values():
            chex.assert_shape(array, (finished_B.shape[0], None), custom_message=output)
            continue
        like = samples.tokens_BC if output.endswith("_BC") else finished_B
        chex.assert_equal_shape([array, like], custom_message=f"the score {output}")
    known = {field.name for field in dataclasses.fields(Scores)}  # type: ignore[arg-type]
    extra = {output: array for output, array in outputs.items() if output not in known}
    fields = {output: array for output, array in outputs.items() if output in known}
    return scores.replace(**fields, extra=extra)  # type: ignore[attr-defined]


def reward_scores(
    reward: Reward,
    config: scoring.Config,
    samples: Samples,
    raw: Array | Mapping[str, Array],
) -> Scores:
    """Returns the scores of samples in the reward's units, without the outputs of other scores.

    Args:
      reward: gives the units.
      config: of the rules for a completion without an EOS and for a long one.
      samples: B rows.
      raw: raw scores as `raw_scores` gives them.
    """
    finished_B = samples.finished_B
    if isinstance(raw, Mapping):
        scores = scoring.make_summed_scores(raw, reward.units, finished_B, config)
    else:
        scores = scoring.make_scores(raw, finished_B, reward.mean, reward.std, config)
    return scoring.with_overlong(scores, samples.mask_BC, finished_B, config)


def round_text(samples: Samples, oversample: int = 1) -> str:
    """The end of a message that names the round, from the indices of its prompts in the stream.

    Samples of several rounds have those of the first and the last.

    Args:
      samples: of a round, or of groups that are chosen from several.
      oversample: κ, where the samples are those kept of κ times as many; 1: of all that were
        sampled.
    """
    num_prompts = oversample * samples.tokens_BC.shape[0] // samples.samples_per_prompt
    round_B = np.asarray(distributed.fetch(samples.ordinal_B)) // num_prompts
    first, last = int(round_B.min()), int(round_B.max())
    return f" in round {first}" if first == last else f" in samples of rounds {first} to {last}"


def apply_credit(algorithm: Algorithm, samples: Samples, scores: Scores) -> Batch:
    """Calls an algorithm's credit and checks the batch: its fields have the shapes of their names.

    Args:
      algorithm: whose credit is called.
      samples: of the round.
      scores: of the samples.

    Raises ComponentError for an exception of credit, and for a batch that has not
    `rows_per_prompt` rows of each prompt.
    """
    who = f"the algorithm {algorithm.name}"
    with at_fault(who, when=" in credit"):
        batch = algorithm.credit(samples, scores)
    if not isinstance(batch, Batch):
        raise ComponentError(f"{who}: credit gave a {type(batch).__name__}; accepted: a Batch")
    num_prompts, samples_per_prompt = (
        samples.tokens_BC.shape[0] // samples.samples_per_prompt,
        samples.samples_per_prompt,
    )
    per_prompt = algorithm.rows_per_prompt(samples_per_prompt)
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
    """The faults of a round's scores and rows as one int32, a bit for each of `FAULTS`.

    Args:
      raw: `[B]` of each reward, by its name.
      scores: of the round.
      batch: its rows to train on.
    """
    faulty = {RAW: jnp.any(jnp.stack([jnp.any(~jnp.isfinite(raw_B)) for raw_B in raw.values()]))}
    faulty[SCORE] = jnp.any(~jnp.isfinite(scores.score_B))
    if batch.sample_R is not None:
        faulty[ROWS] = jnp.any((batch.sample_R < 0) | (batch.sample_R >= scores.score_B.shape[0]))
    for name in FINITE:
        values = getattr(batch, name)
        if values is not None:
            faulty[name] = jnp.any(wrong_rows(values, batch.mask_RC))
    bits = [
        faulty[name].astype(jnp.int32) << bit for bit, name in enumerate(FAULTS) if name in faulty
    ]
    return jnp.sum(jnp.stack(bits))


def wrong_rows(values: Array, mask_RC: Array) -> Array:
    """True for rows `[R]` with a value that is not finite.

    Args:
      values: `[R]`, or `[R, C]` of which only those under the mask count.
      mask_RC: of the rows.
    """
    wrong = ~jnp.isfinite(values)
    return wrong if values.ndim == 1 else jnp.any(wrong & mask_RC, axis=1)


def refuse(
    bits: int,
    algorithm: Algorithm,
    raw: Mapping[str, Array],
    batch: Batch,
    round_text: str,
    texts: Callable[[int], tuple[str, str]] | None,
) -> NoReturn:
    """Raises the error of the first fault that `faults` found.

    Args:
      bits: the result of `faults`.
      algorithm: whose rows they are.
      raw: `[B]` of each reward, by its name.
      batch: the rows.
      round_text: the end of a message that names the round, as the function of that name gives it.
      texts: gives a sample's prompt and completion, for the message.

    Raises RewardError for a score that is not finite, ComponentError for rows of the algorithm.
    """
    name = next(name for bit, name in enumerate(FAULTS) if bits >> bit & 1)
    if name == RAW:
        for reward, raw_B in raw.items():
            host_rewards.numbers(
                f"the reward {reward}", distributed.fetch(raw_B), raw_B.shape[0], texts, round_text
            )
    if name in (RAW, SCORE):
        raise RewardError(
            f"the score of a completion{round_text} is not finite, though its rewards are: see "
            "their units"
        )
    who = f"the algorithm {algorithm.name}"
    if name == ROWS:
        count = next(iter(raw.values())).shape[0]
        sample_R = np.asarray(distributed.fetch(batch.sample_R))
        row = int(np.flatnonzero((sample_R < 0) | (sample_R >= count))[0])
        raise ComponentError(
            f"{who}: credit gave sample_R[{row}] = {sample_R[row]}{round_text}; accepted: 0 to "
            f"{count - 1}"
        )
    wrong = np.flatnonzero(
        np.asarray(distributed.fetch(wrong_rows(getattr(batch, name), batch.mask_RC)))
    )
    raise ComponentError(
        f"{who}: credit gave {name} that is not finite in {wrong.size} of "
        f"{batch.tokens_RC.shape[0]} rows{round_text}, "
        f"first in row {wrong[0]}"
    )
