"""The programs of a pool of slots with shapes of their arguments, to be compiled before the first row
is drawn.
"""

import jax
import numpy as np

from rlhf_jax.devices import sharding
from rlhf_jax.models.common.adapters import Versions
from rlhf_jax.runtime.inflight.programs import Programs
from rlhf_jax.runtime.sampler import Entry
from rlhf_jax.slots import insert
from rlhf_jax.slots.state import Slots
from rlhf_jax.types import Array, Params, Prompts


def entries(
    programs: Programs,
    params: Params | Versions,
    key: Array,
    rebuilds: bool,
    num_compactions: int,
) -> list[Entry]:
    """Every program that a pool may call. Its calls find these programs in JAX's cache.

    Args:
      programs: of the pool.
      params: of the policy, arrays or their shapes with shardings; of several versions where the
        pool draws with them side by side.
      key: random key of the samples.
      rebuilds: keys and values of running rows are computed again.
      num_compactions: of a drain, each to a quarter of the slots.
    """
    mesh, num_slots = programs.mesh, programs.config.num_slots
    key, slots = sharding.abstract_rows(key, mesh), _slots(programs)
    of_slots = jax.ShapeDtypeStruct((num_slots,), np.int32)
    version = of_slots if programs.config.num_versions else None
    admission = insert.Admission(of_slots, of_slots, of_slots, version)  # type: ignore[arg-type]
    admission = sharding.abstract_rows(admission, mesh)
    found: list[Entry] = [(programs.empty, ()), (programs.segment, (params, slots))]
    admissions = [
        (params, slots, _prompts(programs, size), np.int32(0), admission, key)
        for size in programs.prefill_sizes
    ]
    found += [(programs.admit, arguments) for arguments in admissions]
    if programs.config.sampling.samples_per_prompt > 1:
        _, last = jax.eval_shape(programs.admit, *admissions[0])
        replicated = sharding.replicated(mesh)
        last = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), last
        )
        found.append((programs.insert, (slots, last, admission, key)))
    for width in programs.widths if rebuilds else ():
        prompts = _prompts(programs, num_slots)
        tokens = jax.ShapeDtypeStruct((num_slots, width), np.int32)
        rows = sharding.abstract_rows((prompts.tokens_PQ, prompts.mask_PQ, tokens), mesh)
        found.append((programs.rebuild, (params, slots, *rows)))
    return found + _drain(programs, params, num_compactions)


def _slots(programs: Programs) -> Slots:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        programs.shapes,
        programs.layout,
    )


def _prompts(programs: Programs, size: int) -> Prompts:
    """Shapes of host arrays."""
    shape = size, programs.prompt_columns
    tokens, mask = jax.ShapeDtypeStruct(shape, np.int32), jax.ShapeDtypeStruct(shape, bool)
    return Prompts(tokens, mask, jax.ShapeDtypeStruct((size,), np.int32))  # type: ignore[arg-type]


def _drain(programs: Programs, params: Params | Versions, num_compactions: int) -> list[Entry]:
    smaller, found = programs.quarter, []
    for _ in range(num_compactions):
        if smaller is None:
            break
        slots, num_slots = _slots(programs), smaller.config.num_slots
        chosen = jax.ShapeDtypeStruct((num_slots,), np.int32)
        found.append((smaller.compact, (slots, chosen)))
        found.append((smaller.segment, (params, _slots(smaller))))
        programs, smaller = smaller, smaller.quarter
    return found
