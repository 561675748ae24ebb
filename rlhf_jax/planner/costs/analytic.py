"""The analytic cost model: formulas over a table of hardware and the shapes of the roles' models.

Seconds are a roofline (`roofline.py`) of padded positions, since programs are static, and for
generation of the expected number of decoding steps (`lengths.py`); bytes are counted (`memory.py`).
Nothing overlaps inside a call.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rlhf_jax.dataflow import Call
from rlhf_jax.devices import sharding
from rlhf_jax.planner.api import Workload
from rlhf_jax.planner.costs import memory, roofline
from rlhf_jax.planner.costs.collectives import copies_apart, rings, tensor_crosses_hosts
from rlhf_jax.planner.costs.hardware import Hardware
from rlhf_jax.planner.costs.lengths import decode_steps
from rlhf_jax.planner.costs.memory import ADAPTER_BYTES
from rlhf_jax.planner.costs.resharding import missing_bytes
from rlhf_jax.planner.costs.roofline import Part, Positions, whole
from rlhf_jax.planner.costs.shapes import Shape
from rlhf_jax.types import Placement


@dataclass(frozen=True)
class AnalyticCostModel:
    """`CostModel` by formulas, of `num_devices` devices of one kind.

    `optimizer_bytes` is what the optimizer keeps of a param (AdamW: two float32 moments).
    `cache_grows` False reads the whole cache every step, as `sampling.py` does; True the columns
    written so far, as paged engines do. `rows_stay`: passes over whole sequences bring params
    together under fsdp (`sharding.keeping_rows`), and do not sum what is between the layers.
    `held_bytes` and `scoring_bytes` are of a model that scores between the calls: bytes of each
    device that its params take, and that it needs while it scores.
    """

    hardware: Hardware
    num_devices: int
    shapes: Mapping[str, Shape]
    work: Workload
    optimizer_bytes: float = 8.0
    cache_grows: bool = False
    rows_stay: bool = True
    held_bytes: float = 0.0
    scoring_bytes: float = 0.0
    _parts: dict[tuple[str, str, Placement], Part] = field(default_factory=dict, repr=False)

    @property
    def device_bytes(self) -> float:
        """Memory of a device that a plan may use."""
        return self.hardware.usable_memory * self.hardware.memory_bytes - self.held_bytes

    @property
    def shared_throughput(self) -> bool:
        """True where devices are virtual ones of one host."""
        return self.hardware.shared_throughput

    def part(self, call: Call, placement: Placement) -> Part:
        """A call's model on one device of a placement."""
        key = (call.role, call.kind, placement)
        if key not in self._parts:
            shape = self.shapes[call.role]
            device = self.hardware.share_of_host(len(placement.devices))
            data, fsdp, tensor = mesh_shape = placement.mesh_shape
            if self.gathers_once(call, placement):
                fsdp, mesh_shape = 1, (data * fsdp, 1, tensor)
            links = rings(device, placement.devices, mesh_shape)
            weight_bytes = shape.param_bytes if call.kind == "train" else shape.copy_bytes
            rows_move = fsdp > 1 and (call.kind == "generate" or not self.rows_stay)
            copies = None
            if call.kind == "train":
                links, copies = copies_apart(links, device, placement.devices, mesh_shape)
            self._parts[key] = Part(
                device, shape, shape.split(fsdp, tensor), links, weight_bytes, rows_move, copies
            )
        return self._parts[key]

    def gathers_once(self, call: Call, placement: Placement) -> bool:
        """True where sampling brings whole params together before it decodes
        (`sharding.sampling_rows`): from there on it runs as data-parallel.
        """
        _, fsdp, tensor = placement.mesh_shape
        shape = self.shapes[call.role]
        room = sharding.WHOLE_PARAMS * self.hardware.memory_bytes * tensor
        return call.kind == "generate" and fsdp > 1 and self.rows_stay and shape.whole_bytes <= room

    def _gather_seconds(self, call: Call, placement: Placement) -> float:
        """Seconds of bringing whole params together once."""
        _, fsdp, tensor = placement.mesh_shape
        shape = self.shapes[call.role]
        device = self.hardware.share_of_host(len(placement.devices))
        links = rings(device, placement.devices, placement.mesh_shape)
        return roofline.gather_seconds(
            Part(device, shape, shape.split(fsdp, tensor), links, shape.copy_bytes)
        )

    def refusal(self, call: Call, placement: Placement) -> str | None:
        """The reason, with numbers, that a placement is impossible, or None where it is possible."""
        data, fsdp, tensor = placement.mesh_shape
        shape, devices = self.shapes[call.role], placement.devices
        if (
            data * fsdp * tensor != len(devices)
            or not 0 <= min(devices) <= max(devices) < self.num_devices
        ):
            return (
                f"a mesh of {data} x {fsdp} x {tensor} on devices {devices} of {self.num_devices}"
            )
        if shape.num_heads % tensor:
            return f"tensor={tensor} does not divide the {shape.num_heads} heads of the {call.role}"
        if tensor_crosses_hosts(self.hardware, devices, placement.mesh_shape):
            return f"tensor={tensor} crosses hosts of {self.hardware.devices_per_host} devices each"
        num_prompts = self.work.prompts_of(call) // (
            self.work.num_minibatches if call.kind == "train" else 1
        )
        parts = data * fsdp * placement.num_micro_batches
        if num_prompts < 1 or num_prompts % parts:
            what = "prompts of a minibatch" if call.kind == "train" else "prompts"
            return (
                f"{num_prompts} {what} do not divide over data*fsdp = {data * fsdp} shards of "
                f"{placement.num_micro_batches} micro-batch(es)"
            )
        return None

    def seconds(self, call: Call, placement: Placement) -> float:
        """Seconds of the call alone, in a whole round."""
        by_kind = {
            "generate": self._generate_seconds,
            "infer": self._infer_seconds,
            "train": self._train_seconds,
        }
        return by_kind[call.kind](call, placement)

    def link_bytes(self, call: Call, placement: Placement) -> float:
        """Bytes that a device sends to others in one call, of a training call in one update.

        They are the seconds of links of one byte a second beside which all else takes no time.
        """
        inf = float("inf")
        links = replace(
            self.hardware, bfloat16_flops=inf, float32_flops=inf, memory_bandwidth=inf,
            link_bandwidth=1.0, network_bandwidth=1.0, link_efficiency=1.0,
            collective_latency=0.0, launch_seconds=0.0, shared_cores=0,
        )  # fmt: skip
        counted = replace(self, hardware=links, _parts={})
        updates = self.work.num_minibatches * self.work.num_epochs
        return counted.seconds(call, placement) / (updates if call.kind == "train" else 1)

    def _generate_seconds(self, call: Call, placement: Placement) -> float:
        work, (data, fsdp, _) = self.work, placement.mesh_shape
        part = self.part(call, placement)
        prompts = self._prompts(call, placement)
        rows = prompts * work.samples_per_prompt
        seconds = roofline.forward_seconds(part, self.prefill(part, prompts))
        if self.gathers_once(call, placement):
            seconds += self._gather_seconds(call, placement)
        columns = work.prompt_tokens + work.completion_tokens
        cache_bytes = memory.cache_bytes(part, rows, columns)
        seconds += (
            2 * cache_bytes / part.hardware.bytes_a_second
        )  # the rows' cache is made of the prompts'
        lengths, limit = work.completion_lengths, work.completion_tokens
        sizes = decode_steps(lengths, limit, round(rows), data * fsdp, work.num_compactions)
        begun = 0.0
        for size, steps in sizes:
            seen = work.prompt_tokens + begun + (steps + 1) / 2 if self.cache_grows else columns
            step = Positions(size, size * seen, size, size * seen)
            seconds += steps * roofline.forward_seconds(part, step)
            seconds += (
                2 * cache_bytes * size / rows / part.hardware.bytes_a_second if size < rows else 0.0
            )
            begun += steps
        return placement.num_micro_batches * seconds

    def prefill(self, part: Part, prompts: float) -> Positions:
        """The prompts of a device, of whose last positions alone logits are made."""
        return whole(prompts, self.work.prompt_tokens, prompts, part.shape.attention)

    def positions(self, call: Call, part: Part, prompts: float) -> Positions:
        """Positions of an inference or training pass over a device's prompts: every row's padded
        positions.

        Where the prompt is shared it is run once and the completions after it, on a cache whose
        columns they all see. The last token predicts nothing and is run by reward models alone.
        """
        work, attention = self.work, part.shape.attention
        prompt, completion = work.prompt_tokens, work.completion_tokens
        group = self.group_rows(call)
        rows = prompts * group
        if not call.per_token:
            return whole(rows, prompt + completion, 0.0, attention)
        length = prompt + completion - 1
        if not self.shares(call):
            return whole(rows, length, rows * completion, attention)
        after = rows * (completion - 1)
        pairs, columns = after * length, prompts * length
        completions = Positions(after, pairs, rows * completion, columns, block_pairs=pairs)
        return whole(prompts, prompt, 0.0, attention) + completions

    def group_rows(self, call: Call) -> int:
        """Rows of a prompt that a call runs."""
        trained = self.work.rows_per_prompt or self.work.samples_per_prompt
        return trained if call.kind == "train" else self.work.samples_per_prompt

    def shares(self, call: Call) -> bool:
        """True where a call runs a prompt once for all its rows, as inference always does."""
        together = self.work.share_prompts or self.work.unit_rows > 1 or call.kind == "infer"
        return together and call.per_token and self.group_rows(call) > 1

    def _prompts(self, call: Call, placement: Placement) -> float:
        """Prompts of a device in one micro-batch."""
        data, fsdp, _ = placement.mesh_shape
        minibatches = self.work.num_minibatches if call.kind == "train" else 1
        parts = minibatches * data * fsdp * placement.num_micro_batches
        return self.work.prompts_of(call) / parts

    def _infer_seconds(self, call: Call, placement: Placement) -> float:
        part = self.part(call, placement)
        run = self.positions(call, part, self._prompts(call, placement))
        return placement.num_micro_batches * roofline.forward_seconds(part, run)

    def _train_seconds(self, call: Call, placement: Placement) -> float:
        part = self.part(call, placement)
        run = self.positions(call, part, self._prompts(call, placement))
        remat = part.shape.remat if placement.remat is None else placement.remat
        passes = 2 if self.shares(call) else 1
        update = roofline.train_seconds(part, run, remat, placement.num_micro_batches, passes)
        update += roofline.network_seconds(part)
        update += roofline.optimizer_seconds(part, self.optimizer_bytes)
        return self.work.num_minibatches * self.work.num_epochs * update

    def working_bytes(self, call: Call, placement: Placement) -> float:
        """Bytes that the call needs while it runs, beside resident params and states.

        The base of an adapter is counted here, with every call of a role on it. It is so counted
        once of a device, however many roles share it; a device that holds it in two layouts has
        the larger one counted. A device never needs less than a model that scores between its
        calls.
        """
        needed = self.base_bytes(call.role, placement) + self._working_bytes(call, placement)
        return max(needed, self.scoring_bytes)

    def base_bytes(self, role: str, placement: Placement) -> float:
        """A role's params that no update changes; 0 where all are trained."""
        _, fsdp, tensor = placement.mesh_shape
        shape = self.shapes[role]
        return shape.split(fsdp, tensor).stored * shape.copy_bytes if shape.adapter else 0.0

    def _working_bytes(self, call: Call, placement: Placement) -> float:
        work, shape = self.work, self.shapes[call.role]
        part = self.part(call, placement)
        prompts, columns = (
            self._prompts(call, placement),
            work.prompt_tokens + work.completion_tokens,
        )
        if call.kind == "generate":
            prefill, rows = self.prefill(part, prompts), prompts * work.samples_per_prompt
            gathered = 0.0
            if self.gathers_once(call, placement):
                gathered = part.split.stored * shape.copy_bytes
            return gathered + memory.generate_bytes(
                part, prefill, prompts, rows, work.prompt_tokens, columns
            )
        run = self.positions(call, part, prompts)
        # The cache of a prompt is copied for each of its rows.
        rows = prompts * self.group_rows(call)
        caches = memory.shared_cache_bytes(part, prompts, rows, columns, call.kind == "train")
        shared = caches if self.shares(call) else 0.0
        batch = (
            prompts
            * placement.num_micro_batches
            * self.group_rows(call)
            * columns
            * memory.ROW_BYTES
        )
        if call.kind == "infer":
            return batch + memory.infer_bytes(part, run, shared)
        remat = shape.remat if placement.remat is None else placement.remat
        first = self.prefill(part, prompts) if self.shares(call) else None
        return batch + memory.train_bytes(
            part, run, remat, placement.num_micro_batches, shared, first
        )

    def params_bytes(self, role: str, placement: Placement) -> float:
        """A copy of a role's params for generation or inference."""
        _, fsdp, tensor = placement.mesh_shape
        shape = self.shapes[role]
        if shape.adapter:
            return ADAPTER_BYTES * shape.adapter_elements(fsdp, tensor)
        return shape.split(fsdp, tensor).stored * shape.copy_bytes

    def state_bytes(self, role: str, placement: Placement) -> float:
        """A trained role's whole state: params, and what the optimizer keeps."""
        _, fsdp, tensor = placement.mesh_shape
        shape = self.shapes[role]
        if shape.adapter:
            elements = shape.adapter_elements(fsdp, tensor)
            return elements * (ADAPTER_BYTES + self.optimizer_bytes)
        return shape.split(fsdp, tensor).stored * (shape.param_bytes + self.optimizer_bytes)

    def reallocate_seconds(self, role: str, source: Placement, target: Placement) -> float:
        """Moving a role's params: what the busiest device takes in or gives out, over the slower of
        the links that it needs.
        """
        if source.layout == target.layout:
            return 0.0
        shape = self.shapes[role]
        device = self.hardware.share_of_host(len({*source.devices, *target.devices}))
        here, far = missing_bytes(
            replace(shape, leaves=shape.moved),
            ADAPTER_BYTES if shape.adapter else shape.copy_bytes,
            (source.devices, source.mesh_shape),
            (target.devices, target.mesh_shape),
            self.hardware.devices_per_host,
        )
        seconds = here / device.link_bandwidth + far / device.network_bandwidth
        return (
            seconds / device.link_efficiency
            + shape.num_arrays * device.launch_seconds
            + device.collective_latency
        )

    def transfer_seconds(self, call: Call, source: Placement, target: Placement) -> float:
        """Moving the rows that a call has produced: tokens, masks and figures of every position."""
        if source.layout == target.layout:
            return 0.0
        work, both = self.work, {*source.devices, *target.devices}
        device = self.hardware.share_of_host(len(both))
        rows = (
            work.prompts_of(call)
            * work.samples_per_prompt
            / (target.mesh_shape[0] * target.mesh_shape[1])
        )
        if call.kind == "generate":
            num_bytes = rows * (5 * work.prompt_tokens + 9 * work.completion_tokens + 13)
        else:
            num_bytes = rows * 4 * (work.completion_tokens if call.per_token else 1)
        one_host = len({index // self.hardware.devices_per_host for index in both}) == 1
        bandwidth = device.link_bandwidth if one_host else device.network_bandwidth
        return num_bytes / (device.link_efficiency * bandwidth) + device.collective_latency
