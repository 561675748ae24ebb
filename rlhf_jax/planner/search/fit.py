"""The plan of a run whose calls all take turns on all of its devices: the trainer's mesh stays as it
is, and the rest is cut so that it fits.

Training keeps its mesh. What is chosen is the mesh of sampling and of scoring on the same devices,
each call's micro-batches, and remat: the fastest of what fits in memory.
"""

from collections.abc import Callable, Sequence

from rlhf_jax.dataflow import Call
from rlhf_jax.planner.api import CostModel, Workload
from rlhf_jax.planner.search.branch_and_bound import exact
from rlhf_jax.planner.search.explain import why_none_fits
from rlhf_jax.planner.search.space import Space
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Placement, Plan

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""More than a search over devices tries: here nothing else makes a call smaller."""
MAX_NODES = 20_000
"""Partial plans that are looked into: a few seconds on one core."""


def fit(
    calls: Sequence[Call],
    costs: CostModel,
    work: Workload,
    trainer: Placement,
    devices_per_host: int,
    costs_of: Callable[[int], CostModel] | None = None,
) -> Plan:
    """The fastest plan that fits in which each call is on the trainer's devices.

    Args:
      calls: of a round.
      costs: seconds and bytes of placed calls.
      work: of a round.
      trainer: all devices of the run, and the mesh shape of every training call.
      devices_per_host: of each host.
      costs_of: costs for another number of devices, to say how many would do where nothing fits.

    Raises Refusal where nothing fits, naming the call that needs most and what would fit.
    """

    def accepted(call: Call, place: Placement) -> bool:
        if place.devices != trainer.devices:
            return False
        return call.kind != "train" or place.mesh_shape == trainer.mesh_shape

    num_devices = len(trainer.devices)
    space = Space(calls, costs, work, num_devices, devices_per_host, MICRO_BATCHES, accepted)
    choice = exact(space, None, MAX_NODES).choice if all(space.options) else None
    if choice is None:
        raise Refusal(why_none_fits(space, costs_of))
    return space.plan(choice)
