"""Model FLOP/s utilization of a run (MFU), and the share of the memory's bandwidth of its decoding.

MFU is the model's FLOPs / (seconds × devices × peak) (Chowdhery et al. 2022, arXiv 2204.02311,
appendix B): padding, recomputation, and what a program does beside the model are no model FLOPs. A
token costs 2 FLOPs per param of the layers' products and of the map to logits, and attention 4 per
head, width and pair of a token with an earlier one. A backward pass is two forward passes; the base
of an adapter is frozen, and its products have one each in the backward pass. Of the training side
all calls count that run there: scores and updates.

Decoding reads the params of the products once per step, and the cache that is written so far; with
adapters the base in the dtype that it is held in, and the adapters. The share is of the data sheet's
bandwidth; a step ends with the longest completion.

The table of `hardware.py` has the peaks. A device that it lacks, and a CPU, have no figures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlhf_jax.dataflow import Call
from rlhf_jax.models.common import adapters
from rlhf_jax.planner.costs import hardware
from rlhf_jax.planner.costs.hardware import Hardware
from rlhf_jax.planner.costs.memory import ADAPTER_BYTES
from rlhf_jax.planner.costs.shapes import Shape, model_shape
from rlhf_jax.records.rates import Work
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.spec import ProgramSpec


@dataclass(frozen=True)
class RunUtilization:
    """The FLOPs of a run's rounds beside those that its devices could do at most.

    `decoding_bytes`: params bytes that a device reads per step of decoding; None where steps are not
    known, since micro-batches or slices of the sampler decode one after another or apart.
    """

    device: Hardware
    calls: tuple[Call, ...]
    shapes: Mapping[str, Shape]
    samples_per_prompt: int
    share_prompts: bool
    num_epochs: int
    generate_devices: int
    train_devices: int
    decoding_bytes: float | None

    def figures(
        self, work: Work, generate_seconds: float | None, train_seconds: float | None
    ) -> dict[str, float]:
        """Figures of a round by name; without those whose seconds are not known.

        Args:
          work: of the round.
          generate_seconds: of its sampling.
          train_seconds: of its scores and updates.
        """
        if work.prompt_lengths_B is None or work.completion_lengths_B is None:
            return {}
        prompt_B = np.asarray(work.prompt_lengths_B, np.float64)
        completion_B = np.asarray(work.completion_lengths_B, np.float64)
        found = {}
        if generate_seconds:
            flops = self.generate_flops(prompt_B, completion_B)
            peak = self.peak * self.generate_devices
            found["generate_mfu"] = flops / (generate_seconds * peak)
            if self.decoding_bytes is not None:
                moved = self.decoding_bytes * completion_B.max()
                moved += self.cache_bytes(prompt_B, completion_B) / self.generate_devices
                share = moved / (generate_seconds * self.device.memory_bandwidth)
                found["generate_bandwidth_share"] = share
        if train_seconds:
            share = work.trained_tokens / max(work.sampled_tokens, 1.0)
            flops = self.train_flops(prompt_B, completion_B, share)
            found["train_mfu"] = flops / (train_seconds * self.peak * self.train_devices)
        return {name: float(value) for name, value in found.items()}

    @property
    def peak(self) -> float:
        """FLOP/s of a device at most, in the precision that the policy computes with."""
        wide = self.shapes["policy"].compute_bytes == 4
        return self.device.float32_flops if wide else self.device.bfloat16_flops

    def generate_flops(self, prompt_B: np.ndarray, completion_B: np.ndarray) -> float:
        """FLOPs of sampling: a prompt is run once for all of its samples.

        Args:
          prompt_B: tokens of each sample's prompt.
          completion_B: tokens of each sample.
        """
        return forward_flops(self.shapes["policy"], *self._shared(prompt_B, completion_B))

    def train_flops(
        self, prompt_B: np.ndarray, completion_B: np.ndarray, trained_share: float
    ) -> float:
        """FLOPs of a round's scores and updates.

        Args:
          prompt_B: tokens of each sample's prompt.
          completion_B: tokens of each sample.
          trained_share: tokens of the updates / tokens of the samples. Rows that were not chosen
            for training are taken to be as long as those that were.
        """
        total = 0.0
        for call in self.calls:
            if call.kind == "generate" or call.role not in self.shapes:
                continue
            shape = self.shapes[call.role]
            if not call.per_token:
                tokens = prompt_B + completion_B
                total += forward_flops(shape, tokens.sum(), _pairs(0.0, tokens), 0.0)
                continue
            shares = self._shared if self.share_prompts else _each
            tokens, pairs, logits = shares(prompt_B, completion_B)
            if call.kind == "infer":
                total += forward_flops(shape, tokens, pairs, logits)
                continue
            prompts = self.num_epochs * (tokens - completion_B.sum())
            after = trained_share * completion_B.sum()
            total += update_flops(
                shape, prompts + after, trained_share * pairs, trained_share * logits
            )
        return total

    def cache_bytes(self, prompt_B: np.ndarray, completion_B: np.ndarray) -> float:
        """Bytes of the cache that decoding reads, of all devices together.

        Args:
          prompt_B: tokens of each sample's prompt.
          completion_B: tokens of each sample.
        """
        return _pairs(prompt_B, completion_B) * self.shapes["policy"].column_bytes

    def _shared(self, prompt_B: np.ndarray, completion_B: np.ndarray) -> tuple[float, float, float]:
        """Tokens, pairs and logits of a pass that runs a prompt once for its samples."""
        prompt_P = prompt_B[:: self.samples_per_prompt]
        pairs = _pairs(0.0, prompt_P) + _pairs(prompt_B, completion_B)
        return prompt_P.sum() + completion_B.sum(), pairs, completion_B.sum()


def _each(prompt_B: np.ndarray, completion_B: np.ndarray) -> tuple[float, float, float]:
    """Tokens, pairs and logits of a pass that runs the prompt of every sample."""
    tokens = prompt_B + completion_B
    return tokens.sum(), _pairs(0.0, tokens), completion_B.sum()


def _pairs(before: np.ndarray | float, length: np.ndarray) -> float:
    """Pairs of a token with itself and those before it: of `length` tokens after `before` others."""
    return float((length * before + length * (length + 1) / 2).sum())


def forward_flops(shape: Shape, tokens: float, pairs: float, logits: float) -> float:
    """FLOPs of a forward pass.

    Args:
      shape: of the model.
      tokens: that go through the layers.
      pairs: of tokens that attend to one another, of one head of one layer.
      logits: tokens whose logits are made.
    """
    return sum(_forward(shape, tokens, pairs, logits))


def update_flops(shape: Shape, tokens: float, pairs: float, logits: float) -> float:
    """FLOPs of a forward and a backward pass; the arguments are those of `forward_flops`."""
    params, rest = _forward(shape, tokens, pairs, logits)
    return (2 if shape.adapter else 3) * params + 3 * rest


def _forward(shape: Shape, tokens: float, pairs: float, logits: float) -> tuple[float, float]:
    """FLOPs of a forward pass in the products of `shape.leaves`, and in attention and adapters."""
    whole = shape.split(1, 1)
    attention = 4 * shape.num_layers * shape.num_heads * shape.head_width * pairs
    head = 0.0 if shape.values else 2 * whole.head_products * logits
    adapter = sum(leaf.elements for leaf in shape.adapter if leaf.place == "layer")
    return 2 * whole.layer_products * tokens + head, attention + 2 * adapter * tokens


def of_spec(spec: ProgramSpec, num_epochs: int) -> RunUtilization | None:
    """The utilization of a run; None on devices without figures.

    Args:
      spec: of the run's program.
      num_epochs: updates that a sample is trained on.
    """
    plan, (generate, *others) = spec.resolved_plan, spec.calls
    meshes = spec.sampler_slices or (plan.mesh(generate.name),)
    try:
        device = hardware.lookup(meshes[0].devices.flat[0])
    except Refusal:
        return None
    if device.shared_throughput:  # virtual devices, whose figures are not of this processor
        return None
    shapes = {
        role: model_shape(network, lora=_adapters_of(spec, role))
        for role, network in spec.networks.items()
        if network is not None
    }
    placement = plan.placement(generate.name)
    known = not spec.sampler_slices and placement.num_micro_batches == 1
    _, fsdp, tensor = placement.mesh_shape
    return RunUtilization(
        device=device,
        calls=spec.calls,
        shapes=shapes,
        samples_per_prompt=spec.sampling.samples_per_prompt,
        share_prompts=spec.share_prompts,
        num_epochs=num_epochs,
        generate_devices=len({d for mesh in meshes for d in mesh.devices.flat}),
        train_devices=len({d for call in others for d in plan.mesh(call.name).devices.flat}),
        decoding_bytes=_decoding_bytes(spec, shapes["policy"], fsdp, tensor) if known else None,
    )


def _adapters_of(spec: ProgramSpec, role: str) -> adapters.Config:
    """The adapters of a role's params; a published reward model has none."""
    published = spec.reward.params is None or adapters.split(spec.reward.params)[1] is None
    return adapters.Config() if role == "reward" and published else spec.lora


def _decoding_bytes(spec: ProgramSpec, policy: Shape, fsdp: int, tensor: int) -> float:
    """Bytes of params that a device of a mesh reads per step of decoding."""
    split = policy.split(fsdp, tensor)
    adapted = bool(policy.adapter)
    copy_bytes = policy.copy_bytes if adapted else np.dtype(spec.publish_dtype).itemsize
    base = (split.layer_kernels + split.head_products) * copy_bytes / fsdp
    return base + ADAPTER_BYTES * policy.adapter_elements(fsdp, tensor)
