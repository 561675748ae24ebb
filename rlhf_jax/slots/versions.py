"""Params of one version or of several, as the functions of slots take them."""

from rlhf_jax.models.api import Model
from rlhf_jax.models.common.adapters import Versions
from rlhf_jax.models.common.layout import whole_params
from rlhf_jax.types import Params


def whole(model: Model, params: Params | Versions) -> tuple[Params, int]:
    """Params gathered from shards of rows, the adapters of several versions side by side.

    Args:
      model: whose params they are.
      params: of the model.

    Returns the params and the number of versions, as `adapters.of_rows` takes them.
    """
    if isinstance(params, Versions):
        return whole_params(model, params.joined()), len(params.adapters)
    return whole_params(model, params), 1
