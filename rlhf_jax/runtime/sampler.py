"""The sampler: on the trainer's mesh, or on its own device slices that each sample a share of the
prompts.

A row's random numbers depend only on its prompt's ordinal and its sample index. So several slices
sample the same tokens as one would, up to float32 near-ties. The results are on the trainer's mesh.

Each of several hosts samples a contiguous share of a round's prompts on its own devices, without a
collective over hosts: `publish` leaves the whole params on each host, and a host's samples are its rows
of the trainer's mesh. So the sampling thread never dispatches a program that spans processes
(`devices/dispatch.py`); `publish` may, and belongs to the trainer's thread.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax import sampling
from rlhf_jax.dataflow import Call
from rlhf_jax.devices import distributed, memory, sharding
from rlhf_jax.devices.bases import Bases
from rlhf_jax.devices.placement import put
from rlhf_jax.devices.transfer import per_host
from rlhf_jax.devices.transfer.reallocate import move
from rlhf_jax.micro_batches import map_micro_batches
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.adapters import Rest, join, split
from rlhf_jax.models.common.stacking import is_stacked, unstack
from rlhf_jax.ops.once import bound
from rlhf_jax.ops.versions import TokenCounts
from rlhf_jax.runtime.spec import ProgramSpec, Published
from rlhf_jax.types import Array, Device, Params, Prompts, Samples

Generate = Callable[[Params, Prompts, Array, np.int32], Samples]
"""(params, prompts, key, version) -> samples."""
GENERATE = "generate"
Entry = tuple[distributed.Compiled[object], tuple[object, ...]]
"""A compiled function, and its arguments as shapes with shardings (some as arrays)."""


class Sampler:
    """Compiled sampling. With slices, published params are a tuple: a copy for each slice."""

    def __init__(
        self,
        generate: Generate,
        model: Model,
        params: Params,
        prompts: Prompts,
        key: Array,
        trainer: Mesh,
        slices: Sequence[Mesh],
        dtype: str,
        bases: Bases,
    ):
        """Compiles nothing yet.

        Args:
          generate: samples prompts; compiled for each mesh that samples.
          model: gives the shardings of params.
          params: of the policy, arrays or their shapes; the base of an adapter lies on the
            trainer's mesh.
          prompts: of a whole round, arrays or their shapes.
          key: random key of the samples, or its shape.
          trainer: the policy's training mesh, over all hosts.
          slices: meshes of this host's devices; none: this host's part of the trainer's mesh
            samples.
          dtype: of published params.
          bases: puts the base of an adapter on the meshes that sample. It is not published.
        """
        self._disaggregated = bool(slices)
        self._global_mesh, trainer = trainer, per_host.local_mesh(trainer)
        self._meshes = tuple(slices) or (trainer,)
        self._trainer = trainer
        self._keys = [_on_mesh(key, mesh) for mesh in self._meshes] if slices else [key]
        self.dtype = dtype
        trained, rest = split(params)
        # Published params have an entry per layer: decoding reads no slices of stacked ones.
        unrolled = jax.eval_shape(unstack, trained)
        self._params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), unrolled)
        num_shares = len(self._meshes) * distributed.num_hosts()
        self.share = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((x.shape[0] // num_shares, *x.shape[1:]), x.dtype),
            prompts,
        )
        self.shapes = jax.eval_shape(generate, params, prompts, key, np.int32(0))
        share_shapes = jax.eval_shape(generate, params, self.share, key, np.int32(0))
        whole = join(trained, per_host.on_each_host(rest))
        self._rests = [bases.rest(whole, model, mesh) for mesh in self._meshes]
        self._layouts = [sharding.params_shardings(model, unrolled, mesh) for mesh in self._meshes]
        self._generate = [
            distributed.compiled_here(
                sharding.sampling_rows(generate, mesh),
                name=GENERATE,
                out_shardings=sharding.row_shardings(share_shapes, mesh),
            )
            for mesh in self._meshes
        ]
        self._copy: distributed.Compiled[Params] = make_publish(
            sharding.params_shardings(model, unrolled, trainer), dtype
        )
        self._concatenate = distributed.compiled_here(
            concatenate, out_shardings=sharding.row_shardings(self.shapes, trainer)
        )

    @property
    def devices(self) -> set[Device]:
        """Devices that it samples on; with several hosts, those of this host."""
        return {device for mesh in self._meshes for device in mesh.devices.flat}

    @property
    def is_disaggregated(self) -> bool:
        """True where it samples on devices of its own."""
        return self._disaggregated

    @property
    def slices(self) -> list[tuple[Mesh, Rest]]:
        """The mesh of each slice, or of the trainer, and the base of an adapter on it."""
        return list(zip(self._meshes, self._rests, strict=True))

    def version_bytes(self) -> list[Counter[Device]]:
        """Bytes of a published version by device, for each mesh that samples."""
        return [memory.bytes_by_device(self._params, layout) for layout in self._layouts]

    def publish(self, params: Params) -> Published:
        """Copies params to the meshes that sample, with an entry per layer; stacked ones are copied
        on the trainer's mesh first, in the dtype of published params. Params that are sharded over
        hosts are gathered on each, in that dtype.
        """
        params = per_host.on_each_host(params, self.dtype)
        if not self._disaggregated:
            return self._copy(params)
        if is_stacked(params):
            params = self._copy(params)
        return tuple(move(params, layout, dtype=self.dtype) for layout in self._layouts)

    def generate(self, params: Published, prompts: Prompts, version: int) -> Samples:
        """Samples a round; the samples are on the trainer's mesh.

        The slices sample at the same time. There is no collective over hosts.

        Args:
          params: as `publish` returns them.
          prompts: of the whole round.
          version: of the params.
        """
        samples = self._generate_share(params, self._own(prompts), version)
        return per_host.to_global(samples, sharding.row_shardings(samples, self._global_mesh))

    def _own(self, prompts: Prompts) -> Prompts:
        """This host's prompts of a whole round's."""
        return per_host.local_rows(prompts, self._global_mesh)

    def _generate_share(self, params: Published, prompts: Prompts, version: int) -> Samples:
        """Samples of this host's prompts, on its part of the trainer's mesh."""
        if not self._disaggregated:
            prompts = jax.device_put(prompts, sharding.row_shardings(prompts, self._trainer))
            assert not isinstance(params, tuple)
            whole = join(params, self._rests[0])
            return self._generate[0](whole, prompts, self._keys[0], np.int32(version))
        samples_of_slices = [
            generate(
                join(slice_params, rest),
                jax.device_put(share, sharding.row_shardings(share, mesh)),
                key,
                np.int32(version),
            )
            for generate, slice_params, rest, share, mesh, key in zip(
                self._generate,
                params,
                self._rests,
                shares(prompts, len(self._meshes)),
                self._meshes,
                self._keys,
                strict=True,
            )
        ]
        if len(samples_of_slices) == 1:
            return put(
                samples_of_slices[0], sharding.row_shardings(samples_of_slices[0], self._trainer)
            )
        replicated = sharding.replicated(self._trainer)
        return self._concatenate(
            [
                put(slice_samples, jax.tree.map(lambda _: replicated, slice_samples))
                for slice_samples in samples_of_slices
            ]
        )

    def calls(self, params: Params) -> list[Entry]:
        """Each compiled function with shapes of its arguments, for compiling ahead of time."""
        entries: list[Entry] = []
        for generate, mesh, layout, rest, key in zip(
            self._generate, self._meshes, self._layouts, self._rests, self._keys, strict=True
        ):
            published = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, self.dtype, sharding=s),
                self._params,
                layout,
            )
            whole = join(published, rest)
            entries.append(
                (generate, (whole, sharding.abstract_rows(self.share, mesh), key, np.int32(0)))
            )
        return entries

    def publish_call(self, params: Params) -> Entry | None:
        """The compiled copy of params with their shapes; None where they go to other devices.

        Args:
          params: of the policy, as training holds them.
        """
        whole = per_host.shapes_on_each_host(params, self.dtype)
        return None if self._disaggregated else (self._copy, (whole,))

    def gather_call(self, params: Params) -> Entry | None:
        """The compiled gather of params on each host, with their shapes; None where each has them
        whole.

        Args:
          params: of the policy, as training holds them.
        """
        return per_host.gather_call(params, self.dtype)


def make_sampler(
    spec: ProgramSpec, call: Call, trainer_mesh: Mesh, params: Params, bases: Bases
) -> Sampler:
    """Compiles `generate` for the plan's mesh or the sampler's slices.

    Args:
      spec: of the program.
      call: that generates.
      trainer_mesh: where the policy trains.
      params: of the policy, its base on that mesh.
      bases: as `Sampler` takes it.
    """
    resolved_plan = spec.resolved_plan
    generate = bound(
        sampling.sample,
        model=spec.model_of(call),
        config=spec.sampling,
        eos_id=spec.eos_id,
        pad_id=spec.pad_id,
    )
    slices = spec.sampler_slices
    if not slices and resolved_plan.mesh(call.name) != trainer_mesh:
        slices = (per_host.local_mesh(resolved_plan.mesh(call.name)),)
    micro_batched = map_micro_batches(
        generate, resolved_plan.micro_batches(call.name), 1, spec.sampling.samples_per_prompt
    )
    prompts = jax.eval_shape(lambda: spec.prompts(0))
    return Sampler(
        micro_batched,
        spec.model,
        params,
        prompts,
        spec.key,
        trainer_mesh,
        slices,
        spec.publish_dtype,
        bases,
    )


def _on_mesh(key: Array, mesh: Mesh) -> Array:
    """A key on every device of a mesh; of a shape, a shape that is there."""
    if isinstance(key, jax.ShapeDtypeStruct):
        return put(key, sharding.replicated(mesh))
    return jax.device_put(key, sharding.replicated(mesh))


def shares(prompts: Prompts, num_slices: int) -> list[Prompts]:
    """Equal contiguous shares of a round's prompts, in order."""
    size = prompts.tokens_PQ.shape[0] // num_slices

    def share(index: int) -> Prompts:
        return jax.tree.map(lambda array: array[index * size : (index + 1) * size], prompts)

    return [share(index) for index in range(num_slices)]


def version_range(samples: Samples) -> tuple[int, int]:
    """Returns the oldest and the newest version of the samples' tokens, in updates.

    Collective where samples are sharded over hosts; waits for them. Raises ValueError for samples
    without a token.
    """
    version_BC, mask_BC = distributed.fetch((samples.version_BC, samples.mask_BC))
    version_N = version_BC[mask_BC]
    return int(version_N.min()), int(version_N.max())


def token_counts(samples: Samples) -> TokenCounts:
    """Counts the tokens of each row by version; collective as `version_range`."""
    return TokenCounts.of(*distributed.fetch((samples.version_BC, samples.mask_BC)))


def concatenate(samples_of_slices: Sequence[Samples]) -> Samples:
    """Concatenates samples of consecutive prompts."""
    return jax.tree.map(
        lambda *arrays: jnp.concatenate(arrays) if arrays[0].ndim else arrays[0], *samples_of_slices
    )


def make_publish(shardings: Params, dtype: str) -> distributed.Compiled[Params]:
    """Returns a compiled function that copies params, so that no later donation can delete them.

    `device_put` to the same sharding or `astype` to the same dtype would only alias them.

    Args:
      shardings: of the copy, which has an entry per layer.
      dtype: of the copy.
    """

    def copy(params: Params) -> Params:
        return jax.tree.map(lambda x: jnp.copy(x.astype(dtype)), unstack(params))

    return distributed.compiled_here(copy, name="publish", out_shardings=shardings)
