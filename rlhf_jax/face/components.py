"""Components by the name that a config takes, with keyword settings: tasks, tokenizers, models and
algorithms.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from rlhf_jax import registry
from rlhf_jax.algorithms.api import REFERENCE_SCORES, STORED_SCORE
from rlhf_jax.algorithms.common.interpolation import check_interpolation
from rlhf_jax.algorithms.common.numbers import with_arguments
from rlhf_jax.config import Settings
from rlhf_jax.face.prompts import SeekableTask, own
from rlhf_jax.face.settings import filled, named, plain
from rlhf_jax.models.api import Model
from rlhf_jax.ops.corrections import Correction, resolve
from rlhf_jax.ops.policy_gradient.advantages import RUN_SEED
from rlhf_jax.ops.scalars import through
from rlhf_jax.refusal import ComponentError, Refusal
from rlhf_jax.tasks import api
from rlhf_jax.tasks.common import reading
from rlhf_jax.text import encoding, tokenizers
from rlhf_jax.text.tokenizers import Tokenizer
from rlhf_jax.types import Algorithm, Batch, Samples, Scores

Credit = Callable[[Samples, Scores], Batch]
READ = 1024
"""Prompts whose references are read, evenly over a split, to know how long a completion of a task
is.
"""


def task(name: object, config: object = None, /, **settings: object) -> SeekableTask:
    """Returns a task, whose prompts can be read by their place in its stream.

    Args:
      name: a file of `rlhf_jax/tasks/`, the dotted path of a module or the path of a file (see
        `registry.py`); or an instance of a task's `Config`; or a task.
      config: an instance of the task's `Config`.
      **settings: keys of that `Config`, over `config` or over its defaults.

    Raises:
      Refusal: for a name that means no task, and for a key or a value that its `Config` does not
        accept.
      ComponentError: for what the task's own code raises, and for an object that lacks a method of
        `tasks.api.Task`.

    Example:
      >>> import rlhf_jax as rl
      >>> task = rl.task("addition", limit=100, padded=False)
      >>> task.num_prompts("train") > 1000
      True
    """
    if callable(getattr(name, "prompt", None)):
        component, path = own(name), type(name).__name__
        if settings or config is not None:
            raise Refusal(
                f"the task {path} was given settings {settings or config!r}; accepted: none, as it "
                "is made"
            )
    else:
        path, config = named("tasks", name, config)
        component = registry.make(
            "tasks",
            path,
            filled(registry.settings("tasks", path), config, settings, f"task {path}"),
        )
    missing = [
        wanted
        for wanted in vars(api.Task)
        if not wanted.startswith("_") and not hasattr(component, wanted)
    ]
    if missing:
        raise ComponentError(
            f"the task {path} is a {type(component).__name__} without {', '.join(missing)}"
        )
    return SeekableTask(component)


def tokenizer(kind: object, task: object = None, /, **settings: object) -> Tokenizer:
    """Returns a tokenizer.

    Args:
      kind: words or characters (of the task's vocabulary), bytes, sentencepiece or hf (of a file,
        `path=`); or an instance of `text.tokenizers.Config`.
      task: gives the vocabulary of words and characters, and the length of its longest completion
        to `rl.sample`.
      **settings: keys of `text.tokenizers.Config`.

    Raises:
      Refusal: for another kind, for a key or a value that the `Config` does not accept, and for a
        task whose vocabulary is open where a closed one is needed.
      MissingInput: for a file that does not exist.

    Example:
      >>> import rlhf_jax as rl
      >>> tokenizer = rl.tokenizer("characters", rl.task("addition"))
      >>> tokenizer.vocab_size, tokenizer.decode(tokenizer.encode("1+2="))
      (14, '1+2=')
    """
    given = {} if isinstance(kind, tokenizers.Config) else {"kind": kind}
    config = filled(tokenizers.Config, None if given else kind, given | settings, "tokenizer")
    tokenizer = tokenizers.make(config, None if task is None else own(task).vocabulary)
    if task is not None:
        tokenizer.longest_completion = lambda: longest_completion(own(task), tokenizer)
    return tokenizer


def longest_completion(task: api.Task, tokenizer: Tokenizer) -> int:
    """Tokens of a task's longest reference, the EOS included, of `READ` prompts spread evenly over
    its train split.

    Args:
      task: whose references are read.
      tokenizer: that encodes them.

    Raises:
      Refusal: for a task without references.
    """
    count = reading.num_prompts(task, "train")
    indices = range(0, count, max(1, -(-count // READ)))
    texts = [text for index in indices for text in reading.references(task, "train", index)]
    if not texts:
        raise Refusal(
            f"the task {type(task).__name__} has no references to tell how long a completion is: "
            "give max_tokens"
        )
    return max(encoding.completion_lengths(tokenizer, texts))


def model(family: object, preset: object = None, /, **settings: object) -> Model:
    """Returns a decoder, without params: see `rl.init`.

    Args:
      family: a file of `rlhf_jax/models/`, or a module or file of your own; or an instance of a
        family's `Config`.
      preset: the name of one of the family's shapes, or an instance of its `Config`; None:
        `settings` give every key.
      **settings: keys of the family's `Config`, over the preset.

    Raises:
      Refusal: for a family or a preset that does not exist, for a key or a value that the `Config`
        does not accept, and for a preset without a vocabulary when `vocab_size` is not given.

    Example:
      >>> import rlhf_jax as rl
      >>> rl.model("gpt_neox", "quickstart", vocab_size=14, num_layers=1).vocab_size
      14
    """
    given = preset if dataclasses.is_dataclass(preset) else None
    name, given = named("models", family, given)
    module = registry.find("models", name)
    if not hasattr(module, "PRESETS"):
        raise Refusal(
            f"{name!r} is no family of decoders; accepted: {', '.join(registry.names('models'))}"
        )
    if given is None and preset is not None:
        if preset not in module.PRESETS:
            raise Refusal(
                f"no preset {preset!r} of the model {name}; accepted: {', '.join(module.PRESETS)}"
            )
        given = module.PRESETS[preset]
    config = filled(module.Config, given, settings, f"model {name}")
    if not config.vocab_size:
        raise Refusal(f"model {name} has vocab_size 0; accepted: vocab_size=tokenizer.vocab_size")
    return module.make(config)


@dataclass(frozen=True)
class NamedAlgorithm(Algorithm):
    """An algorithm that knows what it was made of, so that a run can resolve the "auto" of its
    correction.
    """

    component: str = ""  # as `registry.find` takes it
    config: Settings | None = None


def algorithm(name: object, config: object = None, /, **settings: object) -> NamedAlgorithm:
    """Returns an algorithm. Its `credit` is compiled.

    A correction of "auto" is that of on-policy samples. `rl.run` resolves it again for its lag.

    Args:
      name: a file of `rlhf_jax/algorithms/`, the dotted path of a module or the path of a file (see
        `registry.py`); or an instance of an algorithm's `Config`.
      config: an instance of the algorithm's `Config`.
      **settings: keys of that `Config`, over `config` or over its defaults; `correction` takes a
        dict of its keys.

    Raises:
      Refusal: for a name that means no algorithm, and for a key or a value that its `Config` does
        not accept.
      ComponentError: for what the algorithm's own code raises.

    Example:
      >>> import rlhf_jax as rl
      >>> sorted(rl.algorithm("ppo", correction={"ratio_to": "proximal"}).needs)
      ['proximal', 'reference', 'value']
    """
    path, config = named("algorithms", name, config)
    config = filled(registry.settings("algorithms", path), config, settings, f"algorithm {path}")
    return make_named(path, config)


def make_named(path: str, config: Settings) -> NamedAlgorithm:
    """The algorithm of a name and its settings, with a compiled `credit`. Raises as `algorithm`."""
    algorithm = registry.make("algorithms", path, config)
    if not isinstance(algorithm, Algorithm):
        raise ComponentError(
            f"the algorithm {path} is a {type(algorithm).__name__}; accepted: an Algorithm"
        )
    algorithm = with_arguments(algorithm, path, config)
    fields: dict[str, Any] = {
        f.name: getattr(algorithm, f.name) for f in dataclasses.fields(Algorithm)
    }
    fields["credit"] = through(algorithm.credit, partial(_credit, algorithm))
    return NamedAlgorithm(**fields, component=path, config=config)


def _credit(algorithm: Algorithm, credit: Credit) -> Credit:
    """The compiled `credit` of an algorithm.

    Raises Refusal for scores that lack what the algorithm needs.
    """
    compiled = jax.jit(credit)

    def checked_credit(samples: Samples, scores: Scores) -> Batch:
        given = {
            "reference": scores.reference_logprob_BC,
            "proximal": scores.proximal_logprob_BC,
            "value": scores.value_BC,
            "gradient_energy": scores.extra.get("gradient_energy_BC"),
        }
        if REFERENCE_SCORES in algorithm.needs and STORED_SCORE not in scores.extra:
            raise Refusal(
                f"{algorithm.name} needs stored scores of the reference policy's samples; accepted: "
                "the scores of rl.score(samples, reward, tokenizer, ..., reference_score_PS=...)"
            )
        if missing := sorted(
            need for need in algorithm.needs if need in given and given[need] is None
        ):
            wanted = ", ".join(f"{need!r}: ..." for need in missing)
            raise Refusal(
                f"{algorithm.name} needs {', '.join(missing)} beside the score; accepted: the scores of "
                "rl.score(samples, reward, "
                f"tokenizer, model=model, params={{{wanted}}})"
            )
        return compiled(samples, scores)

    return checked_credit


def for_schedule(
    algorithm: Algorithm, *, lag: int, scheduled: bool, exact_sampler: bool, seed: int = 0
) -> Algorithm:
    """The algorithm with the "auto" of its correction resolved for a run; one that was not made by
    name is as it is.

    Args:
      algorithm: as `rl.algorithm` returns it.
      lag: rounds that the sampler is behind.
      scheduled: True where a schedule of versions is given.
      exact_sampler: True where the sampler's log-probabilities are the trainer's up to float32
        rounding.
      seed: of the run, for the noise of its scores.
    """
    if not isinstance(algorithm, NamedAlgorithm) or algorithm.config is None:
        return algorithm
    config, correction = algorithm.config, getattr(algorithm.config, "correction", None)
    if not isinstance(correction, Correction):
        return algorithm
    resolved = resolve(correction, lag=lag, scheduled=scheduled, exact_sampler=exact_sampler)
    check_interpolation(
        getattr(config, "interpolation", 0.0),
        getattr(config, "interpolation_by", "constant"),
        stale=lag > 0 or scheduled,
    )
    values = plain(config) | {"correction": plain(resolved)}
    advantage = values.get("advantage")
    if isinstance(advantage, dict) and advantage.get("noise_seed") == RUN_SEED:
        values["advantage"] = advantage | {"noise_seed": seed}
    return make_named(
        algorithm.component,
        filled(type(config), None, values, f"algorithm {algorithm.component}"),
    )
