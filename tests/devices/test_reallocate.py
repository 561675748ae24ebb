"""Arrays go from any placement to any other: equal, never through host memory, in least bytes, in
buffers of their own.
"""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax._src.array import ArrayImpl
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as Spec

from experiments.bench.reallocate import least_bytes
from rlhf_jax.devices import mesh, sharding
from rlhf_jax.devices.transfer import copies, intersections, reallocate, strategies
from rlhf_jax.types import TrainState
from tests import tiny

SIZES = (1, 2, 3, 4, 5, 8, 12, 16)
MESH_SHAPES = [shape for shape in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(shape) <= 8]
NUM_TREES, LEAVES = 30, 7  # 210 pairs of placements


@pytest.fixture
def gathers(monkeypatch):
    """How often the host read a shard of an array: what `_value` and `np.asarray` do."""
    counts = Counter()
    names = ("_copy_single_device_array_to_host_async", "_single_device_array_to_np_array_did_copy")
    for name in names:
        monkeypatch.setattr(ArrayImpl, name, counting(getattr(ArrayImpl, name), name, counts))
    return counts


def counting(real, name: str, counts: Counter):
    def counted(self, *args):
        counts[name] += 1
        return real(self, *args)

    return counted


@pytest.fixture
def copied(monkeypatch):
    """Bytes that `device_put` was asked to copy, by (from device, to device)."""
    counts, real = Counter(), jax.device_put

    def counted(arrays, targets, **options):
        for array, target in zip(arrays, targets, strict=True):
            for shard, device in zip(
                array.addressable_shards, intersections.devices_of(target), strict=True
            ):
                if shard.device != device:
                    counts[shard.device, device] += shard.data.nbytes
        return real(arrays, targets, **options)

    monkeypatch.setattr(jax, "device_put", counted)
    return counts


def random_mesh(random: np.random.Generator):
    """A mesh of a random shape over a slice of the devices, in order or not."""
    shape = MESH_SHAPES[random.integers(len(MESH_SHAPES))]
    size = int(np.prod(shape))
    first = random.integers(8 - size + 1)
    devices = np.array(jax.devices()[first : first + size])
    if random.random() < 0.2:
        devices = random.permutation(devices)
    return jax.sharding.Mesh(devices.reshape(shape), mesh.AXES)


def random_shape(random: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(random.choice(SIZES)) for _ in range(random.integers(4)))


def random_sharding(random: np.random.Generator, on, shape: tuple[int, ...]) -> NamedSharding:
    """Axes dealt to dimensions at random, alone or two together; a dimension that they do not
    divide stays whole.
    """
    axes = [[] for _ in shape]
    for name in random.permutation(mesh.AXES):
        if shape and random.random() < 0.8:
            axes[random.integers(len(shape))].append(str(name))
    kept = [
        names if size % np.prod([on.shape[n] for n in names] or [1]) == 0 else []
        for names, size in zip(axes, shape, strict=True)
    ]
    return NamedSharding(on, Spec(*(tuple(names) or None for names in kept)))


def random_leaf(random: np.random.Generator, source, target):
    shape = random_shape(random)
    return shape, random_sharding(random, source, shape), random_sharding(random, target, shape)


def made(shape: tuple[int, ...], where, dtype="float32"):
    """An array of numbers that bfloat16 holds, and the same on the host."""
    host = (np.arange(np.prod(shape)).reshape(shape) % 251).astype(dtype)
    return jax.make_array_from_callback(shape, where, lambda index: host[index]), host


def pointers(array) -> set[tuple[int, int]]:
    return {
        (shard.device.id, shard.data.unsafe_buffer_pointer()) for shard in array.addressable_shards
    }


@pytest.mark.parametrize("seed", range(NUM_TREES))
def test_any_placement_to_any_other(seed, gathers):
    random = np.random.default_rng(seed)
    source, target = random_mesh(random), random_mesh(random)
    leaves = [random_leaf(random, source, target) for _ in range(LEAVES)]
    arrays, hosts = zip(*(made(shape, where) for shape, where, _ in leaves), strict=True)
    moved = reallocate.move(arrays, tuple(where for *_, where in leaves))
    jax.block_until_ready(moved)
    assert not gathers, "an array went through host memory"
    for array, result, (_, _, where) in zip(arrays, moved, leaves, strict=True):
        assert result.sharding == where
        assert not pointers(array) & pointers(result), "the result lies in a source's buffer"
        array.delete()
    for host, result in zip(hosts, moved, strict=True):
        for shard in result.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), host[shard.index])


@pytest.mark.parametrize("seed", range(12))
def test_pieces_carry_any_pair_in_the_least_bytes(seed, gathers, copied):
    """The same by pieces alone, whatever `move` would choose; what is copied is counted where it is
    copied.
    """
    random = np.random.default_rng(1000 + seed)
    source, target = random_mesh(random), random_mesh(random)
    leaves = [random_leaf(random, source, target) for _ in range(LEAVES)]
    arrays, hosts = zip(*(made(shape, where) for shape, where, _ in leaves), strict=True)
    types = np.dtype("float32"), np.dtype("float32")
    program = strategies.make_program(
        tuple(copies.Leaf(s, *types, a, b) for s, a, b in leaves), "pieces", False
    )
    moved = jax.block_until_ready(program(arrays, []))
    assert not gathers
    assert copied.total() == sum(least_bytes(shape, 4, one, other) for shape, one, other in leaves)
    for host, result in zip(hosts, moved, strict=True):
        for shard in result.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), host[shard.index])


def test_the_count_sees_what_device_put_gathers(gathers):
    devices = tiny.make_mesh((8, 1, 1))
    array, _ = made((8, 16), NamedSharding(devices, Spec("data")))
    jax.block_until_ready(jax.device_put(array, NamedSharding(devices, Spec(None, "data"))))
    assert gathers


def test_bytes_are_the_least_for_many_pairs():
    random = np.random.default_rng(0)
    for _ in range(400):
        shape, source, target = random_leaf(random, random_mesh(random), random_mesh(random))
        found = intersections.moved_bytes(shape, 4, source, target)
        assert found.total() == least_bytes(shape, 4, source, target)
        assert all(giver != taker for giver, taker in found)


def place(shape: tuple[int, int, int], first: int = 0):
    size = int(np.prod(shape))
    return mesh.make_mesh(mesh.Config(*shape), jax.devices()[first : first + size])


def test_bytes_by_hand():
    """[4, 6] float32 in two halves on devices 0, 1 to thirds... of columns on 1, 2: device 1 has
    half of what it wants.

    Device 1 wants columns 0-2 of 4 rows, 48 bytes, and holds rows 2-3: 24 come from 0. Device 2
    lacks all: 24 from each.
    """
    source, target = (
        NamedSharding(place((2, 1, 1)), Spec("data")),
        NamedSharding(place((2, 1, 1), 1), Spec(None, "data")),
    )
    one, two, three = jax.devices()[:3]
    assert intersections.moved_bytes((4, 6), 4, source, target) == {
        (one, two): 24,
        (one, three): 24,
        (two, three): 24,
    }


def test_holders_are_asked_in_turn():
    """Four devices hold all, the four others want all: each gives once."""
    source, target = sharding.replicated(place((4, 1, 1))), sharding.replicated(place((4, 1, 1), 4))
    found = intersections.moved_bytes((5,), 4, source, target)
    assert sorted(giver.id for giver, _ in found) == [0, 1, 2, 3]
    assert set(found.values()) == {20}


@pytest.mark.parametrize(
    ("source", "target", "recipe", "num_bytes"),
    [
        ((place, (4, 1, 1), 0, ("data",)), (place, (2, 2, 1), 0, (("data", "fsdp"),)), "copy", 0),
        (
            (place, (4, 1, 1), 0, ("data",)),
            (place, (4, 1, 1), 0, (None, "data")),
            "jit",
            4 * 3 * 16 * 4,
        ),
        ((place, (4, 1, 1), 0, ("data",)), (place, (4, 1, 1), 4, ("data",)), "put", 16 * 16 * 4),
        ((place, (8, 1, 1), 0, ()), (place, (2, 1, 1), 3, ()), "put", 0),
        ((place, (4, 1, 1), 0, ()), (place, (4, 1, 1), 4, ("data",)), "two-phase", 16 * 16 * 4),
        (
            (place, (4, 1, 1), 0, ("data",)),
            (place, (4, 1, 1), 4, (None, "data")),
            "pieces",
            16 * 16 * 4,
        ),
        (
            (place, (4, 1, 1), 0, ("data",)),
            (place, (8, 1, 1), 0, ("data",)),
            "pieces",
            7 * 2 * 16 * 4,
        ),
    ],
)
def test_the_recipe_and_its_bytes(source, target, recipe, num_bytes):
    """16 x 16 float32. Of the last: device 0 has its two rows already, the seven others take
    theirs.
    """
    (where, shape, first, spec), (_, other_shape, other_first, other_spec) = source, target
    one = NamedSharding(where(shape, first), Spec(*spec))
    other = NamedSharding(where(other_shape, other_first), Spec(*other_spec))
    shapes = {"kernel": jax.ShapeDtypeStruct((16, 16), "float32")}
    (found,) = reallocate.explain(shapes, one, other)
    assert (found.path, found.recipe, found.moved_bytes) == ("['kernel']", recipe, num_bytes)
    assert found.why
    (half,) = reallocate.explain(shapes, one, {"kernel": other}, dtype="bfloat16")
    assert half.moved_bytes == num_bytes // 2


@pytest.mark.parametrize("recipe", ["copy", "jit", "put", "scattered put", "two-phase", "pieces"])
@pytest.mark.parametrize(("dtype", "result"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_the_narrower_type_travels(recipe, dtype, result, gathers, copied):
    source, target = {
        "copy": (NamedSharding(place((4, 1, 1)), Spec("data")),) * 2,
        "jit": (
            NamedSharding(place((4, 1, 1)), Spec("data")),
            NamedSharding(place((4, 1, 1)), Spec(None, "data")),
        ),
        "put": (
            NamedSharding(place((4, 1, 1)), Spec("data")),
            NamedSharding(place((4, 1, 1), 4), Spec("data")),
        ),
        "scattered put": (
            NamedSharding(place((2, 1, 1)), Spec()),
            NamedSharding(place((4, 1, 1), 1), Spec()),
        ),
        "two-phase": (
            NamedSharding(place((4, 1, 1)), Spec()),
            NamedSharding(place((4, 1, 1), 4), Spec("data")),
        ),
        "pieces": (
            NamedSharding(place((4, 1, 1)), Spec("data")),
            NamedSharding(place((8, 1, 1)), Spec("data")),
        ),
    }[recipe]
    tree = {
        "kernel": made((8, 12), source, dtype)[0],
        "count": made((), sharding.replicated(source.mesh), "int32")[0],
    }
    host = jax.tree.map(np.asarray, tree)
    gathers.clear()
    targets = {"kernel": target, "count": sharding.replicated(target.mesh)}
    (_, explained) = reallocate.explain(
        tree, jax.tree.map(lambda x: x.sharding, tree), targets, dtype=result
    )
    moved = jax.block_until_ready(reallocate.move(tree, targets, dtype=result))
    assert not gathers
    assert recipe.endswith(explained.recipe)
    counts = 4 * len(target.device_set - source.device_set)
    assert copied.total() == counts + (0 if recipe == "jit" else explained.moved_bytes)
    assert explained.moved_bytes <= (intersections.moved_bytes((8, 12), 2, source, target)).total()
    assert (moved["kernel"].dtype, moved["count"].dtype) == (jnp.dtype(result), jnp.dtype("int32"))
    assert moved["kernel"].sharding == target
    jax.tree.map(lambda x: x.delete(), tree)
    np.testing.assert_array_equal(
        np.asarray(moved["kernel"]), host["kernel"].astype(ml_dtypes.bfloat16).astype(result)
    )


@pytest.mark.parametrize("first", [2, 4], ids=["overlapping", "disjoint"])
@pytest.mark.parametrize("share", [3, 2, 1, 0.4])
def test_at_most_max_bytes_under_way(first, share, monkeypatch):
    """Three leaves: as many at a time as fit; of one that does not, bands, each awaited before the
    next.
    """
    monkeypatch.setattr(reallocate, "SMALL_BYTES", 0)
    source, target = (
        NamedSharding(place((4, 1, 1)), Spec("data")),
        NamedSharding(place((2, 2, 1), first), Spec(None, "fsdp")),
    )
    arrays, hosts = zip(*(made((20, 8), source) for _ in range(3)), strict=True)
    leaf = copies.Leaf((20, 8), arrays[0].dtype, arrays[0].dtype, source, target)
    max_bytes = int(share * copies.extra_bytes(leaf))
    awaited = []
    monkeypatch.setattr(jax, "block_until_ready", awaited.append)
    moved = reallocate.move(arrays, target, max_bytes=max_bytes)
    monkeypatch.undo()
    steps = reallocate._steps((leaf,) * 3, max_bytes, False)
    assert len(steps) > 3 if share < 1 else len(steps) == 3
    assert all(step.beside_bytes <= max_bytes for step in steps)
    assert len(awaited) == len(steps) - share if share >= 1 else len(awaited) >= len(steps) // 2
    for host, result in zip(hosts, moved, strict=True):
        assert result.sharding == target
        np.testing.assert_array_equal(np.asarray(result), host)


def test_small_leaves_go_together():
    """Thirty of them, and two that are put, in one step; one that is not small in a step of its
    own.
    """
    one, other = place((4, 1, 1)), place((8, 1, 1))
    source, target = NamedSharding(one, Spec("data")), NamedSharding(other, Spec("data"))
    small, count = jax.ShapeDtypeStruct((8, 3), "float32"), jax.ShapeDtypeStruct((), "int32")
    large = jax.ShapeDtypeStruct((8, reallocate.SMALL_BYTES), "float32")
    shapes = [small] * 30 + [count] * 2 + [large]
    sources = [source] * 30 + [sharding.replicated(one)] * 2 + [source]
    targets = [target] * 30 + [sharding.replicated(other)] * 2 + [target]
    leaves = reallocate._leaves(shapes, sources, targets, None)
    steps = reallocate._steps(tuple(leaves), 1 << 30, False)
    assert sorted(step.indices for step in steps) == [tuple(range(32)), (32,)]


@pytest.mark.parametrize("first", [0, 4], ids=["overlapping", "disjoint"])
def test_a_train_state_goes_there_and_back(first, gathers):
    """Params and AdamW's moments, trained on 2 x 2 x 1, sampled from and trained on 1 x 2 x 2, and
    back: bit for bit.
    """
    model, optimizer = tiny.make_model(), optax.adamw(1e-3)
    params = tiny.make_params(model)
    state = TrainState(jnp.int32(3), params, optimizer.init(params))
    one, other = place((2, 2, 1)), place((1, 2, 2), first)
    where, there = (sharding.state_shardings(model, state, optimizer, on) for on in (one, other))
    begun = reallocate.move(state, where)
    moved = reallocate.move(begun, there)
    back = jax.block_until_ready(reallocate.move(moved, where, donate=True))
    assert not gathers
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(moved))
    assert jax.tree.map(lambda x: x.sharding, back) == where
    jax.tree.map(lambda x: x.delete(), begun)
    jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.mark.parametrize("first", [0, 2, 4], ids=["jit", "overlapping", "disjoint"])
@pytest.mark.parametrize("kind", ["normal", "all"])
def test_every_bit_of_a_bfloat16_arrives(kind, first, compiled_as_a_run):
    """Also those of NaNs, which arithmetic in float32 would quieten, and of subnormal numbers, which
    it flushes to zero in a thread that is set so. Programs without XLA's emitters of fusions copy
    through float32; with those of a run nothing may be lost.
    """
    if kind == "all" and not compiled_as_a_run:
        pytest.skip("programs of this compiler copy bfloat16 through float32")
    bits = np.random.default_rng(0).permutation(1 << 16).astype(np.uint16).reshape(256, 256)
    if kind == "normal":
        exponent = bits & 0x7F80
        bits = np.where((exponent == 0) | (exponent == 0x7F80), np.uint16(0), bits)
    where, target = (
        NamedSharding(place((4, 1, 1)), Spec("data")),
        NamedSharding(place((4, 1, 1), first), Spec(None, "data")),
    )
    array = jax.make_array_from_callback(
        bits.shape, where, lambda index: bits[index].view(ml_dtypes.bfloat16)
    )
    moved = reallocate.move(array, target)
    np.testing.assert_array_equal(np.asarray(moved).view(np.uint16), bits)


@pytest.mark.parametrize("recipe", ["copy", "jit", "put", "two-phase", "pieces"])
def test_donation_frees_the_source(recipe):
    rows, columns, whole = Spec("data"), Spec(None, "data"), Spec()
    spec, other, first = {
        "copy": (rows, rows, 0),
        "jit": (rows, columns, 0),
        "put": (rows, rows, 4),
        "two-phase": (whole, rows, 4),
        "pieces": (rows, columns, 4),
    }[recipe]
    array, host = made((8, 12), NamedSharding(place((4, 1, 1)), spec))
    target = NamedSharding(place((4, 1, 1), first), other)
    (explained,) = reallocate.explain(array, array.sharding, target)
    assert explained.recipe == recipe
    moved = reallocate.move(array, target, donate=True)
    assert array.is_deleted()
    np.testing.assert_array_equal(np.asarray(moved), host)


def test_an_array_without_elements_and_one_on_a_single_device():
    target = NamedSharding(place((2, 2, 1), 4), Spec(None, "data"))
    empty, _ = made((0, 4), NamedSharding(place((4, 1, 1)), Spec(None, "data")))
    single = jax.device_put(np.arange(12.0).reshape(3, 4), SingleDeviceSharding(jax.devices()[5]))
    moved = reallocate.move([empty, single], target)
    assert [x.sharding for x in moved] == [target] * 2
    assert moved[0].shape == (0, 4)
    np.testing.assert_array_equal(np.asarray(moved[1]), np.arange(12.0).reshape(3, 4))
    back = reallocate.move(moved[1], NamedSharding(place((1, 1, 1), 5), Spec()))
    np.testing.assert_array_equal(np.asarray(back), np.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize("donate", [False, True])
def test_a_role_rests_on_the_host(donate, gathers):
    on = place((2, 2, 2))
    tree = {
        "kernel": made((4, 6), NamedSharding(on, Spec("fsdp", ("data",))))[0],
        "step": made((), sharding.replicated(on), "int32")[0],
    }
    shardings, held = jax.tree.map(lambda x: x.sharding, tree), jax.tree.map(pointers, tree)
    resting = reallocate.to_host(tree, donate=donate)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(resting)} == {"pinned_host"}
    assert all(x.is_deleted() == donate for x in jax.tree.leaves(tree))
    assert not any(pointers(x) & held[name] for name, x in resting.items())
    with pytest.raises(
        ValueError,
        match=r"\['kernel'\] rests in memory of kind pinned_host; `to_device` brings it back",
    ):
        reallocate.move(resting, shardings)
    back = jax.block_until_ready(reallocate.to_device(resting, donate=True))
    assert not gathers
    assert jax.tree.map(lambda x: x.sharding, back) == shardings
    np.testing.assert_array_equal(np.asarray(back["kernel"]), np.arange(24.0).reshape(4, 6))
    assert int(back["step"]) == 0


def test_memory_that_is_not_offered_is_named():
    array = jnp.zeros(3)
    with pytest.raises(ValueError, match=r"no memory of kind tape; it offers device, pinned_host"):
        reallocate._in_memory([array], lambda device: "tape", False)


def test_what_cannot_be_moved_is_named():
    target = sharding.replicated(place((2, 1, 1)))
    array = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"\['a'\] is a ndarray; accepted: arrays of jax"):
        reallocate.move({"a": np.zeros(3)}, target)
    with pytest.raises(ValueError, match=r"\['b'\] and \['a'\] are the same array"):
        reallocate.move({"a": array, "b": array}, target, donate=True)
    with pytest.raises(ValueError, match="3"):
        reallocate.move({"a": array}, NamedSharding(target.mesh, Spec(None, "data")))
    with pytest.raises(ValueError, match="accepted: NamedSharding"):
        intersections.devices_of(object())  # type: ignore[arg-type]
    assert not array.is_deleted()


def test_another_process_is_named():
    """Only a layout on the same devices is changed between processes."""

    class Elsewhere(NamedSharding):
        @property
        def is_fully_addressable(self):
            return False

    here = sharding.replicated(place((2, 1, 1)))
    leaf = copies.Leaf(
        (4,), np.dtype("int32"), np.dtype("int32"), here, Elsewhere(here.mesh, Spec())
    )
    with pytest.raises(ValueError, match="another process's"):
        strategies.check_addressable([leaf])
