"""One process of several, as `test_distributed.py` starts it: `python host.py <directory>
<scenario>`. Says what it found in a file.

The program is that of `rounds.py`, its mesh over all processes; what each process finds is written
to `<directory>/<process>.npz`, and must be the same everywhere.
"""

import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.clock import Clock
from rlhf_jax.devices import distributed

ROUNDS = 3
BUFFERED = Clock(ROUNDS, lag=1, buffer_rounds=2)


def record(events, program):
    """What the loop's events hold, whole, by name."""
    found = {}
    for event in events:
        match type(event).__name__:
            case "Sampled":
                for name in ("tokens_BC", "ordinal_B", "behavior_logprob_BC", "version_BC"):
                    found[f"{name}/{event.round_index}"] = distributed.fetch(
                        getattr(event.samples, name)
                    )
            case "Scored":
                found[f"score/{event.round_index}"] = distributed.fetch(event.scores.score_B)
            case "Updated":
                metrics = distributed.fetch(event.metrics)
                found[f"loss/{event.update}"] = np.float64(metrics["loss"].value())
                found[f"norm/{event.update}"] = np.float64(metrics["update_norm"].value())
            case "RoundEnd":
                params = distributed.fetch(event.states["policy"].params)
                found |= {
                    f"params/{place}": leaf for place, leaf in enumerate(jax.tree.leaves(params))
                }
                found["rounds"] = np.int64(event.round_index + 1)
    return found


def program_of(trainer, num_slices, plan="", lag=1, where=None, **of_model):
    """The program of `rounds.py` on a mesh of that shape on each host, or on the mesh `where`; its
    clock has `ROUNDS` rounds. `of_model`: keys of the model's config.
    """
    import tiny

    from rlhf_jax.devices import mesh, placement
    from rlhf_jax.runtime.program import Program
    from tests.runtime import rounds

    rounds.make_program.cache_clear()
    where = where or mesh.make_mesh(mesh.Config(*trainer))
    spec = dataclasses.replace(
        rounds.make_spec(where, **of_model),
        sampler_slices=mesh.sampler_slices(where, num_slices, 1),
        clock=Clock(ROUNDS, lag=lag),
        plan=placement.parse(plan),
    )
    model = spec.model
    return Program(spec, placement.put(tiny.make_params(model), layout(model, where)))


def layout(model, mesh):
    import tiny

    from rlhf_jax.devices import sharding

    return sharding.params_shardings(model, tiny.make_params(model), mesh)


def run(program, loop, monitor=None):
    return record(
        loop.run(program, program.init(program.reference_params), 0, {}, monitor), program
    )


def slices(directory):
    """Two devices a host: the trainer's and the sampler's, with a thread each; then one mesh of
    all, and a plan.
    """
    from rlhf_jax.runtime import asynchronous, synchronous
    from rlhf_jax.runtime.stopping import any_asked
    from tests.runtime import rounds

    apart = program_of((1, 1, 1), 1)
    found = {f"asynchronous/{name}": value for name, value in run(apart, asynchronous).items()}
    buffered = rounds.program_of(BUFFERED, apart)
    found |= {f"buffered/{name}": value for name, value in run(buffered, asynchronous).items()}
    asked = iter([False, distributed.is_first() is False])
    monitor = synchronous.LoopMonitor(
        stopping=partial(any_asked, apart.trainer_mesh, lambda: next(asked))
    )
    found |= {f"stopped/{name}": value for name, value in run(apart, synchronous, monitor).items()}
    whole = program_of((1, 2, 1), 0, "generate: 1; reward: 0-1 data=2")
    found |= {f"planned/{name}": value for name, value in run(whole, synchronous).items()}
    published = whole.publish(whole.init(whole.reference_params))
    found["answers"] = answered(directory, whole.generate(published, 0, 0))
    found |= talk()
    return found | one_copy(directory) | permuted(directory)


def one_copy(directory):
    """One copy of the params over both hosts: the log of dispatches at every lag, with sleeps that
    differ from host to host; both loops, and a run that goes on from its checkpoint.
    """
    from rlhf_jax.devices import dispatch
    from rlhf_jax.runtime import asynchronous, synchronous
    from tests.runtime import rounds

    shared = program_of((1, 1, 1, 2), 1)
    random = np.random.default_rng(jax.process_index())
    found = {}
    for lag in (0, 1, 2):
        program = rounds.program_of(Clock(ROUNDS, lag=lag), shared)
        expected = run(program, synchronous) if lag == 1 else {}
        program.generate = asleep(program.generate, random)
        program.update = asleep(program.update, random)
        with dispatch.logged() as log:
            threaded = run(program, asynchronous)
        assert any(each.thread == "sampler" for each in log), "the sampler's programs are logged"
        assert not any(each.spans for each in log if each.thread == "sampler")
        found[f"dispatched/{lag}"] = np.str_("; ".join(str(each) for each in log if each.spans))
        if lag == 1:
            found |= {f"one_copy/{name}": value for name, value in threaded.items()}
            check_bitwise(threaded, expected)
            check_bitwise(resumed(program, directory), expected)
    leaf = max(jax.tree.leaves(shared.reference_params), key=lambda leaf: leaf.size)
    found["one_copy/share"] = np.float64(
        sum(shard.data.size for shard in leaf.addressable_shards) / leaf.size
    )
    program = spanning_sampler(rounds.program_of(Clock(ROUNDS, lag=1), shared))
    found["refused/thread"] = np.str_(message_of(lambda: run(program, asynchronous)))
    return found


def four(directory):
    """Four hosts that share one copy of the params, and two copies of two hosts each, whose gradients
    cross the network in float32 or in bfloat16: both loops, and a run that goes on from its
    checkpoint.
    """
    from rlhf_jax.devices import dispatch
    from rlhf_jax.runtime import asynchronous, synchronous
    from tests.runtime import rounds

    found = {}
    cases = {"one": (4, "float32"), "two": (2, "float32"), "rounded": (2, "bfloat16")}
    for name, (fsdp_hosts, dtype) in cases.items():
        shared = program_of((1, 1, 1, fsdp_hosts), 1, network_gradient_dtype=dtype)
        program = rounds.program_of(Clock(ROUNDS, lag=1), shared)
        expected = run(program, synchronous)
        with dispatch.logged() as log:
            threaded = run(program, asynchronous)
        check_bitwise(threaded, expected)
        check_bitwise(resumed(program, directory / name), expected)
        found[f"{name}/dispatched"] = np.str_("; ".join(str(each) for each in log if each.spans))
        leaf = max(jax.tree.leaves(shared.reference_params), key=lambda leaf: leaf.size)
        found[f"{name}/share"] = np.float64(leaf.addressable_shards[0].data.size / leaf.size)
        found |= {f"{name}/{key}": value for key, value in threaded.items()}
    return found


def spanning_sampler(program):
    """A program whose sampler reads the samples of all hosts, as it must not."""
    generate = program.generate

    def generate_and_read(*arguments):
        samples = generate(*arguments)
        distributed.fetch(samples.tokens_BC)
        return samples

    program.generate = generate_and_read
    return program


def asleep(function, random, seconds: float = 0.05) -> Any:
    """The function after a sleep of random length, at most `seconds`."""

    def after_sleep(*arguments):
        time.sleep(random.uniform(0, seconds))
        return function(*arguments)

    return after_sleep


def check_bitwise(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def saved(events, checkpoints):
    """The events of a loop; the states at the end of each round are saved."""
    for event in events:
        if type(event).__name__ == "RoundEnd":
            checkpoints.save(event.round_index + 1, event.states)
            checkpoints.wait()
        yield event


def resumed(program, directory):
    """What a run finds that stops after its first round and goes on from what it has saved."""
    from rlhf_jax.records.checkpoints import Checkpoints, abstract_like
    from rlhf_jax.runtime import asynchronous, synchronous

    checkpoints = Checkpoints(directory / "checkpoints")
    monitor = synchronous.LoopMonitor(stopping=lambda: True)
    events = asynchronous.run(program, program.init(program.reference_params), 0, {}, monitor)
    events = list(saved(events, checkpoints))
    pending = {
        event.round_index: event.samples
        for event in events
        if isinstance(event, synchronous.Sampled)
    }
    found = record(events, program)
    shapes = {
        role: abstract_like(program.state_shapes[role], program.state_shardings[role])
        for role in program.state_shapes
    }
    states = checkpoints.restore(1, shapes)
    checkpoints.close()
    later = {index: pending[index] for index in program.spec.clock.issued_before(1)}
    return found | record(asynchronous.run(program, states, 1, later), program)


def permuted(directory):
    """Params over all devices of both hosts, which the mesh visits as a ring of wires might."""
    from jax.sharding import Mesh

    from rlhf_jax.devices import mesh
    from rlhf_jax.records.checkpoints import Checkpoints
    from rlhf_jax.runtime import synchronous

    (a, b), (c, d) = distributed.devices_by_host()
    ring = Mesh(np.asarray([a, c, d, b]).reshape(1, 4, 1), mesh.AXES)
    program = program_of(None, 0, where=ring)
    checkpoints = Checkpoints(directory / "over_four")
    events = synchronous.run(program, program.init(program.reference_params), 0, {})
    found = record(saved(events, checkpoints), program)
    checkpoints.close()
    return {f"permuted/{name}": value for name, value in found.items()}


def talk():
    """Feeding, fetching and agreeing on a mesh of every device."""
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from rlhf_jax.devices import mesh
    from rlhf_jax.devices.transfer import per_host

    process = jax.process_index()
    where = mesh.make_mesh(mesh.Config(2, 1, 1))
    rows, everywhere = (
        NamedSharding(where, spec) for spec in (PartitionSpec(("data", "fsdp")), PartitionSpec())
    )
    given = np.arange(8 * 3, dtype=np.float32).reshape(8, 3) / 24
    fed = distributed.feed(given, rows)
    assert isinstance(fed, jax.Array)
    np.testing.assert_array_equal(distributed.fetch({"a": fed, "b": 5})["a"], given)
    np.testing.assert_array_equal(per_host.to_local(fed), given[4 * process :][:4])
    np.testing.assert_array_equal(per_host.local_rows(given, where), given[4 * process :][:4])
    # Dispatched without waiting, programs of two devices a process mix up their collectives on
    # CPUs, and hang.
    step = distributed.compiled(
        lambda weights, rows: weights - 1e-3 * rows.T @ (rows @ weights), out_shardings=everywhere
    )
    weights = distributed.feed(np.eye(3, dtype=np.float32), everywhere)
    for _ in range(100):
        weights = step(weights, fed)
    assert np.isfinite(distributed.fetch(weights)).all()
    other = mesh.over_hosts(distributed.devices_by_host()[:, ::-1], (1, 2, 1))
    there = per_host.reshard(fed, NamedSharding(other, PartitionSpec(("data", "fsdp"))))
    np.testing.assert_array_equal(distributed.fetch(there), given)
    check_rounded_sum(where)
    assert distributed.all_gather(process) == [0, 1]
    assert distributed.agree(["it", process], where) == ["it", 0]
    mine = np.full((2, 3), 1 / 3 + process)  # not a float32
    assert distributed.from_first(mine, fed).tobytes() == np.full((2, 3), 1 / 3).tobytes()
    assert distributed.from_first(np.zeros(0, np.float32), fed).shape == (0,)
    whole = per_host.reshard(fed, NamedSharding(other, everywhere.spec))
    np.testing.assert_array_equal(whole.addressable_data(0), given)
    deep = mesh.over_hosts(distributed.devices_by_host(), (1, 2, 1), 2)
    back = per_host.reshard(whole, NamedSharding(deep, PartitionSpec("fsdp")))
    np.testing.assert_array_equal(distributed.fetch(back), given)
    refused = {
        "same": lambda: distributed.check_same("config", f"of {process}"),
        "long": lambda: distributed.all_gather("x" * 600),
        "mesh": lambda: per_host.local_mesh(
            Mesh(distributed.devices_by_host().reshape(1, 2, 2).swapaxes(1, 2), mesh.AXES)
        ),
    }
    return {f"refused/{name}": np.str_(message_of(call)) for name, call in refused.items()}


def check_rounded_sum(where):
    """Addends of four devices of two hosts are sent as bfloat16, and so is their sum."""
    from jax import numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from rlhf_jax.ops.row_shards import RowShards

    shards = RowShards(where, ("data",))
    given = np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32)
    addends = distributed.feed(given, NamedSharding(where, PartitionSpec("data")))
    total = distributed.compiled(
        lambda addends: shards.reduced_rounded(addends, PartitionSpec(), "bfloat16")
    )
    rounded = given.astype(jnp.bfloat16).astype(np.float32).sum(0)
    expected = rounded.astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(distributed.fetch(total(addends)), expected)


def message_of(call):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "nothing was raised"


def rows(directory):
    """One device a host, no slices: each host samples its part of the round on the trainer's mesh."""
    from rlhf_jax.records.saved_rounds import SavedRounds
    from rlhf_jax.runtime import synchronous

    program = program_of((-1, 1, 1), 0)
    found = run(program, synchronous)
    samples = program.generate(program.publish(program.init(program.reference_params)), 0, 0)
    saved_rounds = SavedRounds(directory / "rounds")
    saved_rounds.write(0, samples)
    distributed.barrier()
    read = saved_rounds.read(0, lambda tree: jax.tree.map(lambda leaf: leaf.sharding, samples))
    assert read.tokens_BC.sharding == samples.tokens_BC.sharding
    found["spooled"] = distributed.fetch(read.tokens_BC)
    found["answers"] = answered(directory, samples)
    return found


def answered(directory, samples):
    """Scores of a reward that gives each process another number: asked in the first alone, which
    tells the other.
    """
    from rlhf_jax.records.answers import Answers
    from rlhf_jax.rewards.common.host_rewards import HostJudge
    from rlhf_jax.stages.common.kept_answers import KeptJudge

    def whim(completions):
        assert distributed.is_first(), "the others do not ask"
        return [0.25 + jax.process_index() for _ in completions]

    judge = HostJudge("whim", whim, ("completions",), None, asked_once=True)
    kept = KeptJudge(judge, Answers(directory / "answers" / "whim.jsonl"))
    scores_B = kept(["p", "q", "p"], ["a", "b", "a"], [True] * 3, [], "")
    return distributed.from_first(scores_B, samples.ordinal_B)


INFLIGHT_SLICES, INFLIGHT_ROUNDS = 2, 6  # slices of all processes
INFLIGHT = ("keep", "rebuild", "pinned")


def inflight_program(shared, name):
    """Slots on the devices of another program, and their clock: in flight with a kept or a rebuilt
    cache, or pinned rows of adapters.
    """
    from rlhf_jax.clock import Stream
    from rlhf_jax.runtime.inflight.slot_program import SlotProgram
    from tests.runtime import test_adapters

    is_pinned, rebuild_every = name == "pinned", int(name == "rebuild")
    clock = Clock(INFLIGHT_ROUNDS, lag=1, inflight=not is_pinned, pinned=is_pinned)
    num_rows = shared.sampler.shapes.tokens_BC.shape[0]
    rows = num_rows // INFLIGHT_SLICES
    stream = Stream(
        clock, rows, 4, 1, tau=1, rebuild_every=rebuild_every, num_slices=INFLIGHT_SLICES
    )
    spec, params = dataclasses.replace(shared.spec, clock=clock), shared.reference_params
    if is_pinned:
        adapted = test_adapters.adapted(spec.model)
        params = test_adapters.on_mesh(adapted, spec.model, spec.mesh)
    rebuilds = bool(rebuild_every)
    return SlotProgram(spec, params, 4, 1, drains=False, rebuilds=rebuilds), stream


def run_inflight(program, stream, threaded, saving=None, start=None, seconds=0.0):
    """What a run in flight finds, with samples of whole rounds. `start`: (round, states, cut)."""
    from rlhf_jax.runtime import synchronous
    from rlhf_jax.runtime.inflight import loop, threads
    from rlhf_jax.runtime.inflight.cuts import Saving
    from rlhf_jax.runtime.inflight.slot_program import gather, place
    from rlhf_jax.stages.inflight import loops

    round_index, states, cut = start or (0, program.init(program.reference_params), None)
    sampler = loops.make_sampler(program, stream, saving or Saving(), cut)
    for each in sampler.slices:
        each.pool.segment = asleep(each.pool.segment, np.random.default_rng(0), seconds)
    puts, gathers = partial(place, program=program), partial(gather, program=program)
    begin = threads.run if threaded else loop.run
    events = begin(program, sampler, puts, states, round_index, gather=gathers)
    found, kept = {}, {}
    for event in events:
        match event:
            case synchronous.Scored(index, samples, figures=figures):
                for name in ("tokens_BC", "ordinal_B", "behavior_logprob_BC", "version_BC"):
                    found[f"{name}/{index}"] = distributed.fetch(getattr(samples, name))
                found[f"busy/{index}"] = np.float64(figures["slots_busy"])
            case synchronous.RoundEnd(index, states):
                found |= record([event], program)
                kept[index + 1] = jax.tree.map(lambda x: x.copy(), states)
            case synchronous.Updated():
                found |= record([event], program)
    return found, kept


def inflight(directory):
    """A slice of each of two processes: threads of uneven speeds, the simulated loop, a resumed run,
    and the log of dispatches.
    """
    from rlhf_jax.devices import dispatch
    from rlhf_jax.runtime.inflight.cuts import Cut, Saving

    shared, found, files = program_of((1, 1, 1), 1), {}, {}
    slow = 0.01 * jax.process_index()
    for name in INFLIGHT:
        program, stream = inflight_program(shared, name)
        saving = Saving(lambda r: r == 2, lambda r, cut: files.update({r: cut.arrays()}))
        expected, states = run_inflight(program, stream, False, saving)
        with dispatch.logged() as log:
            threaded, _ = run_inflight(program, stream, True, seconds=slow)
        assert not any(each.spans for each in log if each.thread.startswith("sampler"))
        check_bitwise(threaded, expected)
        mine = directory / f"{name}.{jax.process_index()}.npz"
        np.savez(mine, **files[2])
        distributed.barrier()
        arrays = {}
        for process in range(jax.process_count()):
            arrays |= np.load(directory / f"{name}.{process}.npz")
        cut = Cut.of(arrays, INFLIGHT_SLICES)
        resumed, _ = run_inflight(program, stream, True, start=(2, states[2], cut), seconds=slow)
        later = {each: value for each, value in expected.items() if each in resumed}
        check_bitwise(resumed, later)
        assert "tokens_BC/2" in resumed
        assert "tokens_BC/1" not in resumed
        found |= {f"{name}/{each}": value for each, value in expected.items()}
    return found


def main():
    directory, scenario = Path(sys.argv[1]), sys.argv[2]
    assert distributed.initialize()
    scenarios = {"slices": slices, "rows": rows, "inflight": inflight, "four": four}
    found = scenarios[scenario](directory)
    np.savez(directory / f"{jax.process_index()}.npz", **found)
    distributed.barrier()


if __name__ == "__main__":
    main()
