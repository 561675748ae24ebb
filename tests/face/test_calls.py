"""The calls of the face compute, bit for bit, what the compiled program of a run computes; its loop
is the stage's.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from runtime import rounds

import rlhf_jax as rl
from rlhf_jax.algorithms import grpo as grpo_module
from rlhf_jax.clock import Clock
from rlhf_jax.models.common import value_head
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime import synchronous
from rlhf_jax.runtime.program import Critic, Program
from rlhf_jax.runtime.program import Reward as ProgramReward
from rlhf_jax.stages import rlhf
from rlhf_jax.stages.api import Lengths, Workspace
from rlhf_jax.stages.settings import rlhf as rlhf_settings
from rlhf_jax.text import tokenizers

GROUP = 4
WORDS = tokenizers.Symbols(
    [chr(97 + place) for place in range(tiny.V - tokenizers.NUM_SPECIAL)], "", "character"
)
OPTIMIZERS = {"policy": optax.sgd(0.03), "critic": optax.sgd(0.003)}
STALE = {"correction": {"ratio_to": "proximal", "correction": "truncate", "cap": 1.25}}


def same(one, other) -> bool:
    """Bit for bit."""
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [("grpo", {}), ("grpo", STALE), ("online_dpo", {}), ("ppo", {}), ("copg", {}), ("a2po", {})],
)
@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_a_round_is_that_of_the_compiled_program(name, settings, num_micro_batches):
    algorithm = rl.algorithm(name, **settings)
    spec = dataclasses.replace(
        rounds.make_spec(tiny.make_mesh((1, 1, 1))),
        sampling=tiny.law(GROUP),
        algorithm=algorithm,
        optimizer=OPTIMIZERS["policy"],
        num_micro_batches=num_micro_batches,
        clock=Clock(1),
    )
    model, params = spec.model, tiny.make_params(spec.model)
    reference = tiny.make_params(spec.model, 5)
    states = rl.init(model, OPTIMIZERS, jax.random.key(2), algorithm, params=params)
    by_role = states if isinstance(states, dict) else {"policy": states}
    if "critic" in algorithm.losses:
        critic = Critic(value_head.make(model), by_role["critic"].params, OPTIMIZERS["critic"])
        spec = dataclasses.replace(spec, critic=critic)
    program = Program(spec, reference)
    theirs = program.init(params)
    assert same(theirs, by_role)

    their_samples = program.generate(program.publish(theirs), 0, 0)
    prompts = jax.tree.map(jnp.asarray, spec.prompts(0))
    law = {
        "samples_per_prompt": GROUP,
        "max_tokens": tiny.C,
        "temperature": spec.sampling.temperature,
    }
    samples = rl.sample(by_role["policy"], prompts, spec.key, model, WORDS, **law)
    assert same(samples, their_samples)

    their_scores, their_batch = program.score(theirs, their_samples)
    needed = {
        "reference": reference,
        "proximal": params,
        "value": "critic" in by_role and by_role["critic"].params,
    }
    scores = rl.score(
        samples,
        rl.reward(rounds.token_reward),
        WORDS,
        model=model,
        params={need: needed[need] for need in algorithm.needs & needed.keys()},
        replace_missing_eos=False,
        reference_score_PS=spec.reference_scores[: rounds.PROMPTS] if name == "a2po" else None,
    )
    batch = algorithm.credit(samples, scores)
    assert same(scores, their_scores)
    assert same(batch, their_batch)

    after, metrics = rl.update(
        states, batch, algorithm, model, OPTIMIZERS, num_micro_batches=num_micro_batches
    )
    their_after, their_metrics = program.update(theirs, their_batch)
    assert metrics.keys() == their_metrics.keys()
    assert same(after if isinstance(after, dict) else {"policy": after}, their_after)
    assert same(
        [metrics[key] for key in sorted(metrics)], [their_metrics[key] for key in sorted(metrics)]
    )
    assert not same(after, states)  # which is as it was


def test_a_batch_that_says_nothing_of_its_prompts_keeps_its_units():
    """A batch made by hand has no `rows_per_prompt`: a pair stays together all the same, and three
    parts are refused.
    """
    algorithm = rl.algorithm("online_dpo")
    model = tiny.make_model(num_layers=1)
    state = rl.init(model, optax.sgd(0.1), jax.random.key(0), params=tiny.make_params(model))
    batch = dataclasses.replace(tiny.make_batch(4), temperature=jnp.float32(1.0))
    with pytest.raises(
        Refusal,
        match=r"4 rows, of which 2 stay together, do not make 4 equal micro-batches; .* divides 2",
    ):
        rl.update(state, batch, algorithm, model, optax.sgd(0.1), num_micro_batches=4)


def test_donation_leaves_the_state_without_arrays():
    algorithm = rl.algorithm("grpo", kl_weight=0.0)
    model, optimizer = tiny.make_model(num_layers=1), optax.sgd(0.1)
    params = jax.tree.map(jnp.copy, tiny.make_params(model))
    prompts = jax.tree.map(jnp.asarray, tiny.make_prompts(2))
    state = rl.init(model, optimizer, jax.random.key(0), params=params)
    samples = rl.sample(
        state, prompts, jax.random.key(1), model, WORDS, samples_per_prompt=2, max_tokens=3
    )
    batch = algorithm.credit(samples, rl.score(samples, rl.reward(rounds.token_reward), WORDS))
    rl.update(state, batch, algorithm, model, optimizer, donate=True)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_a_state_stamps_its_version_on_its_samples():
    model = tiny.make_model(num_layers=1)
    state = rl.init(
        model, optax.sgd(0.1), jax.random.key(0), params=tiny.make_params(model)
    ).replace(step=jnp.int32(7))
    prompts = jax.tree.map(jnp.asarray, tiny.make_prompts(2))
    sampled = rl.sample(
        state, prompts, jax.random.key(1), model, WORDS, samples_per_prompt=2, max_tokens=3
    )
    np.testing.assert_array_equal(sampled.version_BC, np.where(sampled.mask_BC, 7, 0))


@pytest.fixture(scope="module")
def addition():
    """A task, its tokenizer, a model, and a few samples of it."""
    task = rl.task("addition", limit=10)
    tokenizer = rl.tokenizer("characters", task)
    model = tiny.make_model(num_layers=1, vocab_size=tokenizer.vocab_size)
    prompts = rl.encode(task.prompts("train", 3, 4), tokenizer)
    samples = rl.sample(
        tiny.make_params(model), prompts, jax.random.key(0), model, tokenizer, samples_per_prompt=2
    )
    return task, tokenizer, model, samples


def test_a_sum_of_rewards_is_weighted(addition):
    task, tokenizer, _, samples = addition
    both = rl.reward("exact_match + 0.5 * gold", task)
    scores = rl.score(samples, both, tokenizer, replace_missing_eos=False)
    once = rl.score(samples, rl.reward("exact_match", task), tokenizer, replace_missing_eos=False)
    assert scores.terms is not None
    np.testing.assert_allclose(scores.score_B, 1.5 * once.score_B)
    assert sorted(scores.terms) == ["exact_match", "gold"]


def test_a_function_is_a_reward_and_gets_what_it_asks_for(addition):
    task, tokenizer, _, samples = addition
    asked = []

    def right(prompts, completions, records):
        asked.extend(zip(prompts, records, strict=True))
        return [float(len(text)) for text in completions]

    scores = rl.score(samples, rl.reward(right, task), tokenizer, missing_eos_score=-3.0)
    stream = task.prompts("train", 3, 4)
    assert asked == [
        (text, row) for text, row in zip(stream, stream.records, strict=True) for _ in range(2)
    ]
    assert (np.asarray(scores.score_B)[~np.asarray(samples.finished_B)] == -3.0).all()
    assert same(
        rl.score(
            samples, rl.reward(right, task), tokenizer, missing_eos_score=-3.0, prompts=stream
        ),
        scores,
    )
    with pytest.raises(Refusal, match="asks for records"):
        rl.score(samples, rl.reward(right, task), tokenizer, prompts=list(stream))
    with pytest.raises(Refusal, match="3 prompts were given for 4 groups"):
        rl.score(samples, rl.reward(right, task), tokenizer, prompts=list(stream)[:3])
    with pytest.raises(Refusal, match="asks for prompts, and its samples are of no task"):
        rl.score(samples, rl.reward(lambda prompts, completions: [0.0] * len(prompts)), tokenizer)


def test_a_learned_reward_is_standardised(addition):
    task, tokenizer, model, samples = addition
    network = value_head.make(model)
    params = network.init_from(tiny.make_params(model), jax.random.key(3))
    plain = rl.score(
        samples,
        rl.reward("learned", model=model, params=params),
        tokenizer,
        replace_missing_eos=False,
    )
    moved = rl.reward(
        "learned + 2 * exact_match", task, model=network, params=params, mean=1.0, std=2.0
    )
    scores = rl.score(samples, moved, tokenizer, replace_missing_eos=False)
    exact = rl.score(samples, rl.reward("exact_match", task), tokenizer, replace_missing_eos=False)
    np.testing.assert_allclose(scores.score_B, (plain.raw_B - 1) / 2 + 2 * exact.raw_B, rtol=1e-6)


def stage_events(task, tokenizer, model, algorithm, lag):
    """The events of the RLHF stage's own program: what `experiments.run` would compute."""
    lengths = Lengths(max_prompt_tokens=4, max_completion_tokens=2)
    workspace = Workspace(
        Path("unused"), 5, task.task, tokenizer, model, tiny.make_mesh((1, 1, 1)), lengths
    )
    config = rlhf_settings.Config(
        total_prompts=12, prompts_per_update=4, samples_per_prompt=2, lag=lag
    )
    judges = rl.reward("exact_match", task).judges
    host = rlhf.host_scores(workspace, judges)
    reward = ProgramReward(host=lambda samples: host(samples)["exact_match"], name="exact_match")
    program = rlhf.make_program(workspace, config, algorithm, reward, tiny.make_params(model))
    return synchronous.run(program, program.init(tiny.make_params(model)), 0, {})


@pytest.mark.parametrize(("name", "lag"), [("grpo", 1), ("ppo", 0)])
def test_a_run_is_that_of_the_stage(name, lag, addition):
    """Bit for bit, with the correction that a lag asks for; and the asynchronous loop gives the
    same.
    """
    task, tokenizer, model, _ = addition
    module = rl.algorithm(name).config
    correction = (
        {"ratio_to": "proximal", "correction": "truncate"}
        if lag
        else {"ratio_to": "behavior", "correction": "none"}
    )
    resolved = rl.algorithm(name, module, correction=correction)
    theirs = [
        (type(e).__name__, rounds.host(kept(e)))
        for e in stage_events(task, tokenizer, model, resolved, lag)
    ]
    reward = rl.reward("exact_match", task)
    given = {
        "params": tiny.make_params(model),
        "seed": 5,
        "prompts_per_update": 4,
        "samples_per_prompt": 2,
    }
    events = rl.run(model, task, rl.algorithm(name), reward, num_rounds=3, lag=lag, **given)
    ours = [(type(e).__name__, rounds.host(kept(e))) for e in events]
    assert [kind for kind, _ in ours] == [kind for kind, _ in theirs]
    assert same(ours_of(ours), ours_of(theirs))
    threaded = rl.run(
        model, task, rl.algorithm(name), reward, num_rounds=3, lag=lag, loop="asynchronous", **given
    )
    of_threads = [rounds.host(kept(e)) for e in threaded if isinstance(e, synchronous.RoundEnd)]
    assert same(of_threads, [tree for kind, tree in theirs if kind == "RoundEnd"])


def kept(event):
    """What an event holds that a later update donates, or that names its samples."""
    if isinstance(event, synchronous.Sampled):
        return event.samples
    return (
        event.batch
        if isinstance(event, synchronous.Scored)
        else {role: s.params for role, s in event.states.items()}
    )


def ours_of(events):
    return [tree for _, tree in events]


def test_an_optimizer_and_a_tokenizer_may_be_given(addition):
    """A learning rate of 0 leaves the params as they are; those of a run's default move."""
    task, tokenizer, model, _ = addition
    reward, first = rl.reward(rounds.token_reward), tiny.make_params(model)
    for optimizer, moves in (
        (optax.sgd(0.0), False),
        ({"learning_rate": 0.0}, False),
        (optax.sgd(0.5), True),
    ):
        events = rl.run(
            model, task, rl.algorithm("rloo", kl_weight=0.0), reward, num_rounds=1, params=first, optimizer=optimizer,
            tokenizer=tokenizer, prompts_per_update=2, scoring={"replace_missing_eos": False},
        )  # fmt: skip
        *_, end = events
        assert same(end.states["policy"].params, first) != moves


def test_an_algorithm_that_was_not_made_by_name_is_used_as_it_is():
    from rlhf_jax.face.components import NamedAlgorithm, for_schedule

    own = grpo_module.grpo(grpo_module.Config(correction=Correction(ratio_to="behavior")))
    assert for_schedule(own, lag=3, scheduled=False, exact_sampler=True) is own
    made = rl.algorithm("grpo")
    assert "proximal" not in made.needs
    assert "proximal" in for_schedule(made, lag=3, scheduled=False, exact_sampler=True).needs
    assert "proximal" not in for_schedule(made, lag=0, scheduled=False, exact_sampler=True).needs
    noisy = for_schedule(rl.algorithm("redit"), lag=0, scheduled=False, exact_sampler=True, seed=5)
    assert isinstance(noisy, NamedAlgorithm)
    assert noisy.config.advantage.noise_seed == 5  # type: ignore[union-attr]
