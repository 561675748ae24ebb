"""The calls that judge samples without a gradient: each compiled for its own mesh, on samples that are moved there."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from rlhf_jax import scoring
from rlhf_jax.devices import distributed, sharding
from rlhf_jax.devices.placement import ROLES, Places
from rlhf_jax.micro_batches import in_parts
from rlhf_jax.runtime.setup import Setup
from rlhf_jax.types import Array, Params, Samples


class Inference:
    """One call: `(params, samples) -> rows`, both on its mesh, rows over data and fsdp."""

    def __init__(self, function: Callable[..., Any], mesh: Mesh, num_parts: int, unit_rows: int):
        self.mesh = mesh
        in_turn = sharding.keeping_rows(in_parts(function, num_parts, unit_rows, unit_rows), mesh)
        self.run = distributed.compiled(in_turn, out_shardings=sharding.rows(mesh))

    def __call__(self, params: Params, samples: Samples) -> Array:
        return self.run(params, samples)


def functions(setup: Setup) -> dict[str, Callable[[Params, Samples], Array]]:
    """The inference calls of a round, in the order in which they are dispatched, each with the model's config of its
    placement."""
    places, needs = setup.places, setup.algorithm.needs
    found: dict[str, Callable[..., Array]] = {}
    for name in ("reference", "proximal"):
        if name in needs:
            found[name] = partial(scoring.sample_logprobs, model=changed(setup.model, places, name))
    if "value" in needs:
        assert setup.critic is not None
        found["value"] = partial(scoring.sample_values, model=changed(setup.critic.model, places, "value"))
    if setup.reward.model is not None:
        found["reward"] = setup.reward.model
    return found


def changed(model: Any, places: Places, call: str) -> Any:
    """A model as the placement of a call has it."""
    changes = places.changes(call)
    return model.with_config(**changes) if changes else model


def make(setup: Setup) -> dict[str, Inference]:
    """The compiled inference calls of a round, by name. A group's rows stay together: its prompt is run once."""
    places, group = setup.places, setup.sampling.samples_per_prompt
    return {
        name: Inference(function, places.mesh(name), places.parts(name), group)
        for name, function in functions(setup).items()
    }


def params_layout(setup: Setup, call: str, params: Params) -> Any:
    """The shardings of the params that a call needs, on its mesh."""
    network, mesh = setup.networks[ROLES[call]], setup.places.mesh(call)
    if network is None:
        return jax.tree.map(lambda _: sharding.replicated(mesh), params)
    return sharding.params_shardings(network, params, mesh)  # type: ignore[arg-type]
