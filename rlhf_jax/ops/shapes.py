"""Asserts that arrays have the shapes which the suffixes of their names state: see `types.py`."""

import chex

from rlhf_jax.types import Array


def assert_shapes(**arrays: Array | None) -> None:
    """Asserts one rank per suffix, and one size per letter over all of the arrays.

    Only shapes are read, so that nothing is added to a compiled program.

    Args:
      **arrays: by names with a suffix, one letter per dimension. None is passed over.

    Raises:
      AssertionError: names the first array of another rank or shape.

    Example: `assert_shapes(logprob_BC=logprob_BC, mask_BC=mask_BC)` asserts two dimensions each,
    and the same shape.
    """
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        if array is None:
            continue
        letters = name.rpartition("_")[2]
        chex.assert_rank([array], len(letters), custom_message=name)
        expected = [sizes.get(letter) for letter in letters]
        chex.assert_shape([array], expected, custom_message=name)
        sizes |= zip(letters, array.shape, strict=True)
