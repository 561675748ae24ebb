"""Programs with adapters on an int8 base: all roles share it, sampler and trainer compute the same,
loops agree to the bit, and no call holds or gathers the base in another dtype.
"""

import dataclasses
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax.building.from_shapes import Shaped, shaped
from rlhf_jax.cli import run as run_command
from rlhf_jax.clock import Clock
from rlhf_jax.devices import bases
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.adapters import Adapted, Config
from rlhf_jax.planner.compiled.reading import Reading, read
from rlhf_jax.runtime import asynchronous, synchronous
from rlhf_jax.runtime.program import Program
from rlhf_jax.slots.segment import segment
from rlhf_jax.slots.state import empty

from . import rounds, test_adapters, test_inflight_programs
from .rounds import host, same

LORA = Config(rank=3, alpha=6.0, base_dtype="int8")


def on_int8(model, mesh) -> Adapted:
    """The params of `test_adapters` on an int8 base."""
    params = test_adapters.on_mesh(test_adapters.adapted(model), model, mesh)
    copied = jax.tree.map(lambda x: x + 0, params.base)
    base = bases.compact(copied, model, LORA, mesh)
    return Adapted(base, params.adapter, params.scale)


@lru_cache
def make_program(shape: tuple[int, int, int] = (1, 1, 1), **changes) -> Program:
    mesh = tiny.make_mesh(shape)
    spec = dataclasses.replace(rounds.make_spec(mesh), lora=LORA, **changes)
    return Program(spec, on_int8(spec.model, mesh))


def test_all_roles_share_one_int8_base_before_and_after_an_update():
    program = make_program()
    base = jax.tree.leaves(program.reference_params.base)
    layers = adapters.targets(program.spec.model, LORA)
    assert sum(x.dtype == jnp.int8 for x in base) == len(layers)
    pointers, content = test_adapters.buffers(base), host(base)
    states = program.init(program.reference_params)
    for _ in range(2):
        for role, arrays in test_adapters.bases_in(program, states).items():
            assert all(x is y for x, y in zip(arrays, base, strict=True)), role
        samples = program.generate(program.publish(states), 0, 0)
        _, batch = program.score(states, samples)
        states, _ = program.update(states, program.minibatch(batch, 0, 0))
    assert test_adapters.buffers(base) == pointers
    assert same(content, host(base))


def test_sampled_log_probabilities_are_those_of_scoring():
    program = make_program()
    states = program.init(program.reference_params)
    samples = program.generate(program.publish(states), 0, 0)
    scored = program.scores["reference"].function(program._frozen["reference"], samples)
    np.testing.assert_allclose(scored, samples.behavior_logprob_BC, atol=1e-4)
    other = test_adapters.make_program()
    float32 = other.scores["reference"].function(other._frozen["reference"], samples)
    assert float(jnp.abs(float32 - samples.behavior_logprob_BC).max()) > 1e-3


def test_static_loops_give_the_same_numbers_at_lag_one():
    program = rounds.program_of(Clock(3, lag=1), make_program())
    ends = []
    for loop in (synchronous, asynchronous):
        events = list(loop.run(program, program.init(program.reference_params), 0, {}))
        ends.append(host(events[-1].states["policy"].params))
    assert same(*ends)


def test_loops_through_slots_give_the_same_numbers_at_lag_one():
    shared = make_program()
    stream = test_inflight_programs.make_stream(shared)
    program = test_inflight_programs.through_slots(shared, stream)
    runs = [
        test_inflight_programs.run(program, stream, threaded=threaded) for threaded in (False, True)
    ]
    assert runs[0].mixed_share >= 0.3
    assert same(*(each.figures for each in runs))


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 4, 1), (2, 2, 2)])
def test_sharded_is_single(shape):
    alone, program = (
        test_adapters.one_round(make_program(prompts=test_adapters.of_eight)),
        test_adapters.one_round(make_program(shape, prompts=test_adapters.of_eight)),
    )
    np.testing.assert_array_equal(alone[0].tokens_BC, program[0].tokens_BC)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), alone[1], program[1])


SIZES = {"width": 64, "ffn_width": 256, "num_layers": 4, "num_heads": 4}
CALLS = ("generate", "reference", "train_policy")
DEVICES = 8


@lru_cache
def of_sizes(base_dtype: str, fsdp: int, num_prompts: int) -> Shaped:
    """A program of shapes whose kernels are large beside its rows."""
    sizes = [f"--config.model.{name}={size}" for name, size in SIZES.items()]
    config = run_command.parse(
        [
            "",
            "--config=configs/tiny.py",
            *sizes,
            "--config.lora.rank=2",
            f"--config.lora.base_dtype={base_dtype}",
            f"--config.mesh.fsdp={fsdp}",
            f"--config.rlhf.prompts_per_update={num_prompts}",
            "--config.rlhf.samples_per_prompt=2",
            "--config.rlhf.num_micro_batches=1",
            "--config.lengths.max_prompt_tokens=6",
            "--config.lengths.max_completion_tokens=4",
        ]
    )
    return shaped(config, jax.devices()[:fsdp])


def kernel_sizes(found: Shaped) -> list[int]:
    leaves = jax.tree.leaves(found.program.reference_params)
    return [leaf.size for leaf in leaves if leaf.dtype == jnp.int8]


def reading(found: Shaped, call: str, num_devices: int) -> Reading:
    program = found.program
    return read(call, program.lowered(call), program.arguments(call), num_devices)


@pytest.mark.parametrize("call", CALLS)
def test_temporaries_hold_a_dequantized_kernel_and_not_the_base(call):
    """Beside those on a float32 base, of which float32 products cast nothing: two kernels in float32,
    and a fifth of the activations, which are kept before and after they are scaled.
    """
    plain, found = (reading(of_sizes(dtype, 1, 2), call, 1) for dtype in ("", "int8"))
    sizes = [4 * size for size in kernel_sizes(of_sizes("int8", 1, 2))]
    bound = 2 * max(sizes) + 0.2 * plain.temporary_bytes
    assert found.temporary_bytes - plain.temporary_bytes <= bound
    assert sum(sizes) > 2.5 * bound
    spared = plain.argument_bytes - found.argument_bytes
    assert spared >= 0.7 * sum(sizes)


def test_temporaries_of_a_segment_hold_a_dequantized_kernel_and_not_the_base():
    model = tiny.make_model("llama", **SIZES)
    slots = jax.eval_shape(lambda: empty(model, 4, 6, 4))

    def temporaries(lora: Config) -> int:
        def run(params, slots):
            law = {"temperature": 1.0, "eos_id": 1, "pad_id": 0, "num_steps": 4}
            return segment(params, slots, model=model, **law)

        lowered = jax.jit(run, donate_argnums=1).lower(adapters.shapes(model, lora), slots)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    plain, found = (temporaries(dataclasses.replace(LORA, base_dtype=d)) for d in ("", "int8"))
    layers = adapters.targets(model, LORA).values()
    sizes = [4 * num_in * num_out for num_in, num_out in layers]
    assert found - plain <= 2 * max(sizes)
    assert sum(sizes) > 8 * max(sizes)


@pytest.mark.parametrize("call", CALLS)
def test_fsdp_gathers_kernels_as_int8(call):
    """Each kernel at least once, and as int8 alone; in float32 the embedding, which stays, and what
    is smaller.
    """
    found = of_sizes("int8", DEVICES, DEVICES)
    gathered: dict[str, int] = {}
    for collective in reading(found, call, DEVICES).collectives:
        if collective.kind == "all-gather":
            dtype, whole = collective.shape.split("[")[0], DEVICES * collective.operand_bytes
            gathered[dtype] = gathered.get(dtype, 0) + whole * collective.times
    assert gathered["s8"] >= sum(kernel_sizes(found)), gathered
    table = 4 * SIZES["width"] * found.program.spec.model.vocab_size
    assert sum(size for dtype, size in gathered.items() if dtype != "s8") <= 3 * table, gathered
