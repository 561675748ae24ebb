"""The compiled calls of a round on a mesh, what publish and init own, and the golden metrics of one
step.
"""

import copy
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax.clock import Clock

from . import rounds

TWO_UPDATES = Clock(
    1, num_minibatches=2
)  # in the first, policy and reference are one: margins are rounding
GOLDEN = Path(__file__).parent.parent / "golden" / "metrics_of_a_step.json"
REGENERATE = (
    "The numbers of one step have moved. If that is meant, say why in the commit, with the file "
    "that "
    "`cd tests && python -m runtime.test_program` writes; if not, the last change broke something."
)


def first_round(program) -> dict[str, float]:
    """Round 0 sampled, scored and trained on; the metrics of its last update."""
    state = program.init(program.reference_params)
    samples = program.generate(program.publish(state), 0, 0)
    scores, batch = program.score(state, samples)
    for update in range(program.spec.clock.updates_per_round):
        state, metrics = program.update(state, program.minibatch(batch, 0, update))
    figures = {name: metric.value() for name, metric in metrics.items()}
    return figures | {"score": float(scores.score_B.mean()), "tokens": float(samples.mask_BC.sum())}


def test_golden_metrics_of_a_step():
    expected = json.loads(GOLDEN.read_text())
    found = first_round(rounds.program_of(TWO_UPDATES))
    assert found.keys() == expected.keys(), REGENERATE
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value, rtol=1e-4, atol=1e-5, err_msg=f"{name}: {REGENERATE}"
        )


def test_on_policy_samples_have_the_logprobs_that_they_were_drawn_with():
    """Version 0, lag 0: the largest change of a log-probability is rounding, and KL to the
    reference is 0.
    """
    figures = first_round(rounds.program_of(Clock(1)))
    assert figures["logprob_change_max"] < 1e-4
    assert abs(figures["behavior_kl_k1"]) < 1e-3
    np.testing.assert_allclose(figures["loss"], np.log(2) * (1 - figures["tie_share"]), rtol=1e-3)


@pytest.mark.parametrize("shape", [(2, 2, 2)])
def test_a_round_on_a_mesh_is_the_round_on_one_device(shape):
    expected = first_round(rounds.program_of(TWO_UPDATES))
    program = copy.copy(rounds.make_program(shape))
    program.spec = dataclasses.replace(program.spec, clock=TWO_UPDATES)
    for name, value in first_round(program).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_the_layout_of_a_round():
    """Rows over data and fsdp, params by their axes, as far as they divide."""
    program = rounds.make_program((2, 2, 2))
    state = program.init(program.reference_params)
    samples = program.generate(program.publish(state), 0, 0)
    rows = samples.tokens_BC.sharding.shard_shape(samples.tokens_BC.shape)[0]
    assert rows == 2 * rounds.PROMPTS // 4
    kernel = state["policy"].params["layer_0"]["dense_h_to_4h"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (kernel.shape[0] // 2, kernel.shape[1] // 2)
    layouts = [
        jax.tree.map(lambda x: x.sharding, tree)
        for tree in (state["policy"].params, program.publish(state))
    ]
    assert layouts[0] == layouts[1]


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps(first_round(rounds.program_of(TWO_UPDATES)), indent=1, sort_keys=True) + "\n"
    )
