"""Moving params between placements of 8 CPU devices beside `jax.device_put`: seconds, bytes, and
what goes through the host.

A CPU's devices share its memory, so that a gather on the host costs `device_put` a copy like any
other: seconds here say what our plan costs to carry out, not what it saves where the host is behind
a slow link. Bytes and host reads are the same on any device.

    python -m experiments.bench.reallocate --preset=pythia-1b --dtype=bfloat16 --pairs=200
"""

import contextlib
import dataclasses
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax

from experiments.bench import measure
from rlhf_jax.refusal import Refusal

HOST_READS = "_single_device_array_to_np_array_did_copy"
SHAPES = [
    shape
    for shape in itertools.product((1, 2, 4, 8), repeat=3)
    if shape[0] * shape[1] * shape[2] <= 8
]
PLACEMENTS = [
    (shape, first) for shape in SHAPES for first in range(0, 8, shape[0] * shape[1] * shape[2])
]  # every mesh over (data, fsdp, tensor) on every aligned slice of 8 devices
CASES = {
    "4 to 8 ways": (((1, 4, 1), 0), ((1, 8, 1), 0)),
    "4 to 8 ways, all axes": (((1, 4, 1), 0), ((2, 2, 2), 0)),
    "8 to 4 ways": (((1, 8, 1), 0), ((1, 4, 1), 0)),
    "4 others, another layout": (((1, 4, 1), 0), ((1, 2, 2), 4)),
    "4 others, as it is": (((1, 4, 1), 0), ((1, 4, 1), 4)),
    "the same 4, another layout": (((1, 4, 1), 0), ((1, 2, 2), 0)),
}


def shapes_of(preset: str, dtype: str) -> tuple[Any, Any]:
    """A model, and its params' shapes in a dtype."""
    from rlhf_jax.models import gpt_neox

    config = gpt_neox.PRESETS[preset]
    model = gpt_neox.make(dataclasses.replace(config, vocab_size=config.vocab_size or 512))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


def place(shape: tuple[int, int, int], first: int) -> Any:
    """A mesh on the devices from the `first`."""
    from rlhf_jax.devices import mesh

    return mesh.make_mesh(
        mesh.Config(*shape), jax.devices()[first : first + shape[0] * shape[1] * shape[2]]
    )


def fill(shapes: Any, shardings: Any) -> Any:
    """Params of numbers that differ along every dimension."""
    import jax.numpy as jnp

    def one(leaf: Any) -> Any:
        iotas = [
            jax.lax.broadcasted_iota(jnp.int32, leaf.shape, dim) * (dim + 3)
            for dim in range(leaf.ndim)
        ]
        return (sum(iotas, jnp.zeros(leaf.shape, jnp.int32)) % 251).astype(leaf.dtype)

    return jax.block_until_ready(
        jax.jit(lambda: jax.tree.map(one, shapes), out_shardings=shardings)()
    )


def copied(params: Any) -> Any:
    """The same numbers in arrays that nobody has read."""
    import jax.numpy as jnp

    return jax.block_until_ready(jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(params))


@contextlib.contextmanager
def host_reads() -> Iterator[Counter[str]]:
    """Counts the shards that the host reads meanwhile."""
    from jax._src.array import ArrayImpl

    counts: Counter[str] = Counter()
    real = getattr(ArrayImpl, HOST_READS)

    def counted(array: Any) -> Any:
        counts["reads"] += 1
        counts["bytes"] += array.nbytes
        return real(array)

    setattr(ArrayImpl, HOST_READS, counted)
    try:
        yield counts
    finally:
        setattr(ArrayImpl, HOST_READS, real)


def case(name: str, model: Any, shapes: Any, repeats: int) -> dict[str, Any]:
    """One pair of placements: the sides in turn, what they read on the host, and what we move."""
    from rlhf_jax.devices import sharding
    from rlhf_jax.devices.transfer import reallocate

    source, target = (
        sharding.params_shardings(model, shapes, place(*where)) for where in CASES[name]
    )
    params = fill(shapes, source)
    explained = reallocate.explain(shapes, source, target)
    sides = {
        "ours": lambda params: reallocate.move(params, target),
        "device_put": lambda params: jax.device_put(params, target, may_alias=False),
    }
    reads, seconds = {}, {side: [] for side in sides}
    for repeat in range(repeats + 1):  # the first run compiles
        for side, run in sides.items():
            fresh = copied(params)  # an array that was read once keeps its numbers on the host
            with host_reads() as counts:
                began = time.perf_counter()
                moved = jax.block_until_ready(run(fresh))
                seconds[side].append(time.perf_counter() - began)
            if not repeat:
                reads[f"{side}_host_reads"] = dict(counts)
                check_equal(params, moved)
            del moved, fresh
    firsts = {f"{side}_first_seconds": round(values.pop(0), 3) for side, values in seconds.items()}
    return {
        "case": name,
        "leaves": len(explained),
        "megabytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)) / 1e6,
        "recipes": dict(Counter(leaf.recipe for leaf in explained)),
        "megabytes_moved": sum(leaf.moved_bytes for leaf in explained) / 1e6,
        **reads,
        **firsts,  # with compiling
        **measure.compared(seconds, "ours", "device_put"),
    }


def check_equal(params: Any, moved: Any) -> None:
    """Raises Refusal unless every shard holds the numbers of its place."""
    import numpy as np

    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True):
        whole = np.asarray(copied(before))  # which is kept on the host no longer than this
        for shard in after.addressable_shards:
            if not np.array_equal(np.asarray(shard.data), whole[shard.index]):
                raise Refusal(
                    f"an array of {before.shape} came wrong from {before.sharding} to "
                    f"{after.sharding}"
                )


def least_bytes(shape: tuple[int, ...], itemsize: int, source: Any, target: Any) -> int:
    """The least bytes that must move, by marking every element that a target device lacks."""
    import numpy as np

    held, total = source.devices_indices_map(shape), 0
    for device, index in target.devices_indices_map(shape).items():
        lacking = np.zeros(shape, bool)
        lacking[index] = True
        if device in held:
            lacking[held[device]] = False
        total += int(lacking.sum())
    return total * itemsize


def pairs(num_run: int) -> dict[str, Any]:
    """Every pair of `PLACEMENTS` for arrays in the shapes of the quickstart's params, a quarter as
    long: planned bytes against the least, by marking elements. Of the pairs `num_run`, drawn at
    random, are carried out.

    Raises Refusal where a plan moves more than the least, or an array comes wrong.
    """
    import numpy as np

    from rlhf_jax.devices import sharding
    from rlhf_jax.devices.transfer import intersections, reallocate

    model, whole = shapes_of("quickstart", "float32")
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(tuple(-(-d // 4) for d in leaf.shape), leaf.dtype), whole
    )
    shardings = {
        where: sharding.params_shardings(model, shapes, place(*where)) for where in PLACEMENTS
    }
    every = list(itertools.product(PLACEMENTS, repeat=2))
    found: dict[Any, int] = {}
    for one, other in every:
        leaves = zip(
            *(jax.tree.leaves(tree) for tree in (shapes, shardings[one], shardings[other])),
            strict=True,
        )
        for key in {(leaf.shape, source, target) for leaf, source, target in leaves} - found.keys():
            found[key] = intersections.moved_bytes(key[0], 4, *key[1:]).total()
            if found[key] != (least := least_bytes(key[0], 4, *key[1:])):
                raise Refusal(f"{found[key]} bytes instead of {least}: {key}")
    reads, used = 0, Counter()
    drawn = np.random.default_rng(0).permutation(len(every))[:num_run]
    for index in drawn:
        source, target = (shardings[where] for where in every[index])
        params = fill(shapes, source)
        used.update(leaf.recipe for leaf in reallocate.explain(shapes, source, target))
        with host_reads() as counts:
            moved = jax.block_until_ready(reallocate.move(params, target))
        reads += counts["reads"]
        check_equal(params, moved)
    return {
        "case": "every pair of placements",
        "pairs": len(every),
        "arrays_and_pairs": len(found),
        "that_move_the_least_bytes": len(found),
        "pairs_carried_out": len(drawn),
        "recipes": dict(used),
        "ours_host_reads": reads,
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--preset", default="pythia-1b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--pairs",
        type=int,
        default=0,
        help="pairs of placements that are carried out; 0: no such case",
    )
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    load_average, cases = os.getloadavg(), []
    for preset, dtype in (("quickstart", "float32"), (options.preset, options.dtype)):
        model, shapes = shapes_of(preset, dtype)
        for name in CASES:
            if options.only in name:
                cases.append(
                    {"preset": preset, "dtype": dtype} | case(name, model, shapes, options.repeats)
                )
                print(cases[-1], file=sys.stderr)
    if options.pairs:
        cases.append(pairs(options.pairs))
    measure.report("reallocate", cases, load_average, options.output)


if __name__ == "__main__":
    main()
