"""The reader of collectives: programs whose bytes are known by hand, on 8 CPU devices and as libtpu
compiled them.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.planner.compiled import hlo
from rlhf_jax.planner.compiled.collectives import Collective, Sum, collectives, network_bytes, sums
from rlhf_jax.planner.compiled.groups import groups

TPU = Path(__file__).parent / "hlo"
N = 8
ROWS = P("x")
WHOLE = 1024 * 256 * 4
"""Bytes of a float32 array [1024, 256]."""


def mesh(*shape: int) -> jax.sharding.Mesh:
    return jax.make_mesh(
        shape or (N,),
        ("x", "y")[: len(shape) or 1],
        axis_types=(jax.sharding.AxisType.Auto,) * (len(shape) or 1),
    )


def compiled(function, where=None, in_specs=ROWS, out_specs=ROWS, shape=(1024, 256)) -> str:
    """The text of a function of each device's part of one array."""
    where = where or mesh()
    mapped = jax.shard_map(
        function, mesh=where, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    given = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(where, in_specs))
    return jax.jit(mapped).lower(given).compile().as_text() or ""


def only(text: str) -> Collective:
    (found,) = collectives(text, N)
    return found


def test_a_sum_sends_two_rings():
    found = only(compiled(lambda x: jax.lax.psum(x, "x"), in_specs=P(), out_specs=P()))
    assert (found.kind, found.group_size, found.times, found.depth) == ("all-reduce", N, 1, 0)
    assert found.operand_bytes == WHOLE
    assert found.link_bytes == 2 * 7 / 8 * WHOLE


def test_a_gather_in_a_scan_of_five_steps_runs_five_times():
    def steps(x):
        def step(carry, _):
            whole = jax.lax.all_gather(carry * 2, "x", tiled=True)
            return carry + whole[: carry.shape[0]] * whole.sum(), None

        return jax.lax.scan(step, x, length=5)[0]

    found = only(compiled(steps))
    assert (found.kind, found.times, found.depth, found.bound) == ("all-gather", 5, 1, "exact")
    assert found.shape == "f32[1024,256]"
    assert found.link_bytes == 7 / 8 * WHOLE
    assert found.total_bytes == 5 * 7 / 8 * WHOLE


def test_loops_in_loops_multiply():
    def steps(x):
        def inner(carry, _):
            return jnp.sin(jax.lax.psum(carry, "x")), None

        def outer(carry, _):
            return jnp.cos(jax.lax.scan(inner, carry, length=3)[0]), None

        return jax.lax.scan(outer, x, length=4)[0]

    found = only(compiled(steps))
    assert (found.times, found.depth) == (12, 2)
    assert found.total_bytes == 12 * 2 * 7 / 8 * WHOLE / N


def test_a_scattered_sum_sends_one_ring():
    found = only(
        compiled(lambda x: jax.lax.psum_scatter(x, "x", tiled=True), in_specs=P(), out_specs=P("x"))
    )
    assert (found.kind, found.operand_bytes) == ("reduce-scatter", WHOLE)
    assert found.link_bytes == 7 / 8 * WHOLE


def test_a_permute_sends_a_device_s_part():
    ring = [(i, (i + 1) % N) for i in range(N)]
    found = only(compiled(lambda x: jax.lax.ppermute(x, "x", ring)))
    assert (found.kind, found.link_bytes) == ("collective-permute", WHOLE / N)


def test_an_exchange_keeps_one_part_of_eight():
    found = only(
        compiled(
            lambda x: jax.lax.all_to_all(x, "x", split_axis=1, concat_axis=0, tiled=True),
            out_specs=P(None, "x"),
        )
    )
    assert found.kind == "all-to-all"
    assert found.link_bytes == 7 / 8 * WHOLE / N


def test_a_sum_over_one_axis_of_a_mesh_is_of_its_group():
    found = only(
        compiled(lambda x: jax.lax.psum(x, "y"), mesh(2, 4), in_specs=P("x"), out_specs=P("x"))
    )
    assert (found.group_size, found.operand_bytes) == (4, WHOLE / 2)
    assert found.link_bytes == 2 * 3 / 4 * WHOLE / 2


def test_a_loop_that_may_end_before_has_an_upper_bound():
    """As decoding: until no row goes on, and at most so many steps."""

    def steps(x):
        def goes_on(state):
            step, carry = state
            return (step < 9) & (jax.lax.pmax(carry.max(), "x") > 0)

        return jax.lax.while_loop(
            goes_on, lambda state: (state[0] + 1, jax.lax.psum(jnp.sin(state[1]), "x")), (2, x)
        )[1]

    found = collectives(compiled(steps), N)
    body = next(each for each in found if each.operand_bytes == WHOLE / N)
    assert (body.times, body.bound, body.depth) == (7, "most", 1)


def test_a_loop_without_a_bound_runs_at_least_once():
    def steps(x):
        return jax.lax.while_loop(
            lambda x: jax.lax.pmax(x.max(), "x") > 0, lambda x: jax.lax.psum(x - 1, "x"), x
        )

    (line,) = [each for each in sums(collectives(compiled(steps), N)) if each.in_loop]
    assert (line.kind, line.bound) == ("all-reduce", "least")


def test_of_a_conditional_the_branch_that_sends_most():
    def either(x):
        return jax.lax.cond(
            x.sum() > 0, lambda x: jax.lax.psum(x, "x"), lambda x: x * jax.lax.psum(x.sum(), "x"), x
        )

    found = only(compiled(either))
    assert (found.operand_bytes, found.bound) == (WHOLE / N, "most")


def test_what_libtpu_makes_of_a_gradient_in_a_scan():
    """A weight [1024, 2048] sharded over eight: gathered in bfloat16 in each of five steps, its
    float32 gradient reduced in each by a fusion of an all-reduce and a slice.
    """
    found = sums(collectives((TPU / "scanned_gradient.hlo").read_text(), N))
    size = 1024 * 2048
    assert found == [
        Sum("reduce-scatter", True, 1, 5, 5 * 7 / 8 * 4 * size, "exact"),
        Sum("all-gather", True, 1, 5, 5 * 7 / 8 * 2 * size, "exact"),
    ]


def test_what_libtpu_makes_of_a_permute_and_of_an_exchange():
    """The permute is a pair of a start and an end."""
    found = only((TPU / "permute.hlo").read_text())
    assert (found.kind, found.total_bytes) == ("collective-permute", WHOLE)
    found = only((TPU / "all_to_all.hlo").read_text())
    assert (found.kind, found.total_bytes) == ("all-to-all", 7 / 8 * WHOLE)


CARRIED = """
HloModule carried, num_partitions=8

%begin (p: bf16[128,64]) -> bf16[1024,64] {
  %p = bf16[128,64]{1,0} parameter(0)
  ROOT %g.1 = bf16[1024,64]{1,0} all-gather(%p), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%go_on (p.1: bf16[128,64]) -> bf16[1024,64] {
  %p.1 = bf16[128,64]{1,0} parameter(0)
  ROOT %g.2 = bf16[1024,64]{1,0} all-gather(%p.1), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%body (s: (u32[], bf16[128,64], bf16[1024,64])) -> (u32[], bf16[128,64], bf16[1024,64]) {
  %s = (u32[], bf16[128,64]{1,0}, bf16[1024,64]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%s), index=0
  %two = u32[] constant(2)
  %next = u32[] add(%i, %two)
  %part = bf16[128,64]{1,0} get-tuple-element(%s), index=1
  %whole = bf16[1024,64]{1,0} fusion(%part), kind=kCustom, calls=%go_on
  ROOT %t = (u32[], bf16[128,64]{1,0}, bf16[1024,64]{1,0}) tuple(%next, %part, /*index=2*/%whole)
}

%condition (s.1: (u32[], bf16[128,64], bf16[1024,64])) -> pred[] {
  %s.1 = (u32[], bf16[128,64]{1,0}, bf16[1024,64]{1,0}) parameter(0)
  %i.1 = u32[] get-tuple-element(%s.1), index=0
  %four = u32[] constant(4)
  ROOT %less = pred[] compare(%i.1, %four), direction=LT
}

ENTRY %main (a: bf16[128,64]) -> bf16[1024,64] {
  %a = bf16[128,64]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = u32[] constant(0)
  %f = bf16[1024,64]{1,0} fusion(%a), kind=kCustom, calls=%begin
  %given = (u32[], bf16[128,64]{1,0}, bf16[1024,64]{1,0}) tuple(%zero, %a, /*index=2*/%f)
  %loop = (u32[], bf16[128,64]{1,0}, bf16[1024,64]{1,0}) while(%given), condition=%condition, body=%body
  ROOT %r = bf16[1024,64]{1,0} get-tuple-element(%loop), index=2
}
"""


def test_a_collective_that_goes_on_in_a_loop_of_other_products_is_counted_where_it_begins():
    found = only(CARRIED)
    assert (found.times, found.depth, found.link_bytes) == (1, 0, 7 * 128 * 64 * 2)


def test_a_loop_by_twos_to_four_runs_twice():
    module = hlo.parse(CARRIED)
    entry = module.computations[module.entry]
    assert module.trips(entry, entry.instructions["loop"]) == hlo.Trips(2)


def test_a_counter_beside_a_member_that_stays_has_an_upper_bound():
    """As the loops of a compacted batch, which begin where the one before ended."""
    later = CARRIED.replace(
        "%two = u32[] constant(2)",
        "%two = u32[] constant(1)\n  %b = u32[] get-tuple-element(%s), index=3",
    )
    later = later.replace(
        "tuple(%next, %part, /*index=2*/%whole)", "tuple(%next, %part, %whole, %b)"
    )
    later = later.replace(
        "ROOT %less = pred[] compare(%i.1,",
        "%b.1 = u32[] get-tuple-element(%s.1), index=3\n  %sum = u32[] add(%i.1, %b.1)\n"
        "  ROOT %less = pred[] compare(%sum,",
    )
    later = later.replace("/*index=2*/%f)", "/*index=2*/%f, %a)")
    module = hlo.parse(later)
    entry = module.computations[module.entry]
    assert module.trips(entry, entry.instructions["loop"]) == hlo.Trips(4, exact=False)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (
            "replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}",
            [[0, 1, 2, 3], [4, 5, 6, 7]],
        ),
        ("replica_groups=mesh['x'=2,'y'=4] {'x'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['x'=2,'y'=4] {'x','y'}", [[*range(8)]]),
        (
            "replica_groups=mesh['x'=4,'y'=1,'z'=2], device_ids=([2,4]T(1,0)) {'x'}, channel_id=2",
            [[0, 1, 2, 3], [4, 5, 6, 7]],
        ),
        ("replica_groups=mesh['x'=2,'y'=4] {'x','y':(2)2}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("replica_groups=mesh['x'=2,'y'=4] {'y':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("channel_id=1, replica_groups={}, to_apply=%add", [[*range(8)]]),
        ("channel_id=1, source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_devices_of_a_group(attributes, expected):
    assert groups(attributes, N) == expected


def test_groups_of_an_unknown_form_are_refused():
    with pytest.raises(ValueError, match=r"replica_groups=ring\(4\),? which is no known form"):
        groups("channel_id=1, replica_groups=ring(4), to_apply=%add", N)


def in_order(devices_per_host):
    return [device // devices_per_host for device in range(N)]


def test_collectives_between_hosts_of_four_devices():
    """Of a mesh of 2 x 4, the first axis is between hosts and the second inside of one."""

    def both(x):
        return jax.lax.psum(jnp.sin(jax.lax.psum(x, "x")), "y")

    found = collectives(compiled(both, mesh(2, 4), P(), P()), N)
    assert [each.group_size for each in found] == [2, 4]
    assert network_bytes(found, in_order(4)) == 2 * 1 / 2 * WHOLE
    assert network_bytes(found, in_order(8)) == 0
    assert network_bytes(found, in_order(2)) == (2 * 1 / 2 + 2 * 3 / 4) * WHOLE


def test_bytes_of_shapes():
    assert hlo.bytes_of("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}") == 2048
    assert hlo.bytes_of("(f32[4]{0}, pred[3]{0}, /*index=2*/s4[6]{0}, u32[]{:S(2)}, token[])") == 26
    assert hlo.bytes_of("f8e4m3fn[16]") == 16


def test_a_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("module @jit_f {}")
