"""Limits of a device, and the bytes and FLOPs that a decoding step and an update of a GPT-NeoX need
at least.
"""

from typing import Any

import jax

from rlhf_jax.models.common import decoder

# By `device_kind`: dense bfloat16 FLOP/s and bytes/s of memory. NVIDIA: the data sheets of the H100
# (SXM), H200 and A100 (80GB SXM), without sparsity. TPU: the system architecture pages of Google
# Cloud's documentation, of one chip.
PEAKS = {
    "NVIDIA H100 80GB HBM3": (989e12, 3.35e12),
    "NVIDIA H200": (989e12, 4.8e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 2.0e12),
    "TPU v5 lite": (197e12, 0.82e12),
    "TPU v5": (459e12, 2.77e12),
    "TPU v6 lite": (918e12, 1.64e12),
}


def peaks(kind: str) -> tuple[float | None, float | None]:
    """Peak FLOP/s and bytes/s of a kind of device, or None for both."""
    return PEAKS.get(kind, (None, None))


def share(bound: float, peak: float | None, seconds: float) -> float | None:
    """`bound` (FLOPs or bytes) by what `peak` does in `seconds`; None without a peak."""
    return None if peak is None else round(bound / (peak * seconds), 4)


def sizes(model: Any) -> tuple[int, int, int]:
    """Numbers of params: of the layers and the last norm, of the embedding table, of the head (0
    where it is the table).
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    count = {name: sum(x.size for x in jax.tree.leaves(leaves)) for name, leaves in shapes.items()}
    table, head = count.pop("embed_in"), count.pop("embed_out", 0)
    return sum(count.values()), table, head


def step_bytes(model: Any, rows: int, prompt: int, new: int) -> float:
    """Bytes that a decoding step must read in bfloat16: weights once, and each row's keys and
    values, mean over the steps.
    """
    body, table, head = sizes(model)
    config = model.config
    columns = (
        prompt + new / 2
    )  # step k of 1 ... new - 1 sees the prompt and the k tokens drawn before it
    cache = (
        2 * config.num_layers * rows * config.num_kv_heads * decoder.head_width(config) * columns
    )
    return 2 * (body + (head or table) + cache)


def update_flops(model: Any, rows: int, prompt: int, new: int) -> float:
    """FLOPs of forward and backward pass: 6 a param and token, and attention's two products over
    the columns that are seen.

    A prompt is run once for its two rows, a completion's last token predicts nothing, the head
    reads completions alone.
    """
    config, (body, table, head) = model.config, sizes(model)
    prompts, tokens = rows / 2, new - 1
    dense = 6 * body * (prompts * prompt + rows * tokens) + 6 * (head or table) * rows * new
    pairs = prompts * prompt * (prompt + 1) / 2
    pairs += rows * (tokens * prompt + tokens * (tokens + 1) / 2)  # of a query and a column
    return dense + 12 * config.num_layers * config.num_heads * decoder.head_width(config) * pairs
