"""A round through the slots beside the static sampler, whole and with rows gathered as they end, on
lengths like those of reasoning, and with all rows at the cap.

There `slots_1`, with a slot for each row, takes the static sampler's steps: its ratio is that of a
decode step, with all that the host does between segments.

Lengths are set by the model: at each position it ends a row with the probability that the lengths'
distribution gives there. Both sides draw the same rows, which is checked.

    pip install -e '.[bench]' && python -m experiments.bench.slots
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import measure
from rlhf_jax import sampling
from rlhf_jax.devices import mesh as meshes
from rlhf_jax.models import gpt_neox
from rlhf_jax.ops.once import bound
from rlhf_jax.runtime.inflight.pool import SlotPool
from rlhf_jax.runtime.inflight.programs import Config
from rlhf_jax.runtime.inflight.round import sample_round
from rlhf_jax.types import Prompts, Samples

CASES = [  # preset, prompt tokens, most new tokens, prompts, samples of each
    ("tiny", 32, 256, 32, 4),
]
SHARES = (8, 4)  # slots are this part of the round's rows
SEGMENT_STEPS = 8
COMPACTIONS = 2  # of the static sampler, and of the drain of the slots
REASONING = ((0.7, 0.12, 0.03), (0.25, 0.40, 0.08))  # share, mean and deviation over C; rest: at C
EOS, PAD = 1, 0


def hazards(num_positions: int, mix: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """Log-odds of an end at each of C tokens, given that the row has that many, `[C]`.

    Args:
      num_positions: C.
      mix: shares of normal lengths; what is missing to 1 ends at C alone. Empty: all rows do.
    """
    length_C = np.arange(1, num_positions + 1)
    density_C = np.full(num_positions, 1e-9)
    for share, mean, deviation in mix:
        bell_C = np.exp(-0.5 * ((length_C / num_positions - mean) / deviation) ** 2)
        density_C += share * bell_C / bell_C.sum()
    left_C = 1 - np.concatenate([[0], np.cumsum(density_C)[:-1]])
    hazard_C = np.clip(density_C / left_C, 1e-9, 1 - 1e-6)
    return np.log(hazard_C) - np.log1p(-hazard_C)


@dataclass(frozen=True)
class EndsWith:
    """A model that ends rows with given log-odds, by the position of the token before."""

    model: Any
    log_odds: tuple[float, ...]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def apply(
        self, params: Any, tokens_BL: Any, positions_BL: Any, mask_BL: Any, cache: Any = None
    ) -> Any:
        hidden_BLD, cache = self.model.apply(params, tokens_BL, positions_BL, mask_BL, cache)
        table = jnp.asarray(self.log_odds, hidden_BLD.dtype)
        mark_BL1 = table[jnp.minimum(positions_BL, len(self.log_odds) - 1)][..., None]
        return jnp.concatenate([hidden_BLD, mark_BL1], axis=-1), cache

    def head(self, params: Any, hidden: Any) -> Any:
        logits = self.model.head(params, hidden[..., :-1])
        is_eos = (jnp.arange(logits.shape[-1]) == EOS).reshape((1,) * (logits.ndim - 1) + (-1,))
        others = jnp.where(is_eos, -1e9, logits)
        end = jax.nn.logsumexp(others, axis=-1, keepdims=True) + hidden[..., -1:]
        return jnp.where(is_eos, end, others)


def sides(
    shape: tuple[str, int, int, int, int], mix: tuple[tuple[float, float, float], ...]
) -> tuple[dict[str, Callable[[], Samples]], np.ndarray]:
    """The ways to draw a round, compiled and checked to draw the same lengths; and the lengths."""
    preset, prompt_length, num_new, num_prompts, group = shape
    rows = num_prompts * group
    log_odds = np.concatenate([np.zeros(prompt_length - 1), hazards(num_new, mix)])
    model = EndsWith(gpt_neox.make(gpt_neox.PRESETS[preset]), tuple(log_odds.tolist()))
    params = jax.jit(model.init)(jax.random.key(0))
    tokens_PQ = np.random.default_rng(0).integers(
        3, model.vocab_size, (num_prompts, prompt_length), dtype=np.int32
    )
    mask_PQ = np.ones(tokens_PQ.shape, bool)
    ordinal_P = np.arange(num_prompts, dtype=np.int32)
    prompts = Prompts(tokens_PQ, mask_PQ, ordinal_P)  # type: ignore[arg-type]
    key, mesh = jax.random.key(1), meshes.make_mesh(meshes.Config(1, 1, 1), jax.devices()[:1])

    def static(num_compactions: int) -> Callable[[], Samples]:
        law = sampling.Config(num_new, group, 1.0, num_compactions)
        draw = jax.jit(bound(sampling.sample, model=model, config=law, eos_id=EOS, pad_id=PAD))
        return lambda: jax.block_until_ready(draw(params, prompts, key, np.int32(0)))

    def slots(num_slots: int, num_compactions: int) -> Callable[[], Samples]:
        law = sampling.Config(num_new, group, 1.0, num_compactions)
        config = Config(law, EOS, PAD, num_slots, SEGMENT_STEPS, num_prompts)
        pool = SlotPool(model, config, lambda _: prompts, key, mesh)  # type: ignore[arg-type]
        return lambda: sample_round(pool, params, 0, 0)

    ways = {"static": static(0), "compacted": static(COMPACTIONS)}
    for share in SHARES:
        ways[f"slots_{share}"] = slots(rows // share, 0)
        ways[f"slots_{share}_drained"] = slots(rows // share, COMPACTIONS)
    ways["slots_1"] = slots(rows, 0)
    lengths = {name: np.asarray(way().mask_BC).sum(axis=1) for name, way in ways.items()}
    for name, length_B in lengths.items():
        differing = (length_B != lengths["static"]).mean()
        assert differing <= 0.02, f"{name} draws other lengths in {differing:.0%} of the rows"
    return ways, lengths["static"]


def case(
    shape: tuple[str, int, int, int, int],
    mix_name: str,
    mix: tuple[tuple[float, float, float], ...],
    repeats: int,
) -> dict[str, Any]:
    """All ways in turn at one shape and mix: minima, and their ratios to both static ways."""
    ways, length_B = sides(shape, mix)
    seconds = {name: min(values) for name, values in measure.interleaved(ways, repeats, 1).items()}
    names = ("preset", "prompt", "new", "prompts", "group")
    return {
        "case": name_of(shape, mix_name),
        **dict(zip(names, shape, strict=True)),
        "mean_length": round(float(length_B.mean()), 2),
        "rows_at_the_cap": round(float((length_B == shape[2]).mean()), 4),
        "seconds": {name: round(value, 5) for name, value in seconds.items()},
        "over_static": {n: round(s / seconds["static"], 3) for n, s in seconds.items()},
        "over_compacted": {n: round(s / seconds["compacted"], 3) for n, s in seconds.items()},
    }


def name_of(shape: tuple[str, int, int, int, int], mix_name: str) -> str:
    preset, prompt_length, num_new, num_prompts, group = shape
    return f"{mix_name} {preset} {prompt_length}+{num_new} x {num_prompts * group}"


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    load = os.getloadavg()
    mixes = {"reasoning": REASONING, "all at C": ()}
    cases = [
        case(shape, mix_name, mix, options.repeats)
        for shape in CASES[: 1 if options.quick else None]
        for mix_name, mix in mixes.items()
        if options.only in name_of(shape, mix_name)
    ]
    measure.report("slots", cases, load, options.output)


if __name__ == "__main__":
    main()
