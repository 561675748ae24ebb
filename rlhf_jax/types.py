"""Batch types, one frozen pytree each: prompts, samples, scores, and rows to train on; also
metrics, algorithms and placements.

Shape letters (adjacent capitals at the end of a name; no suffix means a scalar, a pytree or a host
object):

    P  prompts of a round            Q  prompt positions, left-padded     V  vocabulary      H  query heads
    G  samples of a prompt           C  completion positions              D  width           J  key-value heads
    B  P*G samples, group-contiguous L  Q + C                             F  feed-forward    K  head width
    R  rows trained on               M  cache positions                   N  layers
    S  scores of a prompt's samples of the reference policy, stored before the run

`mask_BC` is true on every completion token that was sampled, the EOS included, and false after it.
Log-probabilities are float32, of the distribution that was sampled from (logits divided by the
temperature), and 0 where the mask is false.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

Array = jax.Array
Params = Mapping[str, Any]  # nested dicts of arrays, one entry a layer


class Device(Protocol):
    """The attributes of a `jax.Device` that are read here; JAX gives the class no static type."""

    @property
    def id(self) -> int: ...
    @property
    def process_index(self) -> int: ...
    @property
    def platform(self) -> str: ...
    @property
    def device_kind(self) -> str: ...
    def memory_stats(self) -> Mapping[str, int] | None: ...
    def default_memory(self) -> "DeviceMemory": ...
    def addressable_memories(self) -> Sequence["DeviceMemory"]: ...


class DeviceMemory(Protocol):
    """A memory of a device, such as "device" or "pinned_host"."""

    @property
    def kind(self) -> str: ...


Need = str
"""The name of a score, a key of `dataflow.SCORES` ("reference", "value", "proximal") or of
`dataflow.STORED` ("reference_scores").
"""
Unit = int | Literal["group"]
Aggregation = Literal["token", "sequence", "pair", "constant_length"]


@struct.dataclass
class Prompts:
    """Prompts of a round, left-padded.

    Example: P=2, Q=3: tokens_PQ [[0, 5, 7], [4, 4, 9]], mask_PQ [[F, T, T], [T, T, T]], ordinal_P
    [16, 17].
    """

    tokens_PQ: Array  # int32
    mask_PQ: Array  # bool
    ordinal_P: Array  # int32, index in the prompt stream; random keys are folded with it


@struct.dataclass
class Samples:
    """Completions of prompts, group-contiguous: rows p*G ... p*G + G-1 belong to prompt p.

    Example: G=2, C=4, EOS 2: tokens_BC [[8, 9, 2, 0], ...], mask_BC [[T, T, T, F], ...], finished_B
    [True, ...].
    """

    prompt_tokens_BQ: Array  # int32
    prompt_mask_BQ: Array  # bool
    tokens_BC: Array  # int32, the pad id where the mask is false
    mask_BC: Array  # bool
    behavior_logprob_BC: Array  # float32
    finished_B: Array  # bool, an EOS was sampled
    ordinal_B: Array  # int32
    sample_index_B: Array  # int32, 0 ... G-1
    # int32, updates that the params which drew the token have had, 0 where the mask is false
    version_BC: Array
    temperature: Array  # float32
    samples_per_prompt: int = struct.field(pytree_node=False)


@struct.dataclass
class Scores:
    """Scores of samples, with the raw reward and its terms beside the score of `credit`."""

    raw_B: Array  # float32, in the reward's own unit
    # float32, (raw - mean) / std over samples of the SFT policy; raw for a verifiable reward
    standardized_B: Array
    score_B: Array  # float32, standardized, or the missing-EOS score *instead*: what `credit` uses
    reference_logprob_BC: Array | None = None
    proximal_logprob_BC: Array | None = None
    value_BC: Array | None = None
    terms: Mapping[str, Array] | None = (
        None  # float32 [B] each: of a sum of rewards, by label, before their weights
    )
    extra: Mapping[str, Array] = struct.field(
        default_factory=dict
    )  # [B], [B, C] or [B, S] each: scores without a field of their own
    overlong_B: Array | None = None  # float32, the penalty on long completions within score_B


@struct.dataclass
class Batch:
    """Rows to train on, units contiguous. Fields that an algorithm does not use are None."""

    prompt_tokens_RQ: Array
    prompt_mask_RQ: Array
    tokens_RC: Array
    mask_RC: Array
    temperature: Array  # float32 scalar, of the sampling distribution
    behavior_logprob_RC: Array | None = None
    reference_logprob_RC: Array | None = None
    proximal_logprob_RC: Array | None = None
    advantage_RC: Array | None = None
    return_RC: Array | None = None
    value_RC: Array | None = None
    weight_R: Array | None = (
        None  # float32; 0 silences a row's gradient but keeps it in the denominator
    )
    score_R: Array | None = (
        None  # float32, what the current log-probabilities of a group are contrasted with
    )
    staleness_RC: Array | None = (
        None  # float32, weight of a token's gradient: see `ops/corrections.py`
    )
    # float32; a row with 0 has no gradient and no place in the denominator. None: every row counts
    counted_R: Array | None = None
    # The sum of a row's weights and the number of them, float32: the mean over a minibatch becomes 1.
    weight_sum_R: Array | None = None
    weight_count_R: Array | None = None
    # int32, of the params that drew a token; None where the loss does not ask for its age
    version_RC: Array | None = None
    # int32, updates between the params that drew a token and those being trained: `train_step` fills it
    age_RC: Array | None = None
    sample_R: Array | None = None  # int32, the row of Samples that a row is made of
    figures: Mapping[str, Array] = struct.field(
        default_factory=dict
    )  # [R] each; their means are reported
    group_rows: int = struct.field(
        pytree_node=False, default=1
    )  # rows of a prompt, where a loss contrasts them
    # Rows of a prompt, contiguous: an update may run their prompt once. 1: nothing is known of
    # them.
    rows_per_prompt: int = struct.field(pytree_node=False, default=1)


@struct.dataclass
class Outputs:
    """Outputs of a role's forward pass for a loss: a policy's log-probabilities and entropies, or a
    critic's values.
    """

    logprob_RC: Array = None  # type: ignore[assignment]  # float32, of the batch's tokens under the params being trained
    entropy_RC: Array = None  # type: ignore[assignment]  # float32, nats, of the whole vocabulary at each position
    value_RC: Array = None  # type: ignore[assignment]  # float32, of what precedes each token, in units of the score


@struct.dataclass
class TrainState:
    """Arrays only."""

    step: Array  # int32, updates so far: the version of these params
    params: Params
    opt_state: optax.OptState


States = dict[str, TrainState]
"""The state of every trained role: "policy", and "critic" where the algorithm has one."""


@struct.dataclass
class Mean:
    """A metric that merges by adding: total / count."""

    total: Array
    count: Array

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> float:
        return (
            float(self.total) / max(float(self.count), 1e-30) if float(self.count) else float("nan")
        )


@struct.dataclass
class Max:
    """A metric that merges by taking the larger."""

    largest: Array

    def merge(self, other: "Max") -> "Max":
        return Max(jnp.maximum(self.largest, other.largest))

    def value(self) -> float:
        return float(self.largest)


@struct.dataclass
class EffectiveShare:
    """The effective sample size of weights as a share of their number: (Σ w)² / (n Σ w²), 1 for
    equal weights.
    """

    total: Array
    squares: Array
    count: Array

    def merge(self, other: "EffectiveShare") -> "EffectiveShare":
        return jax.tree.map(jnp.add, self, other)

    def value(self) -> float:
        denominator = float(self.squares) * float(self.count)
        return float(self.total) ** 2 / denominator if denominator else float("nan")


@struct.dataclass
class Quantile:
    """A quantile that merges: counts of values in bins of equal width between `low` and `high`, the
    outer ones open.

    Its value is the middle of the bin that holds the quantile, so it is exact to half a bin.
    """

    counts_K: Array
    low: float = struct.field(pytree_node=False)
    high: float = struct.field(pytree_node=False)
    quantile: float = struct.field(pytree_node=False)

    def merge(self, other: "Quantile") -> "Quantile":
        return jax.tree.map(jnp.add, self, other)

    def value(self) -> float:
        counts = np.asarray(self.counts_K, np.float64)
        if not counts.sum():
            return float("nan")
        bin_index = int(np.searchsorted(np.cumsum(counts), self.quantile * counts.sum()))
        return self.low + (self.high - self.low) * (bin_index + 0.5) / len(counts)


Metric = Mean | Max | EffectiveShare | Quantile
Metrics = Mapping[str, Metric]


def every_sample(samples_per_prompt: int) -> int:
    """Rows of a prompt where each of its samples is a row."""
    return samples_per_prompt


@dataclass(frozen=True)
class Algorithm:
    """An algorithm: what it needs, and two pure functions.

    `credit(samples, scores) -> Batch` carries no gradient and decides which rows are trained on;
    `losses[role](outputs, batch) -> (loss_sum, metrics)` is a *sum*, which the update divides once
    by the minibatch's denominator for `aggregation`: token (unmasked tokens), sequence (rows), pair
    (rows / 2), constant_length (rows * C). Rows that `Batch.counted_R` leaves out are in none of
    them. `unit` is the number of rows, all of one prompt, that are never separated.
    `group_baseline`, `ratio` and `pair` declare the properties that the conformance battery tests:
    equal rewards give zero policy gradient; the ratio is 1 on-policy; ties give zero.
    """

    name: str
    needs: frozenset[Need]
    unit: Unit
    aggregation: Aggregation
    credit: Callable[[Samples, Scores], Batch]
    losses: Mapping[str, Callable[[Outputs, Batch], tuple[Array, Metrics]]]
    # samples_per_prompt -> rows that `credit` makes of a prompt
    rows_per_prompt: Callable[[int], int] = every_sample
    min_samples_per_prompt: int = 1
    group_baseline: bool = False
    ratio: bool = False
    pair: bool = False
    score_range: tuple[float, float] | None = (
        None  # scores that `credit` maps lie in it; a missing-EOS score must
    )

    def unit_rows(self, samples_per_prompt: int) -> int:
        """Rows that are never separated, for G samples per prompt."""
        return samples_per_prompt if self.unit == "group" else int(self.unit)


@dataclass(frozen=True)
class Placement:
    """Placement of a call: indices in the list of devices, mesh shape over (data, fsdp, tensor),
    and the number of micro-batches, which run one after the other. `remat` None: as the model's
    config has it.
    """

    devices: tuple[int, ...]
    mesh_shape: tuple[int, int, int]
    num_micro_batches: int = 1
    remat: bool | None = None

    @property
    def layout(self) -> tuple[tuple[int, ...], tuple[int, int, int]]:
        """Devices and mesh shape. Calls of one layout share their role's params, and nothing is
        resharded between them.
        """
        return self.devices, self.mesh_shape


@dataclass(frozen=True)
class Plan:
    """A placement by the name of a call; a call that is not named runs on the mesh of the run."""

    placements: Mapping[str, Placement] = field(default_factory=dict)
