"""The rewards of a group that have the largest variance at the same mean, in the same order and
within the same range.

Yang, Gu, Qi, Yuan, *Accelerating RLHF Training with Reward Variance Increase* (GRPOVI; arXiv
2505.23247, model (3)). For rewards r with weights p (uniform, unless given) and a range [m, M] that
is fixed for a run:

    max_z Σ p z²    with    m ≤ z ≤ M,    Σ p z = Σ p r,    z in the order of r

With t = (r − m) / (M − m) and the budget C = Σ p t, go down the sorted rewards. The boundary is the
first one at which the weights passed, its own among them, reach C. Then z = m + (M − m) x, and

    x = 1 above the boundary    x = v at the boundary, p v = p t + Σ_below p t − Σ_above p (1 − t)    x = 0 below

which is optimal for every convex function in the place of the square. v is written with what is
moved, not as C less the weights above, whose difference float32 loses. The solution depends on r
through its order and C alone and jumps where two rewards cross: no gradient passes.

Where we depart from the paper: by default equal rewards stay equal (`ties="together"`: they are one
reward with the sum of their weights), so a flat group is left as it is; as the model is written
(`ties="by_index"`) the earlier of two equal rewards is ranked higher, a preference that the reward
model never stated. The boundary is found by the paper's sort, or by 32 halvings of the reward's
float32 bits, O(G) without a sort (`route`): both give one boundary, and one answer.
"""

from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array

Ties = Literal["together", "by_index"]
Route = Literal["auto", "sort", "select"]

LEAST_KEY = -(2**31)  # below the key of every number: that of a masked reward
LEAST_BUDGET = float(
    np.finfo(np.float32).tiny
)  # a group at the low bound still has a boundary: its best reward


@struct.dataclass
class VarianceIncrease:
    """The adjusted rewards and what is logged of them. 0 and False under the mask; a group with a
    NaN is NaN, alone.

    `budget_P` is C in units of one response: q times the number of unmasked responses, Σ t for
    uniform weights. `winner_takes_all_P`: the best reward has the whole budget and does not reach
    high (C < 1, uniform, no ties).
    """

    adjusted_PG: (
        Array  # float32 z, in [low, high] exactly; equal to the (clipped) reward wherever x = t
    )
    # float32 x = (z - low) / (high - low) in [0, 1]: for advantages, free of the range's offset
    fraction_PG: Array
    budget_P: Array  # float32 C
    # float32 q = Σ p t / Σ p in [0, 1], the mean's place in the range; 0 without any weight
    mean_place_P: Array
    winner_takes_all_P: Array  # bool
    clipped_low_PG: Array  # bool, the reward lay below low (-inf included)
    clipped_high_PG: Array  # bool, the reward lay above high (inf included)


class _Groups(NamedTuple):
    """Rewards made ready: masked entries have t 0, weight 0 and the least key."""

    reward_PG: Array  # float32, clipped
    scaled_PG: Array  # float32 t in [0, 1]
    key_PG: Array  # int32, ordered as the rewards are
    weight_PG: Array | None  # float32, the largest of a group is 1; None if uniform
    valid_PG: Array  # bool
    weighted_PG: Array  # bool, valid and of a weight above 0


def increase_variance(
    reward_PG: Array,
    low: float | Array,
    high: float | Array,
    *,
    weight_PG: Array | None = None,
    mask_PG: Array | None = None,
    ties: Ties = "together",
    route: Route = "auto",
) -> VarianceIncrease:
    """The global solution for P groups of G rewards, each group by itself; other leading dimensions
    by `jax.vmap`.

    Args:
      reward_PG: rewards, computed in float32; one outside [low, high], infinite ones too, is
        clipped, and marked so. low, high: the range [m, M], one for all groups, in units of the
        reward: numbers, or scalars that may be traced.
      weight_PG: p >= 0, in any unit (only ratios within a group count); None: uniform. A response
        of weight 0 moves no other; it becomes high above the boundary and low below it. A group
        without any weight keeps its rewards. A negative, infinite or NaN weight makes its group
        NaN.
      mask_PG: True for responses that are there; None: all. What is masked may be NaN.
      ties: "together" keeps equal rewards equal; "by_index" ranks the earlier of them higher, as
        the paper's model does.
      route: "select" halves the range of keys, "sort" sorts. "auto" is "select", the faster one at
        every shape and with either kind of weights in `experiments/bench/variance_increase.py`.

    Raises:
      Refusal: a `ties` or `route` that there is not, a shape that is not `[P, G]`, or low and high
        that are numbers but not finite with low < high (in float32).
    """
    _check(reward_PG, weight_PG, mask_PG, low, high, ties, route)
    low, high = (lax.stop_gradient(jnp.asarray(bound, jnp.float32)) for bound in (low, high))
    reward_PG = lax.stop_gradient(jnp.asarray(reward_PG, jnp.float32))
    weight_PG = (
        None if weight_PG is None else lax.stop_gradient(jnp.asarray(weight_PG, jnp.float32))
    )
    valid_PG = jnp.ones(reward_PG.shape, bool) if mask_PG is None else jnp.asarray(mask_PG, bool)
    groups = _ready(reward_PG, low, high, weight_PG, valid_PG)
    total_P1, budget_P1 = _total(groups, groups.valid_PG), _total(groups, groups.scaled_PG)
    boundary_P1 = (_boundary_by_sort if route == "sort" else _boundary_by_selection)(
        groups, total_P1, budget_P1
    )
    fraction_PG = jnp.where(total_P1 > 0, _fractions(groups, boundary_P1, ties), groups.scaled_PG)
    poison_P1 = _poison(reward_PG, weight_PG, valid_PG)
    some_P1 = jnp.where(total_P1 > 0, total_P1, 1.0)
    ratio_P1 = (
        jnp.sum(valid_PG, axis=-1, keepdims=True, dtype=jnp.float32) / some_P1
    )  # 1 for uniform weights
    return VarianceIncrease(
        adjusted_PG=_or_nan(_adjusted(groups, fraction_PG, low, high), poison_P1, valid_PG),
        fraction_PG=_or_nan(fraction_PG, poison_P1, valid_PG),
        budget_P=jnp.where(poison_P1, jnp.nan, budget_P1 * ratio_P1)[:, 0],
        mean_place_P=jnp.where(poison_P1, jnp.nan, jnp.clip(budget_P1 / some_P1, 0.0, 1.0))[:, 0],
        winner_takes_all_P=_winner_takes_all(groups, fraction_PG) & ~poison_P1[:, 0],
        clipped_low_PG=valid_PG & (reward_PG < low),
        clipped_high_PG=valid_PG & (reward_PG > high),
    )


def _ready(
    reward_PG: Array, low: Array, high: Array, weight_PG: Array | None, valid_PG: Array
) -> _Groups:
    """t before any sum (a sum of rewards far from 0 would lose the range), and keys of r, of which
    t merges some.
    """
    clipped_PG = jnp.clip(jnp.where(valid_PG, reward_PG, low), low, high)
    scaled_PG = jnp.clip((clipped_PG - low) / (high - low), 0.0, 1.0)
    scaled_PG = jnp.where(
        clipped_PG >= high, 1.0, scaled_PG
    )  # a division made a product may miss 1
    weighted_PG = valid_PG
    if weight_PG is not None:
        weight_PG = jnp.where(valid_PG, weight_PG, 0.0)
        weight_PG = weight_PG / jnp.maximum(
            jnp.max(weight_PG, axis=-1, keepdims=True), LEAST_BUDGET
        )
        weighted_PG = weight_PG > 0
    scaled_PG, key_PG = (
        jnp.where(valid_PG, scaled_PG, 0.0),
        jnp.where(valid_PG, _key(clipped_PG), LEAST_KEY),
    )
    return _Groups(clipped_PG, scaled_PG, key_PG, weight_PG, valid_PG, weighted_PG)


def _key(values: Array) -> Array:
    """int32 in the order of float32 numbers: the bits, those of negative numbers but for the sign
    turned around.
    """
    bits = lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.int32)  # -0.0 is 0.0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _total(groups: _Groups, values_PG: Array) -> Array:
    """Σ p · values, float32 `[P, 1]`."""
    weighed_PG = values_PG.astype(jnp.float32) * (
        1.0 if groups.weight_PG is None else groups.weight_PG
    )
    return jnp.sum(weighed_PG, axis=-1, keepdims=True)


def _needed(groups: _Groups, total_P1: Array, budget_P1: Array) -> Array:
    """The sum of weights from the best reward to the boundary: C, or for uniform weights a whole
    number of responses.
    """
    needed_P1 = jnp.minimum(jnp.maximum(budget_P1, LEAST_BUDGET), total_P1)
    return jnp.ceil(needed_P1).astype(jnp.int32) if groups.weight_PG is None else needed_P1


def _boundary_by_selection(groups: _Groups, total_P1: Array, budget_P1: Array) -> Array:
    """The largest key with weights at or above it that reach C, its bits set from the highest to
    the lowest.
    """
    needed_P1 = _needed(groups, total_P1, budget_P1)

    def reaches(candidate_P1: Array) -> Array:
        within_PG = jnp.where(
            groups.key_PG >= candidate_P1, 1 if groups.weight_PG is None else groups.weight_PG, 0
        )
        return jnp.sum(within_PG, axis=-1, keepdims=True, dtype=needed_P1.dtype) >= needed_P1

    def step(index: Array, boundary_P1: Array) -> Array:
        candidate_P1 = boundary_P1 + (jnp.int32(1) << (31 - index))
        return jnp.where(reaches(candidate_P1), candidate_P1, boundary_P1)

    boundary_P1 = lax.fori_loop(0, 32, step, jnp.full_like(groups.key_PG[:, :1], LEAST_KEY))
    if groups.weight_PG is None:
        return boundary_P1
    # The sum of all weights may be rounded in another order than in the loop, and then none reaches
    # it.
    least_PG = jnp.where(groups.weighted_PG, groups.key_PG, jnp.iinfo(jnp.int32).max)
    return jnp.maximum(boundary_P1, jnp.min(least_PG, axis=-1, keepdims=True))


def _boundary_by_sort(groups: _Groups, total_P1: Array, budget_P1: Array) -> Array:
    """The same key, from sums along the sorted rewards; uniform weights need none, the sum at place
    k being k.
    """
    needed_P1 = _needed(groups, total_P1, budget_P1)
    if groups.weight_PG is None:
        sorted_PG = jnp.sort(groups.key_PG, axis=-1)
        index_P1 = jnp.minimum(sorted_PG.shape[-1] - needed_P1, sorted_PG.shape[-1] - 1)
    # ~key orders from the best to the worst; a response of weight 0 is never where the sum begins
    # to reach C
    else:
        sorted_PG, weight_PG = lax.sort((~groups.key_PG, groups.weight_PG), num_keys=1)
        sorted_PG = ~sorted_PG
        sum_PG = lax.cummax(jnp.where(weight_PG > 0, jnp.cumsum(weight_PG, axis=-1), 0.0), axis=1)
        needed_P1 = jnp.minimum(needed_P1, sum_PG[:, -1:])
        index_P1 = jnp.sum(sum_PG < needed_P1, axis=-1, keepdims=True, dtype=jnp.int32)
    is_boundary_PG = lax.broadcasted_iota(jnp.int32, sorted_PG.shape, 1) == index_P1
    return jnp.max(jnp.where(is_boundary_PG, sorted_PG, LEAST_KEY), axis=-1, keepdims=True)


def _fractions(groups: _Groups, boundary_P1: Array, ties: Ties) -> Array:
    """x for every response, given the boundary's key."""
    above_PG, at_PG = groups.key_PG > boundary_P1, groups.key_PG == boundary_P1
    change_PG = jnp.where(above_PG, groups.scaled_PG - 1.0, groups.scaled_PG)
    change_P1 = _total(groups, jnp.where(at_PG, 0.0, change_PG))
    scaled_P1 = jnp.max(jnp.where(at_PG, groups.scaled_PG, 0.0), axis=-1, keepdims=True)
    weight_P1 = _total(groups, at_PG)
    shared_P1 = jnp.clip(scaled_P1 + change_P1 / jnp.where(weight_P1 > 0, weight_P1, 1.0), 0.0, 1.0)
    at_boundary_PG = (
        shared_P1 if ties == "together" else _first_come(groups, at_PG, weight_P1, shared_P1)
    )
    return jnp.where(above_PG, 1.0, jnp.where(at_PG, at_boundary_PG, 0.0))


def _first_come(groups: _Groups, at_PG: Array, weight_P1: Array, shared_P1: Array) -> Array:
    """x of equal rewards that spend, one after the other, what ties would share."""
    tied_weight_PG = jnp.where(at_PG, 1.0 if groups.weight_PG is None else groups.weight_PG, 0.0)
    # A tree of float sums need not rise, nor stand still at a weight of 0.
    through_PG = lax.cummax(
        jnp.where(tied_weight_PG > 0, jnp.cumsum(tied_weight_PG, axis=-1), 0.0), axis=1
    )
    before_PG = jnp.pad(through_PG[:, :-1], ((0, 0), (1, 0)))
    left_P1 = shared_P1 * weight_P1
    partial_PG = jnp.clip(
        (left_P1 - before_PG) / jnp.where(tied_weight_PG > 0, tied_weight_PG, 1.0), 0.0, 1.0
    )
    return jnp.where(before_PG >= left_P1, 0.0, jnp.where(through_PG <= left_P1, 1.0, partial_PG))


def _adjusted(groups: _Groups, fraction_PG: Array, low: Array, high: Array) -> Array:
    """z at x: both bounds exactly (low + (high - low) may miss high), and a reward that did not
    move as it was.
    """
    inside_PG = jnp.clip(low + (high - low) * fraction_PG, low, high)
    inside_PG = jnp.where(fraction_PG == groups.scaled_PG, groups.reward_PG, inside_PG)
    return jnp.where(fraction_PG >= 1.0, high, jnp.where(fraction_PG <= 0.0, low, inside_PG))


def _winner_takes_all(groups: _Groups, fraction_PG: Array) -> Array:
    """The best of the responses with a weight stays below high, and another lies below it (at low,
    then).
    """
    best_P = jnp.max(jnp.where(groups.weighted_PG, fraction_PG, 0.0), axis=-1)
    least_P = jnp.min(jnp.where(groups.weighted_PG, fraction_PG, 1.0), axis=-1)
    return (best_P < 1.0) & (least_P < best_P)


def _poison(reward_PG: Array, weight_PG: Array | None, valid_PG: Array) -> Array:
    """bool `[P, 1]`: an unmasked reward is NaN, or a weight is no weight."""
    wrong_PG = jnp.isnan(reward_PG)
    if weight_PG is not None:
        wrong_PG |= ~((weight_PG >= 0) & (weight_PG < jnp.inf))
    return jnp.any(wrong_PG & valid_PG, axis=-1, keepdims=True)


def _or_nan(values_PG: Array, poison_P1: Array, valid_PG: Array) -> Array:
    """0 under the mask, NaN through a whole group that is poisoned."""
    return jnp.where(valid_PG, jnp.where(poison_P1, jnp.nan, values_PG), 0.0)


def _check(reward_PG, weight_PG, mask_PG, low, high, ties: str, route: str) -> None:
    for name, value, known in (("ties", ties, Ties), ("route", route, Route)):
        if value not in get_args(known):
            raise Refusal(f"{name}={value!r}: choose one of {', '.join(get_args(known))}")
    if len(shape := jnp.shape(reward_PG)) != 2 or not shape[1]:
        raise Refusal(
            f"reward_PG has shape {shape}: groups are [P, G] with at least one response each"
        )
    for name, array in (("weight_PG", weight_PG), ("mask_PG", mask_PG)):
        if array is not None and jnp.shape(array) != shape:
            raise Refusal(
                f"{name} has shape {jnp.shape(array)}, reward_PG {shape}: they must be alike"
            )
    if all(isinstance(bound, int | float | np.generic) for bound in (low, high)):
        least, most = float(low), float(high)
        finite = np.max(np.abs([least, most, most - least])) <= float(
            jnp.finfo(jnp.float32).max
        )  # False for NaN
        if not finite or np.float32(least) >= np.float32(most):
            raise Refusal(
                f"low={low}, high={high}: the range of the reward must be finite, with low < high "
                "in float32"
            )
