"""Products in bfloat16 with float32 gradients: on one device and on eight, beside sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax.ops.linear import float32_gradients
from rlhf_jax.ops.linear.sharded_gradients import (
    ParamShards,
    ShardedParam,
    sharded_lookup,
    sharded_product,
)
from rlhf_jax.ops.row_shards import RowShards

P = jax.sharding.PartitionSpec
A, D, F, V = 64, 16, 24, 40
HALF = 2.0**-24  # of the last bit of a float32 in [1, 2)


def rows() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Inputs and cotangents `[A, D]` and `[A, F]` that bfloat16 has, and tokens."""
    random = np.random.default_rng(0)
    x_AD, by_y_AF = (random.standard_normal((A, width)) for width in (D, F))
    tokens_A = random.integers(0, V // 2, A)
    return (
        jnp.asarray(x_AD, jnp.bfloat16),
        jnp.asarray(by_y_AF, jnp.bfloat16),
        jnp.asarray(tokens_A, jnp.int32),
    )


def params() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Kernel, bias and table."""
    random = np.random.default_rng(1)
    shapes = ((D, F), (F,), (V, F))
    return tuple(jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes)


def on_mesh(function, mesh, specs):
    """The function of params as `ShardedParam`s."""
    shards = RowShards(mesh, ("data", "fsdp"))

    def run(params, *rows):
        layouts = [ParamShards(shards, spec) for spec in specs]
        sharded = [
            ShardedParam(param, layout, layout.addends(param))
            for param, layout in zip(params, layouts, strict=True)
        ]
        return function(sharded, *rows)

    return run


def gradient(function, shape, as_params=False):
    """Results and gradients to all params and inputs, by the cotangent of `rows`, of a function
    that uses its params twice: as `ShardedParam`s, or `as_params`.
    """
    x_AD, by_y_AF, tokens_A = rows()
    mesh = tiny.make_mesh(shape)
    specs = (P("fsdp", "tensor"), P("tensor"), P("tensor", "fsdp"))
    if shape != (1, 1, 1) and not as_params:
        function = on_mesh(function, mesh, specs)

    def run(params, x_AD, by_y_AF, tokens_A):
        halves = [(x[: A // 2], x[A // 2 :]) for x in (x_AD, tokens_A)]
        outputs, pull = jax.vjp(
            lambda params, x, y: [
                function(params, *half) for half in ((x, halves[1][0]), (y, halves[1][1]))
            ],
            params,
            *halves[0],
        )
        return jnp.concatenate(outputs), pull([by_y_AF[: A // 2], by_y_AF[A // 2 :]])

    def put(array, spec):
        return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))

    arguments = [put(array, P(("data", "fsdp"))) for array in (x_AD, by_y_AF, tokens_A)]
    weights = tuple(put(array, spec) for array, spec in zip(params(), specs, strict=True))
    return jax.jit(run)(weights, *arguments)


def both(params, x_AD, tokens_A):
    kernel, bias, table = params
    if isinstance(kernel, ShardedParam):
        product = sharded_product(x_AD, kernel, bias, "bfloat16")
        return product + sharded_lookup(table, tokens_A, "bfloat16")
    product = float32_gradients.product(x_AD, kernel, bias, "bfloat16")
    return product + float32_gradients.lookup(table, tokens_A, "bfloat16")


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_gradients_are_float32_sums(shape):
    """A float32 sum of n terms t is within n 2^-24 sum |t| of theirs, in whatever order. A gradient
    that is rounded to bfloat16 is off by up to 2^-9 of itself.
    """
    x_AD, by_y_AF, tokens_A = (np.asarray(array, np.float64) for array in rows())
    one_hot_AV = np.eye(V)[tokens_A.astype(int)]
    _, (by_params, *_) = gradient(both, shape)
    for found, left in zip(by_params, (x_AD, np.ones((A, 1)), one_hot_AV), strict=True):
        assert found.dtype == jnp.float32
        expected, most = left.T @ by_y_AF, A * HALF * np.abs(left).T @ np.abs(by_y_AF)
        found = np.asarray(found, np.float64).reshape(expected.shape)
        assert (np.abs(found - expected) <= most).all()


def test_rounded_gradients_are_ten_thousand_times_farther_from_the_truth():
    """Of a kernel on eight devices, beside float64 sums of the same terms."""

    def plain(params, x_AD, tokens_A):
        kernel, bias, table = (param.astype(jnp.bfloat16) for param in params)
        return x_AD @ kernel + bias[None] + jnp.take(table, tokens_A, axis=0)

    x_AD, by_y_AF, _ = (np.asarray(array, np.float64) for array in rows())
    truth = x_AD.T @ by_y_AF
    rounded = gradient(plain, (1, 8, 1), as_params=True)[1][0][0]
    wide = gradient(both, (1, 8, 1))[1][0][0]
    far, near = (
        np.linalg.norm(np.asarray(found, np.float64) - truth) / np.linalg.norm(truth)
        for found in (rounded, wide)
    )
    print(f"off by {far:.1e} rounded, {near:.1e} in float32")
    assert far > 1e-3
    assert near < 1e-7


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_all_else_is_of_jax(shape):
    """Results and gradients to inputs have the bits of `x @ kernel.astype(bfloat16)`."""

    def plain(params, x_AD, tokens_A):
        kernel, bias, table = (param.astype(jnp.bfloat16) for param in params)
        return x_AD @ kernel + bias[None] + jnp.take(table, tokens_A, axis=0)

    y_AF, (_, *by_x) = gradient(both, shape)
    expected_AF, (_, *expected) = gradient(plain, (1, 1, 1))
    np.testing.assert_array_equal(y_AF, expected_AF)
    for found, wanted in zip(by_x, expected, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, wanted)


def test_without_rounding_the_derivative_is_that_of_jax():
    """Where kernel and product have one dtype the traced program is the plain one."""
    kernel_DF, bias_F, table_VF = params()
    x_AD, tokens_A = jnp.ones((A, D)), rows()[2]

    def traced(function, *arguments):
        return str(jax.make_jaxpr(function)(*arguments))

    assert traced(
        lambda *arguments: float32_gradients.product(*arguments, "float32"), x_AD, kernel_DF, bias_F
    ) == traced(lambda x, kernel, bias: x @ kernel + bias.reshape(1, -1), x_AD, kernel_DF, bias_F)
    assert traced(
        lambda table, tokens: float32_gradients.lookup(table, tokens, "float32"), table_VF, tokens_A
    ) == traced(lambda table, tokens: jnp.take(table, tokens, axis=0), table_VF, tokens_A)
