"""Shares of a round: prompt p belongs to slice p mod H, for ever."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from rlhf_jax.runtime.spec import Published
from rlhf_jax.types import Prompts, Samples


def prompts_of_slice(
    prompts: Callable[[int], Prompts], slice_index: int, num_slices: int
) -> Callable[[int], Prompts]:
    """The prompts of a round that belong to a slice: p with p mod H = `slice_index`.

    Args:
      prompts: gives a round's P prompts; H divides P.
      slice_index: of the slice.
      num_slices: H.
    """
    if num_slices == 1:
        return prompts
    return lambda round_index: jax.tree.map(
        lambda array: np.asarray(array)[slice_index::num_slices], prompts(round_index)
    )


def interleaved(samples: Sequence[Samples]) -> Samples:
    """The samples of a round in the order of its prompts.

    Args:
      samples: by slice, arrays on the host.
    """
    if len(samples) == 1:
        return samples[0]
    group = samples[0].samples_per_prompt

    def merged(*arrays: np.ndarray) -> np.ndarray:
        if not arrays[0].ndim:
            return arrays[0]
        by_prompt = [array.reshape(-1, group, *array.shape[1:]) for array in arrays]
        return np.stack(by_prompt, axis=1).reshape(-1, *arrays[0].shape[1:])

    return jax.tree.map(merged, *samples)


def published_to(params: Published, slice_index: int, num_slices: int) -> Published:
    """The published params of one slice.

    Args:
      params: as `Sampler.publish` returns them, a tuple where the slices have devices of their own.
      slice_index: of the slice.
      num_slices: H.
    """
    if num_slices == 1:
        return params
    assert isinstance(params, tuple), "several slices have a copy each"
    assert len(params) == num_slices
    return params[slice_index]
