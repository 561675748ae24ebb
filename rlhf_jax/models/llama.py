"""Llama 2 and 3 (Touvron et al. 2023, arXiv 2307.09288; Grattafiori et al. 2024, arXiv 2407.21783):
grouped queries.

    x <- x + attention(rmsnorm_1(x));   x <- x + down(silu(gate(y)) * up(y)),  y = rmsnorm_2(x)

without biases, with rotary positions on whole heads, whose slow frequencies are stretched for long
contexts (`rope.py`). Params are named and laid out as in the published checkpoints (kernels
transposed). Mistral, Qwen, Gemma, OLMo, SmolLM and Phi are this decoder with changes: each of their
files is what differs.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import jax
from flax import linen as nn

from rlhf_jax.config import Bounds, Count, Natural, Positive
from rlhf_jax.models.api import Cache, Model
from rlhf_jax.models.common import blocks, decoder, rope
from rlhf_jax.models.common.cache import next_cache, see
from rlhf_jax.models.common.decoder import Depth
from rlhf_jax.models.common.scan import run_layers
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array


@dataclass(frozen=True)
class Config:
    """The shape of a decoder. Defaults are of Llama 3's published `config.json` files; scaling
    factor 1 is none.

    `rope_scaling` is a name of `rope.SCALINGS`, which also says what the other numbers mean to it.
    """

    vocab_size: Natural  # 0: the tokenizer's
    width: Count  # of the residual stream
    num_layers: Depth  # decoder layers
    num_heads: Count  # heads of queries
    num_kv_heads: Count  # heads of keys and values
    ffn_width: Count  # of the feed-forward layer
    head_width: Natural = 0  # of one query, key or value; 0: width / num_heads
    rope_theta: Positive = 500_000.0  # base of the rotary frequencies
    # see common/rope.py
    rope_scaling: Literal["linear", "llama3", "yarn", "dynamic", "longrope"] = "llama3"
    rope_scaling_factor: Positive = 1.0  # by which the context is stretched
    # llama3, yarn: turns below which a frequency is divided
    rope_low_frequency_factor: Positive = 1.0
    rope_high_frequency_factor: Positive = 4.0  # turns above which it stays
    rope_original_max_positions: Count = 8192  # the context before it was stretched
    rope_attention_factor: Positive = 1.0  # yarn: on cosines and sines
    rope_truncate: bool = True  # yarn: the two indices of the ramp are whole numbers
    norm_eps: Positive = 1e-5  # added to the variance in a norm
    tie_embeddings: bool = False  # the head has the params of the embedding
    dtype: Literal["float32", "bfloat16"] = "float32"  # of computations; params are float32
    remat: bool = (
        False  # each layer is computed again in the backward pass, so that only its inputs are kept
    )
    attention: Literal["xla", "dot_product", "cudnn"] = "xla"  # see `blocks.attend`
    init_scale: Positive = (
        1.0  # on the first deviations of embedding, head and what reads the residual
    )
    # A reward model's score is never read at this id, as its trainer may have it; -1: at any.
    padding_id: Annotated[int, Bounds(least=0, also=(-1,))] = -1
    # from this many layers on, params hold the layers stacked, and training and scoring scan them;
    # 0: never. 12 suits deep models whose compile time counts more than a copy while they sample
    scan_layers: Natural = 0
    # with remat: "full" keeps the input of each layer alone; "dots" also its products with params, so
    # that attention and element-wise work alone are computed again
    remat_policy: Literal["full", "dots"] = "full"
    # with dtype bfloat16, of the gradients of kernels and embeddings: "float32" does not round them
    # before they are summed over devices, micro-batches and passes; see docs/guides/memory.md
    gradient_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    # of gradients on the network between hosts with a copy of the params each; "bfloat16" halves the
    # bytes, and rounds each copy's gradient and the sum; see docs/scale/hosts.md
    network_gradient_dtype: Literal["bfloat16", "float32"] = "float32"

    def window(self, layer: int) -> int:
        """Number of columns that a query of this layer sees at most, its own among them; 0 is all."""
        return 0

    def rotary(self, layer: int) -> rope.Rotary:
        """The rotary positions of this layer."""
        return rope.stretched(self, decoder.head_width(self))


# vocab_size 0 is to be replaced by the tokenizer's. Published shapes: Meta's config.json of Llama
# 3.1 and 3.2.
PRESETS: dict[str, Config] = {
    "quickstart": Config(0, 64, 2, 4, 2, 192),
    "tiny": Config(512, 128, 4, 4, 2, 384),
    "small": Config(8192, 512, 6, 8, 4, 1408),
    "llama-3.2-1b": Config(
        128256, 2048, 16, 32, 8, 8192, rope_scaling_factor=32.0, tie_embeddings=True
    ),
    "llama-3.2-3b": Config(
        128256, 3072, 28, 24, 8, 8192, rope_scaling_factor=32.0, tie_embeddings=True
    ),
    "llama-3.1-8b": Config(128256, 4096, 32, 32, 8, 14336, rope_scaling_factor=8.0),
    # TinyLlama's shape (config.json of TinyLlama-1.1B), from which Rho-1B was trained on.
    "rho-1b": Config(32000, 2048, 22, 32, 4, 5632, rope_theta=10_000.0),
}

LOGICAL_AXES = {
    "embed_tokens/embedding": ("vocab", "embed"),
    "lm_head/kernel": ("embed", "vocab"),
    "input_layernorm/scale": (None,),
    "post_attention_layernorm/scale": (None,),
    "norm/scale": (None,),
    "q_proj/kernel": ("embed", "heads"),
    "k_proj/kernel": ("embed", "kv_heads"),
    "v_proj/kernel": ("embed", "kv_heads"),
    "o_proj/kernel": ("heads", "embed"),
    "gate_proj/kernel": ("embed", "mlp"),
    "up_proj/kernel": ("embed", "mlp"),
    "down_proj/kernel": ("mlp", "embed"),
}


class Layer(nn.Module):
    """Attention, then feed-forward."""

    config: Any
    norm_type: ClassVar[type[nn.Module]] = blocks.RMSNorm
    norm_before: ClassVar[bool] = True  # a norm on what attention reads of the residual
    qkv_bias: ClassVar[bool] = False

    def setup(self) -> None:
        config, head_width = self.config, decoder.head_width(self.config)
        grow = decoder.small_init(config.width, config.init_scale)
        back = decoder.residual_init(config.width, config.num_layers)

        def dense(
            features: int, init: nn.initializers.Initializer = grow, bias: bool = False
        ) -> blocks.Dense:
            return blocks.Dense(
                features,
                use_bias=bias,
                dtype=config.dtype,
                kernel_init=init,
                gradient_dtype=config.gradient_dtype,
            )

        if self.norm_before:
            self.input_layernorm = self.norm_type(config.norm_eps)
        self.q_proj = dense(config.num_heads * head_width, bias=self.qkv_bias)
        self.k_proj = dense(config.num_kv_heads * head_width, bias=self.qkv_bias)
        self.v_proj = dense(config.num_kv_heads * head_width, bias=self.qkv_bias)
        self.o_proj = dense(config.width, back)
        self.post_attention_layernorm = self.norm_type(config.norm_eps)
        self.gate_proj = dense(config.ffn_width)
        self.up_proj = dense(config.ffn_width)
        self.down_proj = dense(config.width, back)

    def heads(self, x_AD: Array, tables: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """Queries `[B, H, L, K]`, keys and values `[B, J, L, K]` of the residual `[B*L, D]`."""
        B, L = tables[0].shape[:2]
        x_AD = self.input_layernorm(x_AD) if self.norm_before else x_AD

        def split(x: Array, num_heads: int) -> Array:
            return x.reshape(B, L, num_heads, -1).transpose(0, 2, 1, 3)

        queries_AX, keys_AX = self.norm_projected(self.q_proj(x_AD), self.k_proj(x_AD))
        queries, keys = (
            split(queries_AX, self.config.num_heads),
            split(keys_AX, self.config.num_kv_heads),
        )
        queries, keys = self.norm_heads(queries, keys)
        values = split(self.v_proj(x_AD), self.config.num_kv_heads)
        return blocks.rotate(queries, tables), blocks.rotate(keys, tables), values

    def norm_projected(self, queries_AX: Array, keys_AX: Array) -> tuple[Array, Array]:
        """Norms queries `[B*L, H*K]` and keys `[B*L, J*K]` before they are split into heads, where
        a family does.
        """
        return queries_AX, keys_AX

    def norm_heads(self, queries_BHLK: Array, keys_BJLK: Array) -> tuple[Array, Array]:
        """Norms queries and keys head by head before they turn, where a family does."""
        return queries_BHLK, keys_BJLK

    def attend(
        self, queries_BHLK: Array, keys_BJMK: Array, values_BJMK: Array, hide_BLM: Array
    ) -> Array:
        """Mixed values `[B*L, H*K]`."""
        return blocks.attend(
            queries_BHLK, keys_BJMK, values_BJMK, hide_BLM, how=self.config.attention
        )

    def join(self, x_AD: Array, mixed_AD: Array) -> Array:
        """The residual `[B*L, D]` after this layer, of the one before it and the mixed values
        `[B*L, H*K]`.
        """
        x_AD = x_AD + self.o_proj(mixed_AD)
        return x_AD + self.feed_forward(self.post_attention_layernorm(x_AD))

    def feed_forward(self, x_AD: Array) -> Array:
        return self.down_proj(self.activation(self.gate_proj(x_AD)) * self.up_proj(x_AD))

    def activation(self, x_AF: Array) -> Array:
        return jax.nn.silu(x_AF)


class Network(nn.Module):
    """Embedding, layers, final norm and head; see `models/api.py` for what the arguments mean."""

    config: Any
    layer_type: ClassVar[type[Layer]] = Layer

    def setup(self) -> None:
        config = self.config
        init = decoder.small_init(config.width, config.init_scale)
        self.embed_tokens = blocks.Embed(
            config.vocab_size,
            config.width,
            dtype=config.dtype,
            embedding_init=init,
            gradient_dtype=config.gradient_dtype,
        )
        self.layer = [self.layer_type(config) for _ in range(config.num_layers)]
        self.norm = self.layer_type.norm_type(config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = blocks.Head(config.vocab_size, init, config.gradient_dtype)

    def __call__(
        self, tokens_BL: Array, positions_BL: Array, mask_BL: Array, cache: Cache | None = None
    ) -> tuple[Array, Cache | None]:
        config, (B, L) = self.config, tokens_BL.shape
        rope.check_length(config, L if cache is None else cache.position_BM.shape[1])
        rotations = [config.rotary(index) for index in range(config.num_layers)]
        tables = {
            rotation: blocks.rotary_tables(positions_BL, *rotation)
            for rotation in dict.fromkeys(rotations)
        }
        windows = [config.window(index) for index in range(config.num_layers)]
        hidden = {
            window: see(mask_BL, positions_BL, cache, window) for window in sorted(set(windows))
        }
        inputs = [
            (tables[rotation], hidden[window][1])
            for rotation, window in zip(rotations, windows, strict=True)
        ]
        x_AD, kept = run_layers(self, self.embed(tokens_BL.reshape(B * L)), inputs, cache)
        hidden_BLD = self.norm(x_AD).reshape(B, L, config.width)
        if self.is_initializing():
            self.head(hidden_BLD)
        return hidden_BLD, next_cache(cache, kept, hidden[windows[0]][0], L)

    def embed(self, tokens_A: Array) -> Array:
        return self.embed_tokens(tokens_A)

    def head(self, hidden: Array) -> Array:
        if self.config.tie_embeddings:
            return blocks.logits(hidden, self.embed_tokens.embedding.T, self.config.gradient_dtype)
        return self.lm_head(hidden)


def check(
    config: Config, scalings: tuple[str, ...] = rope.SCALINGS, rotary_dims: int | None = None
) -> None:
    """Raises Refusal, naming the value, where the numbers do not fit together.

    Args:
      config: of this family or of one that is built on it.
      scalings: of the rotary frequencies, accepted.
      rotary_dims: dimensions of a head that positions turn; None is all of them.
    """
    decoder.check_shape(config)
    rope.check(config, scalings)
    width = decoder.head_width(config)
    if rotary_dims is None:
        decoder.check_rotary(width, "a head's width (head_width, or width / num_heads)")
    else:
        decoder.check_rotary(
            rotary_dims, f"the part of a head's width {width} that rotary_fraction gives"
        )
    if (narrowest := min(map(config.window, range(config.num_layers)), default=0)) < 0:
        raise Refusal(f"sliding_window is {narrowest}; accepted: columns, and 0 for none")


@dataclass(frozen=True)
class Llama(decoder.Decoder):
    """`Model` of this family."""

    network: ClassVar[type[nn.Module]] = Network
    axes: ClassVar = LOGICAL_AXES


def make(config: Config) -> Model:
    """The model of a shape; frozen and hashable.

    Raises Refusal where the numbers do not fit together.
    """
    check(config)
    return Llama(config)
