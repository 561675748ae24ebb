"""Formulas of seconds and bytes: hand-worked numbers, what moves which way, refusals, and XLA's own
account of memory.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax import sampling, scoring, updating
from rlhf_jax.algorithms import grpo
from rlhf_jax.dataflow import Call
from rlhf_jax.devices import sharding
from rlhf_jax.devices.mesh import Config, make_mesh
from rlhf_jax.models import gpt_neox, llama
from rlhf_jax.planner.api import Workload
from rlhf_jax.planner.costs import memory, roofline, shapes
from rlhf_jax.planner.costs.analytic import AnalyticCostModel
from rlhf_jax.planner.costs.hardware import find
from rlhf_jax.planner.costs.hosts import OnEveryHost
from rlhf_jax.planner.costs.roofline import Positions
from rlhf_jax.types import Batch, Placement, Prompts, Samples

GENERATE = Call("generate", "policy", "generate", ("prompts",), ("samples",))
REFERENCE = Call("reference", "reference", "infer", ("samples",), ("reference_logprob",))
REWARD = Call("reward", "reward", "infer", ("samples",), ("reward",), per_token=False)
TRAIN = Call("train_policy", "policy", "train", ("samples",), ())
CALLS = (GENERATE, REFERENCE, REWARD, TRAIN)


@pytest.fixture(scope="module")
def seven():
    """LLaMA-2 7B, products and copies in bfloat16."""
    return replace(shapes.named("llama-2-7b"), copy_bytes=2, compute_bytes=2)


def formulas(shape, work, hardware="h100", num_devices=16, **changes):
    value = replace(shape, values=True)
    roles = {"policy": shape, "reference": shape, "reward": value, "critic": value}
    return AnalyticCostModel(find(hardware), num_devices, roles, work, **changes)


def on(*mesh_shape, **changes):
    size = mesh_shape[0] * mesh_shape[1] * mesh_shape[2]
    return Placement(tuple(range(size)), mesh_shape, **changes)


WORK = Workload(
    num_prompts=64,
    samples_per_prompt=1,
    prompt_tokens=128,
    completion_tokens=128,
    num_minibatches=4,
)


def test_a_decoding_step_of_one_row_reads_all_weights(seven):
    """Bound by memory: 2 bytes of each param that is multiplied, at 0.8 of 3.35 TB/s, and 32
    layers' launches.
    """
    costs = formulas(seven, WORK)
    part = costs.part(GENERATE, on(1, 1, 1))
    products = (
        6_738_415_616 - 32000 * 4096 - (2 * 32 + 1) * 4096
    )  # without the embedding and the norms
    seconds = roofline.forward_seconds(part, Positions(1, 0, 1))
    launches = 32 * 14 * 3e-6 + 6 * 3e-6
    read = 2 * products / (0.8 * 3.35e12)
    assert seconds == pytest.approx(read + launches, rel=2e-3)  # the rest: one row's activations
    assert seconds > read + launches


def test_a_forward_pass_of_many_tokens_takes_its_flops(seven):
    """2 FLOPs a param and token, 4 H K N a pair, at 0.6 of the peak; beside it element-wise work in
    memory.
    """
    part = formulas(seven, WORK).part(REFERENCE, on(1, 1, 1))
    tokens, pairs = 8 * 2048, 8 * 2048**2
    layers = 6_738_415_616 - 2 * 32000 * 4096 - (2 * 32 + 1) * 4096
    flops = 2 * layers * tokens / (0.6 * 989.4e12)
    scores = (
        2 * 4 * 32 * 32 * pairs / (0.8 * 3.35e12)
    )  # written and read in float32: they take longer than their FLOPs
    assert scores > 4 * 32 * 128 * 32 * pairs / (0.6 * 989.4e12)
    elements = 4 * 4096 + 6 * 4096 + 5 * 11008
    between = 2 * 2 * elements * 32 * tokens / (0.8 * 3.35e12)
    launches = 32 * 14 * 3e-6
    assert roofline.layers_seconds(part, Positions(tokens, pairs)) == pytest.approx(
        flops + scores + between + launches
    )


def test_tensor_sums_after_attention_and_after_feed_forward(seven):
    """What links of no cost would save: in each of 32 layers two sums of the residual, one of what
    the embedding gives, and three of a float32 for each position with logits.
    """
    free = replace(find("h100"), collective_latency=0.0, link_bandwidth=float("inf"))
    run = Positions(1024, 0, 128)
    costs = formulas(seven, WORK)
    part = costs.part(REFERENCE, on(1, 1, 8))
    beside = replace(costs, hardware=free, _parts={}).part(REFERENCE, on(1, 1, 8))
    residual = 2 * 7 / 8 * 1024 * 4096 * 2 / (0.8 * 450e9) + 15e-6
    figure = 2 * 7 / 8 * 128 * 4 / (0.8 * 450e9) + 15e-6
    paid = roofline.forward_seconds(part, run) - roofline.forward_seconds(beside, run)
    assert paid == pytest.approx((2 * 32 + 1) * residual + 3 * figure)
    assert roofline.backward_seconds(part, run, False) - roofline.backward_seconds(
        beside, run, False
    ) == pytest.approx(2 * 32 * residual + 2 * (residual + 3 * figure))


def test_attention_leaves_out_later_columns_in_blocks():
    assert roofline.square_pairs(100, "xla") == 100**2
    assert roofline.square_pairs(200, "xla") == 200**2 * 3 / 4  # two blocks: 1/2 · 1/2 + 1/2 · 1
    assert roofline.square_pairs(512, "xla") == 512**2 * 5 / 8
    assert roofline.square_pairs(512, "cudnn") == 512**2


def test_generation_is_its_prefill_and_its_steps(seven):
    """With lengths drawn from {1, 128} of one row, the mean of 127 steps and none."""
    full = formulas(seven, replace(WORK, num_prompts=1))
    half = formulas(seven, replace(WORK, num_prompts=1, completion_lengths=(1, 128)))
    none = formulas(seven, replace(WORK, num_prompts=1, completion_lengths=(1,)))
    place = on(1, 1, 1)
    first, middle, last = (costs.seconds(GENERATE, place) for costs in (none, half, full))
    step = roofline.forward_seconds(full.part(GENERATE, place), Positions(1, 256, 1, 256))
    assert last - first == pytest.approx(127 * step)
    assert middle == pytest.approx((first + last) / 2)


def test_a_cache_that_grows_is_read_less(seven):
    work = replace(WORK, num_prompts=256)
    whole, grows = formulas(seven, work), formulas(seven, work, cache_grows=True)
    assert grows.seconds(GENERATE, on(1, 1, 1)) < 0.9 * whole.seconds(GENERATE, on(1, 1, 1))


def test_compaction_saves_the_steps_of_rows_that_ended(seven):
    lengths = tuple(range(1, 16)) * 7 + (128,)
    work = replace(WORK, num_prompts=1024, completion_lengths=lengths)
    plain = formulas(seven, work).seconds(GENERATE, on(4, 1, 1))
    assert (
        formulas(seven, replace(work, num_compactions=2)).seconds(GENERATE, on(4, 1, 1))
        < 0.9 * plain
    )


def test_padded_positions_are_what_the_programs_run(seven):
    work = Workload(num_prompts=2, samples_per_prompt=3, prompt_tokens=5, completion_tokens=7)
    shared, apart = formulas(seven, work), formulas(seven, replace(work, share_prompts=False))
    part = shared.part(REFERENCE, on(1, 1, 1))
    # Two prompts of 5 once, six completions without their last token; each of those 6 x 6 queries
    # has 11 columns.
    assert shared.positions(REFERENCE, part, 2) == Positions(
        2 * 5 + 36, 2 * 25 + 36 * 11, 42, 2 * 11, 2, 36 * 11
    )
    assert apart.positions(TRAIN, part, 2) == Positions(6 * 11, 6 * 121, 42, 0, 1, 6 * 121)
    # Rows that are never separated share a prompt all the same, and so does inference.
    pairs = formulas(seven, replace(work, share_prompts=False, unit_rows=2))
    assert pairs.positions(TRAIN, part, 2) == shared.positions(TRAIN, part, 2)
    assert apart.positions(REFERENCE, part, 2) == shared.positions(REFERENCE, part, 2)
    # A reward model reads the last token too.
    assert shared.positions(REWARD, part, 2) == Positions(6 * 12, 6 * 144, 0, 0, 1, 6 * 144)
    # 200 positions attend in two blocks: each of the second one's 100 queries has 200 columns.
    assert roofline.whole(3, 200, 0, "xla").block_pairs == 3 * 100 * 200


def test_training_is_forward_twice_backward_and_the_optimizer(seven):
    """Seconds of a whole round: minibatches times epochs; remat adds a forward pass of the layers
    to each.
    """
    place = on(8, 1, 1, remat=False)
    costs, twice = formulas(seven, WORK), formulas(seven, replace(WORK, num_epochs=2))
    assert twice.seconds(TRAIN, place) == pytest.approx(2 * costs.seconds(TRAIN, place))
    part = costs.part(TRAIN, place)
    run = costs.positions(TRAIN, part, 2)
    again = costs.seconds(TRAIN, replace(place, remat=True)) - costs.seconds(TRAIN, place)
    assert again == pytest.approx(4 * roofline.layers_seconds(part, run))
    layers, head = roofline.layers_seconds(part, run), roofline.head_seconds(part, run)
    backward = roofline.backward_seconds(part, run, False)
    assert 2 * layers + 2 * head <= backward <= 2 * layers + 3 * head
    ring = 2 * 7 / 8 * 4 * 6_738_415_616 / (0.8 * 450e9)
    assert roofline.reduce_seconds(part) == pytest.approx(ring, rel=1e-3)
    assert roofline.reduce_seconds(costs.part(TRAIN, on(1, 1, 8))) == 0.0


def test_the_optimizer_touches_what_a_device_holds(seven):
    """32 bytes a float32 param: it and its two moments read and written, its gradient read twice."""
    costs = formulas(seven, WORK)
    whole, eighth = (
        roofline.optimizer_seconds(costs.part(TRAIN, on(1, n, 1)), 8.0) for n in (1, 8)
    )
    assert whole == pytest.approx(32 * 6_738_415_616 / (0.8 * 3.35e12) + seven.num_arrays * 3e-6)
    assert eighth < 0.2 * whole


def test_bytes_on_links_are_counted_by_hand(seven):
    """Of eight devices each sends 7/8 of whole arrays. Under fsdp an update gathers what is cut in
    bfloat16, layers twice and the table once a micro-batch, and scatters float32 gradients; the
    head's, once for all micro-batches. Data-parallel it sums all gradients.
    """
    costs, table = formulas(seven, WORK), 32000 * 4096
    layers = 6_738_415_616 - 2 * table - 65 * 4096
    norms = 2 * 7 / 8 * 4 * 65 * 4096
    once = 7 / 8 * (2 * (2 * layers + table) + 4 * (layers + table)) + norms
    head = 7 / 8 * (2 + 4) * table
    for count in (1, 2):
        place = on(1, 8, 1, num_micro_batches=count)
        assert costs.link_bytes(TRAIN, place) == pytest.approx(count * once + head)
    whole = 2 * 7 / 8 * 4 * 6_738_415_616
    assert costs.link_bytes(TRAIN, on(8, 1, 1)) == pytest.approx(whole)
    twice = formulas(seven, replace(WORK, num_epochs=2))
    assert twice.link_bytes(TRAIN, on(8, 1, 1)) == pytest.approx(whole), "of one update"
    assert costs.link_bytes(REFERENCE, on(8, 1, 1)) == 0.0
    gathered = 7 / 8 * 2 * (layers + 2 * table)
    assert costs.link_bytes(REFERENCE, on(1, 8, 1)) == pytest.approx(gathered)
    assert costs.link_bytes(GENERATE, on(1, 8, 1)) == pytest.approx(gathered)


SHARED = replace(WORK, samples_per_prompt=2, rows_per_prompt=2, share_prompts=True)


@pytest.mark.parametrize(
    ("work", "changes", "gathers", "sums"),
    [
        (WORK, {}, 2, 1),
        (SHARED, {}, 2, 1),
        (SHARED, {"remat": True}, 3, 2),
        (SHARED, {"scanned": True}, 4, 2),
    ],
    ids=["one pass", "two passes", "remat", "scan"],
)
def test_float32_gradients_are_sent_in_the_turn_of_each_micro_batch(
    seven, work, changes, gathers, sums
):
    """Each micro-batch gathers head and embedding once, and layers for the forward and the backward
    pass; it reduces each gradient once. With remat or in a scan each of two passes gathers layers
    for its own backward pass and reduces them; in a scan also for its own forward pass.
    """
    shape, table = replace(seven, float32_gradients=True, **changes), 32000 * 4096
    costs = formulas(shape, work)
    layers = 6_738_415_616 - 2 * table - 65 * 4096
    norms = 2 * 7 / 8 * 4 * 65 * 4096
    turn = 7 / 8 * (2 * (gathers * layers + 2 * table) + 4 * (sums * layers + 2 * table)) + norms
    for count in (1, 2):
        place = on(1, 8, 1, num_micro_batches=count)
        assert costs.link_bytes(TRAIN, place) == pytest.approx(count * turn)
    whole = 2 * 7 / 8 * 4 * (6_738_415_616 + (sums - 1) * layers)
    assert costs.link_bytes(TRAIN, on(8, 1, 1)) == pytest.approx(whole)
    rounded = formulas(replace(seven, **changes), work)
    assert costs.link_bytes(TRAIN, on(1, 1, 8)) == rounded.link_bytes(TRAIN, on(1, 1, 8)), (
        "rows are not sharded"
    )


def test_whole_gradients_of_all_layers_are_held_between_two_passes(seven):
    """4 bytes a param of the layers and of the embedding, and 2 for the layers' params, which stay
    gathered; with remat or in a scan two layers' alone. Prompts are so long that this is the most.
    """
    work = replace(SHARED, prompt_tokens=4096, completion_tokens=2, num_prompts=32)
    shape, place = replace(seven, float32_gradients=True), on(1, 8, 1, remat=False)
    table = 32000 * 4096
    layers = 6_738_415_616 - 2 * table - 65 * 4096
    rounded = formulas(seven, work)
    part = rounded.part(TRAIN, place)
    prompts = rounded.prefill(part, 32 / 4 / 8)
    both = rounded.positions(TRAIN, part, 32 / 4 / 8)
    completions = 32 * (
        memory.layer_activation_bytes(part, both) - memory.layer_activation_bytes(part, prompts)
    )
    at_head = 3 * 4 * 4096 * 2 + 4 * table + memory.logits_bytes(part, both, 2.0)
    gradients = 4 * ((6_738_415_616 - 65 * 4096) / 8 + 65 * 4096)
    now, before = (each.working_bytes(TRAIN, place) for each in (formulas(shape, work), rounded))
    more = (4 + 2) * layers + 4 * table - completions - at_head - gradients
    assert more > 0
    assert now - before == pytest.approx(more)
    scanned = formulas(replace(shape, scanned=True), work).working_bytes(TRAIN, place)
    # In a scan the cache of the two rows is there twice more, and the prompt's once.
    caches = (2 * 2 + 1) * memory.cache_bytes(part, 1, 4096 + 2)
    assert now - scanned == pytest.approx((4 + 2) * layers - 4 * 2 * layers / 32 - caches)


# Links and working bytes of an update that libtpu 0.0.42.1 compiled for v5e:2x4 at so many layers of
# Pythia 410m, with the gathers and reductions of `linear.reducing_gradients`.
COMPILED = {2: (5_737_726_757, 1_171_784_192), 4: (7_148_389_269, 1_952_955_392)}


def of_410m(remat: bool, **changes) -> tuple[float, float]:
    """Links and working bytes of an update of the 410m recipe on v5e:2x4, as the planner expects them."""
    config = replace(gpt_neox.PRESETS["pythia-410m"], dtype="bfloat16", **changes)
    work = Workload(
        num_prompts=512, samples_per_prompt=2, prompt_tokens=512, completion_tokens=53,
        rows_per_prompt=2, share_prompts=True,
    )  # fmt: skip
    shape = shapes.model_shape(gpt_neox.make(config))
    costs = formulas(shape, work, hardware="tpu-v5e", num_devices=8)
    place = on(1, 8, 1, num_micro_batches=8, remat=remat)
    return costs.link_bytes(TRAIN, place), costs.working_bytes(TRAIN, place)


@pytest.mark.parametrize("num_layers", COMPILED)
def test_float32_gradients_of_a_published_shape_are_as_compiled(num_layers):
    """Links to 0.1 %, and bytes within 8 % of a device's memory, not less."""
    links, working = COMPILED[num_layers]
    expected = of_410m(remat=False, num_layers=num_layers, gradient_dtype="float32")
    assert expected[0] == pytest.approx(links, rel=1e-3)
    difference = expected[1] - working
    assert 0 <= difference <= 0.08 * find("tpu-v5e").memory_bytes


# The same of all 24 layers in a scan with remat, by the dtype of gradients.
SCANNED = {"bfloat16": (31_641_694_957, 4_697_163_264), "float32": (38_182_961_901, 4_015_814_144)}


@pytest.mark.parametrize("dtype", SCANNED)
def test_an_update_in_a_scan_is_as_compiled(dtype):
    """Links to 5 %, to 0.1 % with float32 gradients, and bytes to 3 % of a device's memory."""
    links, working = SCANNED[dtype]
    expected = of_410m(remat=True, scan_layers=12, gradient_dtype=dtype)
    assert expected[0] == pytest.approx(links, rel=1e-3 if dtype == "float32" else 0.05)
    difference = expected[1] - working
    assert abs(difference) <= 0.03 * find("tpu-v5e").memory_bytes


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("network_bytes", [4, 2])
def test_gradients_of_two_hosts_cross_the_network_once_an_update(
    seven, micro_batches, network_bytes
):
    """A host sends as much as if it trained on its half of the prompts alone, and 2 · 1/2 of the
    gradient that a device holds, an eighth of the model: `tests/devices/test_copies.py` compiles it.
    """
    shape = replace(seven, network_bytes=network_bytes)
    two, one = (
        on(2, 8, 1, num_micro_batches=micro_batches),
        on(1, 8, 1, num_micro_batches=micro_batches),
    )
    work = replace(WORK, num_prompts=512)
    sent = formulas(shape, work).link_bytes(TRAIN, two)
    inside = formulas(shape, replace(WORK, num_prompts=256)).link_bytes(TRAIN, one)
    held = shape.split(8, 1).stored
    assert sent - inside == pytest.approx(2 * (1 / 2) * held * network_bytes)
    same_host = formulas(shape, work, hardware="tpu-v5e").link_bytes(TRAIN, on(2, 4, 1))
    assert same_host > formulas(shape, WORK, hardware="tpu-v5e").link_bytes(TRAIN, on(1, 4, 1))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_prompts_that_are_not_kept_are_sampled_and_judged_and_nothing_else(seven, call):
    """Sampling and the reward are those of twice as many prompts, in seconds and bytes; the others'
    are as without.
    """
    place, twice = on(8, 1, 1), call.name in ("generate", "reward")
    found = formulas(seven, replace(WORK, oversample=2))
    same = formulas(seven, replace(WORK, num_prompts=128 if twice else 64))
    assert found.seconds(call, place) == same.seconds(call, place)
    assert found.working_bytes(call, place) == same.working_bytes(call, place)
    assert found.work.prompts_text == "64 prompts (of 128 sampled)"


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_more_work_and_slower_devices_take_longer(seven, call):
    place, costs = on(8, 1, 1), formulas(seven, WORK)
    seconds = costs.seconds(call, place)
    assert formulas(seven, replace(WORK, num_prompts=128)).seconds(call, place) > seconds
    assert formulas(seven, replace(WORK, prompt_tokens=256)).seconds(call, place) > seconds
    assert formulas(seven, replace(WORK, completion_tokens=256)).seconds(call, place) > seconds
    assert formulas(seven, WORK, hardware="a100-80gb").seconds(call, place) > seconds
    assert costs.seconds(call, on(4, 1, 1)) > seconds
    assert costs.seconds(call, replace(place, num_micro_batches=2)) > seconds
    assert costs.working_bytes(call, replace(place, num_micro_batches=2)) < costs.working_bytes(
        call, place
    ) or (
        call is TRAIN  # which sums the micro-batches' gradients in a second copy
    )


def test_remat_trades_seconds_for_activations(seven):
    costs, place = formulas(seven, WORK), on(8, 1, 1)
    plain, again = replace(place, remat=False), replace(place, remat=True)
    assert costs.seconds(TRAIN, again) > costs.seconds(TRAIN, plain)
    fixed = (4 + 2) * 6_738_415_616  # gradients, and params in the compute dtype
    kept = (costs.working_bytes(TRAIN, again) - fixed) / (costs.working_bytes(TRAIN, plain) - fixed)
    assert 1 / 32 < kept < 0.2  # one layer of 32, the residual before each, and the head
    assert costs.seconds(TRAIN, place) == costs.seconds(TRAIN, plain)  # the model's own config
    # With its products kept, a layer's attention and element-wise work are computed again.
    dots = formulas(replace(seven, remat_policy="dots"), WORK)
    assert costs.seconds(TRAIN, plain) < dots.seconds(TRAIN, again) < costs.seconds(TRAIN, again)
    assert dots.seconds(TRAIN, plain) == costs.seconds(TRAIN, plain)
    part, tokens = costs.part(TRAIN, place), Positions(1000, 0)
    saved = [
        roofline.backward_seconds(each, tokens, True) for each in (part, dots.part(TRAIN, place))
    ]
    assert saved[0] - saved[1] == pytest.approx(roofline.products_seconds(part, tokens))
    tokens = 64 / 4 / 8 * 256  # prompts, minibatches, devices, positions
    products = 3 * 4096 + 4096 + 2 * 11008  # queries, keys, values; attention's output; gate and up
    assert dots.working_bytes(TRAIN, again) - costs.working_bytes(TRAIN, again) == pytest.approx(
        32 * products * tokens * 2, rel=0.01
    )


def test_states_and_copies_are_cut_by_fsdp_and_tensor(seven):
    costs, norms = formulas(seven, WORK), 65 * 4096
    params = 6_738_415_616
    assert costs.state_bytes("policy", on(8, 1, 1)) == 12 * params
    assert costs.state_bytes("policy", on(1, 8, 1)) == 12 * ((params - norms) / 8 + norms)
    assert costs.params_bytes("policy", on(1, 2, 4)) == 2 * ((params - norms) / 8 + norms)
    cache = 64 * 256 * 2 * 32 * 4096 * 2  # rows, columns, keys and values, layers, width, bytes
    assert cache / 8 < costs.working_bytes(GENERATE, on(8, 1, 1)) < 1.2 * cache / 8


def test_logits_are_held_in_chunks(seven):
    part = formulas(seven, WORK).part(REFERENCE, on(1, 1, 1))
    few, many = Positions(100, 0, 100), Positions(10_000, 0, 10_000)
    assert memory.logits_bytes(part, few, 2.0) == 2 * 4 * 100 * 32000
    assert memory.logits_bytes(part, many, 2.0) == 2 * 4 * scoring.MAX_LOGITS
    values = formulas(seven, WORK).part(REWARD, on(1, 1, 1))
    assert memory.logits_bytes(values, few, 2.0) == 0.0


def test_rows_that_stay_under_fsdp_bring_params_together_instead(seven):
    work = replace(WORK, num_prompts=4096)
    moves, stays = formulas(seven, work, rows_stay=False), formulas(seven, work)
    place = on(1, 8, 1, remat=False)
    assert stays.seconds(TRAIN, place) < moves.seconds(TRAIN, place)
    assert stays.working_bytes(TRAIN, place) < moves.working_bytes(TRAIN, place)
    assert stays.seconds(GENERATE, place) < moves.seconds(GENERATE, place)
    # Moving rows: 8 devices' tokens, summed queries, keys and values, summed gate and up, mixed
    # values brought together.
    rows, ring = 8 * 7 * 2, 7 / 8 / (0.8 * 450e9)
    layer = rows * (2 * 3 * 4096 + 2 * 2 * 11008 + 4096) * ring + 3 * 15e-6
    logits = 2 * 4 * 8 * 3 * 32000 * ring + 15e-6
    moved = roofline.fsdp_seconds(moves.part(TRAIN, place), Positions(7, 7, 3))
    assert moved == pytest.approx(32 * layer + logits)
    gathered = roofline.fsdp_seconds(stays.part(TRAIN, place), Positions(7, 7))
    products = 2 * (6_738_415_616 - 65 * 4096)  # rounded to bfloat16 before they are sent
    assert gathered == pytest.approx(7 / 8 * products / (0.8 * 450e9) + 33 * 15e-6, rel=1e-6)


def test_sampling_brings_whole_params_together_once_where_they_fit(seven):
    """Then it takes what data-parallel sampling takes, the gather, and the whole params' bytes; a
    device of which they are more than a quarter sums activations over fsdp in every step.
    """
    work = replace(WORK, num_prompts=256)
    costs, shards, whole = formulas(seven, work), on(1, 8, 1), on(8, 1, 1)
    cut = 2 * (6_738_415_616 - 65 * 4096)  # bfloat16, but for the norms' params
    gather = 7 / 8 * cut / (0.8 * 450e9) + (1 + 32) * 15e-6
    expected = costs.seconds(GENERATE, whole) + gather
    assert costs.seconds(GENERATE, shards) == pytest.approx(expected, rel=1e-6)
    params = 2 * 6_738_415_616
    assert costs.working_bytes(GENERATE, shards) == pytest.approx(
        costs.working_bytes(GENERATE, whole) + params
    )
    small = replace(find("h100"), memory_bytes=3.9 * params)
    moves = replace(costs, hardware=small, _parts={})
    assert moves.working_bytes(GENERATE, shards) < costs.working_bytes(GENERATE, shards)
    assert moves.part(GENERATE, shards).rows_move
    assert not costs.part(GENERATE, shards).rows_move


def test_hosts_multiply_data_and_sum_gradients_over_the_network(seven):
    """Two hosts with twice the prompts take one host's seconds, and those of the network."""
    place, one = on(1, 8, 1), formulas(seven, WORK, num_devices=8)
    two = OnEveryHost(formulas(seven, replace(WORK, num_prompts=128)), 2, 8)
    assert two.everywhere(Placement((4, 5), (1, 2, 1))) == Placement((4, 5, 12, 13), (2, 2, 1))
    for call in CALLS:
        assert two.working_bytes(call, place) == pytest.approx(one.working_bytes(call, place))
        more = two.seconds(call, place) - one.seconds(call, place)
        # Each device has an eighth of the gradients in float32; norms are whole.
        norms, ring = 65 * 4096, 2 / 2 / (0.8 * 50e9)
        summed = 4 * 4 * (6_738_415_616 - norms) / 8 * ring
        assert more == pytest.approx(summed if call is TRAIN else 0.0, rel=0.01)
    assert two.state_bytes("policy", place) == one.state_bytes("policy", place)
    assert two.params_bytes("policy", place) == one.params_bytes("policy", place)
    assert two.refusal(TRAIN, place) is None
    assert "device 8 is none of a host's, which has 8" in (
        two.refusal(TRAIN, Placement((8,), (1, 1, 1))) or ""
    )


def test_hosts_that_share_a_copy_multiply_fsdp_but_not_in_sampling(seven):
    costs = formulas(seven, replace(WORK, num_prompts=128), num_devices=16)
    shared, place = OnEveryHost(costs, 2, 8, copy_hosts=2), on(1, 8, 1)
    state = costs.state_bytes("policy", on(1, 16, 1))
    assert shared.state_bytes("policy", place) == state
    assert shared.link_bytes(TRAIN, place) == costs.link_bytes(TRAIN, on(1, 16, 1))
    assert shared.params_bytes("reference", place) == costs.params_bytes("reference", on(1, 16, 1))
    # Each host has a version of its own, and samples with it.
    assert shared.params_bytes("policy", place) == costs.params_bytes("policy", on(2, 8, 1))
    generate = next(call for call in CALLS if call.kind == "generate")
    assert shared.seconds(generate, place) == costs.seconds(generate, on(2, 8, 1))
    # A placement with data has all params on each host.
    assert shared.state_bytes("policy", on(2, 4, 1)) == costs.state_bytes("policy", on(4, 4, 1))


def test_what_cannot_be_placed_is_refused_with_its_numbers(seven):
    costs = formulas(seven, WORK)
    assert all(costs.refusal(call, on(2, 2, 4)) is None for call in CALLS)
    sixty_four = formulas(seven, WORK, num_devices=64, hardware="h100")
    assert "tensor=64 does not divide the 32 heads of the policy" in (
        sixty_four.refusal(TRAIN, on(1, 1, 64)) or ""
    )
    assert "tensor=16 crosses hosts of 8 devices" in (costs.refusal(TRAIN, on(1, 1, 16)) or "")
    assert "16 prompts of a minibatch do not divide over data*fsdp = 3 " in (
        costs.refusal(TRAIN, on(3, 1, 1)) or ""
    )
    reason = costs.refusal(GENERATE, on(16, 1, 1, num_micro_batches=8))
    assert reason is not None
    assert "64 prompts do not divide over data*fsdp = 16 shards of 8 micro-batch(es)" in reason
    assert "of 16" in (costs.refusal(TRAIN, Placement((15, 16), (2, 1, 1))) or "")
    assert "2 x 1 x 1" in (costs.refusal(TRAIN, Placement((0,), (2, 1, 1))) or "")


def test_params_move_by_what_is_missing(seven):
    costs = formulas(seven, WORK)
    whole, speed = 2 * 6_738_415_616, 0.8 * 450e9
    fixed = seven.num_arrays * 3e-6 + 15e-6
    one, other = Placement((0,), (1, 1, 1)), Placement((1,), (1, 1, 1))
    assert costs.reallocate_seconds("policy", one, one) == 0.0
    assert costs.reallocate_seconds("policy", one, other) == pytest.approx(whole / speed + fixed)
    # A device that has everything needs nothing; one of two halves needs the other half.
    copies, halves = on(2, 1, 1), on(1, 1, 2)
    assert costs.reallocate_seconds("policy", copies, halves) == pytest.approx(fixed)
    products = 2 * (6_738_415_616 - 65 * 4096)
    assert costs.reallocate_seconds("policy", halves, copies) == pytest.approx(
        products / 2 / speed + fixed
    )
    # Halves along rows and along columns have a quarter in common.
    assert costs.reallocate_seconds("policy", on(1, 2, 1), halves) == pytest.approx(
        products / 4 / speed + fixed
    )
    far = Placement((8,), (1, 1, 1))
    assert costs.reallocate_seconds("policy", one, far) == pytest.approx(
        whole / (0.8 * 50e9) + fixed
    )


def test_rows_are_moved_for_little(seven):
    costs, near, far = formulas(seven, WORK), on(8, 1, 1), Placement(tuple(range(8, 16)), (8, 1, 1))
    assert costs.transfer_seconds(GENERATE, near, near) == 0.0
    # Eight rows a device: tokens and masks of prompts, tokens, masks and log-probabilities of
    # completions.
    moved = 8 * (5 * 128 + 9 * 128 + 13)
    assert costs.transfer_seconds(GENERATE, near, far) == pytest.approx(
        moved / (0.8 * 50e9) + 15e-6
    )
    assert costs.transfer_seconds(REWARD, near, on(4, 1, 1)) == pytest.approx(
        16 * 4 / (0.8 * 450e9) + 15e-6
    )


def test_virtual_devices_are_no_faster_together(seven):
    work = replace(WORK, num_prompts=4096)
    costs = formulas(seven, work, hardware="cpu", num_devices=8)
    assert costs.shared_throughput
    assert costs.seconds(REFERENCE, on(8, 1, 1)) == pytest.approx(
        costs.seconds(REFERENCE, on(1, 1, 1)), rel=0.01
    )


# What follows compiles small programs and reads what XLA has set aside for them.
SMALL = llama.Config(512, 128, 2, 4, 2, 384)
SMALL_WORK = Workload(num_prompts=16, samples_per_prompt=4, prompt_tokens=24, completion_tokens=40)
ROWS = 64


def compiled(call, mesh_shape, options=None, **changes):
    """The program of a call of `SMALL` on CPU devices, compiled from shapes."""
    model, mesh = llama.make(replace(SMALL, **changes)), make_mesh(Config(*mesh_shape))
    params = sharding.abstract_params(model, mesh)
    of = jax.ShapeDtypeStruct
    prompts = [of((ROWS, 24), jnp.int32), of((ROWS, 24), bool)]
    tokens = [of((ROWS, 40), jnp.int32), of((ROWS, 40), bool)]
    figures = of((ROWS, 40), jnp.float32)
    if call is GENERATE:
        asked = Prompts(of((16, 24), jnp.int32), of((16, 24), bool), of((16,), jnp.int32))  # type: ignore[arg-type]
        config = sampling.Config(max_completion_tokens=40, samples_per_prompt=4)
        program = partial(sampling.sample, model=model, config=config, eos_id=0, pad_id=0)
        key = jax.eval_shape(lambda: jax.random.key(0))
        return (
            jax.jit(program)
            .lower(params, sharding.abstract_rows(asked, mesh), key, of((), jnp.int32))
            .compile()
        )
    if call is REFERENCE:
        numbers = [
            of((ROWS,), jnp.int32),
            of((ROWS,), jnp.int32),
            tokens[0],
            of((), jnp.float32),
        ]
        samples = Samples(*prompts, *tokens, figures, of((ROWS,), bool), *numbers, 4)  # type: ignore[arg-type]
        program = jax.jit(
            partial(scoring.sample_logprobs, model=model), out_shardings=sharding.rows(mesh)
        )
        return program.lower(params, sharding.abstract_rows(samples, mesh)).compile()
    optimizer = updating.make_optimizer(updating.OptimizerConfig(), 7)
    state = jax.eval_shape(partial(updating.init_state, optimizer=optimizer), params)
    where = sharding.state_shardings(model, state, optimizer, mesh)
    state = jax.tree.map(lambda x, s: of(x.shape, x.dtype, sharding=s), state, where)
    batch = Batch(*prompts, *tokens, of((), jnp.float32), figures, figures, advantage_RC=figures)  # type: ignore[arg-type]
    step = partial(
        updating.train_step,
        objective=updating.policy_objective(grpo.grpo(grpo.Config()).losses["policy"], model, 4),
        optimizer=optimizer,
        aggregation="token",
        unit_rows=4,
    )
    shardings = (where, sharding.replicated(mesh))
    program = jax.jit(step, donate_argnums=0, out_shardings=shardings)
    return program.lower(state, sharding.abstract_rows(batch, mesh)).compile(options)


# Our bytes by XLA's temporary ones, of programs compiled for CPU devices; a schedule moves them. A
# CPU frees a prompt's cache where a TPU keeps it beside its rows' (tests/test_bench_matrix.py).
BANDS = {(1, 1, 1): (0.8, 1.2), (8, 1, 1): (0.8, 1.2), (2, 2, 2): (0.6, 1.4)}


@pytest.mark.parametrize("mesh_shape", BANDS, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("call", [GENERATE, REFERENCE, TRAIN], ids=lambda call: call.name)
def test_bytes_are_those_of_the_compiled_program(call, mesh_shape):
    costs = formulas(
        shapes.model_shape(llama.make(SMALL)), SMALL_WORK, hardware="cpu", num_devices=8
    )
    analysis: Any = compiled(call, mesh_shape).memory_analysis()
    place = on(*mesh_shape, remat=False)
    stays = (
        costs.state_bytes("policy", place)
        if call is TRAIN
        else costs.params_bytes(call.role, place)
    )
    rows = analysis.argument_size_in_bytes - stays
    assert abs(rows) < 0.1 * stays  # the batch, at this size
    if call is TRAIN:
        assert analysis.argument_size_in_bytes + analysis.output_size_in_bytes == pytest.approx(
            2 * stays, rel=0.1
        )
    least, most = BANDS[mesh_shape]
    ratio = costs.working_bytes(call, place) / analysis.temp_size_in_bytes
    print(call.name, mesh_shape, f"ours / temporary = {ratio:.2f}")
    assert least < ratio < most


@pytest.mark.parametrize("policy", ["full", "dots"])
def test_bytes_of_a_layer_with_remat_are_those_of_the_compiled_program(policy):
    """The difference of four layers to two; see `tests/models/test_remat.py` for the barriers."""
    options = {
        "xla_disable_hlo_passes": "cse_barrier_expander",
        "xla_backend_optimization_level": 0,
    }
    place, ours, theirs = on(1, 1, 1), [], []
    for num_layers in (2, 4):
        changes = {"num_layers": num_layers, "remat": True, "remat_policy": policy}
        shape = shapes.model_shape(llama.make(replace(SMALL, **changes)))
        ours.append(formulas(shape, SMALL_WORK, hardware="cpu").working_bytes(TRAIN, place))
        analysis: Any = compiled(TRAIN, (1, 1, 1), options, **changes).memory_analysis()
        theirs.append(analysis.temp_size_in_bytes)
    ratio = (ours[1] - ours[0]) / (theirs[1] - theirs[0])
    print(f"ours / temporary, of two layers = {ratio:.2f}")
    assert 0.9 < ratio < 1.2
