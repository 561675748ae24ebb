"""The params of a head, found by tracing it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax.devices import sharding
from rlhf_jax.models.common.head import split_head

LAYOUT = sharding.layout_of(tiny.make_mesh((1, 4, 2)))


def split(model, params, dtype="float32"):
    return split_head(model, params, jax.ShapeDtypeStruct((3, model.width), dtype), LAYOUT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "changes", "shape", "spec"),
    [
        ("gpt_neox", {}, (8, 12), ("fsdp", "tensor")),
        ("llama", {"tie_embeddings": True}, (12, 8), ("tensor", "fsdp")),
        ("gemma2", {"num_kv_heads": 2}, (12, 8), ("tensor", "fsdp")),
    ],
)
def test_a_head_is_a_function_of_its_kernel_alone(family, changes, shape, spec, dtype):
    """Rounded before it is gathered, the kernel gives the same logits to the last bit."""
    model = tiny.make_model(family, vocab_size=12, dtype=dtype, **changes)
    params = tiny.make_params(model)
    head = split(model, params, dtype)
    (kernel,), (layout,) = head.params, head.layout
    assert (kernel.shape, tuple(layout.spec), layout.dtype) == (shape, spec, dtype)
    hidden = jax.random.normal(jax.random.key(0), (3, model.width)).astype(dtype)
    np.testing.assert_array_equal(
        head.function([kernel.astype(layout.dtype)], hidden), model.head(params, hidden)
    )


@dataclasses.dataclass(frozen=True)
class Biased:
    """A model of one's own that adds a bias to another model's logits and reads it in float32."""

    model: object

    @property
    def width(self):
        return self.model.width

    def head(self, params, hidden):
        read = jax.tree.map(lambda x: x * 1, params)  # what is not used is not read
        return self.model.head(read, hidden) + read["bias"]["kernel"][None]

    def logical_axes(self, params):
        axes = self.model.logical_axes({k: v for k, v in params.items() if k != "bias"})
        return {**axes, "bias": {"kernel": ("vocab",)}}


def test_what_a_head_reads_in_float32_is_not_rounded():
    model = tiny.make_model(vocab_size=12, dtype="bfloat16")
    biased, params = Biased(model), {**tiny.make_params(model), "bias": {"kernel": jnp.ones(12)}}
    head = split(biased, params, "bfloat16")
    assert [param.shape for param in head.params] == [(12,), (8, 12)]
    assert [layout.dtype for layout in head.layout] == ["float32", "float32"]
