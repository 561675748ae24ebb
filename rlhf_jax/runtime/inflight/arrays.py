"""Arrays of a tree on the host, by name, as files hold them."""

import jax
import numpy as np

from rlhf_jax.types import Array


def named(tree: object) -> list[tuple[str, Array]]:
    """The arrays of a tree with their names, such as `keys.0`, in the order of the leaves."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def bits(array: np.ndarray) -> np.ndarray:
    """An array that files can hold: numbers that NumPy does not know (bfloat16) as their bits."""
    return array.view(f"uint{8 * array.dtype.itemsize}") if array.dtype.kind == "V" else array


def of_bits(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The inverse of `bits`."""
    return array.view(dtype) if np.dtype(dtype).kind == "V" else array
