"""Dr. GRPO, GOPO and best of group: GRPO's loss with an advantage of their own."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import dr_grpo, grpo
from rlhf_jax.algorithms.controls import best_of_group, gopo
from rlhf_jax.updating import denominator

from . import naive
from .checks import example
from .examples import random_samples, random_scores, with_scores
from .test_grpo import mean_loss, standardized


def centered(group):
    return [score - np.mean(group) for score in group]


def ranks(group):
    """2 − 4 (rank − 1) / (G − 1) from the best; distinct scores."""
    order = sorted(group, reverse=True)
    return [2 - 4 * order.index(score) / (len(group) - 1) for score in group]


def best(group):
    return standardized([float(score == max(group)) for score in group])


SUBJECTS = {
    "dr_grpo": (dr_grpo.dr_grpo(dr_grpo.Config()), centered, 0.0, "constant_length"),
    "gopo": (gopo.gopo(gopo.Config()), ranks, 0.04, "sequence"),
    "best_of_group": (best_of_group.best_of_group(best_of_group.Config()), best, 0.04, "sequence"),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_is_the_float64_loop(name):
    algorithm, advantage, kl_weight, aggregation = SUBJECTS[name]
    for seed in (0, 1):
        samples, scores, batch, outputs = example(algorithm, seed)
        expected = naive.group_policy_loss(
            samples, scores, outputs, advantage, aggregation=aggregation, kl_weight=kl_weight
        )
        np.testing.assert_allclose(mean_loss(algorithm, outputs, batch), expected, rtol=1e-4)


# Scores 6, 1, 1 and 2, 3, 3. GOPO: 1st of three and two sharing 2.5; two sharing 1.5 and a 3rd.
# Best: 1, 0, 0 and 0, ½, ½ with deviations √2/3 and √2/6 about 1/3.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dr_grpo", [10 / 3, -5 / 3, -5 / 3, -2 / 3, 1 / 3, 1 / 3]),
        ("gopo", [2.0, -1.0, -1.0, -2.0, 1.0, 1.0]),
        ("best_of_group", [2**0.5, -(0.5**0.5), -(0.5**0.5), -(2**0.5), 0.5**0.5, 0.5**0.5]),
    ],
)
def test_credit_by_hand(name, expected):
    algorithm, samples = SUBJECTS[name][0], random_samples(0)
    scores = with_scores(
        random_scores(algorithm, samples, 0), jnp.array([6.0, 1.0, 1.0, 2.0, 3.0, 3.0])
    )
    batch = algorithm.credit(samples, scores)
    np.testing.assert_allclose(naive.advantage_rows(batch, samples), expected, rtol=1e-4)


def test_best_of_group_without_the_division():
    algorithm, samples = (
        best_of_group.best_of_group(best_of_group.Config(advantage="centered")),
        random_samples(0),
    )
    scores = with_scores(
        random_scores(algorithm, samples, 0), jnp.array([6.0, 1.0, 1.0, 2.0, 3.0, 3.0])
    )
    expected = [2 / 3, -1 / 3, -1 / 3, -1 / 3, 1 / 6, 1 / 6]
    np.testing.assert_allclose(
        naive.advantage_rows(algorithm.credit(samples, scores), samples), expected, rtol=1e-5
    )


def test_dr_grpo_is_grpo_with_its_settings():
    settings = {"kl_weight": 0.0, "aggregation": "constant_length", "advantage": "centered"}
    algorithm, general = SUBJECTS["dr_grpo"][0], grpo.grpo(grpo.Config(**settings))
    _, _, batch, outputs = example(algorithm)
    assert algorithm.needs == general.needs == frozenset()
    assert mean_loss(algorithm, outputs, batch) == mean_loss(general, outputs, batch)
    assert denominator(batch.mask_RC, algorithm.aggregation) == batch.mask_RC.size


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (
            dr_grpo.dr_grpo,
            dr_grpo.Config(advantage="standardized"),
            r"dr_grpo\.advantage is 'standardized'; accepted: centered",
        ),
        (
            gopo.gopo,
            gopo.Config(advantage="standardized"),
            r"gopo\.advantage is 'standardized'; accepted: rank",
        ),
        (
            best_of_group.best_of_group,
            best_of_group.Config(advantage="rank"),
            r"best_of_group\.advantage is 'rank'; accepted: standardized, bessel, centered",
        ),
        (
            gopo.gopo,
            gopo.Config(aggregation="pair"),
            r"gopo\.aggregation is 'pair'; accepted: token, sequence",
        ),
    ],
)
def test_what_is_refused(make, config, message):
    with pytest.raises(ValueError, match=message):
        make(config)
