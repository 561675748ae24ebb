"""The head on eight devices: its kernel is gathered once and its gradient reduced once, outside of
loops, and the numbers are those of one device.
"""

import math
import re
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax import scoring
from rlhf_jax.devices import sharding
from rlhf_jax.ops.logprobs import chunked_token_logprobs
from rlhf_jax.ops.row_shards import RowShards
from rlhf_jax.ops.sharded_logprobs import HeadParam, sharded_token_logprobs

P = jax.sharding.PartitionSpec
ROWS, WIDTH, VOCABULARY = 16, 16, 1000
MAX_LOGITS = 3 * VOCABULARY  # of ROWS * tiny.C / 8 rows a device, or of twice as many
COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


@lru_cache
def make_model(family: str = "gpt_neox", **changes):
    shape = {"vocab_size": VOCABULARY, "width": WIDTH, "num_layers": 1}
    return tiny.make_model(family, **(shape | changes))


def collectives(text: str) -> list[tuple[str, int, bool]]:
    """(kind, elements, True inside a loop) of every array that a collective of a compiled program
    makes.
    """
    computations = re.findall(r"^(?:ENTRY )?%([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.M | re.S)
    lines = dict(computations)
    inside = set(re.findall(r"body=%([\w.-]+)", text))
    while more := {
        name
        for outer in inside
        for name in re.findall(r"%([\w.-]+)", lines.get(outer, ""))
        if name in lines and name not in inside
    }:
        inside |= more
    found = []
    for name, body in computations:
        for shapes, kind in re.findall(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", body):
            for dims in re.findall(r"\w+\[([\d,]*)\]", shapes):
                elements = math.prod(int(size) for size in dims.split(",") if size)
                found.append((kind, elements, name in inside))
    return found


def arguments(model, mesh):
    """Params and rows on a mesh."""
    params = tiny.make_params(model)
    batch = tiny.make_batch(ROWS)
    columns = (batch.prompt_tokens_RQ, batch.prompt_mask_RQ, batch.tokens_RC, batch.mask_RC)
    return (
        jax.device_put(params, sharding.params_shardings(model, params, mesh)),
        jax.device_put(columns, sharding.row_shardings(columns, mesh)),
    )


def loss_of(model, max_logits: int):
    def loss(params, columns, temperature):
        outputs = scoring.policy_outputs(
            params, *columns, temperature, model=model, max_logits=max_logits
        )
        pull_C = jnp.arange(1.0, 1.0 + tiny.C)[None]
        return (outputs.logprob_RC * pull_C + 0.1 * outputs.entropy_RC).sum(), outputs

    return loss


def compiled_text(mesh, by: str, max_logits: int) -> str:
    """The program of the gradient to the head's params ("head") or of the outputs ("nothing")."""
    model = make_model()
    params, columns = arguments(model, mesh)
    loss = loss_of(model, max_logits)

    def run(head, params, columns):
        return loss(params | {"embed_out": head}, columns, jnp.float32(0.7))

    function = jax.grad(run, has_aux=True) if by == "head" else run
    kept = jax.jit(sharding.keeping_rows(function, mesh))
    return kept.lower(params["embed_out"], params, columns).compile().as_text()


@pytest.mark.parametrize(
    ("shape", "by", "max_logits"),
    [
        ((8, 1, 1), "head", MAX_LOGITS),
        ((1, 8, 1), "head", MAX_LOGITS),
        ((2, 4, 1), "head", MAX_LOGITS),
        ((1, 4, 2), "head", MAX_LOGITS),
        ((2, 4, 1), "head", 1 << 22),
        ((2, 4, 1), "nothing", MAX_LOGITS),
    ],
)
def test_the_kernel_is_gathered_once_and_its_gradient_reduced_once(shape, by, max_logits):
    """Of fsdp the gradient is scattered; a second sum, of the shards, is over data."""
    _, fsdp, tensor = shape
    whole = WIDTH * VOCABULARY // tensor
    text = compiled_text(tiny.make_mesh(shape), by, max_logits)
    assert (" while(" in text) == (max_logits == MAX_LOGITS), "the head should run in chunks"
    found = collectives(text)
    chunk = 3 * 4 * WIDTH  # a chunk's rows of all shards; over tensor alone rows are summed
    assert [row for row in found if row[2] and (tensor == 1 or row[1] > chunk)] == []
    gathers = [row for row in found if row[0] == "all-gather" and row[1] == whole]
    assert len(gathers) == (fsdp > 1)
    sums = sorted(
        row[:2]
        for row in found
        if row[0] in ("all-reduce", "reduce-scatter") and row[1] in (whole, whole // fsdp)
    )
    expected = {
        (8, 1, 1): [("all-reduce", whole)],
        (1, 8, 1): [("reduce-scatter", whole // 8)],
        (2, 4, 1): [("all-reduce", whole // 4), ("reduce-scatter", whole // 4)],
        (1, 4, 2): [("reduce-scatter", whole // 4)],
    }
    assert sums == (expected[shape] if by == "head" else [])


@pytest.mark.parametrize(
    ("shape", "family", "changes"),
    [
        ((8, 1, 1), "llama", {"tie_embeddings": True}),
        ((1, 8, 1), "gpt_neox", {}),
        ((2, 4, 1), "llama", {"tie_embeddings": True}),
        ((1, 4, 2), "gemma2", {"num_kv_heads": 2}),
    ],
)
def test_numbers_are_those_of_one_device(shape, family, changes):
    """Outputs, and gradients to all params and the temperature, of heads of their own, tied and
    capped; the last chunk of a device is padded.
    """
    model, mesh = make_model(family, vocab_size=24, **changes), tiny.make_mesh(shape)
    params, columns = arguments(model, mesh)
    function = jax.value_and_grad(loss_of(model, 3 * 24), argnums=(0, 2), has_aux=True)
    found = jax.jit(sharding.keeping_rows(function, mesh))(params, columns, jnp.float32(0.7))
    one = arguments(model, tiny.make_mesh((1, 1, 1)))
    expected = jax.jit(function)(*one, jnp.float32(0.7))
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        scale = 1 + np.abs(b).max()
        np.testing.assert_allclose(
            a / scale, b / scale, atol=2e-5, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1)])
def test_temporaries_are_not_larger_than_the_compilers_own(shape):
    """With as many rows a chunk, the program that the compiler partitions by itself takes as much
    memory.
    """
    num_rows, width, vocab_size, most = 512, 64, 2048, 8 * 2048
    mesh = tiny.make_mesh(shape)
    of_rows = jax.sharding.NamedSharding(mesh, P(("data", "fsdp")))
    spec = P("fsdp") if shape[1] > 1 else P()
    of_kernel = jax.sharding.NamedSharding(mesh, spec)

    def head(params, hidden):
        return hidden @ params[0]

    def ours(kernel, hidden, tokens):
        return sharded_token_logprobs(
            hidden,
            head,
            [kernel],
            tokens,
            0.7,
            max_chunk_elements=most,
            shards=RowShards(mesh, ("data", "fsdp")),
            param_layout=[HeadParam(spec, "float32")],
        )[0].sum()

    def compilers(kernel, hidden, tokens):
        return chunked_token_logprobs(
            hidden, lambda h: head([kernel], h), tokens, 0.7, max_chunk_elements=8 * most
        )[0].sum()

    def temporary_bytes(function) -> int:
        shapes = (
            jax.ShapeDtypeStruct((width, vocab_size), jnp.float32, sharding=of_kernel),
            jax.ShapeDtypeStruct((num_rows, width), jnp.float32, sharding=of_rows),
            jax.ShapeDtypeStruct((num_rows,), jnp.int32, sharding=of_rows),
        )
        gradient = jax.jit(jax.grad(function, argnums=(0, 1)), out_shardings=(of_kernel, of_rows))
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(ours) <= 1.05 * temporary_bytes(compilers)


def test_a_row_that_does_not_fit_is_refused():
    mesh = tiny.make_mesh((8, 1, 1))
    model = make_model()
    params, columns = arguments(model, mesh)
    kept = sharding.keeping_rows(loss_of(model, VOCABULARY - 1), mesh)
    with pytest.raises(ValueError, match=r"max_chunk_elements is 999; one row of logits has 1000"):
        kept(params, columns, jnp.float32(0.7))
