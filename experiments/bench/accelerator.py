"""Decoding, updates and a whole Online DPO round on the device that JAX has, beside what that
device can do.

Decoding: seconds of one step (what the new tokens after the first take, by their number) beside the
least time in which its bytes can be read: the weights but for the embedding table, and the cache's
columns that are filled, their mean over the steps. Update: model FLOPs (see `roofline.py`; what
remat computes again is not counted) by seconds, beside the peak in bfloat16. Round: sampling,
scores by a reference and a reward model of the policy's size, update and publishing, each waited
for; then all of it in one go. On a device that `roofline.PEAKS` does not know the shares are null.
A case that does not fit says so.

    python -m experiments.bench.accelerator --output experiments/bench/results/accelerator.json
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import measure, roofline
from rlhf_jax import sampling, scoring, updating
from rlhf_jax.algorithms import online_dpo
from rlhf_jax.clock import Clock
from rlhf_jax.devices import mesh, sharding
from rlhf_jax.models import gpt_neox
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import value_head
from rlhf_jax.rewards import learned
from rlhf_jax.runtime.program import Program, ProgramSpec, Reward
from rlhf_jax.types import Batch, Params, Prompts

IMPOSSIBLE = -1  # a token that is never drawn: every row has all its tokens


@dataclass(frozen=True)
class Shape:
    """Sizes of a benchmark. `batches` are rows decoded together; an update and a round have `rows`
    of them, two a prompt.
    """

    preset: str = "pythia-1b"
    prompt: int = 512
    new: int = 128
    batches: tuple[int, ...] = (64, 128, 256)
    rows: int = 64
    num_micro_batches: int = 1


SMOKE = {"prompt": 8, "new": 4, "batches": (2,), "rows": 4}


def make_model(preset: str, **how: Any) -> Model:
    config = gpt_neox.PRESETS[preset]
    return gpt_neox.make(
        replace(config, vocab_size=config.vocab_size or 128, dtype="bfloat16", **how)
    )


def make_prompts(model: Model, num_prompts: int, length: int) -> Prompts:
    tokens = np.random.default_rng(0).integers(
        3, model.vocab_size, (num_prompts, length), dtype=np.int32
    )
    ordinals = np.arange(num_prompts, dtype=np.int32)
    return Prompts(tokens_PQ=tokens, mask_PQ=np.ones(tokens.shape, bool), ordinal_P=ordinals)  # type: ignore[arg-type]


def least(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds of the fastest run of each side, the sides in turn."""
    waited = {name: lambda side=side: jax.block_until_ready(side()) for name, side in sides.items()}
    return {
        name: min(of_side)
        for name, of_side in measure.interleaved(waited, repeats, warm_up=1).items()
    }


def decode(shape: Shape, rows: int, kind: str, repeats: int) -> dict[str, Any]:
    """Seconds of a decoding step, beside the bound; params in bfloat16, as they are published."""
    model = make_model(shape.preset)
    params = jax.jit(lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.init(key)))(
        jax.random.key(0)
    )
    prompts = jax.device_put(make_prompts(model, rows, shape.prompt))

    def side(num_new: int) -> Callable[[], Any]:
        config = sampling.Config(max_completion_tokens=num_new, samples_per_prompt=1)
        draw = jax.jit(
            partial(sampling.sample, model=model, config=config, eos_id=IMPOSSIBLE, pad_id=0)
        )
        return lambda: draw(params, prompts, jax.random.key(1), np.int32(0))

    found = least({"whole": side(shape.new), "prefill": side(1)}, repeats)
    step = (found["whole"] - found["prefill"]) / (shape.new - 1)
    read, (_, bandwidth) = (
        roofline.step_bytes(model, rows, shape.prompt, shape.new),
        roofline.peaks(kind),
    )
    return {
        "rows": rows,
        "prefill_seconds": round(found["prefill"], 5),
        "step_seconds": round(step, 7),
        "tokens_per_second": round(rows / step, 1),
        "step_megabytes": round(read / 1e6, 3),
        "bound_seconds": None if bandwidth is None else round(read / bandwidth, 7),
        "share_of_bandwidth": roofline.share(read, bandwidth, step),
    }


def make_batch(model: Model, shape: Shape) -> Batch:
    """Pairs of rows with one prompt each; completions are full."""
    prompts = make_prompts(model, shape.rows // 2, shape.prompt)
    tokens = np.random.default_rng(1).integers(
        3, model.vocab_size, (shape.rows, shape.new), dtype=np.int32
    )
    return Batch(
        prompt_tokens_RQ=jnp.repeat(prompts.tokens_PQ, 2, axis=0),
        prompt_mask_RQ=jnp.ones((shape.rows, shape.prompt), bool),
        tokens_RC=jnp.asarray(tokens),
        mask_RC=jnp.ones(tokens.shape, bool),
        temperature=jnp.float32(1.0),
        behavior_logprob_RC=jnp.zeros(tokens.shape),
        reference_logprob_RC=jnp.zeros(tokens.shape),
        weight_R=jnp.ones(shape.rows),
    )


def train(shape: Shape, remat: bool, attention: str, kind: str, repeats: int) -> dict[str, Any]:
    """Seconds of an Online DPO update, beside the peak; float32 params and optimizer, bfloat16
    products.
    """
    model = make_model(shape.preset, remat=remat, attention=attention)
    algorithm = online_dpo.online_dpo(online_dpo.Config())
    optimizer = updating.make_optimizer(updating.OptimizerConfig(learning_rate=1e-6), 10_000)
    step = partial(
        updating.train_step,
        objective=updating.policy_objective(algorithm.losses["policy"], model, rows_per_prompt=2),
        optimizer=optimizer,
        aggregation=algorithm.aggregation,
        unit_rows=2,
        num_micro_batches=shape.num_micro_batches,
    )
    state = jax.jit(lambda key: updating.init_state(model.init(key), optimizer))(jax.random.key(0))
    batch = make_batch(model, shape)
    compiled: Any = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    memory, held = compiled.memory_analysis(), [state]
    del state

    def run() -> Any:
        held[0], metrics = compiled(held[0], batch)
        return held[0], metrics

    seconds, flops = (
        least({"update": run}, repeats)["update"],
        roofline.update_flops(model, shape.rows, shape.prompt, shape.new),
    )
    return {
        "rows": shape.rows,
        "remat": remat,
        "attention": attention,
        "num_micro_batches": shape.num_micro_batches,
        "update_seconds": round(seconds, 5),
        "teraflops": round(flops / 1e12, 6),
        "share_of_peak": roofline.share(flops, roofline.peaks(kind)[0], seconds),
        "temporary_megabytes": None
        if memory is None
        else round(memory.temp_size_in_bytes / 1e6, 1),
    }


def make_program(shape: Shape, remat: bool, attention: str) -> tuple[Program, Params]:
    """The calls of a round with fresh params, which policy, reference and the reward model's
    backbone begin with; and these.
    """
    model, devices = (
        make_model(shape.preset, remat=remat, attention=attention),
        mesh.make_mesh(mesh.Config()),
    )
    layout = sharding.params_shardings(
        model, jax.eval_shape(model.init, jax.random.key(0)), devices
    )
    params = jax.jit(model.init, out_shardings=layout)(jax.random.key(0))
    judge = value_head.make(model)
    spec = ProgramSpec(
        model=model,
        algorithm=online_dpo.online_dpo(online_dpo.Config()),
        optimizer=updating.make_optimizer(updating.OptimizerConfig(learning_rate=1e-6), 10_000),
        sampling=sampling.Config(max_completion_tokens=shape.new, samples_per_prompt=2),
        scoring=scoring.Config(replace_missing_eos=False),
        reward=Reward(learned.make(judge), judge.init_from(params, jax.random.key(1))),
        clock=Clock(10_000, 1, 1, 0, ()),
        mesh=devices,
        prompts=lambda _: make_prompts(model, shape.rows // 2, shape.prompt),
        key=jax.random.key(2),
        seed=0,
        eos_id=IMPOSSIBLE,
        pad_id=0,
        publish_dtype="bfloat16",
        num_micro_batches=shape.num_micro_batches,
    )
    return Program(spec, params), params


def whole_round(shape: Shape, remat: bool, attention: str, repeats: int) -> dict[str, Any]:
    """Seconds of each call of a round, waited for, and of rounds in which nothing but the end is."""
    program, params = make_program(shape, remat, attention)
    held: dict[str, Any] = {"states": program.init(params)}
    calls: dict[str, Callable[[], Any]] = {
        "publish": lambda: held.update(params=program.publish(held["states"])),
        "generate": lambda: held.update(samples=program.generate(held["params"], 0, 0)),
        "score": lambda: held.update(batch=program.score(held["states"], held["samples"])[1]),
        "update": lambda: held.update(states=program.update(held["states"], held["batch"])[0]),
    }
    sides = {name: lambda call=call: call() or held for name, call in calls.items()}
    found = least(sides | {"round": lambda: [call() for call in calls.values()] and held}, repeats)
    return {
        "rows": shape.rows,
        "remat": remat,
        "attention": attention,
        **{f"{name}_seconds": round(seconds, 5) for name, seconds in found.items()},
        "completion_tokens_per_second": round(shape.rows * shape.new / found["round"], 1),
    }


def fitting(name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A case, or that it needs more memory than there is."""
    try:
        return {"case": name, **run()}
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"case": name, "out_of_memory": str(error).splitlines()[0][:200]}


def cases(
    shape: Shape, kind: str, platform: str, smoke: bool, repeats: int
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every case by its name; cudnn on a GPU alone."""
    ways = ["xla", "dot_product", *(["cudnn"] if platform == "gpu" else [])]
    found = {
        f"decode x {rows}": partial(decode, shape, rows, kind, repeats) for rows in shape.batches
    }
    for remat, way in (
        [(True, ways[-1])] if smoke else [(remat, way) for way in ways for remat in (False, True)]
    ):
        found[f"update, {way}{', remat' * remat}"] = partial(
            train, shape, remat, way, kind, repeats
        )
    return found | {"online_dpo round": partial(whole_round, shape, True, ways[-1], repeats)}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    load, device = os.getloadavg(), jax.devices()[0]
    shape = Shape(options.preset, rows=options.rows, num_micro_batches=options.micro_batches)
    shape = replace(shape, **SMOKE) if options.smoke else shape
    repeats = 1 if options.smoke else options.repeats
    chosen = cases(shape, device.device_kind, device.platform, options.smoke, repeats)
    flops, bandwidth = roofline.peaks(device.device_kind)
    device_figures = {"device_kind": device.device_kind, "platform": device.platform}
    device_figures |= {"peak_bfloat16_flops": flops, "bytes_per_second": bandwidth}
    shared = {"preset": shape.preset, "prompt": shape.prompt, "new": shape.new}
    found = [
        fitting(name, run) | shared | device_figures
        for name, run in chosen.items()
        if options.only in name
    ]
    measure.report("accelerator", found, load, options.output)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--preset", default="pythia-1b", choices=sorted(gpt_neox.PRESETS))
    parser.add_argument(
        "--rows", type=int, default=64, help="of an update and of a round, two a prompt"
    )
    parser.add_argument("--micro-batches", type=int, default=1, help="of an update")
    parser.add_argument("--smoke", action="store_true", help="the smallest shapes, one run of each")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
