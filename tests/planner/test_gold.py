"""A gold model beside the rounds: its bytes of a device and its seconds, against counts by hand."""

from dataclasses import replace

import pytest

from rlhf_jax.devices import mesh
from rlhf_jax.models import llama
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.planner.costs import gold, hardware, memory, roofline
from rlhf_jax.planner.costs.analytic import AnalyticCostModel
from rlhf_jax.planner.costs.shapes import held_shape
from rlhf_jax.types import Placement
from tests.planner.tables import PPO

H100 = hardware.TABLE["h100"]
MODEL = ValueModel(llama.make(llama.Config(512, 64, 2, 4, 4, 128, dtype="bfloat16")))


def made(fsdp=1, **changed) -> gold.Gold:
    settings = {"rows_per_batch": 8, "round_tokens": 48, "evaluation_tokens": 20} | changed
    return gold.Gold(held_shape(MODEL), mesh.Config(fsdp=fsdp), **settings)


def test_bytes_are_the_params_on_the_mesh_and_one_batch():
    """2 bytes a param, over the shards of fsdp; 8 rows of 32 positions, of which a device has 4."""
    num_params = held_shape(MODEL).num_params
    held, _ = made().memory(H100, 4, 1)
    assert held == 2 * num_params
    sharded, scoring = made(fsdp=2).memory(H100, 4, 1)
    assert sharded == pytest.approx(num_params, rel=0.01)
    costs = AnalyticCostModel(H100, 4, {"gold": held_shape(MODEL)}, made(fsdp=2)._batch(32))
    part = costs.part(gold.SCORE, Placement((0, 1), (1, 2, 1)))
    batch = 4 * 32 * memory.ROW_BYTES
    assert scoring == batch + memory.infer_bytes(part, roofline.whole(4, 32, 0.0, "xla"), 0.0)


def test_rows_are_padded_to_powers_of_two_and_the_longer_ones_count():
    """Rows of rounds count where gold scores them (`rlhf.ledger_gold`)."""
    only_evaluations = made().memory(H100, 1, 1)
    assert only_evaluations == made(evaluation_tokens=32).memory(H100, 1, 1)
    assert only_evaluations < made(evaluation_tokens=33).memory(H100, 1, 1)
    of_rounds = made(rows_per_round=8).memory(H100, 1, 1)
    assert of_rounds == made(evaluation_tokens=64).memory(H100, 1, 1)


def test_seconds_are_those_of_whole_batches():
    work = {"rows_per_round": 17, "rows_per_evaluation": 16, "evaluations_per_round": 0.25}
    found = made(**work).seconds(H100, 1, 1)
    one = made(rows_per_round=1, rows_per_evaluation=1).seconds(H100, 1, 1)
    assert found.of_round == pytest.approx(3 * one.of_round)
    assert found.of_evaluation == pytest.approx(2 * one.of_evaluation)
    assert found.of_each_round == pytest.approx(found.of_round + 0.25 * found.of_evaluation)
    assert one.of_round > one.of_evaluation > 0
    assert made().seconds(H100, 1, 1) == gold.Seconds(0.0, 0.0, 0.0)


def test_calls_have_what_gold_leaves_and_need_no_less_than_it():
    shapes = {role: held_shape(MODEL) for role in ("policy", "reference", "critic", "reward")}
    work = made()._batch(8)
    alone = AnalyticCostModel(H100, 1, shapes, work)
    model = made(rows_per_batch=64, evaluation_tokens=1024)
    costs = gold.beside(alone, model, 1)
    held, scoring = model.memory(H100, 1, 1)
    assert alone.device_bytes - costs.device_bytes == held
    place = Placement((0,), (1, 1, 1))
    for call in PPO:
        assert alone.working_bytes(call, place) < scoring
        assert costs.working_bytes(call, place) == scoring
        assert costs.seconds(call, place) == alone.seconds(call, place)
    small = replace(costs, scoring_bytes=1.0, _parts={})
    assert small.working_bytes(PPO[0], place) == alone.working_bytes(PPO[0], place)


def test_each_host_has_all_params_and_its_share_of_the_rows():
    held, scoring = made(fsdp=2).memory(H100, 16, 2)
    one_held, one_scoring = made(fsdp=2).memory(H100, 8, 1)
    assert held == one_held
    assert scoring < one_scoring
