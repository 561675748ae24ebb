"""A program whose rounds are drawn through slots, and the pool of slots of any program."""

from collections.abc import Mapping
from functools import cached_property

import jax

from rlhf_jax.devices import sharding
from rlhf_jax.runtime.inflight.api import PoolState
from rlhf_jax.runtime.inflight.pool import SlotPool
from rlhf_jax.runtime.inflight.programs import Config, Programs
from rlhf_jax.runtime.inflight.round import sample_round
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.spec import ProgramSpec, Published
from rlhf_jax.types import Device, Params, Samples


def make_pool(program: Program, num_slots: int, segment_steps: int) -> SlotPool:
    """Empty slots on the mesh that samples.

    Args:
      program: its spec has the model, the prompts and the sampling distribution.
      num_slots: S.
      segment_steps: most decode steps of a segment.
    """
    spec, (mesh, rest) = program.spec, program.sampler.first
    config = pool_config(program, num_slots, segment_steps)
    return SlotPool(
        spec.model_of(program.generate_call), config, spec.prompts, spec.key, mesh, rest
    )


def pool_config(program: Program, num_slots: int, segment_steps: int) -> Config:
    """The config of a pool, as `make_pool` takes its arguments."""
    spec = program.spec
    num_rows = program.sampler.shapes.tokens_BC.shape[0]
    return Config(
        spec.sampling,
        spec.eos_id,
        spec.pad_id,
        num_slots,
        segment_steps,
        num_rows // spec.sampling.samples_per_prompt,
    )


def place(samples: Samples, program: Program) -> Samples:
    """Puts samples of the host on the mesh of the trainer."""
    return jax.device_put(samples, sharding.row_shardings(samples, program.trainer_mesh))


class SlotProgram(Program):
    """A program that draws each round through slots, under one version of the params.

    The slots drain before the next round. Every round begins at the same place of the ring, so that
    a run that goes on draws what one that never stopped does.
    """

    def __init__(
        self, spec: ProgramSpec, reference_params: Params, num_slots: int, segment_steps: int
    ):
        """Wires the calls; see `Program`.

        Args:
          spec: of the program.
          reference_params: the frozen reference.
          num_slots: S.
          segment_steps: most decode steps between two looks at which rows have ended.
        """
        super().__init__(spec, reference_params)
        self._sizes = num_slots, segment_steps

    def check_memory(self, asynchronous: bool, slots: Mapping[Device, int] | None = None) -> None:
        """Counts the pool too, which stays allocated; see `Program.check_memory`."""
        super().check_memory(asynchronous, slots or self.slot_bytes())

    def slot_bytes(self) -> Mapping[Device, int]:
        """Bytes of the pool by device."""
        model, (mesh, _) = self.spec.model_of(self.generate_call), self.sampler.first
        prompt_columns = self.sampler.shapes.prompt_tokens_BQ.shape[1]
        config = pool_config(self, *self._sizes)
        return Programs(model, config, prompt_columns, mesh).slot_bytes()

    @cached_property
    def _pool(self) -> tuple[SlotPool, PoolState]:
        pool = make_pool(self, *self._sizes)
        return pool, pool.saved(keeps_cache=False)

    def generate(self, params: Published, round_index: int, version: int) -> Samples:
        """Samples a round with published params; see `Program.generate`."""
        with self.dispatch_lock:
            pool, empty = self._pool
            pool.restore(empty)
            return place(sample_round(pool, params, round_index, version), self)
