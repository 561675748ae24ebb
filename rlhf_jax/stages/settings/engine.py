"""The settings of the engine that samples, and the combinations of them that are defined.

engine  weights   a running row                            a round has
static  round     keeps the version that began it          one version, by the clock of rounds
slots   inflight  gets new weights between two segments    tokens of several versions, by `Stream`
slots   pinned    keeps the version of its round           one version of the exact lag, by `Stream`
"""

from dataclasses import dataclass
from typing import Literal

import jax

from rlhf_jax.clock import Clock, Stream, full_throughput_lag
from rlhf_jax.config import Count, Natural
from rlhf_jax.refusal import Refusal


@dataclass(frozen=True)
class EngineConfig:
    """The engine of sampling, and the clock of rows that are admitted one by one."""

    # static: a batch runs until its longest row has ended; slots: a row that ends is replaced
    engine: Literal["static", "slots"] = "static"
    # When running rows get new weights. round: never, a round has one version; inflight: between
    # two segments, on the clock `Stream`; pinned: never, and rows of lag + 1 versions of an adapter
    # are written at once, so that slots do not drain between rounds (needs lora.rank)
    weights: Literal["round", "inflight", "pinned"] = "round"
    # Rows that are written at once on each sampler slice; of engine=slots
    num_slots: Count = 32
    segment_steps: Count = 16  # decode steps between two looks at which rows have ended
    # virtual training time of a round in decode steps; of weights=inflight and weights=pinned
    tau: Natural = 0
    # Keys and values of running rows are computed again when so many rounds are trained; 0: never.
    # Of weights=inflight
    rebuild_every: Natural = 0

    @property
    def streams(self) -> bool:
        """True where rows are admitted one by one, on the clock `Stream`."""
        return self.weights != "round"

    def check_engine(self, clock: Clock, rows_per_round: int, num_slices: int) -> None:
        """Raises Refusal, naming the keys, for a combination that is not defined.

        Args:
          clock: of the run.
          rows_per_round: B.
          num_slices: of the sampler; 0: it has no devices of its own.
        """
        if self.streams and self.engine != "slots":
            raise Refusal(
                f"rlhf.weights is {self.weights!r} with rlhf.engine={self.engine!r}, whose batches "
                "have one version; accepted: rlhf.engine=slots"
            )
        users = {"tau": ("inflight", "pinned"), "rebuild_every": ("inflight",)}
        for name, weights in users.items():
            if self.weights not in weights and (value := getattr(self, name)):
                raise Refusal(
                    f"rlhf.{name} is {value} with rlhf.weights={self.weights!r}, which has no use "
                    f"for it; accepted: 0, or rlhf.weights={' or '.join(weights)}"
                )
        if self.engine == "static":
            return
        if clock.bounded and self.tau:
            raise Refusal(
                f"rlhf.tau is {self.tau} with rlhf.clock=bounded, where training takes the time "
                "that it takes; accepted: 0, or rlhf.clock=exact"
            )
        if jax.process_count() > 1 and not self.streams:
            raise Refusal(
                f"rlhf.engine is 'slots' with rlhf.weights={self.weights!r} on "
                f"{jax.process_count()} processes; accepted: rlhf.weights=inflight or pinned, "
                "rlhf.engine=static, or one process, whose devices rlhf.sampler_slices shares out"
            )
        if clock.bounded and self.streams and num_slices > 1:
            raise Refusal(
                f"rlhf.clock is 'bounded' with rlhf.weights={self.weights!r} and "
                f"rlhf.sampler_slices={num_slices}, each of which would take the newest version "
                "that it sees; accepted: rlhf.clock=exact, or at most one slice"
            )
        rounds = min(clock.lag + 1, clock.num_rounds) if self.streams else 1
        shares = max(1, num_slices) * jax.process_count()
        if self.num_slots > (most := rounds * rows_per_round // shares):
            on_slices = f" on each of {shares} slices" if shares > 1 else ""
            raise Refusal(
                f"rlhf.num_slots is {self.num_slots}, and at most {most} rows can be written at "
                f"once{on_slices}: those of {rounds} round(s); accepted: 1 to {most}"
            )

    def check_shares(self, prompts_per_round: int) -> None:
        """Raises Refusal for prompts that the slots of several processes cannot share equally.

        Args:
          prompts_per_round: P.
        """
        if self.engine == "slots" and prompts_per_round % jax.process_count():
            raise Refusal(
                f"a round has {prompts_per_round} prompts, which the slots of "
                f"{jax.process_count()} processes cannot share; accepted: multiples of "
                f"{jax.process_count()}"
            )

    def stream(
        self,
        clock: Clock,
        rows_per_round: int,
        trained_boundaries: tuple[int, ...] | None = None,
        num_slices: int = 0,
    ) -> Stream:
        """The clock of in-flight updates and pinned rows, of each slice.

        Args:
          clock: of the run.
          rows_per_round: B, of all slices.
          trained_boundaries: of another run, to be repeated.
          num_slices: of the sampler; 0: it has no devices of its own.
        """
        sizes = self.num_slots, self.segment_steps, self.tau, self.rebuild_every
        shares = max(1, num_slices) * jax.process_count()
        return Stream(clock, rows_per_round // shares, *sizes, trained_boundaries, shares)

    def advice(
        self,
        clock: Clock,
        rows_per_round: int,
        most_tokens: int,
        mean_length: float,
        num_slices: int = 0,
    ) -> str:
        """Sentences for a plan of a run with slots; "" for one without.

        Args:
          clock: of the run.
          rows_per_round: B.
          most_tokens: C.
          mean_length: of completions, in tokens.
          num_slices: of the sampler; 0: it has no devices of its own.
        """
        if self.engine == "static":
            return ""
        text = "rlhf.engine=slots: the seconds of generate below are those of static batches."
        if not self.streams:
            return text
        stream = self.stream(clock, rows_per_round, num_slices=num_slices)
        least, num_slots = (
            full_throughput_lag(stream, most_tokens, mean_length),
            stream.num_slices * self.num_slots,
        )
        return (
            f"{text} The slots are full from rlhf.lag={least} on, the least that is "
            f"(C + tau) / (B * mean length / num_slots) = ({most_tokens} + {self.tau}) / "
            f"({rows_per_round} * {mean_length:g} / {num_slots}); this run has {clock.lag}."
        )
