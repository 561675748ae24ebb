"""The versions that a pool of pinned rows draws with side by side: the newest lag + 1.

A version, counted in trained rounds, has the place `version % (lag + 1)`. It takes the place of the
version lag + 1 rounds before it, whose last round is trained. The arrays are those that the trainer
published: nothing is copied.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.inflight.arrays import bits, named, of_bits
from rlhf_jax.runtime.spec import Published
from rlhf_jax.types import Params


@dataclass(frozen=True)
class SideBySide:
    """Published params of several versions, by place."""

    params: tuple[Published, ...]


class Held:
    """Versions by place. Until lag + 1 of them are taken, version 0 has the places of the others.

    Attributes:
      newest: the version that was taken last, in trained rounds; -1: none.
    """

    def __init__(self, num_versions: int, shapes: Params):
        """Holds nothing yet.

        Args:
          num_versions: lag + 1.
          shapes: of published params on the mesh that samples, with shardings; restored arrays are
            put there.
        """
        self.num_versions, self._shapes = num_versions, shapes
        self.newest = -1
        self._params: list[Published] = []

    @property
    def params(self) -> SideBySide:
        """The versions as the pool takes them."""
        return SideBySide(tuple(self._params))

    def place(self, version: int) -> int:
        """The place of a version among `params`.

        Args:
          version: in trained rounds.

        Raises RuntimeError for one that is not held.
        """
        if not max(0, self.newest - self.num_versions + 1) <= version <= self.newest:
            raise RuntimeError(
                f"version {version} (in trained rounds) is not held; {self.num_versions} up to "
                f"{self.newest} are"
            )
        return version % self.num_versions

    def take(self, params: Published, version: int) -> None:
        """Holds the version after the newest one.

        Args:
          params: as the trainer published them.
          version: in trained rounds.

        Raises RuntimeError for any other version: rows of a round may need each.
        """
        if version != self.newest + 1:
            raise RuntimeError(f"version {version} follows version {self.newest}")
        if not self._params:
            self._params = [params] * self.num_versions
        self._params[version % self.num_versions] = params
        self.newest = version

    def saved(self) -> dict[str, np.ndarray]:
        """The arrays of every version on the host, by version and name, for a checkpoint."""
        first = max(0, self.newest - self.num_versions + 1)
        return {
            f"{version}.{name}": bits(np.array(jax.device_get(leaf)))
            for version in range(first, self.newest + 1)
            for name, leaf in named(of_one_mesh(self._params[self.place(version)]))
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from `saved`.

        Args:
          arrays: of a run of the same lag.

        Raises Refusal for arrays of other shapes, or of another number of versions.
        """
        found = sorted({int(name.partition(".")[0]) for name in arrays})
        if not found or len(found) != min(self.num_versions, found[-1] + 1):
            raise Refusal(
                f"the checkpoint has {len(found)} versions of the adapter, and this run draws with "
                f"{self.num_versions} side by side; resume with the rlhf.lag of the run"
            )
        self._params, self.newest = [], -1
        for version in found:
            leaves = []
            for name, shape in named(self._shapes):
                array = of_bits(arrays[f"{version}.{name}"], shape.dtype)
                if array.shape != shape.shape:
                    raise Refusal(
                        f"the checkpoint's adapter has {name} {list(array.shape)}, and this run's "
                        f"{list(shape.shape)}; resume with the lora.rank of the run"
                    )
                leaves.append(jax.device_put(array, shape.sharding))
            self.newest = version - 1
            self.take(jax.tree.unflatten(jax.tree.structure(self._shapes), leaves), version)


def of_one_mesh(params: Published) -> Params:
    """Params that are published to one mesh. Raises Refusal for those of several slices."""
    if not isinstance(params, tuple):
        return params
    if len(params) != 1:
        raise Refusal(
            f"the pool of slots has one mesh, and params are published to {len(params)}; "
            "accepted: one slice"
        )
    return params[0]


def published_to(params: Published, slice_index: int, num_slices: int) -> Published:
    """The published params of one slice.

    Args:
      params: as `Sampler.publish` returns them, a tuple where the slices have devices of their own.
      slice_index: of the slice.
      num_slices: H.
    """
    if num_slices == 1:
        return params
    assert isinstance(params, tuple), "several slices have a copy each"
    assert len(params) == num_slices
    return params[slice_index]
