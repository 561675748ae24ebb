"""Interfaces of the planner: the workload of a round, and the cost of a placed call."""

from dataclasses import dataclass
from typing import Protocol

from rlhf_jax.clock import Clock, Staged
from rlhf_jax.dataflow import ON_SAMPLED, Call, Loop
from rlhf_jax.types import Placement


@dataclass(frozen=True)
class Workload:
    """A round: its rows, their lengths, and its updates."""

    num_prompts: int  # that a round keeps: num_minibatches * prompts_per_update
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
    share_prompts: bool = True  # the prompt of a group is run once in training
    unit_rows: int = 1  # of a group, those that training never separates: their prompt is run once
    num_compactions: int = 0  # of the sampler's batch: see `sampling._decode`
    oversample: int = 1  # prompts that are sampled for one that is kept
    sync_every: int = 1  # rounds between two versions of the sampler
    staged: Staged = "none"  # of these rounds: see `Clock`
    inflight: bool = False  # running rows get new weights: see `Clock`
    pinned: bool = False  # rows are drawn by one version, and versions side by side: see `Clock`

    def prompts_of(self, call: Call) -> int:
        """Prompts of a round that a call runs: those sampled, or those kept."""
        return self.num_prompts * (self.oversample if call.name in ON_SAMPLED else 1)

    @property
    def prompts_text(self) -> str:
        """Prompts of a round in words: those kept, and those sampled where they are more."""
        sampled = f" (of {self.num_prompts * self.oversample} sampled)"
        return f"{self.num_prompts} prompts{sampled if self.oversample > 1 else ''}"

    @property
    def versions(self) -> "Versions":
        """Published versions that are held at once in a long run."""
        clock, asynchronous = self.clock(2 * self.lag + 2), self.loop == "asynchronous"
        return Versions(clock.live_versions(asynchronous), clock.versions_in_training(asynchronous))

    def clock(self, num_rounds: int) -> Clock:
        """The clock of a run of one update a round.

        Args:
          num_rounds: at least; there are whole stages of `sync_every` rounds.
        """
        every = self.sync_every
        return Clock(
            -(-num_rounds // every) * every,
            lag=self.lag,
            sync_every=every,
            staged=self.staged,
            inflight=self.inflight,
            pinned=self.pinned,
        )


@dataclass(frozen=True)
class Versions:
    """Published versions that are held at once: the most, while a round is sampled and a version is
    published, and those while a round is scored and trained on.
    """

    most: int
    in_training: int

    def working_bytes(self, call: Call, working: float, version: float) -> float:
        """Bytes that a call needs while it runs; sampling has the further versions.

        Args:
          call: of the round.
          working: bytes that it needs itself.
          version: bytes of one version.
        """
        further = self.most - self.in_training if call.kind == "generate" else 0
        return working + further * version


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
        """The reason why a placement is impossible (rows or heads that do not divide), or None.

        Args:
          call: of the round.
          placement: its devices, mesh shape, micro-batches and remat.
        """
        ...

    def seconds(self, call: Call, placement: Placement) -> float:
        """Seconds of the call alone, collectives included. Generation ends with its last row.

        Args:
          call: of the round. A training call is all updates of it.
          placement: that `refusal` accepts.
        """
        ...

    def working_bytes(self, call: Call, placement: Placement) -> float:
        """Bytes per device that the call needs while it runs: caches, activations, gradients.

        Resident params and states are not included.

        Args:
          call: of the round.
          placement: that `refusal` accepts.
        """
        ...

    def params_bytes(self, role: str, placement: Placement) -> float:
        """Bytes per device of a copy of a role's params for generation or inference.

        Args:
          role: such as "policy".
          placement: whose mesh shards them.
        """
        ...

    def state_bytes(self, role: str, placement: Placement) -> float:
        """Bytes per device of a trained role's state: params, and the arrays of the optimizer.

        Args:
          role: "policy" or "critic".
          placement: whose mesh shards it.
        """
        ...

    def reallocate_seconds(self, role: str, source: Placement, target: Placement) -> float:
        """Seconds to reshard a role's params; 0 between equal layouts.

        Args:
          role: such as "policy".
          source: the placement that holds them.
          target: the placement that needs them.
        """
        ...

    def transfer_seconds(self, call: Call, source: Placement, target: Placement) -> float:
        """Seconds to transfer a call's output to another call's devices; 0 between equal layouts.

        Args:
          call: whose output it is.
          source: its placement.
          target: that of the other call.
        """
        ...
