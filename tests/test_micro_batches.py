"""Rows in parts: every unit whole, each device's rows on it, and joined in the order that they had."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.devices import sharding
from rlhf_jax.micro_batches import join_rows, map_micro_batches, split_rows
from tests import tiny


@pytest.mark.parametrize(("num_parts", "unit_rows"), [(1, 1), (2, 3), (3, 2), (6, 1)])
def test_joining_undoes_splitting(num_parts, unit_rows):
    rows = {
        "matrix": jnp.arange(24).reshape(12, 2),
        "column": jnp.arange(12),
        "scalar": jnp.float32(7),
    }
    joined = join_rows(split_rows(rows, num_parts, unit_rows), unit_rows)
    for name, array in rows.items():
        np.testing.assert_array_equal(joined[name], array, err_msg=name)


def test_a_function_in_parts_sees_units_whole_and_gives_what_it_gives_of_all():
    seen = []

    def repeated(scale, rows, shift):
        seen.append(rows["x"].shape)
        return {"y": scale * jnp.repeat(rows["x"], 3) + shift, "scalar": rows["scalar"]}

    rows = {"x": jnp.arange(8.0), "scalar": jnp.int32(5)}
    found = map_micro_batches(repeated, 4, 1, 3)(2.0, rows, 1.0)
    np.testing.assert_array_equal(found["y"], 2 * np.repeat(np.arange(8.0), 3) + 1)
    assert int(found["scalar"]) == 5
    assert seen == [(2,)]
    assert map_micro_batches(repeated, 1, 1, 3) is repeated


def test_rows_stay_on_their_devices():
    """Eight rows over four devices in two parts: each part has a row on each device, and nothing is
    sent.
    """
    mesh = tiny.make_mesh((4, 1, 1))
    layout = sharding.rows(mesh)
    double = jax.jit(
        map_micro_batches(lambda _, x: 2 * x, 2, 1, 1), out_shardings=layout, static_argnums=0
    )
    x = jax.device_put(np.arange(8.0), layout)
    text = double.lower(None, x).compile().as_text()
    assert not any(
        name in text for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    )
    np.testing.assert_array_equal(double(None, x), 2 * np.arange(8.0))
