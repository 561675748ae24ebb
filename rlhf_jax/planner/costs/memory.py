"""Bytes of one device that a call needs while it runs: caches, activations, logits, gradients.

What is counted was chosen beside XLA's own figure for temporary memory
(`tests/planner/test_analytic.py` holds the bands): a compiler's schedule is not a formula, and one
that keeps or frees an array at another moment moves it.
"""

from rlhf_jax.planner.costs.roofline import (
    Part,
    Positions,
    activation_elements,
    product_elements,
)
from rlhf_jax.scoring import MAX_LOGITS

ADAPTER_BYTES = 4  # of a param of an adapter: float32
ROW_BYTES = 24  # a position of a batch: tokens, mask, and what algorithms keep of it (four float32)


def layer_activation_bytes(part: Part, run: Positions) -> float:
    """Bytes of one layer's backward pass: its activations, and the exponentials of attention's
    scores.
    """
    shape = part.shape
    scores = 0.0 if shape.attention == "cudnn" else part.split.heads * run.pairs
    exponentials = 4 if shape.compute_bytes == 4 else 4 + shape.compute_bytes
    return activation_elements(part) * run.tokens * shape.compute_bytes + scores * exponentials


def layer_stage_bytes(part: Part, run: Positions) -> float:
    """Bytes that one layer holds at once in a forward pass: the residual, its norm, and the
    feed-forward's products or attention's, whose blocks of queries run in turn.

    Where rows move, both kinds of products are there of all rows, and the mixed values.
    """
    shape, split = part.shape, part.split
    hidden = 2 * shape.ffn_width / split.hidden_parts
    scores = 0.0 if shape.attention == "cudnn" else 2 * 4 * split.heads * run.block_pairs
    heads = 2 * (split.heads + split.kv_heads) * shape.head_width * run.tokens * shape.compute_bytes
    residual = 2 * shape.width * run.tokens * shape.compute_bytes
    products = hidden * run.tokens * shape.compute_bytes
    if part.spread == 1:
        return residual + max(products, heads + scores)
    mixed = split.heads * shape.head_width * run.tokens * shape.compute_bytes
    return residual + part.spread * (products + heads + mixed)


def logits_bytes(part: Part, run: Positions, copies: float) -> float:
    """Float32 logits held at once, `copies` times."""
    if part.shape.values or not run.logits:
        return 0.0
    return copies * 4 * min(run.logits * part.spread * part.split.vocab, MAX_LOGITS)


def cache_bytes(part: Part, rows: float, columns: float) -> float:
    """The cache of so many rows, of all layers."""
    return rows * columns * part.shape.column_bytes * part.split.kv_heads / part.shape.num_kv_heads


def shared_cache_bytes(
    part: Part, prompts: float, rows: float, columns: float, trains: bool
) -> float:
    """The caches of rows whose prompt is run once.

    A scan over layers carries the rows' cache. Its backward pass keeps it, with the prompts', and
    carries its gradient. libtpu holds all three of the rows at the beginning of the backward pass.

    Args:
      part: of the model.
      prompts: of a micro-batch.
      rows: of these prompts.
      columns: of the cache.
      trains: True where there is a backward pass.
    """
    of_rows = cache_bytes(part, rows, columns)
    if not (trains and part.shape.scanned):
        return of_rows
    return 3 * of_rows + cache_bytes(part, prompts, columns)


def _other_params_bytes(part: Part) -> float:
    """A device's params in the compute dtype, and those that fsdp cuts brought together in it: of
    two layers, which XLA frees again. Of int8 kernels one is cast at a time.
    """
    shape, split = part.shape, part.split
    casts = split.stored * shape.compute_bytes if shape.compute_bytes < part.weight_bytes else 0.0
    casts += split.largest_int8 * shape.compute_bytes
    gathered = (
        0.0
        if part.rows_move
        else 2 * split.cut_by_fsdp * part.gather_bytes / max(shape.num_layers, 1)
    )
    return casts + gathered


def train_bytes(
    part: Part,
    run: Positions,
    remat: bool,
    num_micro_batches: int,
    prompt_cache: float,
    prompts: Positions | None = None,
) -> float:
    """Gradients (twice where micro-batches are summed), activations of one micro-batch, and the
    head's. With float32 gradients, which are reduced one after the other, the most of several
    moments: at the head, and those of `_reduced_bytes`.

    Args:
      part: of the model.
      run: positions of a micro-batch.
      remat: layers run forward again in the backward pass.
      num_micro_batches: of an update.
      prompt_cache: bytes of the keys and values of prompts that are run once.
      prompts: positions of the pass over these prompts; None where there is one pass.
    """
    shape, split = part.shape, part.split
    hidden = 3 * run.logits * shape.width * shape.compute_bytes
    trained = split.stored * shape.param_bytes
    if shape.adapter:
        trained = ADAPTER_BYTES * shape.adapter_elements(
            part.rings.fsdp.size, part.rings.tensor.size
        )
    accumulated = trained if num_micro_batches > 1 else 0.0
    # Rows that are sharded add the head's gradient up on each device before it is reduced.
    sharded = part.rings.data.size * part.rings.fsdp.size > 1
    whole_head = sharded and run.logits and not shape.values and not shape.adapter
    head = 4 * split.head_products if whole_head else 0.0
    at_head = _kept_bytes(part, run, remat) + hidden + head + logits_bytes(part, run, 2.0)
    if part.reduces_in_turn and not shape.adapter:
        most = max(at_head, *_reduced_bytes(part, run, remat, prompts, trained))
    else:
        most = at_head + trained
    return most + accumulated + _other_params_bytes(part) + prompt_cache


def _kept_bytes(part: Part, run: Positions, remat: bool) -> float:
    """Activations that the backward pass finds kept, and those of the layer it is at."""
    shape = part.shape
    one_layer = layer_activation_bytes(part, run)
    kept = shape.width + (product_elements(part) if shape.remat_policy == "dots" else 0.0)
    again = shape.num_layers * run.tokens * kept * shape.compute_bytes + one_layer
    return again if remat else shape.num_layers * one_layer


def _reduced_bytes(
    part: Part, run: Positions, remat: bool, prompts: Positions | None, trained: float
) -> list[float]:
    """Bytes of activations and gradients at the last layer, at the first one and at the embedding,
    which are differentiated last, and between two passes.

    A layer's gradient is whole and float32 before it is reduced; two of them may be so at once. The
    embedding's waits for both passes. Without remat or a scan so do those of all layers, and the
    layers' params stay gathered for the second pass.

    Args:
      part: of the model.
      run: positions of a micro-batch.
      remat: layers run forward again in the backward pass.
      prompts: see `train_bytes`.
      trained: bytes of the gradients once they are reduced.
    """
    shape, split = part.shape, part.split
    table = 4 * split.vocab * shape.width
    two_layers = 4 * 2 * split.layer_products / max(shape.num_layers, 1)
    first_layer = layer_activation_bytes(part, prompts or run)
    moments = [
        _kept_bytes(part, run, remat) + two_layers,
        first_layer + two_layers + trained,
        table + trained,
    ]
    if prompts is None:
        return moments
    held = two_layers
    if not remat and not shape.scanned:
        gathered = split.cut_by_fsdp - split.cut_head - split.cut_table
        held = 4 * split.layer_products + part.gather_bytes * gathered
    return [*moments, _kept_bytes(part, prompts, remat) + held + table]


def infer_bytes(part: Part, run: Positions, prompt_cache: float) -> float:
    """The larger of a layer and the head, since a forward pass frees what it has read."""
    hidden = 2 * run.logits * part.shape.width * part.shape.compute_bytes
    head = hidden + logits_bytes(part, run, 2.0)
    return max(layer_stage_bytes(part, run) + prompt_cache, head) + _other_params_bytes(part)


def generate_bytes(
    part: Part, prefill: Positions, prompts: float, rows: float, prompt: int, columns: int
) -> float:
    """The rows' cache and the prompts', whose layers XLA copies for the rows while the prefill still
    runs; beside them a layer of the prefill, or the logits of a step.
    """
    of_prompts, of_rows = cache_bytes(part, prompts, columns), cache_bytes(part, rows, columns)
    logits = 0.0 if part.shape.values else 3 * 4 * rows * part.split.vocab
    drawn = rows * ((columns - prompt) * 13 + prompt * 5)
    caches = of_rows + (of_prompts if rows > prompts else 0.0)
    return (
        caches + max(layer_stage_bytes(part, prefill), logits) + drawn + _other_params_bytes(part)
    )
