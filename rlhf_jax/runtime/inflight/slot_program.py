"""A program whose rounds are drawn through slots."""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property

import jax

from rlhf_jax.devices import sharding
from rlhf_jax.models.common.adapters import Adapted, Base, Versions, split
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.inflight import ahead
from rlhf_jax.runtime.inflight.api import PoolState
from rlhf_jax.runtime.inflight.held import Held
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


def check_adapters(is_pinned: bool, has_adapters: bool) -> None:
    """Raises Refusal for pinned rows without adapters.

    Args:
      is_pinned: rows keep the version of their round.
      has_adapters: of the policy.
    """
    if is_pinned and not has_adapters:
        raise Refusal(
            "rlhf.weights is 'pinned' with lora.rank=0, and a pool holds lag + 1 versions of an "
            "adapter, not of all params; accepted: lora.rank of 1 or more, or rlhf.weights=inflight"
        )


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

        Raises Refusal for a pinned clock without adapters: versions of all params do not fit beside
        each other.
        """
        super().__init__(spec, reference_params)
        check_adapters(spec.clock.pinned, isinstance(self.sampler.first[1], Base))
        num_rows = self.sampler.shapes.tokens_BC.shape[0]
        self.config = Config(
            spec.sampling,
            spec.eos_id,
            spec.pad_id,
            num_slots,
            segment_steps,
            num_rows // spec.sampling.samples_per_prompt,
            spec.clock.lag + 1 if spec.clock.pinned else 0,
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

    def make_held(self) -> Held | None:
        """The place of the versions that a pinned pool draws with side by side; None of another
        clock.
        """
        if not self.config.num_versions:
            return None
        return Held(self.config.num_versions, split(self._sampled_params())[0])

    def _sampled_params(self) -> Params:
        """Shapes of the params that sample, a version on its base."""
        _, (params, *_) = self.sampler.calls(self.reference_params)[0]
        return params  # type: ignore[return-value]

    def check_memory(self, asynchronous: bool, slots: Mapping[Device, int] | None = None) -> None:
        """Counts the pool too, which stays allocated, and with it the versions that a pinned pool
        puts side by side; see `Program.check_memory`.
        """
        held = Counter(slots or self.slots.slot_bytes())
        for device, size in self.sampler.version_bytes()[0].items():
            held[device] += size * self.config.num_versions
        super().check_memory(asynchronous, held)

    def _ahead(self) -> list[Entry]:
        others = [entry for call in self.calls[1:] for entry in self._entries(call.name)]
        return self.slot_entries() + others

    def slot_entries(self) -> list[Entry]:
        """The compiled functions that the pool may call, with shapes of their arguments."""
        params, num_versions = self._sampled_params(), self.config.num_versions
        if num_versions:
            assert isinstance(params, Adapted)
            params = Versions(params.base, (params.adapter,) * num_versions, params.scale)
        compactions = self.spec.sampling.num_compactions if self._drains else 0
        return ahead.entries(self.slots, params, self.spec.key, self._rebuilds, compactions)

    @cached_property
    def _pool(self) -> tuple[SlotPool, PoolState]:
        pool = self.make_pool()
        return pool, pool.saved(keeps_cache=False)

    def generate(self, params: Published, round_index: int, version: int) -> Samples:
        """Samples a round with published params; see `Program.generate`. The slots of a pinned pool
        are its stream's, so that a round beside it is a static batch.
        """
        if self.config.num_versions:
            return super().generate(params, round_index, version)
        with self.dispatch_lock:
            pool, empty = self._pool
            pool.restore(empty)
            return place(sample_round(pool, params, round_index, version), self)
