"""A program whose rounds are drawn through slots."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import jax
import numpy as np

from rlhf_jax.devices import distributed, sharding
from rlhf_jax.devices.transfer import per_host
from rlhf_jax.models.common.adapters import Adapted, Base, Versions, split
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.inflight import ahead
from rlhf_jax.runtime.inflight.api import PoolState
from rlhf_jax.runtime.inflight.held import Held, published_to
from rlhf_jax.runtime.inflight.pool import SlotPool
from rlhf_jax.runtime.inflight.programs import Config, Programs
from rlhf_jax.runtime.inflight.round import sample_round
from rlhf_jax.runtime.inflight.rows import interleaved, prompts_of_slice
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.sampler import Entry
from rlhf_jax.runtime.spec import ProgramSpec, Published
from rlhf_jax.types import Device, Params, Samples


def place(samples: Samples, program: Program) -> Samples:
    """Puts samples of the host on the mesh of the trainer; of several processes, on the part of it
    that this one has.
    """
    mesh = per_host.local_mesh(program.trainer_mesh)
    return jax.device_put(samples, sharding.row_shardings(samples, mesh))


def gather(samples: Samples, program: Program) -> Samples:
    """The samples of a round on the mesh of the trainer, in the order of its prompts, from the rows
    that each process has drawn. Collective: the trainer's thread calls it.

    Args:
      samples: as `place` returns them, of the slices of this process.
      program: whose slots drew them.
    """
    if not distributed.several():
        return samples
    assert isinstance(program, SlotProgram)
    here, group = len(program.sampler.slices), samples.samples_per_prompt
    prompt_R, sample_R = np.divmod(np.arange(samples.tokens_BC.shape[0]), group)
    turn_R, index_R = np.divmod(prompt_R, here)
    prompt_R = turn_R * program.num_slices + program.first_slice + index_R
    mesh = program.trainer_mesh
    place_R = jax.device_put(
        np.asarray(prompt_R * group + sample_R, np.int32), sharding.rows(per_host.local_mesh(mesh))
    )
    local = samples, place_R
    spread = per_host.to_global(local, sharding.row_shardings(local, mesh))
    whole, place_B = distributed.fetch(spread)
    order_B = np.argsort(place_B)
    ordered = jax.tree.map(lambda array: array[order_B] if array.ndim else array, whole)
    return distributed.feed(ordered, sharding.row_shardings(ordered, mesh))


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
        check_adapters(spec.clock.pinned, isinstance(self.sampler.slices[0][1], Base))
        num_rows = self.sampler.shapes.tokens_BC.shape[0]
        self.num_slices = len(self.sampler.slices) * jax.process_count()
        self.first_slice = len(self.sampler.slices) * jax.process_index()
        self.config = Config(
            spec.sampling,
            spec.eos_id,
            spec.pad_id,
            num_slots,
            segment_steps,
            num_rows // spec.sampling.samples_per_prompt // self.num_slices,
            spec.clock.lag + 1 if spec.clock.pinned else 0,
        )
        self._drains, self._rebuilds = drains, rebuilds

    @cached_property
    def slots(self) -> list[Programs]:
        """The compiled functions of the slots, for each mesh that samples."""
        model = self.spec.model_of(self.generate_call)
        prompt_columns = self.sampler.shapes.prompt_tokens_BQ.shape[1]
        return [
            Programs(model, self.config, prompt_columns, mesh) for mesh, _ in self.sampler.slices
        ]

    def make_pool(self, slice_index: int = 0) -> SlotPool:
        """Empty slots on a mesh that samples, for the prompts of a slice of this process."""
        spec, (mesh, rest) = self.spec, self.sampler.slices[slice_index]
        model, programs = spec.model_of(self.generate_call), self.slots[slice_index]
        prompts = prompts_of_slice(spec.prompts, self.first_slice + slice_index, self.num_slices)
        return SlotPool(model, self.config, prompts, spec.key, mesh, rest=rest, programs=programs)

    def make_held(self, slice_index: int = 0) -> Held | None:
        """The place of the versions that a pinned pool draws with side by side; None of another
        clock.
        """
        if not self.config.num_versions:
            return None
        return Held(self.config.num_versions, split(self._sampled_params(slice_index))[0])

    def _sampled_params(self, slice_index: int) -> Params:
        """Shapes of the params that sample on a slice, a version on its base."""
        _, (params, *_) = self.sampler.calls(self.reference_params)[slice_index]
        return params  # type: ignore[return-value]

    def check_memory(self, asynchronous: bool, slots: Mapping[Device, int] | None = None) -> None:
        """Counts the pool too, which stays allocated, and with it the versions that a pinned pool
        puts side by side; see `Program.check_memory`.
        """
        held = Counter(slots or sum((each.slot_bytes() for each in self.slots), Counter()))
        for of_slice in self.sampler.version_bytes():
            for device, size in of_slice.items():
                held[device] += size * self.config.num_versions
        super().check_memory(asynchronous, held)

    def _ahead(self) -> list[Entry]:
        others = [entry for call in self.calls[1:] for entry in self._entries(call.name)]
        return self.slot_entries() + others

    def slot_entries(self) -> list[Entry]:
        """The compiled functions that the pool may call, with shapes of their arguments."""
        num_versions, found = self.config.num_versions, []
        compactions = self.spec.sampling.num_compactions if self._drains else 0
        for index, programs in enumerate(self.slots):
            params = self._sampled_params(index)
            if num_versions:
                assert isinstance(params, Adapted)
                params = Versions(params.base, (params.adapter,) * num_versions, params.scale)
            key = self.spec.key
            found += ahead.entries(programs, params, key, self._rebuilds, compactions)
        return found

    @cached_property
    def _pools(self) -> list[tuple[SlotPool, PoolState]]:
        pools = [self.make_pool(index) for index in range(len(self.sampler.slices))]
        return [(pool, pool.saved(keeps_cache=False)) for pool in pools]

    def generate(self, params: Published, round_index: int, version: int) -> Samples:
        """Samples a round with published params; see `Program.generate`. The slots of a pinned pool
        are its stream's, so that a round beside it is a static batch.
        """
        if self.config.num_versions:
            return super().generate(params, round_index, version)

        def share(slice_index: int) -> Samples:
            pool, empty = self._pools[slice_index]
            pool.restore(empty)
            of_slice = published_to(params, slice_index, num_slices)
            return sample_round(pool, of_slice, round_index, version)

        num_slices = len(self.sampler.slices)
        with self.dispatch_lock, ThreadPoolExecutor(num_slices) as threads:
            # Each slice has devices of its own, so that their programs need no common order.
            return place(interleaved(list(threads.map(share, range(num_slices)))), self)
