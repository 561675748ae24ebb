"""The peer's models at our shapes: GPT-NeoX of transformers, randomly begun, in evaluation or
training on torch.
"""

from typing import Any

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from experiments.bench.measure import NUM_THREADS
from rlhf_jax.models import gpt_neox


def config(preset: str, vocab_size: int = 0) -> GPTNeoXConfig:
    """The peer's config of one of our presets; `vocab_size` where the preset leaves it open."""
    shape = gpt_neox.PRESETS[preset]
    return GPTNeoXConfig(
        vocab_size=shape.vocab_size or vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.ffn_width,
        max_position_embeddings=2048,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": shape.rope_theta,
            "partial_rotary_factor": shape.rotary_fraction,
        },
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_parallel_residual=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def model(preset: str, attention: str, vocab_size: int = 0) -> Any:
    """The peer's model in float32; `attention` is sdpa or eager."""
    torch.set_num_threads(NUM_THREADS)
    torch.manual_seed(0)
    shape = config(preset, vocab_size)
    shape._attn_implementation = attention
    return GPTNeoXForCausalLM(shape)


def num_parameters(peer: Any) -> int:
    """Parameters of a peer's model, to see that both sides have as many."""
    return sum(p.numel() for p in peer.parameters())
