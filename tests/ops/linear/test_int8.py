"""Int8 kernels: the error of an element, the product, its gradient, and what a program holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops.linear import int8

A, D, F = 8, 64, 256


def kernel_of(seed: int = 0, shape=(D, F)) -> np.ndarray:
    """Normal numbers, and columns of other sizes."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) * np.geomspace(1e-4, 10, shape[-1])).astype(np.float32)


def test_numbers_by_hand():
    """The largest of the first column is 254: its scale is 2, and 3 / 2 rounds to the even 2."""
    kernel = jnp.array([[254.0, 0.0, -1.27], [3.0, 0.0, 0.2]])
    held, scale = int8.quantize(kernel)
    np.testing.assert_array_equal(held, [[127, 0, -127], [2, 0, 20]])
    np.testing.assert_allclose(scale, [2.0, 0.0, 0.01], rtol=1e-6)
    assert (held.dtype, scale.dtype) == (jnp.int8, jnp.float32)


@pytest.mark.parametrize("leading", [(), (3,)])
def test_an_element_is_wrong_by_at_most_the_largest_of_its_column_over_254(leading):
    kernel = kernel_of(1, (*leading, D, F))
    held, scale = int8.quantize(jnp.asarray(kernel))
    assert held.shape == kernel.shape
    assert scale.shape == (*leading, F)
    error = np.abs(int8.dequantize(held, scale) - kernel)
    bound = np.abs(kernel).max(axis=-2, keepdims=True) / 254
    assert np.all(error <= bound * (1 + 1e-4))
    assert error.max() > 0.9 * bound.max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_and_gradient_are_those_of_the_dequantized_kernel(dtype):
    held, scale = int8.quantize(jnp.asarray(kernel_of()))
    whole = np.asarray(int8.dequantize(held, scale), np.float64)
    x, weight = (
        jax.random.normal(jax.random.key(seed), shape).astype(dtype)
        for seed, shape in ((1, (A, D)), (2, (A, F)))
    )

    def loss(x):
        y = int8.product(x, held, scale, dtype)
        return jnp.sum((weight * y).astype(jnp.float32)), y

    (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
    assert y.dtype == gradient.dtype == x.dtype
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for found, factors in (
        (y, (np.asarray(x, np.float64), whole)),
        (gradient, (np.asarray(weight, np.float64), whole.T)),
    ):
        size = np.abs(factors[0]) @ np.abs(factors[1])
        assert np.all(
            np.abs(np.asarray(found, np.float64) - factors[0] @ factors[1]) <= tolerance * size
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", ["layers", "loop", "gradient"])
def test_no_program_holds_more_than_one_dequantized_kernel(what, dtype):
    """Six layers of two kernels each; the rows are small beside a kernel."""
    layers = 6

    def forward(x, kernels):
        for up, down in kernels:
            y = jax.nn.relu(int8.product(x, *up, dtype))
            x = x + int8.product(y, *down, dtype)
        return x

    def loop(x, kernels):
        step = lambda carried: (carried[0] + 1, forward(carried[1], kernels))  # noqa: E731
        return jax.lax.while_loop(lambda carried: carried[0] < 9, step, (0, x))[1]

    def gradient(x, kernels):
        return jax.grad(lambda x: jnp.sum(forward(x, kernels).astype(jnp.float32)))(x)

    shape = jax.ShapeDtypeStruct
    up, down = (
        (shape(sizes, jnp.int8), shape(sizes[1:], jnp.float32)) for sizes in ((D, F), (F, D))
    )
    function = {"layers": forward, "loop": loop, "gradient": gradient}[what]
    lowered = jax.jit(function).lower(shape((2, D), dtype), [(up, down)] * layers)
    temporaries = lowered.compile().memory_analysis().temp_size_in_bytes
    assert temporaries <= 1.5 * 4 * D * F
