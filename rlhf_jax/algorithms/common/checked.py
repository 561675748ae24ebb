"""Checks of an algorithm that is not of the package: what its losses raise and give is told in a
line that names it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import get_args

import jax.numpy as jnp

from rlhf_jax.ops.scalars import through
from rlhf_jax.refusal import ComponentError, at_fault
from rlhf_jax.types import Algorithm, Array, Batch, Metric, Metrics, Outputs

Loss = Callable[[Outputs, Batch], tuple[Array, Metrics]]
ROLES = ("policy", "critic")


def checked(algorithm: Algorithm) -> Algorithm:
    """The algorithm, whose losses are checked while they are traced. Nothing is added to what is
    compiled.

    Raises ComponentError for losses of other roles than a policy, or a policy and a critic.
    """
    if "policy" not in algorithm.losses or set(algorithm.losses) - set(ROLES):
        listed = ", ".join(map(str, algorithm.losses)) or "no role"
        raise ComponentError(
            f"the algorithm {algorithm.name} has losses of {listed}; accepted: policy, or policy "
            "and critic"
        )
    losses = {
        role: through(loss, partial(_checked, f"the algorithm {algorithm.name}", role))
        for role, loss in algorithm.losses.items()
    }
    return dataclasses.replace(algorithm, losses=losses)


def _checked(who: str, role: str, loss: Loss) -> Loss:
    def traced(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        with at_fault(who, when=f" in the loss of the {role}"):
            given: object = loss(outputs, batch)
        if not isinstance(given, tuple) or len(given) != 2:
            raise ComponentError(
                f"{who}: the loss of the {role} gave a {type(given).__name__}; accepted: a pair "
                "(loss, metrics)"
            )
        loss_sum, metrics = given
        if jnp.shape(loss_sum) != ():
            raise ComponentError(
                f"{who}: the loss of the {role} has the shape {jnp.shape(loss_sum)}; accepted: one "
                "number, a sum over rows"
            )
        if not isinstance(metrics, Mapping):
            raise ComponentError(
                f"{who}: the metrics of the {role} are a {type(metrics).__name__}; accepted: "
                "metrics by name"
            )
        for name, metric in metrics.items():
            if not isinstance(metric, Metric):
                accepted = ", ".join(kind.__name__ for kind in get_args(Metric))
                raise ComponentError(
                    f"{who}: the metric {name!r} of the {role} is a {type(metric).__name__}; "
                    f"accepted: {accepted}"
                )
        return loss_sum, metrics

    return traced
