"""The doors of a round: rewards of any source and rows of any algorithm are looked at before an
update uses them.
"""

import dataclasses
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import registry
from rlhf_jax.algorithms import dr_grpo
from rlhf_jax.clock import Clock
from rlhf_jax.refusal import ComponentError, RewardError
from rlhf_jax.rewards.api import Term
from rlhf_jax.runtime import asynchronous, credit, synchronous
from rlhf_jax.runtime.program import Program, Reward

from . import rounds

ROWS = rounds.PROMPTS * 2
ALGORITHM = dr_grpo.dr_grpo(dr_grpo.Config())
TEXTS = [(f"prompt {row}", f"completion {row}") for row in range(ROWS)]


def program_with(reward: Reward | None = None, algorithm=ALGORITHM) -> Program:
    """The shared sampler with a reward and an algorithm that asks for no model beside the policy."""
    shared = rounds.make_program()
    reward = reward or Reward(host=lambda samples: np.arange(ROWS, dtype=np.float32))
    spec = dataclasses.replace(
        shared.spec, algorithm=algorithm, reward=reward, clock=Clock(3), texts=lambda samples: TEXTS
    )
    program = Program(spec, shared.reference_params)
    program.sampler = shared.sampler
    return program


@lru_cache
def round_of(round_index: int):
    shared = rounds.make_program()
    states = shared.init(shared.reference_params)
    return states, shared.generate(shared.publish(states), round_index, 0)


def score(program: Program, round_index: int = 2):
    return program.score(*round_of(round_index))


@pytest.mark.parametrize(
    "values", [list(range(ROWS)), tuple(range(ROWS)), np.arange(ROWS), jnp.arange(ROWS)]
)
def test_a_reward_may_give_any_container(values):
    scores, _ = score(program_with(Reward(host=lambda samples: values)))
    np.testing.assert_array_equal(scores.raw_B, np.arange(ROWS))
    assert scores.raw_B.dtype == jnp.float32


@pytest.mark.parametrize(
    "values",
    [
        None,
        np.ones(1),
        np.ones((ROWS, 1)),
        np.ones(ROWS - 1),
        [None] * ROWS,
        [np.nan] * ROWS,
        1.0,
        "x" * ROWS,
    ],
)
@pytest.mark.parametrize("loop", [synchronous, asynchronous])
def test_a_reward_that_is_no_number_a_sample_trains_nothing(loop, values):
    """Also where nobody reads scores: neither a ledger nor samples are written here."""
    program, made = program_with(Reward(host=lambda samples: values, name="mine")), []
    with pytest.raises(
        RewardError, match=rf"^the reward mine gave .* {ROWS} (completions )?in round 0"
    ):
        made += list(loop.run(program, program.init(program.reference_params), 0, {}))
    assert not [
        event for event in made if isinstance(event, (synchronous.Scored, synchronous.Updated))
    ]


def test_a_learned_reward_that_is_not_finite_names_the_texts():
    def model(params, samples):
        return jnp.where(jnp.arange(ROWS) == 5, jnp.nan, 1.0)

    program = program_with(Reward(model=model, params={}, name="learned"))
    with pytest.raises(
        RewardError,
        match=rf'the reward learned gave nan for completion 5 of {ROWS} in round 2 .* "completion '
        r'5"',
    ):
        score(program)


def test_a_unit_that_is_not_finite_is_told():
    program = program_with(Reward(host=lambda samples: np.ones(ROWS), std=0.0))
    with pytest.raises(RewardError, match=r"score of a completion in round 2 is not finite"):
        score(program)


def changed(**fields):
    """The algorithm with other fields of its batch; functions of the batch that it would have made."""

    def made(samples, scores):
        batch = ALGORITHM.credit(samples, scores)
        return batch.replace(**{name: change(batch) for name, change in fields.items()})

    return dataclasses.replace(ALGORITHM, name="mine", credit=made)


def nan_at_a_flat_group(batch):
    return batch.advantage_RC / jnp.where(jnp.arange(ROWS)[:, None] < 4, 0.0, 1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sample_R": lambda batch: batch.sample_R + 3},
            rf"sample_R\[5\] = {ROWS} in round 2; accepted: 0 to {ROWS - 1}",
        ),
        ({"sample_R": lambda batch: batch.sample_R - 1}, r"sample_R\[0\] = -1 in round 2"),
        (
            {"sample_R": lambda batch: batch.sample_R * 1.0},
            "sample_R of float32; accepted: integers",
        ),
        (
            {"weight_R": lambda batch: jnp.full(ROWS, jnp.nan)},
            rf"weight_R that is not finite in {ROWS} of {ROWS} rows",
        ),
        (
            {"advantage_RC": nan_at_a_flat_group},
            rf"advantage_RC that is not finite in 4 of {ROWS} rows in round 2, first in row 0",
        ),
        (
            {"advantage_RC": lambda batch: batch.advantage_RC[:, :1]},
            rf"advantage_RC of shape \({ROWS}, 1\); accepted: \({ROWS}, ",
        ),
        (
            {"weight_R": lambda batch: jnp.ones((ROWS, 1))},
            rf"weight_R of shape \({ROWS}, 1\); accepted: \({ROWS},\)",
        ),
        (
            {"tokens_RC": lambda batch: jnp.concatenate([batch.tokens_RC] * 2)},
            r"tokens_RC of shape .* 2 rows \(rows_per_prompt\)",
        ),
        ({"figures": lambda batch: {"x": jnp.float32(1)}}, r"figures\['x'\]_R of shape \(\)"),
    ],
)
def test_rows_of_an_algorithm_are_looked_at(fields, message):
    with pytest.raises(
        ComponentError, match=rf"the algorithm mine: credit gave {message}"
    ) as raised:
        score(program_with(algorithm=changed(**fields)))
    assert not isinstance(raised.value, RewardError)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda samples, scores: {"tokens": 1}, "credit gave a dict; accepted: a Batch"),
        (lambda samples, scores: [][1], r"raised in credit: IndexError: .*test_credit\.py, line"),
    ],
)
def test_what_is_no_batch_and_what_is_raised(made, message):
    with pytest.raises(ComponentError, match=f"the algorithm mine:? {message}"):
        score(program_with(algorithm=dataclasses.replace(ALGORITHM, name="mine", credit=made)))


def test_wrong_rows_are_told_when_the_program_is_compiled():
    wrong = changed(tokens_RC=lambda batch: batch.tokens_RC[:2])
    with pytest.raises(ComponentError, match="tokens_RC of shape"):
        program_with(algorithm=wrong).minibatch_shapes()


def test_what_is_under_the_mask_may_be_anything():
    def masked(batch):
        return jnp.where(batch.mask_RC, batch.advantage_RC, jnp.nan)

    scores, batch = score(program_with(algorithm=changed(advantage_RC=masked)))
    assert not credit.faults({"reward": scores.raw_B}, scores, batch)
    assert not np.isfinite(np.asarray(batch.advantage_RC)).all()


@pytest.mark.parametrize("name", registry.names("algorithms"))
def test_every_algorithm_of_the_package_passes(name):
    """Sound rows of all of them have no fault, ties and cut completions among them."""
    program = rounds.algorithm_program(name)
    scores, batch = program.score(program.init(program.reference_params), round_of(2)[1])
    assert batch.sample_R is not None
    assert np.isfinite(np.asarray(scores.score_B)).all()


def sums(*terms: Term, **of_model) -> Reward:
    given = {"a": np.arange(ROWS, dtype=np.float32), "b": np.full(ROWS, 3.0)}
    names = [term.label for term in terms]
    host = {label: values for label, values in given.items() if label in names}
    return Reward(
        host=(lambda samples: host) if host else None, terms=terms, name="sum", **of_model
    )


def test_a_sum_weighs_its_terms_and_keeps_them_apart():
    """The learned one, 5 to 12 with mean 5 and deviation 2, counts in its unit: 0.5 * (0 ... 3.5) +
    2 * a - 1 * b.
    """

    def model(params, samples):
        return 5 + jnp.arange(ROWS, dtype=jnp.float32)

    terms = (Term("learned", "learned", 0.5), Term("lab:a", "a", 2.0), Term("lab:b", "b", -1.0))
    scores, _ = score(program_with(sums(*terms, model=model, params={}, mean=5.0, std=2.0)))
    a = np.arange(ROWS)
    np.testing.assert_allclose(scores.standardized_B, 0.5 * a / 2 + 2.0 * a - 3.0)
    np.testing.assert_allclose(
        scores.score_B, scores.standardized_B
    )  # the shared program replaces no score
    assert list(scores.terms) == ["a", "b", "learned"]
    np.testing.assert_allclose(scores.terms["learned"], a / 2)
    np.testing.assert_allclose(scores.terms["a"], a)


def test_one_weighted_reward_is_a_sum():
    scores, _ = score(program_with(sums(Term("lab:a", "a", 0.25))))
    np.testing.assert_allclose(scores.standardized_B, np.arange(ROWS) / 4)
    plain, _ = score(program_with())
    assert plain.terms is None


def test_a_term_of_weight_zero_is_recorded_and_trains_nothing():
    scores, _ = score(program_with(sums(Term("lab:a", "a", 1.0), Term("lab:b", "b", 0.0))))
    np.testing.assert_array_equal(scores.score_B, np.arange(ROWS))
    np.testing.assert_array_equal(scores.terms["b"], np.full(ROWS, 3.0))


def test_a_sum_is_trained_on():
    program = program_with(sums(Term("lab:a", "a", 1.0), Term("lab:b", "b", 0.5)))
    program.minibatch_shapes()
    events = list(synchronous.run(program, program.init(program.reference_params), 0, {}))
    assert len([event for event in events if isinstance(event, synchronous.Updated)]) == 3
