"""The pool of slots: what does not depend on a row's slot, rebuilds, versions, checkpoints, and the
number of programs.
"""

import gc
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import sampling
from rlhf_jax.models.common.adapters import Adapted, split
from rlhf_jax.ops.masked import positions_from_mask
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.inflight import ahead
from rlhf_jax.runtime.inflight.api import Drawn
from rlhf_jax.runtime.inflight.pool import SlotPool
from rlhf_jax.runtime.inflight.programs import Config, Programs, prefill_sizes, widths
from rlhf_jax.runtime.inflight.round import sample_round
from rlhf_jax.types import Params
from tests import tiny

from .pools import G, P, check_same, make_pool, prompts_of, static

S, D = 5, 3
MODEL = tiny.make_model("llama", num_layers=1)


def params_of(version: int) -> Params:
    return tiny.make_params(MODEL, version)


def draw(pool: SlotPool, params: Params, num_segments: int) -> list[Drawn]:
    return [pool.segment(params) for _ in range(num_segments)]


def check_equal(found: Iterable[Drawn], expected: Iterable[Drawn], slots: Sequence[int]) -> None:
    """Bitwise, where the slots of `expected` are in the order `slots`."""
    for a, b in zip(found, expected, strict=True):
        for name in ("tokens_TS", "logprob_TS", "live_TS", "ended_S"):
            actual, wanted = getattr(a, name), getattr(b, name)
            np.testing.assert_array_equal(actual, wanted[..., slots], err_msg=name)


def cached(pool: SlotPool, slot: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values `[2N, J, n, K]` of the n tokens in a slot, in the order of their positions,
    and these positions.
    """
    position_M = np.asarray(pool.slots.position_SM[slot])
    columns = [
        column for column in np.argsort(position_M, kind="stable") if position_M[column] >= 0
    ]
    arrays = pool.slots.keys + pool.slots.values
    return np.stack([np.asarray(x[slot])[:, columns] for x in arrays]), position_M[columns]


def prefilled(params: Params, tokens: Sequence[int]) -> np.ndarray:
    """Keys and values of tokens by a prefill of their own, as `cached` gives them."""
    tokens_1L = jnp.asarray([tokens], jnp.int32)
    mask_1L = jnp.ones_like(tokens_1L, bool)
    cache = MODEL.init_cache(1, len(tokens))
    _, cache = MODEL.apply(params, tokens_1L, positions_from_mask(mask_1L), mask_1L, cache)
    assert cache is not None
    return np.stack([np.asarray(x[0]) for x in cache.keys + cache.values])


def prompt(row: int) -> list[int]:
    prompts, index = prompts_of(row // (P * G)), row // G % P
    return prompts.tokens_PQ[index][prompts.mask_PQ[index]].tolist()


def newest_column(pool: SlotPool, slot: int) -> int:
    """The column of the ring with a slot's newest key; a row that fed a token has one."""
    ring_C = np.asarray(pool.slots.position_SM[slot])[-tiny.C :]
    assert ring_C.max() >= 0
    return int(ring_C.argmax())


def tokens_of(drawn: list[Drawn], slot: int) -> list[int]:
    return [int(x) for one in drawn for x in one.tokens_TS[one.live_TS[:, slot], slot]]


def test_another_slot_draws_the_same_bits():
    order = [3, 0, 4, 2, 1]
    plain, moved = make_pool(MODEL, S, D), make_pool(MODEL, S, D)
    plain.admit(params_of(0), range(S), range(S))
    moved.admit(params_of(0), range(S), order)
    check_equal(draw(plain, params_of(0), 3), draw(moved, params_of(0), 3), order)


def test_fewer_slots_take_over_rows_that_were_just_admitted():
    """Their first tokens are drawn, and not yet given out: by the smaller pool alone."""
    plain, left = make_pool(MODEL, 8, D), make_pool(MODEL, 8, D)
    for pool in (plain, left):
        pool.admit(params_of(0), range(2), [3, 6])
    moved = left.quarter()
    assert moved is not None
    smaller, slot_k = moved
    assert slot_k.tolist() == [3, 6]
    expected, found = (draw(pool, params_of(0), 3) for pool in (plain, smaller))
    for slot, place in ((3, 0), (6, 1)):
        assert tokens_of(found, place) == tokens_of(expected, slot) != []
    assert not left.segment(params_of(0)).live_TS.any()


def test_a_rebuild_is_a_prefill_under_the_new_params_and_changes_no_token_under_the_old():
    """Rows of unequal ages, at a place where the ring has wrapped."""
    pools = [make_pool(MODEL, S, D) for _ in range(3)]
    drawn = []
    for pool in pools:
        for _ in range(2):
            sample_round(pool, params_of(0), 0, 0)
        pool.admit(params_of(0), [12, 13], [1, 3])
        begun = draw(pool, params_of(0), 1)
        pool.admit(params_of(0), [14, 15], [0, 4])
        drawn.append(begun + draw(pool, params_of(0), 1))
    plain, same, other = pools
    live = np.flatnonzero(~drawn[0][-1].ended_S)
    assert len(live) >= 2
    before = cached(other, live[0])[0]
    place = int(same.slots.step) % tiny.C
    same.rebuild(params_of(0))
    other.rebuild(params_of(1))
    assert int(same.slots.step) != place, "the place in the ring should be another one"
    assert np.abs(cached(other, live[0])[0] - before).max() > 0.1
    for slot in live:
        tokens = prompt({1: 12, 3: 13, 0: 14, 4: 15}[int(slot)]) + tokens_of(drawn[2], slot)[:-1]
        for pool, version in ((same, 0), (other, 1)):
            found, positions = cached(pool, slot)
            np.testing.assert_array_equal(positions, np.arange(len(tokens)))
            np.testing.assert_allclose(found, prefilled(params_of(version), tokens), atol=2e-5)
            assert newest_column(pool, slot) == (int(pool.slots.step) - 1) % tiny.C
    for slot in set(range(S)) - set(live.tolist()):
        assert not len(cached(other, slot)[1])
    for a, b in zip(draw(same, params_of(0), 2), draw(plain, params_of(0), 2), strict=True):
        np.testing.assert_array_equal(a.tokens_TS, b.tokens_TS)
        np.testing.assert_allclose(a.logprob_TS, b.logprob_TS, atol=5e-5)


def test_a_partly_admitted_prompt_is_prefilled_once_a_version(monkeypatch):
    pool, calls = make_pool(MODEL, S, D), []
    admit = pool._programs.admit
    monkeypatch.setattr(pool._programs, "admit", lambda *args: calls.append(1) or admit(*args))
    pool.admit(params_of(0), [0], [0])
    pool.admit(params_of(0), [1], [1])
    assert len(calls) == 1
    np.testing.assert_allclose(cached(pool, 1)[0], prefilled(params_of(0), prompt(1)), atol=1e-5)
    pool.admit(params_of(1), [2], [2])
    assert len(calls) == 2
    np.testing.assert_allclose(cached(pool, 2)[0], prefilled(params_of(1), prompt(2)), atol=1e-5)


def test_params_of_the_last_call_are_not_kept_alive():
    pool, params = make_pool(MODEL, S, D), jax.tree.map(jnp.copy, params_of(0))
    pool.admit(params, [0], [0])
    pool.segment(params)
    leaves = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]
    del params
    gc.collect()
    assert [leaf() for leaf in leaves] == [None] * len(leaves)


@pytest.mark.parametrize("keeps_cache", [True, False])
def test_a_restored_pool_goes_on_bitwise(keeps_cache):
    pool, twin = make_pool(MODEL, S, D), make_pool(MODEL, S, D)
    pool.admit(params_of(0), range(S), range(S))
    pool.segment(params_of(0))
    state = {name: array.copy() for name, array in pool.saved(keeps_cache).items()}
    assert any(name.startswith("slots.keys") for name in state) == keeps_cache
    twin.restore(state)
    if not keeps_cache:
        pool.rebuild(params_of(1))
    free = np.flatnonzero(np.asarray(pool.slots.done_S)).tolist()
    for each in (pool, twin):
        each.admit(params_of(1), range(5, 5 + len(free)), free)
    check_equal(draw(twin, params_of(1), 2), draw(pool, params_of(1), 2), range(S))


def test_a_state_of_other_shapes_is_refused():
    state = make_pool(MODEL, S, D).saved(True)
    with pytest.raises(Refusal, match=r"\[5, .*num_slots"):
        make_pool(MODEL, S + 1, D).restore(state)


def test_bfloat16_is_saved_as_numbers_that_files_know(tmp_path):
    model = tiny.make_model("llama", num_layers=1, dtype="bfloat16")
    pool, twin = make_pool(model, S, D), make_pool(model, S, D)
    pool.admit(params_of(0), range(S), range(S))
    np.savez(tmp_path / "pool.npz", **pool.saved(True))
    with np.load(tmp_path / "pool.npz") as state:
        twin.restore(dict(state))
    np.testing.assert_array_equal(
        np.asarray(twin.slots.keys[0], np.float32), np.asarray(pool.slots.keys[0], np.float32)
    )
    check_equal([twin.segment(params_of(0))], [pool.segment(params_of(0))], range(S))


def test_programs_are_few_and_none_is_added_to_those_of_the_beginning(compiled):
    """Rounds, partly admitted groups, versions and rebuilds of any width compile nothing."""
    params = [params_of(version) for version in range(4)]
    pool = make_pool(MODEL, 13, 2)
    del compiled[:]
    for function, arguments in ahead.entries(pool._programs, params[0], pool._key, True, 0):
        function.lower(*arguments).compile()
    assert len(compiled) == 8
    del compiled[:]
    sample_round(pool, params[0], 0, 0)
    pool.admit(params[1], range(12, 18), range(6))
    pool.admit(params[1], range(18, 20), range(6, 8))
    for version in range(1, 4):
        pool.segment(params[version])
        pool.rebuild(params[version])
    assert not compiled


@pytest.mark.parametrize(("num_slots", "group"), [(64, 4), (64, 1), (256, 8), (512, 2), (8, 64)])
def test_at_most_twenty_programs(num_slots, group):
    law = sampling.Config(128, group)
    config = Config(law, tiny.EOS, tiny.PAD, num_slots, 16, 32)
    programs = Programs(MODEL, config, 64, tiny.make_mesh((1, 1, 1)))
    assert len(ahead.entries(programs, params_of(0), jax.random.key(0), True, 2)) <= 20
    assert programs.widths == widths(128, "cpu") == (32, 64, 96, 128)
    prompts = list(range(-(-num_slots // group) + 1))
    batches = list(programs.batches(prompts))
    assert [prompt for batch in batches for prompt in batch] == prompts
    assert {len(batch) for batch in batches} <= set(programs.prefill_sizes)


@pytest.mark.parametrize(("num_slots", "group"), [(64, 4), (64, 1), (512, 2), (4096, 1), (8, 64)])
def test_at_most_eight_programs_on_an_accelerator(num_slots, group):
    """Admissions, one of a prompt that is prefilled already, a segment, and rebuilds."""
    groups = -(-num_slots // group)
    for shards in (1, 8):
        sizes = prefill_sizes(shards, max(groups, shards), "tpu")
        assert sizes[0] == shards
        assert len(sizes) + 2 + len(widths(128, "tpu")) <= 8
        assert sizes == prefill_sizes(shards, max(groups, shards), "gpu")
        assert max(groups, shards) < sizes[-1] * (sizes[1] // sizes[0] if sizes[1:] else 4)


def test_sizes_and_widths_on_an_accelerator_by_hand():
    assert prefill_sizes(1, 16, "tpu") == prefill_sizes(1, 16, "cpu") == (1, 4, 16)
    assert prefill_sizes(1, 256, "cpu") == (1, 4, 16, 64, 256)
    assert prefill_sizes(1, 256, "tpu") == (1, 8, 64)
    assert widths(128, "tpu") == widths(128, "gpu") == (43, 86, 128)
    assert widths(2, "tpu") == (1, 2)


def test_adapters_are_sampled_on_their_base():
    model = MODEL
    base = params_of(0)
    random = np.random.default_rng(0)
    adapter = {
        "layer_0": {
            name: {
                "a": jnp.asarray(random.standard_normal((inputs, 2)), jnp.float32),
                "b": jnp.asarray(random.standard_normal((2, outputs)), jnp.float32),
            }
            for (_, name), (inputs, outputs) in model.linear_layers().items()  # type: ignore[attr-defined]
        }
    }
    params = Adapted(base, adapter, 0.5)
    published, rest = split(params)
    law = Config(tiny.law(G), tiny.EOS, tiny.PAD, S, D, P)
    mesh = tiny.make_mesh((1, 1, 1))
    pool = SlotPool(model, law, prompts_of, jax.random.key(0), mesh, rest)
    found = sample_round(pool, published, 0, 0)
    check_same(found, static(model, params, 0))
    assert (np.asarray(found.tokens_BC) != np.asarray(static(model, base, 0).tokens_BC)).any()


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1)])
def test_slots_on_eight_devices(shape):
    """Rows over data and fsdp, heads over tensor."""
    pool = make_pool(MODEL, 8, D, mesh=tiny.make_mesh(shape))
    check_same(sample_round(pool, params_of(0), 0, 0), static(MODEL, params_of(0), 0))
    assert len(pool.slots.keys[0].sharding.device_set) == 8
    assert not pool.slots.keys[0].sharding.is_fully_replicated


def test_the_bytes_of_slots_are_those_of_their_shards():
    pool = make_pool(MODEL, 8, D, mesh=tiny.make_mesh((2, 2, 2)))
    held: Counter[object] = Counter()
    for leaf in jax.tree.leaves(pool.slots):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    assert pool._programs.slot_bytes() == held


def test_what_is_not_defined_is_refused():
    with pytest.raises(Refusal, match="num_slots is 0"):
        make_pool(MODEL, 0, D)
    with pytest.raises(Refusal, match="num_slots is 5, and the mesh has 8"):
        make_pool(MODEL, 5, D, mesh=tiny.make_mesh((1, 8, 1)))
    pool = make_pool(MODEL, S, D)
    with pytest.raises(Refusal, match="published to 2"):
        pool.segment((params_of(0), params_of(0)))
    pool.admit(params_of(0), [0], [2])
    with pytest.raises(RuntimeError, match=r"\[2\] are not free"):
        pool.admit(params_of(0), [1, 2], [1, 2])
