"""MFU and the share of bandwidth of a tiny model, counted by hand, on devices with and without
figures.
"""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from rlhf_jax.dataflow import Call
from rlhf_jax.models import gpt_neox
from rlhf_jax.models.common import adapters
from rlhf_jax.planner.costs import hardware, utilization
from rlhf_jax.planner.costs.shapes import model_shape
from rlhf_jax.planner.costs.utilization import RunUtilization
from rlhf_jax.records.rates import Work
from tests.runtime import rounds

WIDTH, FFN, LAYERS, VOCAB = 8, 12, 2, 11
PROMPT_B, COMPLETION_B = np.array([3, 3, 5, 5]), np.array([2, 7, 1, 4])
LAYER = 4 * WIDTH**2 + 2 * WIDTH * FFN  # query, key, value, output; two products of feed-forward
TOKENS = 3 + 5 + 14
PAIRS = (
    (1 + 2 + 3)
    + (1 + 2 + 3 + 4 + 5)  # the prompts, each once
    + (4 + 5)
    + (4 + 5 + 6 + 7 + 8 + 9 + 10)
    + 6
    + (6 + 7 + 8 + 9)
)
FORWARD = 2 * LAYERS * LAYER * TOKENS + 4 * LAYERS * WIDTH * PAIRS + 2 * WIDTH * VOCAB * 14
DEVICE = dataclasses.replace(
    hardware.TABLE["h100"], float32_flops=1e6, bfloat16_flops=2e6, memory_bandwidth=1e5
)


MODEL = gpt_neox.make(
    gpt_neox.Config(
        vocab_size=VOCAB,
        width=WIDTH,
        ffn_width=FFN,
        num_layers=LAYERS,
        num_heads=2,
        rotary_fraction=0.5,
    )
)


@pytest.fixture(scope="module")
def run() -> RunUtilization:
    calls = (
        Call("generate", "policy", "generate", (), ("samples",)),
        Call("reference", "reference", "infer", ("samples",), ("scores",)),
        Call("train_policy", "policy", "train", ("scores",), ()),
    )
    shapes = dict.fromkeys(("policy", "reference"), model_shape(MODEL))
    products = LAYERS * LAYER + WIDTH * VOCAB
    return RunUtilization(DEVICE, calls, shapes, 2, True, 1, 2, 4, 4.0 * products)


def work(trained_tokens: float = 14.0) -> Work:
    return Work(14.0, trained_tokens, PROMPT_B, COMPLETION_B)


def test_flops_are_those_of_the_model(run: RunUtilization):
    assert run.generate_flops(PROMPT_B, COMPLETION_B) == FORWARD
    # the reference's forward pass, and the policy's with its backward pass of two
    assert run.train_flops(PROMPT_B, COMPLETION_B, 1.0) == 4 * FORWARD


def test_shares_are_of_what_the_devices_could_do(run: RunUtilization):
    figures = run.figures(work(), generate_seconds=0.5, train_seconds=0.25)
    assert figures["generate_mfu"] == pytest.approx(FORWARD / (0.5 * 2 * 1e6))
    assert figures["train_mfu"] == pytest.approx(4 * FORWARD / (0.25 * 4 * 1e6))
    cache = (PAIRS - 6 - 15) * 2 * LAYERS * WIDTH * 4  # keys and values of float32
    params = 7 * 4 * (LAYERS * LAYER + WIDTH * VOCAB)  # once for each of 7 steps
    assert figures["generate_bandwidth_share"] == pytest.approx((params + cache / 2) / (0.5 * 1e5))


def test_rows_that_are_not_chosen_are_not_trained_on(run: RunUtilization):
    """Of the half that is trained on the prompts count once, and half of the completions."""
    trained = run.train_flops(PROMPT_B, COMPLETION_B, 0.5) - FORWARD
    prompts = 2 * LAYERS * LAYER * 8
    assert trained == pytest.approx(3 * (prompts + (FORWARD - prompts) / 2))


def test_unknown_seconds_and_steps_have_no_figures(run: RunUtilization):
    assert run.figures(work(), None, None) == {}
    assert run.figures(Work(14.0, 14.0), 0.5, 0.25) == {}
    apart = dataclasses.replace(run, decoding_bytes=None)
    assert set(apart.figures(work(), 0.5, None)) == {"generate_mfu"}


def test_rows_of_prompts_that_are_not_shared_run_their_prompts_too(run: RunUtilization):
    apart = dataclasses.replace(run, share_prompts=False)
    more = 2 * LAYERS * LAYER * 8 + 4 * LAYERS * WIDTH * (6 + 15)
    assert apart.train_flops(PROMPT_B, COMPLETION_B, 1.0) == 4 * (FORWARD + more)
    assert apart.generate_flops(PROMPT_B, COMPLETION_B) == FORWARD


RANK = 2


def adapter_params(width: int, ffn: int) -> int:
    """Of a layer: both matrices of query-key-value in one, of the output, and of two products."""
    return RANK * ((width + 3 * width) + 2 * width + 2 * (width + ffn))


def test_the_base_of_adapters_has_no_gradient(run: RunUtilization):
    """An update multiplies by the base once forward and once backward, and by adapters three times;
    attention has its backward pass of two.
    """
    adapted = model_shape(MODEL, lora=adapters.Config(rank=RANK))
    shapes = dict.fromkeys(("policy", "reference"), adapted)
    lora = dataclasses.replace(run, shapes=shapes)
    extra = 2 * LAYERS * adapter_params(WIDTH, FFN) * TOKENS
    assert lora.generate_flops(PROMPT_B, COMPLETION_B) == FORWARD + extra
    attention = 4 * LAYERS * WIDTH * PAIRS
    update = 2 * (FORWARD - attention) + 3 * (attention + extra)
    assert lora.train_flops(PROMPT_B, COMPLETION_B, 1.0) == FORWARD + extra + update


@pytest.mark.parametrize(("base_dtype", "kernel_bytes"), [("", 4), ("int8", 1)])
def test_decoding_with_adapters_reads_the_base_as_it_is_held(base_dtype, kernel_bytes):
    """Publishing a version copies its adapter alone: `publish_dtype` says nothing of the base."""
    spec = rounds.make_spec(tiny.make_mesh((1, 1, 1)))
    lora = adapters.Config(rank=RANK, base_dtype=base_dtype)
    spec = dataclasses.replace(spec, lora=lora, publish_dtype="bfloat16")
    shape = model_shape(spec.model, lora=lora)
    config = spec.model.config
    width, ffn = config.width, config.ffn_width
    kernels = config.num_layers * (4 * width**2 + 2 * width * ffn)
    adapter = config.num_layers * adapter_params(width, ffn)
    scales = (
        config.num_layers * (5 * width + ffn) if base_dtype else 0
    )  # one for each output column
    read = utilization._decoding_bytes(spec, shape, 1, 1)
    expected = kernels * kernel_bytes + 4 * width * config.vocab_size + 4 * adapter
    assert expected <= read <= expected + 4 * scales
    plain = utilization._decoding_bytes(
        dataclasses.replace(spec, lora=adapters.Config()), model_shape(spec.model), 1, 1
    )
    assert plain == 2 * (kernels + width * config.vocab_size)


def test_a_published_reward_model_has_no_adapter():
    spec = dataclasses.replace(
        rounds.make_spec(tiny.make_mesh((1, 1, 1))), lora=adapters.Config(rank=RANK)
    )
    assert utilization._adapters_of(spec, "reward") == adapters.Config()
    assert utilization._adapters_of(spec, "policy").rank == RANK
    base: Any = {"layer_0": {}}
    own = dataclasses.replace(
        spec.reward, params={"backbone": adapters.Adapted(base, {}, 1.0), "value_head": {}}
    )
    assert utilization._adapters_of(dataclasses.replace(spec, reward=own), "reward").rank == RANK


@pytest.mark.parametrize("kind", ["cpu", "a device of tomorrow"])
def test_devices_without_figures_have_no_utilization(kind: str):
    devices = np.array([SimpleNamespace(device_kind=kind)])
    mesh: Any = SimpleNamespace(devices=devices)
    spec: Any = SimpleNamespace(
        resolved_plan=SimpleNamespace(mesh=lambda call: mesh),
        calls=(SimpleNamespace(name="generate"),),
        sampler_slices=(),
    )
    assert utilization.of_spec(spec, 1) is None
    assert jax.devices()[0].device_kind == "cpu"
