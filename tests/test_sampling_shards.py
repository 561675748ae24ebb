"""Sampling on eight devices whose params are sharded: they are gathered once, no row moves, and
logits stay on the shards of the vocabulary.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax import sampling
from rlhf_jax.devices import memory, sharding
from rlhf_jax.ops import draw
from rlhf_jax.planner.compiled.collectives import collectives as collectives_of

COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
GROUP = 2


def compiled_text(num_prompts: int, mesh=None, model=None) -> str:
    """The program of the sampler, on eight fsdp shards unless a mesh is given."""
    mesh = mesh or tiny.make_mesh((1, 8, 1))
    model = model or tiny.make_model(num_layers=1, vocab_size=24)
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


# `tensor` divides V and the two heads of the tiny models; blocks of 64 entries do not divide V
V, TENSOR, SHARDS = 4098, 2, (4, 1, 2)
WORD = 4  # bytes of a number


def link_bytes_of_a_step(monkeypatch=None) -> float:
    """Bytes that a device sends in one decode step, with four shards of 4 rows and two of the
    vocabulary; with `monkeypatch`, of a sampler that knows no shards of the vocabulary.
    """
    if monkeypatch is not None:
        monkeypatch.setattr(sampling, "sampling_mesh", lambda: None)
    mesh, model = tiny.make_mesh(SHARDS), tiny.make_model(num_layers=1, vocab_size=V)
    found = collectives_of(compiled_text(8, mesh, model), num_devices=8)
    return sum(each.link_bytes for each in found if each.depth)


def test_logits_of_a_step_stay_on_their_shards(monkeypatch):
    """A device sums the hidden states of its rows over `tensor`, of the embedding and of a layer's
    two products; to draw it sends a maximum, a sum to every shard, a token and its log-probability.
    """
    rows, width = 4, tiny.make_model().width
    ring = 2 * (TENSOR - 1) / TENSOR
    hidden = 3 * ring * rows * width * WORD
    drawn = ring * rows * (3 + TENSOR) * WORD
    assert link_bytes_of_a_step() <= hidden + drawn + 2 * WORD  # does any row go on?
    assert link_bytes_of_a_step(monkeypatch) > rows * V * WORD / 2


@pytest.fixture(scope="module")
def drawn():
    """(logits, uniforms) with ties, impossible tokens and a shard of nothing but those; and what is
    drawn of them on one device and on shards, by temperature.
    """
    random, num_rows, size = np.random.default_rng(0), 64, 4 * 13
    logits_BV = (3 * random.standard_normal((num_rows, size))).astype(np.float32)
    logits_BV[:8] = np.round(logits_BV[:8])  # ties
    logits_BV[8:16, :13] = logits_BV[12:24, 39:] = -np.inf
    uniform_B = random.uniform(size=num_rows).astype(np.float32)
    uniform_B[:4] = uniform_B[12:16] = sampling.HALF_STEP, 0.25, 0.5, 1 - sampling.HALF_STEP
    mesh = tiny.make_mesh((2, 1, 4))
    shards = {"mesh": mesh, "axis": "tensor", "rows": ("data", "fsdp")}

    @jax.jit
    def both(logits_BV, uniform_B):
        return [
            (draw.token(*each), draw.token_of_shards(*each, **shards))
            for each in ((logits_BV, uniform_B, temperature) for temperature in (0.0, 0.7))
        ]

    return logits_BV, both(logits_BV, uniform_B)


@pytest.mark.parametrize("case", [0, 1], ids=["greedy", "drawn"])
def test_a_token_of_shards_is_that_of_whole_logits(drawn, case):
    logits_BV, pairs = drawn
    (token_B, logprob_B), (sharded_B, sharded_logprob_B) = pairs[case]
    np.testing.assert_array_equal(sharded_B, token_B)
    np.testing.assert_allclose(sharded_logprob_B, logprob_B, rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.asarray(sharded_B) // 13)) == 4  # every shard gave some
    assert np.isfinite(logits_BV[np.arange(len(token_B)), sharded_B]).all()


def test_a_mesh_of_tensor_shards_draws_the_tokens_of_one_device():
    model = tiny.make_model(num_layers=1, vocab_size=24)
    params, prompts = tiny.make_params(model), tiny.make_prompts(8)
    sample = partial(
        sampling.sample, model=model, config=tiny.law(GROUP), eos_id=tiny.EOS, pad_id=tiny.PAD
    )
    found = []
    for shape in ((1, 1, 1), SHARDS):
        mesh = tiny.make_mesh(shape)
        placed = jax.device_put(params, sharding.params_shardings(model, params, mesh))
        rows = jax.device_put(prompts, sharding.row_shardings(prompts, mesh))
        run = jax.jit(sharding.sampling_rows(sample, mesh))
        found.append(run(placed, rows, jax.random.key(0), np.int32(0)))
    np.testing.assert_array_equal(found[1].tokens_BC, found[0].tokens_BC)
    np.testing.assert_allclose(
        found[1].behavior_logprob_BC, found[0].behavior_logprob_BC, rtol=1e-5, atol=1e-6
    )
