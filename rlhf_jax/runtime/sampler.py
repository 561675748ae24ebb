"""The sampler: on the trainer's mesh, or on device slices of its own that each sample a share of
the prompts.

A row's random numbers depend on its prompt's ordinal and its sample index alone, so that several
slices draw what one would, up to float32 near-ties. Samples always end on the trainer's mesh.

Each of several hosts draws a contiguous share of a round's prompts with devices of its own, and
nothing crosses hosts while it does: a host has the params whole, and its samples are its rows of
the trainer's mesh.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.devices import memory, sharding
from rlhf_jax.devices.placement import placed
from rlhf_jax.devices.transfer import per_host
from rlhf_jax.devices.transfer.reallocate import move
from rlhf_jax.models.api import Model
from rlhf_jax.runtime.spec import Published
from rlhf_jax.types import Array, Params, Prompts, Samples

Draw = Callable[[Params, Prompts, Array, Any], Samples]


class Sampler:
    """Compiled sampling. With slices, published params are a tuple: a copy for each slice."""

    def __init__(
        self,
        draw: Draw,
        model: Model,
        params: Params,
        prompts: Prompts,
        key: Array,
        trainer: Mesh,
        slices: Sequence[Mesh],
        dtype: str,
    ):
        """`params` and `prompts` (of a whole round) are arrays or shapes; `slices` are of this
        host's devices, without them its part of the trainer's mesh samples.
        """
        self._apart = bool(slices)
        self._everywhere, trainer = trainer, per_host.own_mesh(trainer)
        self._meshes = tuple(slices) or (trainer,)
        self._trainer = trainer
        self._keys = (
            [jax.device_put(key, sharding.replicated(mesh)) for mesh in self._meshes]
            if slices
            else [key]
        )
        self.dtype = dtype
        self._params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)
        num_shares = len(self._meshes) * jax.process_count()
        self.share = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((x.shape[0] // num_shares, *x.shape[1:]), x.dtype),
            prompts,
        )
        self.shapes = jax.eval_shape(draw, params, prompts, key, np.int32(0))
        share_shapes = jax.eval_shape(draw, params, self.share, key, np.int32(0))
        self._layouts = [sharding.params_shardings(model, params, mesh) for mesh in self._meshes]
        self._draw = [
            jax.jit(draw, out_shardings=sharding.row_shardings(share_shapes, mesh))
            for mesh in self._meshes
        ]
        self._copy = make_publish(
            sharding.params_shardings(model, params, trainer), dtype
        )  # where they are trained
        self._join = jax.jit(
            join, out_shardings=sharding.row_shardings(self.shapes, trainer)
        )  # of this host

    @property
    def devices(self) -> set[Any]:
        """Devices that it samples on; on several hosts this one's."""
        return {device for mesh in self._meshes for device in mesh.devices.flat}

    def version_bytes(self) -> list[Counter[Any]]:
        """Bytes of a published version by device, for each mesh that samples."""
        return [memory.bytes_by_device(self._params, layout) for layout in self._layouts]

    def publish(self, params: Params) -> Published:
        """Params that the sampler owns, where it samples."""
        params = per_host.own(params)
        if not self._apart:
            return self._copy(params)
        return tuple(move(params, layout, dtype=self.dtype) for layout in self._layouts)

    def generate(self, params: Published, prompts: Prompts, version: int) -> Samples:
        """Samples of a round, on the trainer's mesh.

        The slices draw at the same time. No collective over hosts.
        """
        samples = self._draw_share(params, per_host.share(prompts), version)
        return per_host.joined(samples, sharding.row_shardings(samples, self._everywhere))

    def _draw_share(self, params: Published, prompts: Prompts, version: int) -> Samples:
        """Samples of this host's prompts, on its part of the trainer's mesh."""
        if not self._apart:
            prompts = jax.device_put(prompts, sharding.row_shardings(prompts, self._trainer))
            return self._draw[0](params, prompts, self._keys[0], np.int32(version))
        parts = [
            draw(
                of_slice,
                jax.device_put(share, sharding.row_shardings(share, mesh)),
                key,
                np.int32(version),
            )
            for draw, of_slice, share, mesh, key in zip(
                self._draw,
                params,
                shares(prompts, len(self._meshes)),
                self._meshes,
                self._keys,
                strict=True,
            )
        ]
        if len(parts) == 1:
            return placed(parts[0], sharding.row_shardings(parts[0], self._trainer))
        everywhere = sharding.replicated(self._trainer)
        return self._join(
            [placed(part, jax.tree.map(lambda _: everywhere, part)) for part in parts]
        )

    def calls(self, params: Params) -> list[tuple[Any, tuple[Any, ...]]]:
        """Each compiled function with shapes of its arguments, for compiling ahead of time."""
        found = []
        for draw, mesh, layout, key in zip(
            self._draw, self._meshes, self._layouts, self._keys, strict=True
        ):
            published = jax.tree.map(
                lambda x, where: jax.ShapeDtypeStruct(x.shape, self.dtype, sharding=where),
                params,
                layout,
            )
            found.append(
                (draw, (published, sharding.abstract_rows(self.share, mesh), key, np.int32(0)))
            )
        return found


def shares(prompts: Prompts, num_parts: int) -> list[Prompts]:
    """Equal parts of a round's prompts, in order."""
    size = prompts.tokens_PQ.shape[0] // num_parts

    def part(place: int) -> Prompts:
        return jax.tree.map(lambda array: array[place * size : (place + 1) * size], prompts)

    return [part(place) for place in range(num_parts)]


def join(parts: Sequence[Samples]) -> Samples:
    """Samples of consecutive prompts as one."""
    return jax.tree.map(
        lambda *arrays: jnp.concatenate(arrays) if arrays[0].ndim else arrays[0], *parts
    )


def make_publish(shardings: Any, dtype: str) -> Callable[[Params], Params]:
    """Returns a compiled copy of params that no later donation can delete.

    `device_put` to the same sharding or `astype` to the same dtype would only alias them.
    """

    def copy(params: Params) -> Params:
        return jax.tree.map(lambda x: jnp.copy(x.astype(dtype)), params)

    return jax.jit(copy, out_shardings=shardings)
