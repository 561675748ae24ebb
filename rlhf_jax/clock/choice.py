"""The choice of the groups that a round is trained on, where they are not all of its own samples.

Round r is trained on P groups, P / num_minibatches for each minibatch of its first epoch. They come
from the W = P * |window(r)| groups of `Clock.window(r)`, oldest round first. A group is all samples
of one prompt, so that credit stays a function of whole groups. Later epochs train on the same groups.

    shuffled      groups i*P ... i*P + P - 1 of a permutation of the stage's W groups, i the round's
                  place in stage k; key fold_in(fold_in(key, STAGE), k)
    uniform       update r*u + m of minibatch m draws P / num_minibatches of W with replacement
    permutation   the same without replacement within an update
                  both: key fold_in(fold_in(key, BUFFER), r*u + m)
    in_order      the round's own groups as they are: the clock without a buffer, bit for bit

A round draws as many groups as it is sampled with, so that a group is drawn once in the mean, and
uniform draws never take a share 1/e = 37 % of them. Sources: uniform draws, first in first out:
arXiv 2604.08706 (2026), sections 3 to 5; stages: μ-GRPO, arXiv 2605.17570 (2026).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.clock.exact import Clock
from rlhf_jax.types import Array, Samples

BUFFER, STAGE = np.uint32(2**32 - 1), np.uint32(2**32 - 2)
"""Purposes of keys. Sampling folds ordinals of prompts into the same key, which are below them."""


def chosen(clock: Clock, num_groups: int, key: Array, round_index: int) -> np.ndarray:
    """The groups that a round is trained on, int32 `[P]`, as indices into those of its window.

    Args:
      clock: of the run.
      num_groups: P, of a round.
      key: of the run's samples.
      round_index: that is about to be trained.
    """
    window = clock.window(round_index)
    count = num_groups * len(window)
    if clock.staged == "shuffled":
        stage = round_index // clock.sync_every
        order = _permutation(_folded(key, STAGE, stage), count, count)
        first = (round_index - window.start) * num_groups
        return order[first : first + num_groups]
    if not clock.buffer_rounds or clock.buffer_draw == "in_order":
        return np.arange(count - num_groups, count, dtype=np.int32)
    size, most = num_groups // clock.num_minibatches, num_groups * clock.max_window
    first_update = round_index * clock.updates_per_round
    draws = []
    for minibatch in range(clock.num_minibatches):
        update_key = _folded(key, BUFFER, first_update + minibatch)
        if clock.buffer_draw == "permutation":
            draws.append(_permutation(update_key, count, most)[:size])
        else:
            draws.append(np.asarray(jax.random.randint(update_key, (size,), 0, count, jnp.int32)))
    return np.concatenate(draws)


def units(
    clock: Clock, num_units: int, seed: int, round_index: int, update_in_round: int
) -> np.ndarray:
    """The units of one update, int32: epochs are the outer loop, minibatches the inner one.

    The first epoch goes through the units in order, so that update k trains on the same prompts
    whatever `num_minibatches` is; later epochs are reshuffled.

    Args:
      clock: of the run.
      num_units: of the round.
      seed: of the run.
      round_index: of the round.
      update_in_round: 0 ... u-1.
    """
    epoch, index = divmod(update_in_round, clock.num_minibatches)
    order = np.arange(num_units)
    if epoch:
        order = np.random.default_rng([seed, round_index, epoch]).permutation(num_units)
    size = num_units // clock.num_minibatches
    return order[index * size : (index + 1) * size].astype(np.int32)


def _folded(key: Array, purpose: np.uint32, number: int) -> Array:
    return jax.random.fold_in(jax.random.fold_in(key, purpose), number)


def _permutation(key: Array, count: int, most: int) -> np.ndarray:
    """A permutation of 0 ... count-1, int32. One program serves every count up to `most`.

    The bits of an index do not depend on `most` (`jax_threefry_partitionable`, JAX's default, which a
    run pins), so that a run that grows draws as one that was longer from the start.
    """
    bits = np.asarray(jax.random.bits(key, (most,), jnp.uint32))
    return np.argsort(bits[:count], kind="stable").astype(np.int32)


def within_sampled(
    group_P: np.ndarray, kept_of_rounds: Sequence[np.ndarray], num_sampled: int
) -> np.ndarray:
    """Indices into all groups that were sampled, int32 `[P]`, from indices into those that are kept.

    Args:
      group_P: as `chosen` gives them.
      kept_of_rounds: of each round of the window, its P kept groups among the sampled ones.
      num_sampled: κP, of a round.
    """
    kept = np.stack(kept_of_rounds)
    rounds, places = np.divmod(group_P, kept.shape[1])
    return (rounds * num_sampled + kept[rounds, places]).astype(np.int32)


def gather(rounds: Sequence[Samples], group_P: Array) -> Samples:
    """The samples of chosen groups, each with its own versions and log-probabilities.

    Args:
      rounds: of a window, oldest first.
      group_P: int32, groups of all rounds one after another; one may come several times.

    Returns:
      P groups. Scalars are those of the first round.
    """
    samples_per_prompt = rounds[0].samples_per_prompt

    def take(*arrays: Array) -> Array:
        if arrays[0].ndim == 0:
            return arrays[0]
        whole = jnp.concatenate(arrays)
        groups = whole.reshape(-1, samples_per_prompt, *whole.shape[1:])
        return groups[group_P].reshape(-1, *whole.shape[1:])

    return jax.tree.map(take, *rounds)
