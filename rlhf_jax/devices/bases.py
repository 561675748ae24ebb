"""The bases of adapters on the meshes that need them: one copy for each layout, which all roles share."""

from collections.abc import Callable

import jax
from jax.sharding import NamedSharding

from rlhf_jax import randomness
from rlhf_jax.devices import distributed, sharding
from rlhf_jax.devices.placement import put
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.adapters import Base, Rest, join, split
from rlhf_jax.models.common.stacking import flat
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.linear import int8
from rlhf_jax.ops.once import once
from rlhf_jax.types import Array, Params


def compact(
    params: Params, model: Model, config: adapters.Config, mesh: jax.sharding.Mesh
) -> Params:
    """A base as a run holds it: the kernels of its linear layers in `lora.base_dtype`, and other
    matrices in the compute dtype.

    Args:
      params: float32, on the mesh as the model's params are; those that are rounded are deleted,
        one after the other.
      model: of the base.
      config: of its adapters.
      mesh: of the params.
    """
    plain = jax.eval_shape(model.init, randomness.key(0))
    held = adapters.in_base_dtype(model, config, plain)
    shardings = flat(sharding.params_shardings(model, held, mesh))

    def quantize(path: tuple[str, ...], kernel: Array) -> tuple[Array, Array]:
        scale = (*path[:-1], adapters.KERNEL_SCALE)
        result = _quantize(shardings[path], shardings[scale])(kernel)
        kernel.delete()
        return result

    return adapters.compact(adapters.in_base_dtype(model, config, params, quantize), model.dtype)


@once
def _quantize(
    kernel: NamedSharding, scale: NamedSharding
) -> Callable[[Array], tuple[Array, Array]]:
    return distributed.compiled(int8.quantize, out_shardings=(kernel, scale))


class Bases:
    """Puts params on meshes so that no base is copied twice to one layout.

    A base that has the layout already is not copied: its arrays are the same objects.
    """

    def __init__(self) -> None:
        # The source is kept with its copy, so that no other array gets its identity.
        self._copies: dict[tuple[object, ...], tuple[Base, Base]] = {}

    def put(self, params: Params, shardings: Params) -> Params:
        """Params in the given shardings, on a base that is shared.

        Args:
          params: of a role, arrays or their shapes.
          shardings: a tree like it.
        """
        (trained, rest), (of_trained, of_rest) = split(params), split(shardings)
        return join(put(trained, of_trained), self._rest(rest, of_rest))

    def rest(self, params: Params, model: Model | ValueModel, mesh: jax.sharding.Mesh) -> Rest:
        """The part of params that is not trained, laid out as the model's params are on a mesh.

        Args:
          params: of a role, arrays or their shapes.
          model: of the role.
          mesh: of the result.
        """
        rest = split(params)[1]
        if rest is None:
            return None
        return self._rest(rest, split(sharding.params_shardings(model, params, mesh))[1])

    def _rest(self, rest: Rest, shardings: Rest) -> Rest:
        if rest is None:
            return None
        if isinstance(rest, Base):
            return self._base(rest, shardings)
        assert isinstance(shardings, dict)
        return {name: self._base(base, shardings[name]) for name, base in rest.items()}

    def _base(self, base: Base, shardings: Rest) -> Base:
        leaves = jax.tree.leaves(base)
        key = (*map(id, leaves), *jax.tree.leaves(shardings))
        if key not in self._copies:
            self._copies[key] = base, put(base, shardings)
        return self._copies[key][1]
