"""Asserts the shapes of what an algorithm's credit and losses are given."""

import dataclasses
from collections.abc import Callable

from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.types import Algorithm, Array, Batch, Metrics, Outputs, Samples, Scores

Loss = Callable[[Outputs, Batch], tuple[Array, Metrics]]


def check_shapes(algorithm: Algorithm) -> Algorithm:
    """Wraps `credit` and the losses of an algorithm, so that they assert their arguments' shapes.

    Every field with a suffix must have the rank of its suffix, and all fields of a call one size
    per letter: B rows of Samples and Scores, R rows of a Batch and Outputs. Numbers and compiled
    programs stay the same. An algorithm outside the package needs none of this.
    """

    def credit(samples: Samples, scores: Scores) -> Batch:
        _assert_fields(samples, scores)
        return algorithm.credit(samples, scores)

    losses = {role: _checked_loss(loss) for role, loss in algorithm.losses.items()}
    return dataclasses.replace(algorithm, credit=credit, losses=losses)


def _checked_loss(loss: Loss) -> Loss:
    def checked(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        _assert_fields(batch, outputs)
        return loss(outputs, batch)

    return checked


def _assert_fields(*trees: Samples | Scores | Batch | Outputs) -> None:
    """Asserts the shapes of all fields whose names end with capitals."""
    fields = {name: array for tree in trees for name, array in vars(tree).items()}
    assert_shapes(
        **{name: array for name, array in fields.items() if name.rpartition("_")[2].isupper()}
    )
