"""Credit and losses of every algorithm of the package refuse arrays of another rank or shape."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax import registry

from .checks import example
from .test_battery import algorithm_of


@pytest.mark.parametrize("name", registry.names("algorithms"))
def test_a_wrong_rank_or_shape_is_refused_with_the_fields_name(name):
    algorithm = algorithm_of(name)
    samples, scores, batch, outputs = example(algorithm)

    def credit(scores):
        return jax.eval_shape(algorithm.credit, samples, scores)

    credit(scores)
    with pytest.raises(AssertionError, match=r"rank 2 .*\[score_B\]"):
        credit(replace(scores, score_B=scores.score_B[:, None]))
    with pytest.raises(AssertionError, match=r"shape .*\[score_B\]"):
        credit(replace(scores, score_B=scores.score_B[:-1]))
    for role, loss in algorithm.losses.items():
        field = "value_RC" if role == "critic" else "logprob_RC"
        array = getattr(outputs, field)
        jax.eval_shape(loss, outputs, batch)
        for wrong, message in ((array[:, 0], "rank 1"), (array[:, :-1], "shape")):
            with pytest.raises(AssertionError, match=rf"{message} .*\[{field}\]"):
                jax.eval_shape(loss, replace(outputs, **{field: wrong}), batch)
        with pytest.raises(AssertionError, match=r"shape .*\[mask_RC\]"):
            jax.eval_shape(loss, outputs, replace(batch, mask_RC=jnp.ones((1, 1), bool)))
