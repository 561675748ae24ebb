"""Sampling on eight devices whose params are sharded: they are gathered once, and no row moves."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from rlhf_jax import sampling
from rlhf_jax.devices import memory, sharding

COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
GROUP = 2


def compiled_text(num_prompts: int) -> str:
    """The program of the sampler on eight fsdp shards."""
    mesh, model = tiny.make_mesh((1, 8, 1)), tiny.make_model(num_layers=1, vocab_size=24)
    params = jax.eval_shape(model.init, jax.random.key(0))
    shardings = sharding.params_shardings(model, params, mesh)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings
    )
    prompts = sharding.abstract_rows(
        jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tiny.make_prompts(num_prompts))), mesh
    )
    sample = partial(
        sampling.sample, model=model, config=tiny.law(GROUP), eos_id=tiny.EOS, pad_id=tiny.PAD
    )
    arguments = (params, prompts, jax.random.key(0), np.int32(0))
    out = sharding.row_shardings(jax.eval_shape(sample, *arguments), mesh)
    kept = jax.jit(sharding.sampling_rows(sample, mesh), out_shardings=out)
    return kept.lower(*arguments).compile().as_text()


def collectives(text: str) -> list[tuple[str, str]]:
    """Sorted (kind, shapes) of the collectives of arrays of numbers."""
    found = re.findall(rf"= (\S.*?) ({COLLECTIVES})(?:-start)?\(", text)
    return sorted((kind, re.sub(r"\{[^}]*\}", "", shapes)) for shapes, kind in found)


def test_params_are_gathered_once_and_no_row_moves():
    """The program has the same collectives, gathers of params outside of the loop, for 8 prompts
    and for 16; in the loop each device asks the others whether any row goes on, one number.
    """
    few, many = map(compiled_text, (8, 16))
    assert collectives(few) == collectives(many)
    large = [row for row in collectives(few) if "," in row[1]]
    assert {kind for kind, _ in large} == {"all-gather"}
    assert len(large) <= len(jax.tree.leaves(tiny.make_params(tiny.make_model(num_layers=1))))


def test_params_that_have_no_room_stay_sharded(monkeypatch):
    monkeypatch.setattr(memory, "total_bytes", lambda device: 1000)
    assert any(kind == "all-reduce" and "," in row for kind, row in collectives(compiled_text(8)))
