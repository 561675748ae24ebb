"""CPU-seconds to trace and to compile an update of a deep model: its layers in a scan beside two
unrolled layers, and beside all of them unrolled.

The update is Online DPO's on Pythia 410m's shape, rows of a pair with one prompt that is run once.
Nothing is run, and no array is made. JAX's compile cache is left out. Another load on the machine
changes seconds, and CPU-seconds little. Wanted: at most 1.3 times those of two unrolled layers.

    python -m experiments.bench.depth
"""

import os
import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import measure
from rlhf_jax.algorithms import online_dpo
from rlhf_jax.models import gpt_neox
from rlhf_jax.types import Batch
from rlhf_jax.updating import (
    OptimizerConfig,
    init_state,
    make_optimizer,
    policy_objective,
    train_step,
)

ROWS, PROMPT, COMPLETION = 8, 64, 64


def cost(config: gpt_neox.Config) -> dict[str, float]:
    """CPU-seconds to trace and to compile an update, and its temporary megabytes.

    Args:
      config: of the model.
    """
    model = gpt_neox.make(config)
    algorithm = online_dpo.online_dpo(online_dpo.Config())
    optimizer = make_optimizer(OptimizerConfig(schedule="constant"), 1)
    batch = Batch(
        prompt_tokens_RQ=jax.ShapeDtypeStruct((ROWS, PROMPT), jnp.int32),
        prompt_mask_RQ=jax.ShapeDtypeStruct((ROWS, PROMPT), jnp.bool_),
        tokens_RC=jax.ShapeDtypeStruct((ROWS, COMPLETION), jnp.int32),
        mask_RC=jax.ShapeDtypeStruct((ROWS, COMPLETION), jnp.bool_),
        temperature=jax.ShapeDtypeStruct((), jnp.float32),
        behavior_logprob_RC=jax.ShapeDtypeStruct((ROWS, COMPLETION), jnp.float32),
        reference_logprob_RC=jax.ShapeDtypeStruct((ROWS, COMPLETION), jnp.float32),
        weight_R=jax.ShapeDtypeStruct((ROWS,), jnp.float32),
    )
    step = partial(
        train_step,
        objective=policy_objective(algorithm.losses["policy"], model, algorithm.unit_rows(2)),
        optimizer=optimizer,
        aggregation=algorithm.aggregation,
        unit_rows=algorithm.unit_rows(2),
        num_micro_batches=1,
    )
    state = jax.eval_shape(lambda key: init_state(model.init(key), optimizer), jax.random.key(0))
    begin = time.process_time()
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    traced = time.process_time()
    analysis: Any = lowered.compile().memory_analysis()
    return {
        "trace_cpu_seconds": round(traced - begin, 1),
        "compile_cpu_seconds": round(time.process_time() - traced, 1),
        "temporary_megabytes": round(analysis.temp_size_in_bytes / 1e6, 1),
    }


def case(preset: str, num_layers: int, scan_layers: int) -> dict[str, Any]:
    """The costs of a preset at a depth, its layers stacked from `scan_layers` on."""
    config = gpt_neox.PRESETS[preset]
    found = cost(replace(config, num_layers=num_layers, scan_layers=scan_layers))
    return {"num_layers": num_layers, "in_a_scan": 0 < scan_layers <= num_layers, **found}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--preset", default="pythia-410m")
    parser.add_argument("--num_layers", type=int, default=24)
    parser.add_argument("--unrolled", action="store_true", help="also all layers unrolled: long")
    options = parser.parse_args()
    began_load = os.getloadavg()
    jax.config.update("jax_enable_compilation_cache", False)
    cost(gpt_neox.Config(16, 8, 1, 1, 16))  # what is loaded on first use
    cases = [case(options.preset, 2, 0), case(options.preset, options.num_layers, 2)]
    if options.unrolled:
        cases.append(case(options.preset, options.num_layers, 0))
    two = cases[0]["trace_cpu_seconds"] + cases[0]["compile_cpu_seconds"]
    for found in cases:
        seconds = found["trace_cpu_seconds"] + found["compile_cpu_seconds"]
        found["times_two_layers"] = round(seconds / two, 2)
    measure.report("depth", cases, began_load, options.output)


if __name__ == "__main__":
    main()
