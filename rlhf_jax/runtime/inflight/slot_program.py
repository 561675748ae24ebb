"""A program whose rounds are drawn through slots."""

from collections.abc import Mapping
from functools import cached_property

import jax

from rlhf_jax.devices import sharding
from rlhf_jax.runtime.inflight import ahead
from rlhf_jax.runtime.inflight.api import PoolState
from rlhf_jax.runtime.inflight.pool import SlotPool
from rlhf_jax.runtime.inflight.programs import Config, Programs
from rlhf_jax.runtime.inflight.round import sample_round
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.sampler import Entry
from rlhf_jax.runtime.spec import ProgramSpec, Published
from rlhf_jax.types import Device, Params, Samples


def place(samples: Samples, program: Program) -> Samples:
    """Puts samples of the host on the mesh of the trainer."""
    return jax.device_put(samples, sharding.row_shardings(samples, program.trainer_mesh))


class SlotProgram(Program):
    """A program whose rounds are drawn through slots.

    `generate` draws a round under one version of the params, and the slots drain before the next
    one. Every round begins at the same place of the ring, so that a run that goes on draws what one
    that never stopped does. Loops of in-flight updates take `make_pool` in its place.
    """

    def __init__(
        self,
        spec: ProgramSpec,
        reference_params: Params,
        num_slots: int,
        segment_steps: int,
        drains: bool = True,
        rebuilds: bool = False,
    ):
        """Wires the calls; see `Program`.

        Args:
          spec: of the program.
          reference_params: the frozen reference.
          num_slots: S.
          segment_steps: most decode steps between two looks at which rows have ended.
          drains: the last rows of a round are moved to fewer slots.
          rebuilds: keys and values of running rows are computed again.
        """
        super().__init__(spec, reference_params)
        num_rows = self.sampler.shapes.tokens_BC.shape[0]
        self.config = Config(
            spec.sampling,
            spec.eos_id,
            spec.pad_id,
            num_slots,
            segment_steps,
            num_rows // spec.sampling.samples_per_prompt,
        )
        self._drains, self._rebuilds = drains, rebuilds

    @cached_property
    def slots(self) -> Programs:
        """The compiled functions of the slots, on the mesh that samples."""
        model, (mesh, _) = self.spec.model_of(self.generate_call), self.sampler.first
        prompt_columns = self.sampler.shapes.prompt_tokens_BQ.shape[1]
        return Programs(model, self.config, prompt_columns, mesh)

    def make_pool(self) -> SlotPool:
        """Empty slots on the mesh that samples."""
        spec, (mesh, rest) = self.spec, self.sampler.first
        model, config, programs = spec.model_of(self.generate_call), self.config, self.slots
        return SlotPool(model, config, spec.prompts, spec.key, mesh, rest=rest, programs=programs)

    def check_memory(self, asynchronous: bool, slots: Mapping[Device, int] | None = None) -> None:
        """Counts the pool too, which stays allocated; see `Program.check_memory`."""
        super().check_memory(asynchronous, slots or self.slots.slot_bytes())

    def _ahead(self) -> list[Entry]:
        others = [entry for call in self.calls[1:] for entry in self._entries(call.name)]
        return self.slot_entries() + others

    def slot_entries(self) -> list[Entry]:
        """The compiled functions that the pool may call, with shapes of their arguments."""
        _, (params, *_) = self.sampler.calls(self.reference_params)[0]
        compactions = self.spec.sampling.num_compactions if self._drains else 0
        return ahead.entries(self.slots, params, self.spec.key, self._rebuilds, compactions)  # type: ignore[arg-type]

    @cached_property
    def _pool(self) -> tuple[SlotPool, PoolState]:
        pool = self.make_pool()
        return pool, pool.saved(keeps_cache=False)

    def generate(self, params: Published, round_index: int, version: int) -> Samples:
        """Samples a round with published params; see `Program.generate`."""
        with self.dispatch_lock:
            pool, empty = self._pool
            pool.restore(empty)
            return place(sample_round(pool, params, round_index, version), self)
