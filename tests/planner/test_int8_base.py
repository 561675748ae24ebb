"""An int8 base in the planner: one byte an element and the scales, in memory, reads and gathers."""

from dataclasses import replace

import numpy as np
import pytest

from rlhf_jax.models import llama, qwen3
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.adapters import Config
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.planner.api import Workload
from rlhf_jax.planner.costs import memory, roofline
from rlhf_jax.planner.costs.analytic import AnalyticCostModel
from rlhf_jax.planner.costs.hardware import TABLE
from rlhf_jax.planner.costs.shapes import Shape, held_shape, model_shape
from rlhf_jax.planner.options import option
from rlhf_jax.planner.simulation import plan_memory
from rlhf_jax.types import Placement, Plan

from .tables import PPO

MODEL = llama.make(llama.Config(1024, 256, 4, 8, 4, 1024))
PLAIN, INT8 = Config(rank=8), Config(rank=8, base_dtype="int8")
GENERATE, TRAIN = (
    next(call for call in PPO if call.name == name) for name in ("generate", "train_policy")
)
WORK = Workload(num_prompts=64, samples_per_prompt=1, prompt_tokens=64, completion_tokens=64)


def costs(shape: Shape) -> AnalyticCostModel:
    return AnalyticCostModel(TABLE["tpu-v5e"], 8, {"policy": shape}, WORK)


def on(fsdp: int) -> Placement:
    return Placement(tuple(range(fsdp)), (1, fsdp, 1))


def kernels(leaves: Shape) -> tuple[int, int]:
    """Elements and output columns of the layers' kernels."""
    sizes = adapters.targets(MODEL, INT8).values()
    assert leaves.num_layers == MODEL.config.num_layers
    return sum(num_in * num_out for num_in, num_out in sizes), sum(out for _, out in sizes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_device_holds_one_byte_an_element_and_the_scales(dtype):
    model = MODEL.with_config(dtype=dtype)
    plain, int8 = (model_shape(model, lora=lora) for lora in (PLAIN, INT8))
    elements, columns = kernels(int8)
    width = np.dtype(dtype).itemsize
    spared = costs(plain).base_bytes("policy", on(1)) - costs(int8).base_bytes("policy", on(1))
    assert spared == elements * (width - 1) - 4 * columns
    held = adapters.flat(adapters.shapes(model, INT8).base)
    nbytes = sum(x.size * x.dtype.itemsize for x in held.values())
    norms = sum(x.size for path, x in held.items() if path[-1] == "scale")
    nbytes -= norms * (4 - width)  # which the planner counts as other params
    assert costs(int8).base_bytes("policy", on(1)) == nbytes
    cut = costs(plain).base_bytes("policy", on(8)) - costs(int8).base_bytes("policy", on(8))
    assert cut == elements * (width - 1) / 8 - 4 * columns  # scales are whole on every device


def test_a_value_model_holds_the_same_kernels():
    plain, int8 = (model_shape(ValueModel(MODEL), lora=lora) for lora in (PLAIN, INT8))
    elements, columns = kernels(int8)
    spared = costs(plain).base_bytes("policy", on(1)) - costs(int8).base_bytes("policy", on(1))
    assert spared == elements * 3 - 4 * columns


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gathers_and_reads_are_of_int8(dtype):
    model = MODEL.with_config(dtype=dtype)
    width = np.dtype(dtype).itemsize
    plain, int8 = (model_shape(model, lora=lora) for lora in (PLAIN, INT8))
    elements, _ = kernels(int8)
    parts = [costs(shape).part(TRAIN, on(8)) for shape in (plain, int8)]
    gathered = [part.split.cut_by_fsdp * part.gather_bytes for part in parts]
    assert gathered[0] - gathered[1] == elements * (width - 1)
    links = [costs(shape).link_bytes(GENERATE, on(8)) for shape in (plain, int8)]
    assert links[0] - links[1] == pytest.approx(7 / 8 * elements * (width - 1), rel=1e-6)
    step = roofline.Positions(1, 1, 1)
    read = [
        roofline.products_seconds(replace(part, split=part.shape.split(1, 1)), step)
        for part in parts
    ]
    assert read[1] == pytest.approx(read[0] / width, rel=1e-6)


def test_a_call_casts_one_kernel_at_a_time():
    int8 = model_shape(MODEL, lora=INT8)
    part = costs(int8).part(TRAIN, on(1))
    assert part.split.largest_int8 == 256 * 1024
    assert memory._other_params_bytes(part) == 4 * 256 * 1024
    assert model_shape(MODEL, lora=PLAIN).split(1, 1).largest_int8 == 0


@pytest.mark.parametrize(("lora", "most"), [(PLAIN, 12e9), (INT8, 10e9)])
def test_ppo_of_qwen3_1_7b_fits_on_a_v5e_of_sixteen_gigabytes(lora, most):
    """Four roles in bfloat16 with adapters of rank 32 and remat: 32 rows of 1,024 columns are sampled
    at once, and two are trained on.
    """
    model = qwen3.make(qwen3.PRESETS["qwen3-1.7b"]).with_config(dtype="bfloat16", remat=True)
    lora, valued = replace(lora, rank=32), ValueModel(model)
    shapes = {
        "policy": model_shape(model, 4, lora),
        "reference": held_shape(model, lora),
        "critic": model_shape(valued, lora=lora),
        "reward": held_shape(valued, lora),
    }
    work = Workload(num_prompts=32, samples_per_prompt=1, prompt_tokens=512, completion_tokens=512)
    costs = AnalyticCostModel(TABLE["tpu-v5e"], 1, shapes, work)
    parts = {"generate": 1, "infer": 16, "train": 16}
    plan = Plan({call.name: Placement((0,), (1, 1, 1), parts[call.kind]) for call in PPO})
    chosen = [option(call, costs, plan.placements[call.name]) for call in PPO]
    (needed,) = plan_memory.by_device(PPO, chosen, work.versions, 1)
    assert 0.6 * most < needed <= most
