"""An Online DPO update beside the same arithmetic in a plain torch loop: no trainer around it, the
faster attention of two.

Reference log-probabilities are given. Rows are full (no padding): the peer's attention then needs
no mask, ours keeps its own. Both sides: the better number of micro-batches, logits at completion
positions only, gradient clipping at norm 1, AdamW. Ours runs a pair's prompt once for both rows,
and also gives entropy and drift metrics.

    pip install -e '.[bench]' && python -m experiments.bench.dpo_update
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.bench import measure, peers
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

PAIRS, PROMPT, COMPLETION = 32, 64, 64
BETA, LEARNING_RATE = 0.1, 1e-5
MICRO_BATCHES = (1, 4)


def rows(preset: str, num_pairs: int) -> dict[str, np.ndarray]:
    """Tokens of pairs (both rows of a pair have one prompt) and made-up reference
    log-probabilities.
    """
    random, vocab_size = np.random.default_rng(0), gpt_neox.PRESETS[preset].vocab_size
    prompts = random.integers(3, vocab_size, (num_pairs, PROMPT), dtype=np.int32)
    return {
        "prompt": np.repeat(prompts, 2, axis=0),
        "completion": random.integers(3, vocab_size, (2 * num_pairs, COMPLETION), dtype=np.int32),
        "reference": np.full((2 * num_pairs, COMPLETION), -np.log(vocab_size), np.float32),
    }


def our_side(
    preset: str, data: dict[str, np.ndarray], num_micro_batches: int
) -> Callable[[], float]:
    """Our update, compiled with a donated state as a run compiles it."""
    model = gpt_neox.make(gpt_neox.PRESETS[preset])
    algorithm = online_dpo.online_dpo(online_dpo.Config(beta=BETA))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=LEARNING_RATE, schedule="constant"), 1)
    num_rows = len(data["prompt"])
    batch = Batch(
        prompt_tokens_RQ=jnp.asarray(data["prompt"]),
        prompt_mask_RQ=jnp.ones((num_rows, PROMPT), bool),
        tokens_RC=jnp.asarray(data["completion"]),
        mask_RC=jnp.ones((num_rows, COMPLETION), bool),
        temperature=jnp.float32(1.0),
        behavior_logprob_RC=jnp.asarray(data["reference"]),
        reference_logprob_RC=jnp.asarray(data["reference"]),
        weight_R=jnp.ones(num_rows, jnp.float32),
    )
    step = partial(
        train_step,
        objective=policy_objective(algorithm.losses["policy"], model, algorithm.unit_rows(2)),
        optimizer=optimizer,
        aggregation=algorithm.aggregation,
        unit_rows=algorithm.unit_rows(2),
        num_micro_batches=num_micro_batches,
    )
    update = jax.jit(step, donate_argnums=0)
    state = [init_state(jax.jit(model.init)(jax.random.key(0)), optimizer)]

    def run() -> float:
        state[0], metrics = jax.block_until_ready(update(state[0], batch))
        return metrics["loss"].value()

    return run


def peer_side(
    preset: str, data: dict[str, np.ndarray], num_micro_batches: int, attention: str
) -> Callable[[], float]:
    """The plain loop."""
    peer = peers.model(preset, attention).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    tokens = torch.from_numpy(np.concatenate([data["prompt"], data["completion"]], axis=1)).long()
    reference = torch.from_numpy(data["reference"]).sum(1)

    def backward(tokens: torch.Tensor, reference: torch.Tensor) -> float:
        logits = peer(tokens, use_cache=False, logits_to_keep=COMPLETION + 1).logits[:, :-1]
        chosen = logits.gather(-1, tokens[:, PROMPT:, None])[..., 0]
        implicit = (chosen - torch.logsumexp(logits, dim=-1)).sum(1) - reference
        losses = -torch.nn.functional.logsigmoid(BETA * (implicit[0::2] - implicit[1::2]))
        loss = losses.mean() / num_micro_batches
        loss.backward()
        return loss.item()

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        parts = zip(
            tokens.chunk(num_micro_batches), reference.chunk(num_micro_batches), strict=True
        )
        loss = sum(backward(*part) for part in parts)
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        return loss

    return run


def case(preset: str, num_pairs: int, repeats: int) -> dict[str, Any]:
    """Both sides in turn at one shape; the better micro-batches of each count, and the peer's
    better attention.
    """
    data = rows(preset, num_pairs)
    ours = {f"rlhf_jax_{parts}": our_side(preset, data, parts) for parts in MICRO_BATCHES}
    theirs = {
        f"torch_{attention}_{parts}": peer_side(preset, data, parts, attention)
        for attention in ("sdpa", "eager")
        for parts in MICRO_BATCHES
    }
    seconds = measure.interleaved({**ours, **theirs}, repeats)
    seconds["rlhf_jax"] = min((seconds[name] for name in ours), key=min)
    seconds["torch"] = min((seconds[name] for name in theirs), key=min)
    shape = {"preset": preset, "pairs": num_pairs, "prompt": PROMPT, "completion": COMPLETION}
    return {
        "case": f"{preset} {num_pairs} pairs",
        **shape,
        **measure.compared(seconds, "rlhf_jax", "torch"),
    }


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    load = os.getloadavg()
    cases = [("tiny", PAIRS), ("small", 8 if options.quick else PAIRS)]
    found = [
        case(preset, pairs, options.repeats) for preset, pairs in cases if options.only in preset
    ]
    measure.report("dpo_update", found, load, options.output)


if __name__ == "__main__":
    main()
