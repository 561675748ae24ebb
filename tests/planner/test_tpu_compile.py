"""Programs as libtpu compiles them for a slice that is not here: the whole head of Pythia 410m, a
small update, a small round of sampling, and a segment of a pool of slots.

`.ci/tpu` runs this file where libtpu can be installed.
"""

import importlib.util
import os
from functools import cache

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax import sampling
from rlhf_jax.building.from_shapes import shaped
from rlhf_jax.cli import run
from rlhf_jax.cli.tables.compile import placements
from rlhf_jax.devices import sharding, topology
from rlhf_jax.devices.distributed import standing_in
from rlhf_jax.devices.mesh import Config, make_mesh
from rlhf_jax.models import llama
from rlhf_jax.ops.row_shards import RowShards
from rlhf_jax.ops.sharded_logprobs import HeadParam, sharded_token_logprobs
from rlhf_jax.planner.compiled.collectives import collectives
from rlhf_jax.planner.compiled.reading import read
from rlhf_jax.runtime.inflight.programs import Config as PoolConfig
from rlhf_jax.runtime.inflight.programs import Programs
from rlhf_jax.scoring import MAX_LOGITS
from rlhf_jax.slots.state import empty

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs rlhf_jax[tpu-compile]"
)
SLICE = topology.parse("v5e:2x4")
DEVICES = SLICE.num_devices
WIDTH, VOCABULARY, ROWS = 1024, 50304, 1024 * 53
"""Of Pythia 410m's head, and the completion positions of an update of TL;DR."""


@cache
def devices():
    os.environ.update(SLICE.environment)  # libtpu reads them as it is loaded
    return topology.devices(SLICE)


def test_the_whole_head_is_gathered_once_and_reduced_once():
    """7/8 of the kernel in bfloat16, and of its gradient in float32; nothing else of weight."""
    with standing_in(devices()):
        mesh = make_mesh(Config(1, DEVICES, 1))
    kernel, rows = P("fsdp"), P(("data", "fsdp"))
    shards, layout = RowShards(mesh, ("data", "fsdp")), [HeadParam(kernel, "bfloat16")]

    def loss(kernel, hidden_ND, tokens_N):
        logprob_N, entropy_N = sharded_token_logprobs(
            hidden_ND,
            lambda params, hidden: (hidden @ params[0]).astype(jnp.float32),
            [kernel],
            tokens_N,
            0.7,
            max_chunk_elements=MAX_LOGITS,
            shards=shards,
            param_layout=layout,
        )
        return (logprob_N + 0.1 * entropy_N).sum()

    def of(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    given = (
        of((WIDTH, VOCABULARY), jnp.float32, kernel),
        of((ROWS, WIDTH), jnp.bfloat16, rows),
        of((ROWS,), jnp.int32, rows),
    )
    text = jax.jit(jax.grad(loss)).lower(*given).compile().as_text() or ""
    found = collectives(text, DEVICES)
    least = (DEVICES - 1) / DEVICES * (2 + 4) * WIDTH * VOCABULARY
    assert " while(" in text, "the head should run in chunks"
    assert least <= sum(each.total_bytes for each in found) <= 1.05 * least
    assert [each for each in found if each.depth and each.total_bytes > 1e-3 * least] == []


def small(**changed):
    """A small model over all devices; settings by key, with `__` for dots."""
    given = {"mesh__fsdp": DEVICES, "model__width": 128, "model__ffn_width": 512} | changed
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in given.items()]
    return shaped(run.parse(["", "--config=configs/tiny.py", *flags]), devices())


def read_call(program, call):
    return read(call, program.lowered(call), program.arguments(call), DEVICES)


@cache
def reading(call):
    program = small().program
    return program, read_call(program, call)


def params_bytes(program):
    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.reference_params)
    )


def test_a_small_update_sends_params_twice_and_gradients_once():
    program, found = reading("train_policy")
    share = (DEVICES - 1) / DEVICES * params_bytes(program)
    # Params are gathered for the forward and for the backward pass, and gradients scattered once, all
    # in float32; XLA may keep what it has gathered.
    assert 1.9 * share <= found.link_bytes <= 1.3 * 3 * share
    # A TPU's tiles make the small arrays larger than their elements.
    assert found.alias_bytes >= found.donated_bytes > 0
    large = [each for each in found.collectives if each.depth and each.total_bytes > 0.1 * share]
    assert large == []


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_float32_gradients_send_what_the_planner_expects(num_micro_batches):
    """Two layers in bfloat16. Each micro-batch gathers params in bfloat16 and scatters a gradient of
    each kernel in float32; the planner does not count norms' statistics and metrics.
    """
    found = small(
        model__num_layers=2,
        model__dtype="bfloat16",
        model__gradient_dtype="float32",
        rlhf__prompts_per_update=16,
        rlhf__num_micro_batches=num_micro_batches,
    )
    compiled = read_call(found.program, "train_policy")
    call = next(each for each in found.problem.calls if each.name == "train_policy")
    expected = found.problem.formulas().link_bytes(call, placements(found)[call.name])
    assert expected <= compiled.link_bytes <= 1.05 * expected
    scattered = [each for each in compiled.collectives if each.kind == "reduce-scatter"]
    assert {each.shape.partition("[")[0] for each in scattered} == {"f32"}
    # Of each of the two layers: queries, keys and values in one kernel, and the first of the
    # feed-forward.
    runs = [each.times for each in scattered if each.shape in ("f32[128,384]", "f32[128,512]")]
    assert sum(runs) == 4 * num_micro_batches


def test_a_small_round_of_sampling_gathers_params_once():
    program, found = reading("generate")
    share = (DEVICES - 1) / DEVICES * params_bytes(program)
    outside = sum(each.total_bytes for each in found.collectives if not each.depth)
    assert outside <= 1.1 * share
    inside = [each for each in found.collectives if each.depth]
    assert all(each.link_bytes < 1000 for each in inside), "decoding sends numbers alone"


@pytest.mark.parametrize(("num_heads", "head_width"), [(8, 64), (16, 64), (4, 128), (8, 128)])
def test_a_segment_changes_the_pool_in_place(num_heads, head_width):
    """A pool of 32 slots of 1024 columns: without a copy of its keys and values, in any layout; for
    one query a key-value head and for more.
    """
    with standing_in(devices()[:1]):
        mesh = make_mesh(Config(1, 1, 1))
    sizes = {"vocab_size": 4096, "width": 512, "ffn_width": 1024, "num_layers": 2}
    model = llama.make(
        llama.Config(
            num_heads=num_heads,
            num_kv_heads=min(num_heads, 512 // head_width),
            head_width=head_width,
            dtype="bfloat16",
            **sizes,
        )
    )
    config = PoolConfig(sampling.Config(768, 4, 1.0), 1, 0, 32, 64, 64)
    programs = Programs(model, config, 256, mesh)
    slots = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(lambda: empty(model, 32, 256, 768)),
        programs.layout,
    )
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding),
        sharding.abstract_params(model, mesh),
    )
    memory = programs.segment.lower(params, slots).compile().memory_analysis()
    pool = sum(x.size * x.dtype.itemsize for x in slots.keys + slots.values)
    assert memory.alias_size_in_bytes >= pool
    assert memory.temp_size_in_bytes <= 0.01 * pool
