"""Interfaces of the planner: the workload of a round, and the cost of a placed call."""

from dataclasses import dataclass
from typing import Protocol

from rlhf_jax.clock import Clock
from rlhf_jax.dataflow import Call, Loop
from rlhf_jax.types import Placement


@dataclass(frozen=True)
class Workload:
    """A round: its rows, their lengths, and its updates."""

    num_prompts: int  # of a round: num_minibatches * prompts_per_update
    samples_per_prompt: int
    prompt_tokens: int  # positions of the compiled programs
    completion_tokens: int
    completion_lengths: tuple[
        int, ...
    ] = ()  # as they are drawn, a sample of the distribution; (): all have every token
    rows_per_prompt: int = 0  # that are trained on; 0: samples_per_prompt
    num_minibatches: int = 1
    num_epochs: int = 1
    lag: int = 0
    loop: Loop = "synchronous"
    share_prompts: bool = True  # the prompt of a group is run once, in inference and training
    num_compactions: int = 0  # of the sampler's batch: see `sampling._decode`

    @property
    def live_versions(self) -> int:
        """Published versions that are held at once in a long run."""
        return Clock(self.lag + 1, lag=self.lag).live_versions(self.loop == "asynchronous")


class CostModel(Protocol):
    """The cost of calls. Seconds are of a whole round (training: all updates of it); bytes are of
    one device.
    """

    @property
    def device_bytes(self) -> float:
        """Memory of a device that a plan may use."""
        ...

    @property
    def shared_throughput(self) -> bool:
        """True where the devices are virtual ones of one host, whose cores are shared by calls that
        run at one time.
        """
        ...

    def refusal(self, call: Call, placement: Placement) -> str | None:
        """The reason that a placement is impossible (rows or heads that do not divide), or None
        where it is possible.
        """
        ...

    def seconds(self, call: Call, placement: Placement) -> float:
        """Seconds of the call alone, collectives included; generation lasts until the last row has
        ended.
        """
        ...

    def working_bytes(self, call: Call, placement: Placement) -> float:
        """Bytes that the call needs while it runs, beside resident params and states: caches,
        activations, gradients.
        """
        ...

    def params_bytes(self, role: str, placement: Placement) -> float:
        """Bytes of a copy of a role's params for generation or inference."""
        ...

    def state_bytes(self, role: str, placement: Placement) -> float:
        """Bytes of a trained role's state: params, and the arrays of the optimizer."""
        ...

    def reallocate_seconds(self, role: str, source: Placement, target: Placement) -> float:
        """Seconds to reshard a role's params from `source` to `target`; 0 between equal layouts."""
        ...

    def transfer_seconds(self, call: Call, source: Placement, target: Placement) -> float:
        """Seconds to transfer the output of `call` from `source` to another call's devices; 0 between
        equal layouts.
        """
        ...
