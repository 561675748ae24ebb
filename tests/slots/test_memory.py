"""Memory of a segment: the pool is updated in place."""

import jax
import pytest

from rlhf_jax.slots.segment import segment
from rlhf_jax.slots.state import empty
from tests import tiny


@pytest.mark.parametrize("head_width", [64, 128])
def test_temporaries_are_a_twentieth_of_the_pool(head_width):
    model = tiny.make_model("llama", head_width=head_width, num_heads=4)
    slots = jax.eval_shape(lambda: empty(model, 16, 32, 96))
    params = jax.eval_shape(model.init, jax.random.key(0))

    def run(params, slots):
        return segment(params, slots, model=model, temperature=1.0, eos_id=1, pad_id=0, num_steps=4)

    memory = jax.jit(run, donate_argnums=1).lower(params, slots).compile().memory_analysis()
    pool = sum(x.size * x.dtype.itemsize for x in slots.keys + slots.values)
    assert memory.alias_size_in_bytes >= pool
    assert memory.temp_size_in_bytes <= 0.05 * pool
