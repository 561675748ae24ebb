"""The calls of a round: encode, init, sample, score, update. Each is compiled once per model, shape
and setting.

They are the functions of `sampling.py`, `scoring.py` and `updating.py` with their arguments wired,
and compute the same numbers as the compiled program of a run on one device.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import sampling, scoring
from rlhf_jax.algorithms.api import STORED_SCORE
from rlhf_jax.face import compiled
from rlhf_jax.face.compiled import Optimizer
from rlhf_jax.face.prompts import TaskPrompts
from rlhf_jax.face.reward import Reward, host_scores
from rlhf_jax.face.settings import filled
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import value_head
from rlhf_jax.refusal import Refusal
from rlhf_jax.text import encoding, tokenizers
from rlhf_jax.text.codec import FileTokenizer
from rlhf_jax.text.tokenizers import Tokenizer
from rlhf_jax.types import (
    Algorithm,
    Array,
    Batch,
    Metrics,
    Params,
    Prompts,
    Samples,
    Scores,
    States,
    TrainState,
)
from rlhf_jax.updating import step_scalars

State = TypeVar("State", TrainState, States)
Optimizers = Optimizer | Mapping[str, Optimizer]
"""One optimizer for every role, or one by role: "policy" and "critic"."""


def encode(
    prompts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
    first_ordinal: int | None = None,
) -> Prompts:
    """Returns prompts as left-padded arrays `[P, Q]`.

    Args:
      prompts: P texts, or `task.prompts(...)`.
      tokenizer: that encodes them.
      max_tokens: positions Q; None: the tokens of the longest prompt given. Equal shapes are
        compiled once.
      first_ordinal: the ordinal of the first prompt, of which random keys are made; None: its place
        in the task's stream, or 0 for other texts.

    Raises:
      Refusal: for no prompts, and for a prompt that is empty or longer than `max_tokens`.

    Example:
      >>> import rlhf_jax as rl
      >>> task = rl.task("addition", limit=10)
      >>> rl.encode(task.prompts("train", 5, 2), rl.tokenizer("characters", task)).ordinal_P.tolist()
      [5, 6]
    """
    if isinstance(prompts, str) or not len(prompts):
        raise Refusal(f"prompts is {prompts!r}; accepted: a sequence of one text or more")
    texts = list(prompts)
    if max_tokens is None:
        max_tokens = max(1, *encoding.count_tokens(tokenizer, texts))
    if first_ordinal is None:
        first_ordinal = prompts.start if isinstance(prompts, TaskPrompts) else 0
    tokens_PQ, mask_PQ = encoding.encode_prompts(texts, tokenizer, max_tokens)
    ordinal_P = np.arange(first_ordinal, first_ordinal + len(texts), dtype=np.int32)
    return jax.tree.map(jnp.asarray, Prompts(tokens_PQ, mask_PQ, ordinal_P))  # type: ignore[arg-type]


@overload
def init(
    model: Model,
    optimizer: Optimizer,
    key: Array,
    algorithm: None = None,
    *,
    params: Params | None = None,
) -> TrainState: ...


@overload
def init(
    model: Model,
    optimizer: Optimizers,
    key: Array,
    algorithm: Algorithm,
    *,
    params: Params | None = None,
) -> TrainState | States: ...


def init(
    model: Model,
    optimizer: Optimizers,
    key: Array,
    algorithm: Algorithm | None = None,
    *,
    params: Params | None = None,
) -> TrainState | States:
    """Returns a fresh state at version 0; for an algorithm with a critic a dict of states, "policy"
    and "critic".

    Args:
      model: of the policy. A critic is the same network with a value head, and begins at the
        policy's params.
      optimizer: of the policy, or a dict of one for each role.
      key: a `jax.random.key`.
      algorithm: that the state is for; None: one that trains the policy alone.
      params: of the policy; they are copied. None: fresh float32 ones.

    Raises:
      Refusal: for a role without an optimizer.
    """
    policy = compiled.init_params(model)(key) if params is None else jax.tree.map(jnp.copy, params)
    state = compiled.init_state(_of_role(optimizer, "policy"))(policy)
    if algorithm is None or "critic" not in algorithm.losses:
        return state
    head_key = jax.random.fold_in(key, zlib.crc32(b"critic") & 0x7FFFFFFF)
    critic = jax.tree.map(jnp.copy, value_head.make(model).init_from(policy, head_key))
    return {"policy": state, "critic": compiled.init_state(_of_role(optimizer, "critic"))(critic)}


def sample(
    params: Params | TrainState,
    prompts: Prompts,
    key: Array,
    model: Model,
    tokenizer: Tokenizer,
    *,
    samples_per_prompt: int = sampling.Config.samples_per_prompt,
    max_tokens: int | None = None,
    temperature: float = sampling.Config.temperature,
    version: int | Array = 0,
) -> Samples:
    """Samples G completions of each of P prompts.

    Args:
      params: of the policy, or its state, whose step is then the version.
      prompts: of `encode`, `[P, Q]`.
      key: a `jax.random.key`. A row's random numbers are a function of the key, the prompt's
        ordinal and the sample's index.
      model: of the policy.
      tokenizer: says which tokens end a row.
      samples_per_prompt: G.
      max_tokens: positions C of a completion, the EOS among them; None: the longest reference of
        the tokenizer's task.
      temperature: that logits are divided by; 0 takes the most probable token.
      version: updates that `params` have had, stamped on the samples.

    Returns:
      Samples of B = P * G rows, the samples of a prompt one after the other.

    Raises:
      Refusal: for a model of another vocabulary than the tokenizer's, and where nobody says how
        long a completion is.
    """
    eos_ids = within(tokenizer, model).eos_ids
    max_tokens = completion_tokens(max_tokens, tokenizer)
    for name, value, least in (("samples_per_prompt", samples_per_prompt, 1), ("max_tokens", max_tokens, 1),
                               ("temperature", temperature, 0)):  # fmt: skip
        if value < least:
            raise Refusal(f"{name} is {value}; accepted: {least} or more")
    if isinstance(params, TrainState):
        params, version = params.params, params.step
    config = sampling.Config(max_tokens, samples_per_prompt, temperature)
    generate = compiled.sampler(model, config, eos_ids, tokenizer.pad_id)
    return generate(params, prompts, key, jnp.asarray(version, jnp.int32))


def score(
    samples: Samples,
    reward: Reward,
    tokenizer: Tokenizer,
    *,
    model: Model | None = None,
    params: Mapping[str, Params] | None = None,
    prompts: Sequence[str] | None = None,
    reference_score_PS: Array | None = None,
    **settings: object,
) -> Scores:
    """Scores samples by a reward, and by the models that an algorithm needs.

    Args:
      samples: B rows.
      reward: of `rl.reward`.
      tokenizer: that the samples were encoded with.
      model: of the policy, where `params` are given.
      params: by need: "reference" and "proximal" give log-probabilities `[B, C]` of the sampled
        tokens under params of the policy, "value" gives values `[B, C]` under params of a critic,
        and "gradient_energy" the energies `[B, C]` of `scoring.sample_gradient_energy` under params
        of the policy.
      prompts: the text of each prompt, `[P]`; None: the reward's task gives it by the ordinal.
      reference_score_PS: of an algorithm that needs "reference_scores": scores of S samples of the
        reference policy, drawn and scored before.
      **settings: keys of `scoring.Config`, the rules for a completion without an EOS and for a long
        one.

    Returns:
      Scores; `score_B` is what `credit` uses.

    Raises:
      Refusal: for `params` of another name or without a model, for a model of another vocabulary
        than the tokenizer's, for a key that `scoring.Config` does not accept, and for prompts that
        are not known.
      RewardError: for what the reward raises, and for a result that is not one finite number a
        completion.
    """
    config = filled(scoring.Config, None, settings, "rl.score")
    if not isinstance(reward, Reward):
        raise Refusal(f"reward is {reward!r:.60}; accepted: what rl.reward(...) returns")
    by_call = _by_call(samples, model, params or {}, tokenizer)
    raw: dict[str, Any] = {}
    if reward.model is not None:
        label = next(term.label for term in reward.terms if term.label not in reward.judges)
        raw[label] = compiled.model_scores(reward.model)(reward.params, samples)
    if reward.judges:
        raw |= {
            label: jnp.asarray(scores_B)
            for label, scores_B in host_scores(reward, samples, tokenizer, prompts).items()
        }
    units = tuple(
        (
            term.label,
            term.weight,
            *((0.0, 1.0) if term.label in reward.judges else (reward.mean, reward.std)),
        )
        for term in reward.terms
    )
    scores = compiled.scorer(units, reward.is_plain, config)(raw, samples.finished_B)
    scores = scoring.with_overlong(scores, samples.mask_BC, samples.finished_B, config)
    extra: dict[str, Array] = {}
    if "gradient_energy" in by_call:
        extra["gradient_energy_BC"] = by_call["gradient_energy"]
    if reference_score_PS is not None:
        extra[STORED_SCORE] = _of_samples(jnp.asarray(reference_score_PS), samples)
    return dataclasses.replace(
        scores,
        reference_logprob_BC=by_call.get("reference"),
        proximal_logprob_BC=by_call.get("proximal"),
        value_BC=by_call.get("value"),
        extra=extra,
    )


def _of_samples(score_PS: Array, samples: Samples) -> Array:
    """The stored scores of each sample's prompt, `[B, S]`. Raises Refusal for another P."""
    num_prompts = samples.tokens_BC.shape[0] // samples.samples_per_prompt
    if score_PS.ndim != 2 or score_PS.shape[0] != num_prompts:
        raise Refusal(
            f"reference_score_PS has the shape {score_PS.shape}; accepted: ({num_prompts}, S), S "
            "scores of each prompt"
        )
    return jnp.repeat(score_PS, samples.samples_per_prompt, axis=0)


def update(
    state: State,
    batch: Batch,
    algorithm: Algorithm,
    model: Model,
    optimizer: Optimizers,
    *,
    num_micro_batches: int = 1,
    donate: bool = False,
) -> tuple[State, Metrics]:
    """Returns the state after one update of every trained role, and metrics on the device.

    Args:
      state: of `rl.init`; for an algorithm with a critic a dict of states.
      batch: R rows, of the algorithm's `credit`.
      algorithm: whose losses are followed.
      model: of the policy; a critic is the same network with a value head.
      optimizer: that the state was made for, or a dict of one for each role.
      num_micro_batches: parts that the rows are cut into, whose gradients are added: less memory,
        the same update.
      donate: True gives the state's buffers to the result, and leaves `state` without arrays.

    Returns:
      The state at version step + 1, and metrics by name; `metric.value()` is a float. A critic's
      are named `critic_*`.

    Raises:
      Refusal: for a state without a role that the algorithm trains, and for rows that do not make
        whole micro-batches.
    """
    states: Mapping[str, TrainState] = state if isinstance(state, Mapping) else {"policy": state}
    if states.keys() != algorithm.losses.keys():
        raise Refusal(
            f"{algorithm.name} trains {', '.join(algorithm.losses)}, and the state has "
            f"{', '.join(states)}; accepted: "
            "rl.init(model, optimizer, key, algorithm)"
        )
    unit_rows = batch.group_rows if algorithm.unit == "group" else int(algorithm.unit)
    unit_rows = max(batch.rows_per_prompt, unit_rows)
    num_rows = batch.tokens_RC.shape[0]
    if num_micro_batches < 1 or num_rows % (num_micro_batches * unit_rows):
        raise Refusal(
            f"{num_rows} rows, of which {unit_rows} stay together, do not make {num_micro_batches} "
            "equal micro-batches; "
            f"accepted: num_micro_batches that divides {num_rows // unit_rows}"
        )
    updated, metrics = {}, {}
    for role, loss in algorithm.losses.items():
        aggregation = algorithm.aggregation if role == "policy" else "token"
        step = compiled.update_step(
            role, loss, model, _of_role(optimizer, role), aggregation, unit_rows, num_micro_batches, donate
        )  # fmt: skip
        scalars = step_scalars(loss, _of_role(optimizer, role))
        updated[role], role_metrics = step(states[role], batch, scalars)
        metrics |= {
            name if role == "policy" else f"{role}_{name}": metric
            for name, metric in role_metrics.items()
        }
    return (updated if isinstance(state, Mapping) else updated["policy"]), metrics  # type: ignore[return-value]


def _of_role(optimizer: Optimizers, role: str) -> Optimizer:
    """The optimizer of a role. Raises Refusal where a dict lacks it."""
    if not isinstance(optimizer, Mapping):
        return optimizer
    if role not in optimizer:
        raise Refusal(
            f"optimizer has {', '.join(optimizer) or 'no role'}; accepted: one for {role} too"
        )
    return optimizer[role]


def completion_tokens(max_tokens: int | None, tokenizer: Tokenizer) -> int:
    """Returns the positions C of a completion.

    Args:
      max_tokens: as a caller gives them; None: the longest reference of the tokenizer's task.
      tokenizer: of the completions.

    Raises:
      Refusal: if `max_tokens` is None and the tokenizer was made for no task.
    """
    if max_tokens is not None:
        return max_tokens
    if tokenizer.longest_completion is None:
        raise Refusal(
            "max_tokens is None and the tokenizer was made for no task; accepted: "
            "max_tokens=24 or the like"
        )
    return tokenizer.longest_completion()


def within(tokenizer: Tokenizer, model: Model) -> Tokenizer:
    """The tokenizer for the vocabulary of a model.

    Args:
      tokenizer: of texts.
      model: whose tokens it reads.

    Raises:
      Refusal: where a token that the model samples would have no text, or a text needs a token that
        the model lacks.
    """
    if not isinstance(tokenizer, FileTokenizer) and tokenizer.vocab_size != model.vocab_size:
        raise Refusal(
            f"the model's vocab_size is {model.vocab_size}, and the tokenizer has "
            f"{tokenizer.vocab_size} tokens; accepted: "
            "rl.model(..., vocab_size=tokenizer.vocab_size)"
        )
    return tokenizers.within(tokenizer, model.vocab_size)


def _by_call(
    samples: Samples, model: Model | None, params: Mapping[str, Params], tokenizer: Tokenizer
) -> dict[str, Array]:
    """Log-probabilities and values `[B, C]` of samples by need. Raises as `score`."""
    needs = ("reference", "proximal", "value", "gradient_energy")
    if unknown := sorted(params.keys() - set(needs)):
        raise Refusal(f"params has {', '.join(map(repr, unknown))}; accepted: {', '.join(needs)}")
    if not params:
        return {}
    if model is None:
        raise Refusal(
            f"params of {', '.join(params)} were given without their model; accepted: model=..."
        )
    within(tokenizer, model)
    return {
        need: compiled.forward(need, model)(of_need, samples) for need, of_need in params.items()
    }
