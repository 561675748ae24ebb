"""The settings of clocks beside the lag: how often the sampler is renewed, stages, a buffer of
rounds, and how many groups a round samples for those that it keeps.
"""

from dataclasses import dataclass

from rlhf_jax.clock import BufferDraw, Clock, Staged
from rlhf_jax.config import Count, Natural
from rlhf_jax.refusal import Refusal


@dataclass(frozen=True)
class ClockConfig:
    """The versions that sample rounds, and the rounds whose groups are trained on."""

    # Rounds between two versions of the sampler: 1 online, more semi-online, all of the run offline
    sync_every: Count = 1
    # Stages of sync_every rounds: all are sampled before the first is trained on (in_order), and
    # their groups are permuted, too (shuffled)
    staged: Staged = "none"
    # The replay buffer has the newest rounds, this many; 0: a round is trained on its own samples
    buffer_rounds: Natural = 0
    # Groups that an update draws from the buffer: uniform with replacement, permutation without;
    # in_order is of one round alone
    buffer_draw: BufferDraw = "uniform"
    # κ, dynamic sampling: a round samples κ times its prompts and keeps the first groups in the
    # order of the prompts whose raw scores are not all equal; 1: it keeps all that it samples
    oversample: Count = 1

    def check_replay(self, replayed: str) -> None:
        """Raises Refusal for a choice of groups that the ledger of a run does not give.

        Args:
          replayed: the directory whose versions are repeated.
        """
        for name, none in (("staged", "none"), ("buffer_rounds", 0)):
            if (value := getattr(self, name)) != none:
                raise Refusal(
                    f"rlhf.{name} is {value!r} beside rlhf.replay_schedule_of={replayed!r}, which gives "
                    f"versions and not groups; accepted: {none!r}, or no replay: the same config gives "
                    "the same run"
                )

    def check_oversample(self, samples_per_prompt: int, engine: str) -> None:
        """Raises Refusal where groups cannot be left out.

        Args:
          samples_per_prompt: G.
          engine: of sampling.
        """
        if self.oversample == 1:
            return
        if engine != "static":
            raise Refusal(
                f"rlhf.oversample is {self.oversample} with rlhf.engine={engine!r}, and it needs "
                "whole batches; accepted: rlhf.engine=static, or rlhf.oversample=1"
            )
        if samples_per_prompt == 1:
            raise Refusal(
                f"rlhf.oversample is {self.oversample} with rlhf.samples_per_prompt=1, and the scores "
                "of a group of one are always equal; accepted: rlhf.samples_per_prompt of 2 or more, "
                "or rlhf.oversample=1"
            )

    def expectations(self, clock: Clock) -> str:
        """A sentence for a plan about what its figures leave out; "" where there is nothing.

        Args:
          clock: of the run.
        """
        if not clock.composes:
            return ""
        return (
            f"The samples of up to {clock.max_window} rounds are held on the trainer's devices; "
            "the memory below is without them."
        )
