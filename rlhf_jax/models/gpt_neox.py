"""GPT-NeoX, the family of Pythia (Black et al. 2022, arXiv 2204.06745; Biderman et al. 2023, arXiv
2304.01373).

    x <- x + attention(layernorm_1(x)) + mlp(layernorm_2(x))        (parallel residual; mlp after attention where it is off)

with biases everywhere but in the head, rotary positions on the first quarter of each head, and the
exact gelu. Params are named and laid out as in the published checkpoints (kernels transposed): the
3 D columns of `query_key_value` are ordered head by head, each head's query, key and value
together, so that a split over heads is a split over columns.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from flax import linen as nn

from rlhf_jax.config import Bounds, Count, Natural, Positive
from rlhf_jax.models.api import Cache, Model
from rlhf_jax.models.common import blocks, decoder
from rlhf_jax.models.common.cache import next_cache, see
from rlhf_jax.models.common.decoder import Depth
from rlhf_jax.models.common.scan import run_layers
from rlhf_jax.types import Array


@dataclass(frozen=True)
class Config:
    """The shape of a decoder. Defaults are those of Pythia's published `config.json` files."""

    vocab_size: Natural  # 0: the tokenizer's
    width: Count  # of the residual stream
    num_layers: Depth  # decoder layers
    num_heads: Count  # heads of queries
    ffn_width: Count  # of the feed-forward layer
    # of the dimensions of a head that turn
    rotary_fraction: Annotated[float, Bounds(above=0, most=1)] = 0.25
    rope_theta: Positive = 10_000.0  # base of the rotary frequencies
    norm_eps: Positive = 1e-5  # added to the variance in a norm
    parallel_residual: bool = True  # attention and feed-forward read the same input
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

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def head_width(self) -> int:
        return 0  # as of other families: the heads share the width


def rotary_dims(config: Config) -> int:
    """The numbers of a head's query or key that rotary positions turn."""
    return int(decoder.head_width(config) * config.rotary_fraction)


def _shape(vocab_size: int, width: int, num_layers: int, num_heads: int) -> Config:
    return Config(vocab_size, width, num_layers, num_heads, ffn_width=4 * width)


# vocab_size 0 is to be replaced by the tokenizer's. Pythia: Biderman et al. 2023, table 1, with
# padded vocabularies.
PRESETS: dict[str, Config] = {
    # Heads of 16: a quarter of them would turn at two frequencies, and sums are then not learned.
    "quickstart": replace(_shape(0, 64, 2, 4), rotary_fraction=1.0),
    "tiny": _shape(512, 128, 4, 4),
    "small": _shape(8192, 512, 6, 8),
    "pythia-70m": _shape(50304, 512, 6, 8),
    "pythia-160m": _shape(50304, 768, 12, 12),
    "pythia-410m": _shape(50304, 1024, 24, 16),
    "pythia-1b": _shape(50304, 2048, 16, 8),
    "pythia-1.4b": _shape(50304, 2048, 24, 16),
    "pythia-2.8b": _shape(50304, 2560, 32, 32),
    "pythia-6.9b": _shape(50432, 4096, 32, 32),
}

LOGICAL_AXES = {
    "embed_in/embedding": ("vocab", "embed"),
    "embed_out/kernel": ("embed", "vocab"),
    "input_layernorm/scale": (None,),
    "input_layernorm/bias": (None,),
    "post_attention_layernorm/scale": (None,),
    "post_attention_layernorm/bias": (None,),
    "final_layer_norm/scale": (None,),
    "final_layer_norm/bias": (None,),
    "query_key_value/kernel": ("embed", "heads"),
    "query_key_value/bias": ("heads",),
    "dense/kernel": ("heads", "embed"),
    "dense/bias": (None,),
    "dense_h_to_4h/kernel": ("embed", "mlp"),
    "dense_h_to_4h/bias": ("mlp",),
    "dense_4h_to_h/kernel": ("mlp", "embed"),
    "dense_4h_to_h/bias": (None,),
}


class Layer(nn.Module):
    """Attention and feed-forward, side by side or one after the other."""

    config: Config

    def setup(self) -> None:
        config = self.config
        grow, back = (
            decoder.small_init(config.width, config.init_scale),
            decoder.residual_init(config.width, config.num_layers),
        )
        self.input_layernorm = blocks.LayerNorm(config.norm_eps)
        self.post_attention_layernorm = blocks.LayerNorm(config.norm_eps)

        def dense(features: int, init: nn.initializers.Initializer) -> blocks.Dense:
            return blocks.Dense(
                features,
                dtype=config.dtype,
                kernel_init=init,
                gradient_dtype=config.gradient_dtype,
            )

        self.query_key_value = dense(3 * config.width, grow)
        self.dense = dense(config.width, back)
        self.dense_h_to_4h = dense(config.ffn_width, grow)
        self.dense_4h_to_h = dense(config.width, back)

    def heads(self, x_AD: Array, tables: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """Queries, keys and values `[B, H, L, K]` of the residual `[B*L, D]`."""
        B, L = tables[0].shape[:2]
        fused = (
            self.query_key_value(self.input_layernorm(x_AD))
            .reshape(B, L, self.config.num_heads, 3, -1)
            .transpose(3, 0, 2, 1, 4)
        )
        return blocks.rotate(fused[0], tables), blocks.rotate(fused[1], tables), fused[2]

    def attend(
        self, queries_BHLK: Array, keys_BJMK: Array, values_BJMK: Array, hide_BLM: Array
    ) -> Array:
        """Mixed values `[B*L, H*K]`."""
        return blocks.attend(
            queries_BHLK, keys_BJMK, values_BJMK, hide_BLM, how=self.config.attention
        )

    def feed_forward(self, x_AD: Array) -> Array:
        return self.dense_4h_to_h(blocks.gelu(self.dense_h_to_4h(x_AD)))

    def join(self, x_AD: Array, mixed_AD: Array) -> Array:
        """The residual `[B*L, D]` after this layer, of the one before it and the mixed values
        `[B*L, H*K]`.
        """
        attended = self.dense(mixed_AD)
        if self.config.parallel_residual:
            return x_AD + attended + self.feed_forward(self.post_attention_layernorm(x_AD))
        x_AD = x_AD + attended
        return x_AD + self.feed_forward(self.post_attention_layernorm(x_AD))


class Network(nn.Module):
    """Embedding, layers, final norm and head; see `models/api.py` for what the arguments mean."""

    config: Config

    def setup(self) -> None:
        config = self.config
        init = decoder.small_init(config.width, config.init_scale)
        self.embed_in = blocks.Embed(
            config.vocab_size,
            config.width,
            dtype=config.dtype,
            embedding_init=init,
            gradient_dtype=config.gradient_dtype,
        )
        self.layer = [Layer(config) for _ in range(config.num_layers)]
        self.final_layer_norm = blocks.LayerNorm(config.norm_eps)
        if not config.tie_embeddings:
            self.embed_out = blocks.Head(config.vocab_size, init, config.gradient_dtype)

    def __call__(
        self, tokens_BL: Array, positions_BL: Array, mask_BL: Array, cache: Cache | None = None
    ) -> tuple[Array, Cache | None]:
        config, (B, L) = self.config, tokens_BL.shape
        frequencies = blocks.rotary_frequencies(rotary_dims(config), config.rope_theta)
        tables = blocks.rotary_tables(positions_BL, frequencies)
        position_BM, hide_BLM = see(mask_BL, positions_BL, cache)
        x_AD = self.embed_in(tokens_BL.reshape(B * L))
        x_AD, kept = run_layers(self, x_AD, [(tables, hide_BLM)] * config.num_layers, cache)
        hidden_BLD = self.final_layer_norm(x_AD).reshape(B, L, config.width)
        if self.is_initializing():
            self.head(hidden_BLD)
        return hidden_BLD, next_cache(cache, kept, position_BM, L)

    def head(self, hidden: Array) -> Array:
        if self.config.tie_embeddings:
            return blocks.logits(hidden, self.embed_in.embedding.T, self.config.gradient_dtype)
        return self.embed_out(hidden)


@dataclass(frozen=True)
class GPTNeoX(decoder.Decoder):
    """`Model` of this family."""

    network: ClassVar[type[nn.Module]] = Network
    axes: ClassVar = LOGICAL_AXES


def make(config: Config) -> Model:
    """The model of a shape; frozen and hashable.

    Raises Refusal where the numbers do not fit together.
    """
    decoder.check_shape(config)
    decoder.check_rotary(
        rotary_dims(config), f"rotary_fraction {config.rotary_fraction} of width / num_heads"
    )
    return GPTNeoX(config)
