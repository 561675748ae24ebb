"""The bases of adapters on the meshes that need them: one copy for each layout, which all roles share."""

import jax

from rlhf_jax.devices import sharding
from rlhf_jax.devices.placement import put
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.adapters import Base, Rest, join, split
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.types import Params


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
