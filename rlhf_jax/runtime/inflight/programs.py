"""The compiled programs of a pool of slots on one mesh, for a finite set of shapes.

There are one admission for each number of prompts of `prefill_sizes`, one for rows of a prompt that
is prefilled already, one segment, and one rebuild for each of up to four widths. An accelerator has at
most 8 of them, whatever the number of slots; 64 slots of groups of 4 have 9 on a CPU.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax import sampling
from rlhf_jax.devices import memory, sharding
from rlhf_jax.devices.distributed import Compiled
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.adapters import Versions
from rlhf_jax.ops.once import bound
from rlhf_jax.refusal import Refusal
from rlhf_jax.slots import insert, rebuild, segment
from rlhf_jax.slots.compact import compact
from rlhf_jax.slots.state import Emitted, Slots, empty
from rlhf_jax.types import Array, Device, Params, Prompts

NUM_WIDTHS = 4  # of rebuilds: completions of C / 4, C / 2, 3 C / 4 and C tokens
# On an accelerator a program takes minutes to compile, and a rebuild runs C / 24 more columns of a
# row in the mean (C / 12 at most) for one program less.
NUM_ACCELERATOR_WIDTHS = 3
NUM_ACCELERATOR_SIZES = 3  # of admissions, likewise


@dataclass(frozen=True)
class Config:
    """The sampling distribution of a pool, and the shapes of its programs.

    Attributes:
      sampling: C, G and the temperature.
      eos_id: the token that ends a row, or several of them.
      pad_id: in place of a token where a slot draws none.
      num_slots: S.
      segment_steps: most decode steps of a segment.
      prompts_per_round: P. Stream row i has prompt i // G % P of round i // (P * G).
      num_versions: of the adapters that the pool draws with side by side; 0: all rows have the
        params that are given.
    """

    sampling: sampling.Config
    eos_id: int | tuple[int, ...]
    pad_id: int
    num_slots: int
    segment_steps: int
    prompts_per_round: int
    num_versions: int = 0

    def __post_init__(self) -> None:
        for name in ("num_slots", "segment_steps", "prompts_per_round"):
            if (value := getattr(self, name)) < 1:
                raise Refusal(f"{name} is {value}; accepted: 1 and more")

    def place_of(self, row: int) -> tuple[int, int, int]:
        """Round, prompt in it and sample index of a stream row."""
        prompt, sample_index = divmod(row, self.sampling.samples_per_prompt)
        return *divmod(prompt, self.prompts_per_round), sample_index


def admit(
    params: Params | Versions,
    slots: Slots,
    prompts: Prompts,
    last: Array,
    admission: insert.Admission,
    key: Array,
    *,
    model: Model,
    temperature: float,
    eos_id: int | tuple[int, ...],
) -> tuple[Slots, insert.Prefilled]:
    """Prefills prompts and inserts their rows, as one program.

    Args:
      params: of the policy.
      slots: are to be donated.
      prompts: of the rows.
      last: int32 scalar, the prompt that is returned.
      admission: as `insert.insert` takes it.
      key: as `insert.insert` takes it.
      model: the policy.
      temperature: as in `sampling.sample_token`.
      eos_id: the token that ends a row, or several of them.

    Returns the slots, and the prompt `last`, of which more rows may follow.
    """
    version_P = admission.version_of_prompts(prompts.tokens_PQ.shape[0])
    prefilled = insert.prefill(params, prompts, version_P, model=model)
    slots = insert.insert(slots, prefilled, admission, key, temperature=temperature, eos_id=eos_id)
    return slots, insert.take(prefilled, last)


class Programs:
    """Compiled functions of slots, which all but `compact` take donated.

    Attributes:
      empty: () -> slots without rows.
      admit: (params, slots, prompts, last, admission, key) -> slots, prompt; see `admit`.
      insert: (slots, prefilled, admission, key) -> slots.
      segment: (params, slots) -> slots, emitted.
      rebuild: (params, slots, prompt tokens, prompt mask, tokens) -> slots.
      compact: (more slots, which of them) -> these slots.
      layout: shardings of the slots.
      config: of the pool.
      prompt_columns: Q, of all prompts.
      mesh: of the slots.
      shapes: of the slots.
      prefill_sizes: numbers of prompts of an admission, ascending.
      widths: of the completions of a rebuild, ascending; the last is C.
    """

    def __init__(self, model: Model, config: Config, prompt_columns: int, mesh: Mesh):
        """Compiles nothing yet.

        Args:
          model: the policy.
          config: of the pool.
          prompt_columns: Q, of all prompts.
          mesh: of the slots, which are sharded by row; kv heads are sharded over `tensor`.

        Raises Refusal for slots that the shards of rows do not divide.
        """
        self._model, self.config, self.prompt_columns = model, config, prompt_columns
        self.mesh = mesh
        row_shards = mesh.shape["data"] * mesh.shape["fsdp"]
        if config.num_slots % row_shards:
            raise Refusal(
                f"num_slots is {config.num_slots}, and the mesh has {row_shards} shards of rows; "
                f"accepted: multiples of {row_shards}"
            )
        groups = -(-config.num_slots // config.sampling.samples_per_prompt)
        platform = mesh.devices.flat[0].platform
        self.prefill_sizes = prefill_sizes(row_shards, groups, platform)
        num_positions = config.sampling.max_completion_tokens
        self.widths = widths(num_positions, platform)
        shape = config.num_slots, prompt_columns, num_positions
        make = bound(empty, model, *shape, has_versions=config.num_versions > 0)
        self.shapes: Slots = jax.eval_shape(make)
        self.layout = _layout(self.shapes, mesh)
        self.empty: Compiled[Slots] = jax.jit(make, out_shardings=self.layout)
        replicated = sharding.replicated(mesh)
        law = {"temperature": config.sampling.temperature, "eos_id": config.eos_id}
        self.admit: Compiled[tuple[Slots, insert.Prefilled]] = jax.jit(
            sharding.sampling_rows(bound(admit, model=model, **law), mesh),
            out_shardings=(self.layout, replicated),
            donate_argnums=1,
        )
        self.insert: Compiled[Slots] = jax.jit(
            bound(insert.insert, **law), out_shardings=self.layout, donate_argnums=0
        )
        steps, pad_id = config.segment_steps, config.pad_id
        one = bound(segment.segment, model=model, **law, pad_id=pad_id, num_steps=steps)
        self.segment: Compiled[tuple[Slots, Emitted]] = jax.jit(
            sharding.sampling_rows(one, mesh),
            out_shardings=(self.layout, replicated),
            donate_argnums=1,
        )
        self.rebuild: Compiled[Slots] = jax.jit(
            sharding.sampling_rows(bound(rebuild.rebuild, model=model), mesh),
            out_shardings=self.layout,
            donate_argnums=1,
        )
        self.compact: Compiled[Slots] = jax.jit(compact, out_shardings=self.layout)

    def slot_bytes(self) -> Counter[Device]:
        """Bytes of the slots on each device."""
        return memory.bytes_by_device(self.shapes, self.layout)

    @cached_property
    def quarter(self) -> "Programs | None":
        """The programs of a quarter of the slots, to which a drain moves its last rows. None: rows
        are sharded, or there are less than 4 slots.
        """
        row_shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if row_shards > 1 or not (num_slots := self.config.num_slots // 4):
            return None
        config = replace(self.config, num_slots=num_slots)
        return Programs(self._model, config, self.prompt_columns, self.mesh)

    def batches(self, prompts: list[int]) -> Iterator[list[int]]:
        """Prompts in order, cut into the largest sizes of the table that they fill; the rest of
        less than the smallest size is filled up by the caller.
        """
        while prompts:
            size = max((s for s in self.prefill_sizes if s <= len(prompts)), default=len(prompts))
            yield prompts[:size]
            prompts = prompts[size:]


def widths(num_positions: int, platform: str) -> tuple[int, ...]:
    """Completion columns that a rebuild may run, ascending; the last is C.

    A row's place in the ring after a rebuild depends on them, and with it the rounding of its
    attention: runs of equal bits have the same platform.

    Args:
      num_positions: C.
      platform: of the devices, such as "cpu".
    """
    num_parts = NUM_WIDTHS if platform == "cpu" else NUM_ACCELERATOR_WIDTHS
    parts = range(1, num_parts + 1)
    return tuple(sorted({-(-num_positions * part // num_parts) for part in parts}))


def prefill_sizes(smallest: int, largest: int, platform: str) -> tuple[int, ...]:
    """Numbers of prompts that an admission may prefill: `smallest` times the powers of 4 that give
    at most `largest`. On an accelerator times the powers of the least power of 2 from 4 on that
    gives at most `NUM_ACCELERATOR_SIZES` of them.

    Args:
      smallest: shards of rows.
      largest: prompts of a pool whose slots are all free.
      platform: of the devices, such as "cpu".
    """
    factor, limit = 4, math.inf if platform == "cpu" else NUM_ACCELERATOR_SIZES
    while len(sizes := _powers(smallest, factor, largest)) > limit:
        factor *= 2
    return sizes


def _powers(smallest: int, factor: int, largest: int) -> tuple[int, ...]:
    """`smallest`, and its products with powers of `factor` that are at most `largest`."""
    sizes = [smallest]
    while sizes[-1] * factor <= largest:
        sizes.append(sizes[-1] * factor)
    return tuple(sizes)


def _layout(shapes: Slots, mesh: Mesh) -> Slots:
    """NamedShardings of slots: rows over data and fsdp, kv heads over tensor where it divides them."""

    def sharding_of(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        if len(leaf.shape) == 4 and leaf.shape[1] % mesh.shape["tensor"] == 0:
            return NamedSharding(mesh, P(("data", "fsdp"), "tensor"))
        return sharding.rows(mesh) if leaf.shape else sharding.replicated(mesh)

    return jax.tree.map(sharding_of, shapes)
