"""Cost tables made of seeded random numbers, and dataflows of real algorithms, for the planner's
tests.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from rlhf_jax.algorithms import online_dpo, ppo
from rlhf_jax.dataflow import Loop, calls_of
from rlhf_jax.planner.api import Workload
from rlhf_jax.types import Placement, Plan

PPO = calls_of(ppo.ppo(ppo.Config()), learned_reward=True)
ONLINE_DPO = calls_of(online_dpo.online_dpo(online_dpo.Config()), learned_reward=True)
SECONDS = {"generate": 8.0, "infer": 1.5, "train": 5.0}


@dataclass(frozen=True)
class Table:
    """Costs that scale with the number of devices and are each multiplied by a random number, the
    same whenever asked.

    `symmetric`: places of devices do not matter, only how many they are and which two placements
    share; else they do.
    """

    seed: int
    symmetric: bool = True
    device_bytes: float = 1e12
    shared_throughput: bool = False
    move: float = 0.3
    transfer: float = 0.05

    def random(self, *key):
        return np.random.default_rng([self.seed, zlib.crc32(repr(key).encode())]).random()

    def _place(self, placement):
        devices = len(placement.devices) if self.symmetric else placement.devices
        return devices, placement.mesh_shape

    def _pair(self, source, target):
        shared = len(set(source.devices) & set(target.devices))
        return self._place(source), self._place(target), shared

    def refusal(self, call, placement):
        refused = placement.mesh_shape[2] > 4 or (
            placement.num_micro_batches == 8 and placement.mesh_shape[0] == 8
        )
        return f"{placement.mesh_shape} with {placement.num_micro_batches}" if refused else None

    def seconds(self, call, placement):
        key = call.name, self._place(placement), placement.num_micro_batches, placement.remat
        return (
            SECONDS[call.kind]
            * (0.5 + self.random("seconds", *key))
            / len(placement.devices) ** 0.7
        )

    def working_bytes(self, call, placement):
        key = call.name, self._place(placement), placement.remat
        cut = placement.num_micro_batches * (2 if placement.remat else 1)
        return 40e9 * (0.5 + self.random("working", *key)) / len(placement.devices) / cut

    def params_bytes(self, role, placement):
        _, fsdp, tensor = placement.mesh_shape
        return 8e9 / (fsdp * tensor)

    def state_bytes(self, role, placement):
        return 4 * self.params_bytes(role, placement)

    def reallocate_seconds(self, role, source, target):
        if (source.devices, source.mesh_shape) == (target.devices, target.mesh_shape):
            return 0.0
        return self.move * self.random("move", role, self._pair(source, target))

    def transfer_seconds(self, call, source, target):
        if (source.devices, source.mesh_shape) == (target.devices, target.mesh_shape):
            return 0.0
        return self.transfer * self.random("transfer", call.name, self._pair(source, target))


def work(lag: int = 0, loop: Loop = "synchronous", **clock) -> Workload:
    return Workload(
        num_prompts=16,
        samples_per_prompt=2,
        prompt_tokens=7,
        completion_tokens=11,
        lag=lag,
        loop=loop,
        **clock,
    )


@dataclass(frozen=True)
class Given:
    """Costs that a test states: seconds by call, the same for every move and every transfer between
    different places.
    """

    by_call: dict
    move: float = 0.0
    transfer: float = 0.0
    shared_throughput: bool = False
    device_bytes: float = 100e9
    working: float = 10e9
    params: float = 4e9
    state: float = 16e9

    def refusal(self, call, placement):
        rows, shards = (
            8,
            placement.mesh_shape[0] * placement.mesh_shape[1] * placement.num_micro_batches,
        )
        return f"{rows} rows do not divide by {shards}" if rows % shards else None

    def seconds(self, call, placement):
        return self.by_call[call.name]

    def working_bytes(self, call, placement):
        shards = placement.mesh_shape[0] * placement.mesh_shape[1] * placement.num_micro_batches
        return self.working / shards / (4 if placement.remat else 1)

    def params_bytes(self, role, placement):
        return self.params / (placement.mesh_shape[1] * placement.mesh_shape[2])

    def state_bytes(self, role, placement):
        return self.state / (placement.mesh_shape[1] * placement.mesh_shape[2])

    def reallocate_seconds(self, role, source, target):
        return (
            0.0
            if (source.devices, source.mesh_shape) == (target.devices, target.mesh_shape)
            else self.move
        )

    def transfer_seconds(self, call, source, target):
        return (
            0.0
            if (source.devices, source.mesh_shape) == (target.devices, target.mesh_shape)
            else self.transfer
        )


def place(*devices, **settings):
    """The devices along `data`."""
    return Placement(devices, (len(devices), 1, 1), **settings)


def plan(**placements):
    return Plan(placements)
