"""Golden numbers of one update of every algorithm, of the supervised stages, and of an evaluation.

A cell of a study carries the hash of the entries that it depends on (`experiments.results`). A
change of an algorithm that changes its numbers changes its entry here, and cells of the two
versions are then never pooled.
"""

import dataclasses
import json
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import tiny

from rlhf_jax import registry, updating
from rlhf_jax.algorithms.policy_gradient import policy_gradient
from rlhf_jax.algorithms.presets.table import PRESETS
from rlhf_jax.clock import Clock
from rlhf_jax.models.common import value_head
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.runtime.program import Critic, Program
from rlhf_jax.stages import reward_model, sft
from rlhf_jax.stages.api import Lengths, Workspace
from rlhf_jax.stages.common import evaluator
from rlhf_jax.text import tokenizers
from rlhf_jax.types import Algorithm, TrainState

from . import rounds

GOLDEN = Path(__file__).parent.parent / "golden" / "steps.json"
REGENERATE = (
    "The numbers of a step have moved. If that is meant, say why in the commit, with the file that "
    "`cd tests && python -m runtime.test_golden_steps` writes; if not, the last change broke "
    "something."
)
GROUP = 4
STALE = Correction(ratio_to="proximal", correction="truncate", cap=1.25)
RATIO = {
    "grpo": "token",
    "rloo": "sequence",
    "ppo": "token",
}  # algorithms with a correction, and the level of its weight
STUDIED = (
    "asymre",
    "cispo",
    "dppo_tv",
    "reinforce",
    "seq_mis",
    "token_tis",
    "vcpo",
)  # presets with cells in a study
STEPS = (*registry.names("algorithms"), *(f"{name}:truncate" for name in RATIO), *STUDIED)
OTHERS = ("sft", "reward_model", "evaluation")


@cache
def sampled():
    """A program whose sampler and mesh the others share, and a round that its reference params
    sampled.
    """
    spec = dataclasses.replace(
        rounds.make_spec(tiny.make_mesh((1, 1, 1))), sampling=tiny.law(GROUP)
    )
    program = Program(spec, tiny.make_params(spec.model))
    return program, program.generate(program.publish(program.init(program.reference_params)), 0, 0)


def moved(params, seed: int):
    """Params some updates later: a fifth of the way to other random ones, so that no ratio, KL or
    weight is trivial.
    """
    drawn = tiny.make_params(sampled()[0].spec.model, seed)
    return jax.tree.map(lambda x, y: 0.8 * x + 0.2 * y, params, drawn)


def algorithm_of(name: str) -> Algorithm:
    """The algorithm of an entry: `<algorithm>`, `<algorithm>:truncate`, or a preset."""
    algorithm, _, stale = name.partition(":")
    if algorithm in PRESETS:
        return policy_gradient(PRESETS[algorithm].settings)
    module = registry.find("algorithms", algorithm)
    config = module.Config()
    if stale:
        config = dataclasses.replace(
            config, correction=dataclasses.replace(STALE, level=RATIO[algorithm])
        )
    return getattr(module, algorithm)(config)


def step(name: str) -> dict[str, float]:
    """Metrics of one update on stale samples, and the update along a fixed random direction of all
    params.
    """
    shared, samples = sampled()
    made = algorithm_of(name)
    critic = None
    if "critic" in made.losses:
        model = value_head.make(shared.spec.model)  # type: ignore[arg-type]
        params = model.init_from(tiny.make_params(shared.spec.model), jax.random.key(1))
        critic = Critic(model, params, optax.sgd(0.003))
    spec = dataclasses.replace(
        shared.spec, algorithm=made, optimizer=optax.sgd(0.03), critic=critic, clock=Clock(1)
    )
    program = Program(spec, shared.reference_params)
    states = program.init(moved(shared.reference_params, 1))
    before = rounds.host({role: state.params for role, state in states.items()})
    scores, batch = program.score(states, samples)
    states, metrics = program.update(states, batch)
    figures = {metric: float(value.value()) for metric, value in metrics.items()}
    figures |= {f"{role}_update_along": along(before[role], states[role].params) for role in states}
    return figures | {"score": float(scores.score_B.mean())}


def along(before, after) -> float:
    """The change of params projected on a random direction: another direction of the update is
    another number.
    """
    random = np.random.default_rng(0)
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return float(
        sum(
            np.vdot(random.standard_normal(x.shape), np.asarray(y, np.float64) - x)
            for x, y in pairs
        )
    )


@cache
def workspace() -> Workspace:
    task_module = registry.find("tasks", "reviews")
    task = task_module.make(task_module.Config())
    tokenizer = tokenizers.make(tokenizers.Config(), task.vocabulary)
    model = tiny.make_model(num_layers=1, vocab_size=tokenizer.vocab_size)
    return Workspace(
        Path("unused"), 0, task, tokenizer, model, tiny.make_mesh((1, 1, 1)), Lengths(18, 27)
    )


def supervised(objective, params, batch, **options) -> dict[str, float]:
    """Metrics of one update of a supervised stage, and the update along a direction."""
    optimizer = optax.sgd(0.03)
    train = jax.jit(
        partial(updating.train_step, objective=objective, optimizer=optimizer, **options)
    )
    state, metrics = train(TrainState(np.int32(0), params, optimizer.init(params)), batch)
    return {name: float(metric.value()) for name, metric in metrics.items()} | {
        "update_along": along(params, state.params)
    }


def sft_step() -> dict[str, float]:
    shared = workspace()
    batch = sft.rows(shared, shared.stream("train", sft.STAGE), sft.Config(rows_per_update=8), 0)
    objective = updating.policy_objective(sft.loss, shared.model)
    return supervised(
        objective, tiny.make_params(shared.model), batch, aggregation="token", unit_rows=1
    )


def reward_model_step() -> dict[str, float]:
    shared = workspace()
    stream = shared.stream("train", "comparisons")
    comparisons: list = []
    for prompt, references in zip(stream.texts(0, 4), stream.references(0, 4), strict=True):
        chosen, rejected = (shared.tokenizer.encode(text) for text in references[:2])
        comparisons.append({"prompt": prompt, "chosen_tokens": chosen, "rejected_tokens": rejected})
    model = value_head.make(shared.model)  # type: ignore[arg-type]
    params = model.init_from(tiny.make_params(shared.model), jax.random.key(1))
    pairs = reward_model.encode(shared, comparisons)
    objective = partial(reward_model.objective, model)
    return supervised(objective, params, pairs, aggregation="pair", unit_rows=2)


def evaluation() -> dict[str, float]:
    """Every figure of an evaluation of moved params beside those before."""
    shared = workspace()
    config = evaluator.Config(
        num_prompts=8, num_prompts_between=8, prompts_per_batch=8, samples_per_prompt=2
    )
    reference = tiny.make_params(shared.model)
    params = jax.tree.map(
        lambda x, y: 0.8 * x + 0.2 * y, reference, tiny.make_params(shared.model, 1)
    )
    return evaluator.Evaluator(shared, config, reference).evaluate(params, 8)[0]


def figures_of(name: str) -> dict[str, float]:
    others = {"sft": sft_step, "reward_model": reward_model_step, "evaluation": evaluation}
    return others[name]() if name in others else step(name)


@pytest.mark.parametrize("name", [*STEPS, *OTHERS])
def test_golden_step(name):
    expected, found = json.loads(GOLDEN.read_text())[name], figures_of(name)
    assert found.keys() == expected.keys(), REGENERATE
    for figure, value in expected.items():
        np.testing.assert_allclose(
            found[figure], value, rtol=1e-4, atol=1e-5, err_msg=f"{figure}: {REGENERATE}"
        )


def test_every_step_has_an_entry():
    assert json.loads(GOLDEN.read_text()).keys() == {*STEPS, *OTHERS}


def test_no_two_algorithms_have_the_same_step():
    """Two entries that are equal would not tell one algorithm from another."""
    golden = json.loads(GOLDEN.read_text())
    steps = [golden[name]["policy_update_along"] for name in STEPS]
    assert len(set(steps)) == len(steps)


if __name__ == "__main__":
    written = {name: figures_of(name) for name in (*STEPS, *OTHERS)}
    GOLDEN.write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
