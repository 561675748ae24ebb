"""Operations and bytes of an update with every preset beside GRPO's on the same rows, and of the scoring
pass that baselines of least variance need, by the compiler's own count. Nothing is run or timed.

Two sizes: *tiny*, a model of the quickstart's width and vocabulary, and *head*, 512 wide with a vocabulary of
32,768, where the head is most of an update. Rows are 8 prompts of 4 completions. GRPO has its KL to the
reference; presets without one save the reference's scoring pass, which is no part of an update.

    python -m experiments.bench.preset_costs
"""

import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import measure
from rlhf_jax import registry, scoring
from rlhf_jax.models import gpt_neox
from rlhf_jax.models.api import Model
from rlhf_jax.ops.policy_gradient.learning_rate_scale import with_row_share
from rlhf_jax.types import Algorithm, Params, Samples, Scores
from rlhf_jax.updating import (
    OptimizerConfig,
    init_state,
    make_optimizer,
    policy_objective,
    train_step,
)

P, G, Q, C = 8, 4, 16, 32
SIZES = {
    "tiny": {"width": 64, "ffn_width": 256, "num_layers": 2, "num_heads": 4, "vocab_size": 128},
    "head": {"width": 512, "ffn_width": 2048, "num_layers": 4, "num_heads": 8, "vocab_size": 32768},
}
FIGURES = {"flops": "flops", "bytes": "bytes accessed"}


def samples() -> Samples:
    """Shapes of a round's samples."""
    rows, shape = P * G, jax.ShapeDtypeStruct
    return Samples(
        prompt_tokens_BQ=shape((rows, Q), jnp.int32),
        prompt_mask_BQ=shape((rows, Q), bool),
        tokens_BC=shape((rows, C), jnp.int32),
        mask_BC=shape((rows, C), bool),
        behavior_logprob_BC=shape((rows, C), jnp.float32),
        finished_B=shape((rows,), bool),
        ordinal_B=shape((rows,), jnp.int32),
        sample_index_B=shape((rows,), jnp.int32),
        version_BC=shape((rows, C), jnp.int32),
        temperature=shape((), jnp.float32),
        samples_per_prompt=G,
    )  # type: ignore[arg-type]


def scores(algorithm: Algorithm) -> Scores:
    """Shapes of everything that the algorithm needs to know of the samples."""
    tokens = jax.ShapeDtypeStruct((P * G, C), jnp.float32)
    score_B = jax.ShapeDtypeStruct((P * G,), jnp.float32)
    needed = {
        f"{name}_logprob_BC": tokens
        for name in ("reference", "proximal")
        if name in algorithm.needs
    }
    extra = {"gradient_energy_BC": tokens} if "gradient_energy" in algorithm.needs else {}
    return Scores(score_B, score_B, score_B, extra=extra, **needed)  # type: ignore[arg-type]


def counted(function: Any, *arguments: object) -> dict[str, float]:
    """Operations and bytes of a compiled function."""
    costs = jax.jit(function).lower(*arguments).compile().cost_analysis() or {}
    return {figure: float(costs[key]) for figure, key in FIGURES.items()}


def update(algorithm: Algorithm, model: Model, params: Params) -> dict[str, float]:
    """Operations and bytes of an update on all rows, with a prompt's completions sharing its forward pass.

    Args:
      algorithm: whose loss and rows are meant.
      model: of the policy.
      params: their shapes.
    """
    batch = jax.eval_shape(algorithm.credit, samples(), scores(algorithm))
    optimizer = make_optimizer(OptimizerConfig(), 100)
    state = jax.eval_shape(partial(init_state, optimizer=optimizer), params)
    loss = algorithm.losses["policy"]
    loss = with_row_share(loss) if algorithm.name == "vcpo" else loss
    step = partial(
        train_step,
        objective=policy_objective(loss, model, G),
        optimizer=optimizer,
        aggregation=algorithm.aggregation,
    )
    return counted(step, state, batch)


def case(name: str, costs: dict[str, float], grpo: dict[str, float]) -> dict[str, Any]:
    """One line of the table: the figures, and each over that of GRPO's update."""
    over = {f"{figure}_of_grpo": round(costs[figure] / grpo[figure], 4) for figure in costs}
    return {"case": name, **costs, **over}


def main() -> None:
    options, load = measure.parser(__doc__).parse_args(), os.getloadavg()
    names = {"head": ("grpo", "vcpo"), "tiny": ("grpo", *registry.presets("algorithms"))}
    cases: list[dict[str, Any]] = []
    for size, settings in SIZES.items():
        if options.only not in size:
            continue
        model = gpt_neox.make(gpt_neox.Config(**settings))  # type: ignore[arg-type]
        params = jax.eval_shape(model.init, jax.random.key(0))
        grpo: dict[str, float] = {}
        for name in names[size]:
            config = registry.settings("algorithms", name)()
            costs = update(registry.make("algorithms", name, config), model, params)
            grpo = grpo or costs
            cases.append(case(f"{size} {name}", costs, grpo))
        logprob = counted(partial(scoring.sample_logprobs, model=model), params, samples())
        energy = counted(partial(scoring.sample_gradient_energy, model=model), params, samples())
        more = {figure: energy[figure] - logprob[figure] for figure in energy}
        cases.append(case(f"{size} scoring pass: log-probabilities", logprob, grpo))
        cases.append(case(f"{size} scoring pass: gradient energy", energy, grpo))
        cases.append(case(f"{size} energy beside log-probabilities", more, grpo))
    measure.report("preset_costs", cases, load, options.output)


if __name__ == "__main__":
    main()
