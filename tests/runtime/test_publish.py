"""Published params belong to the sampler: the next donated step deletes none of them, whatever the
dtype or layout.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax.devices import sharding
from rlhf_jax.runtime.sampler import make_publish


def survives_donation(publish, dtype: str, shape: tuple[int, int, int]) -> bool:
    """Publishes, lets a donated step overwrite the params, and asks whether the published ones are
    there, unchanged.
    """
    model, mesh = tiny.make_model(), tiny.make_mesh(shape)
    host = jax.tree.map(np.array, tiny.make_params(model))
    shardings = sharding.params_shardings(model, host, mesh)
    params = jax.jit(lambda: jax.tree.map(jnp.asarray, host), out_shardings=shardings)()
    published = publish(shardings, dtype)(params)
    step = jax.jit(
        lambda p: jax.tree.map(lambda x: x - 1, p), donate_argnums=0, out_shardings=shardings
    )
    jax.block_until_ready(step(params))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params)), "nothing was donated"
    leaves, expected = jax.tree.leaves(published), jax.tree.leaves(host)
    if any(leaf.is_deleted() for leaf in leaves):
        return False
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}
    return all(
        np.array_equal(x, np.asarray(y, dtype=x.dtype))
        for x, y in zip(leaves, expected, strict=True)
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_published_params_survive_a_donated_step(dtype, shape):
    assert survives_donation(make_publish, dtype, shape)


@pytest.mark.parametrize(
    "aliasing",
    [
        lambda shardings, dtype: lambda params: params,
        lambda shardings, dtype: lambda params: jax.device_put(params, shardings),
        lambda shardings, dtype: lambda params: jax.tree.map(lambda x: x.astype(dtype), params),
    ],
    ids=["identity", "device_put", "astype"],
)
def test_the_check_fails_on_params_that_are_only_aliased(aliasing):
    assert not survives_donation(aliasing, "float32", (1, 1, 1))
