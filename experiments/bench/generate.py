"""Prefill and decode beside `generate` of transformers, at temperature 1 over the whole vocabulary.

Neither side can draw an end, so both make every token; ours also returns the log-probability of
each. Then our sampler alone on rows of which one is ten times as long as the others: with the whole
batch to its end, and gathered as rows end.

    pip install -e '.[bench]' && python -m experiments.bench.generate
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import GenerationConfig

from experiments.bench import measure, peers
from rlhf_jax import sampling
from rlhf_jax.models import gpt_neox
from rlhf_jax.types import Prompts

CASES = [  # preset, prompt tokens, new tokens, rows
    ("tiny", 64, 64, 16),
    ("tiny", 64, 64, 64),
    ("tiny", 256, 128, 64),
    ("small", 64, 64, 16),
    ("small", 64, 64, 64),
    ("pythia-160m", 64, 32, 8),
]
RAGGED = [("tiny", 16, 64), ("small", 16, 64)]  # preset, tokens of all rows but one, rows
LONGER = 10  # times as many tokens has the last row
IMPOSSIBLE = -1  # a token that is never drawn
EOS = 1


def our_side(preset: str, tokens_PQ: np.ndarray, num_new: int) -> tuple[Callable[[], Any], int]:
    """Our sampler, compiled as a run compiles it, and the number of params."""
    model = gpt_neox.make(gpt_neox.PRESETS[preset])
    params = jax.jit(model.init)(jax.random.key(0))
    config = sampling.Config(max_completion_tokens=num_new, samples_per_prompt=1, temperature=1.0)
    draw = jax.jit(
        partial(sampling.sample, model=model, config=config, eos_id=IMPOSSIBLE, pad_id=0)
    )
    prompts = Prompts(
        tokens_PQ=jnp.asarray(tokens_PQ),
        mask_PQ=jnp.ones(tokens_PQ.shape, bool),
        ordinal_P=jnp.arange(len(tokens_PQ), dtype=jnp.int32),
    )

    def run() -> Any:
        samples = jax.block_until_ready(draw(params, prompts, jax.random.key(1), np.int32(0)))
        assert samples.tokens_BC.shape == (len(tokens_PQ), num_new)
        return samples

    assert bool(run().mask_BC.all())
    return run, sum(x.size for x in jax.tree.leaves(params))


def peer_side(preset: str, tokens_PQ: np.ndarray, num_new: int) -> tuple[Callable[[], Any], int]:
    """`generate` of transformers with its cache, and the number of params."""
    peer = peers.model(preset, "sdpa").eval()
    prompts = torch.from_numpy(tokens_PQ).long()
    mask = torch.ones_like(prompts)
    law = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=num_new,
        min_new_tokens=num_new,
        eos_token_id=None,
        pad_token_id=0,
    )
    peer.generation_config = law

    def run() -> Any:
        with torch.inference_mode():
            drawn = peer.generate(prompts, attention_mask=mask, generation_config=law)
        assert drawn.shape == (len(tokens_PQ), tokens_PQ.shape[1] + num_new)
        return drawn

    return run, peers.num_parameters(peer)


def case(
    preset: str, prompt_length: int, num_new: int, num_rows: int, repeats: int
) -> dict[str, Any]:
    """Both sides in turn at one shape."""
    vocab_size = gpt_neox.PRESETS[preset].vocab_size
    tokens_PQ = np.random.default_rng(0).integers(
        3, vocab_size, (num_rows, prompt_length), dtype=np.int32
    )
    ours, our_params = our_side(preset, tokens_PQ, num_new)
    peer, peer_params = peer_side(preset, tokens_PQ, num_new)
    assert our_params == peer_params, (
        f"{preset}: we have {our_params} params, the peer {peer_params}"
    )
    seconds = measure.interleaved({"rlhf_jax": ours, "transformers": peer}, repeats)
    found = measure.compared(seconds, "rlhf_jax", "transformers")
    shape = {
        "preset": preset,
        "prompt": prompt_length,
        "new": num_new,
        "rows": num_rows,
        "params": our_params,
    }
    return {"case": name(preset, prompt_length, num_new, num_rows), **shape, **found}


@dataclass(frozen=True)
class EndsAt:
    """A model whose rows end at a position: there, and only there, its head gives an EOS."""

    model: Any
    position: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def apply(
        self, params: Any, tokens_BL: Any, positions_BL: Any, mask_BL: Any, cache: Any = None
    ) -> Any:
        hidden_BLD, cache = self.model.apply(params, tokens_BL, positions_BL, mask_BL, cache)
        mark_BL1 = (positions_BL == self.position)[..., None].astype(hidden_BLD.dtype)
        return jnp.concatenate([hidden_BLD, mark_BL1], axis=-1), cache

    def head(self, params: Any, hidden: Any) -> Any:
        logits = self.model.head(params, hidden[..., :-1])
        is_eos = jnp.arange(logits.shape[-1]) == EOS
        end = jnp.where(hidden[..., -1:] > 0, 1e9, -1e9)
        return jnp.where(is_eos.reshape((1,) * (logits.ndim - 1) + (-1,)), end, logits)


def ragged(preset: str, num_new: int, num_rows: int, repeats: int) -> dict[str, Any]:
    """Rows of `num_new` tokens but for the last, of ten times as many: its prompt is one token, so
    it begins earlier.
    """
    prompt_length = (LONGER - 1) * num_new + 1
    model = EndsAt(gpt_neox.make(gpt_neox.PRESETS[preset]), prompt_length + num_new - 2)
    params = jax.jit(model.init)(jax.random.key(0))
    tokens_PQ = np.random.default_rng(0).integers(
        3, model.vocab_size, (num_rows, prompt_length), dtype=np.int32
    )
    mask_PQ = np.ones(tokens_PQ.shape, bool)
    mask_PQ[-1, :-1] = False
    prompts = Prompts(
        jnp.asarray(tokens_PQ), jnp.asarray(mask_PQ), jnp.arange(num_rows, dtype=jnp.int32)
    )

    def side(num_compactions: int) -> Callable[[], Any]:
        config = sampling.Config(LONGER * num_new, 1, 1.0, num_compactions)
        draw = jax.jit(partial(sampling.sample, model=model, config=config, eos_id=EOS, pad_id=0))

        def run() -> Any:
            return jax.block_until_ready(draw(params, prompts, jax.random.key(1), np.int32(0)))

        lengths = np.asarray(run().mask_BC.sum(axis=1))
        assert lengths.tolist() == [num_new] * (num_rows - 1) + [LONGER * num_new], lengths
        return run

    seconds = measure.interleaved({"gathered": side(3), "plain": side(0)}, repeats)
    shape = {"preset": preset, "prompt": prompt_length, "new": num_new, "rows": num_rows}
    found = measure.compared(seconds, "gathered", "plain")
    return {"case": ragged_name(preset, num_new, num_rows), **shape, **found}


def ragged_name(preset: str, num_new: int, num_rows: int) -> str:
    return f"ragged {preset} {num_new} ({LONGER * num_new}) x {num_rows}"


def name(preset: str, prompt_length: int, num_new: int, num_rows: int) -> str:
    return f"{preset} {prompt_length}+{num_new} x {num_rows}"


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    load = os.getloadavg()
    chosen = [shape for shape in CASES if options.only in name(*shape)]
    cases = [case(*shape, options.repeats) for shape in chosen]
    cases += [
        ragged(*shape, options.repeats) for shape in RAGGED if options.only in ragged_name(*shape)
    ]
    measure.report("generate", cases, load, options.output)


if __name__ == "__main__":
    main()
