"""The clock of rounds: versions, lag and ages as pure functions of round numbers.

With u = num_minibatches * num_epochs updates a round and s = sync_every, before round r is trained
the trainer's params have version r*u, and

    exact     version of round r              v(r) = u * s * floor(max(0, r - lag) / s)
    replay    a version schedule gives v(r) for every round instead
    bounded   round r may begin               once u * max(0, r - lag) is published, and takes the newest version there is
    all       age in update j of round r      r*u + j - v(r)           j = 0 ... u-1
              its bound                       u * (lag + s) - 1        (a version schedule: the largest age in it)

s = 1 gives the sampler new params after every round. s > 1 is semi-online RLHF (Lanchantin et al.
2025, arXiv 2506.21495), and s of num_rounds or more offline: all rounds are of version 0. The mean
age of the first update of a round is u * (s - 1) / 2 + u * lag once the run has settled.

In exact and replay mode a round is sampled as soon as its version is published, so that no params
but the newest are ever needed: lag + s rounds are issued at the start, then s rounds whenever s
rounds are trained. A slow sampler may still need each version of the last lag + 1 rounds. At most
lag + s rounds are issued and not yet trained on.

A round is trained on the samples that it was sampled with, or on whole groups that are chosen from
the rounds of its `window` (`rlhf_jax/clock/choice.py`):

    staged    window of round r    its stage: rounds s*k ... s*k + s - 1, all sampled before s*k is trained
    buffer    window of round r    the newest H = buffer_rounds rounds: max(0, r - H + 1) ... r
              bound of the age     u * (H - 1 + lag + s) - 1
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from rlhf_jax.refusal import Refusal

Staged = Literal["none", "in_order", "shuffled"]
"""Stages of `sync_every` rounds: none; sampled whole before training; their groups permuted too."""
BufferDraw = Literal["uniform", "permutation", "in_order"]
"""Draws of an update from the buffer: with replacement, without, or the newest round as it is."""


@dataclass(frozen=True)
class Clock:
    """The schedule of a run. Versions and ages are counted in updates."""

    num_rounds: int
    num_minibatches: int = 1
    num_epochs: int = 1
    lag: int = 0
    version_schedule: tuple[int, ...] = ()
    bounded: bool = False
    inflight: bool = False  # a round has tokens of several versions: see `Stream`
    sync_every: int = 1  # s: rounds between two versions of the sampler
    staged: Staged = "none"
    buffer_rounds: int = 0  # H; 0: no buffer, a round is trained on its own samples
    buffer_draw: BufferDraw = "uniform"
    pinned: bool = False  # rows are admitted one by one, and keep the version of their round

    def __post_init__(self) -> None:
        for name in ("num_rounds", "num_minibatches", "num_epochs", "sync_every"):
            if getattr(self, name) < 1:
                raise Refusal(f"{name} is {getattr(self, name)}; accepted: 1 or more")
        for name, accepted in (("staged", Staged), ("buffer_draw", BufferDraw)):
            if (value := getattr(self, name)) not in get_args(accepted):
                raise Refusal(f"{name} is {value!r}; accepted: {', '.join(get_args(accepted))}")
        if self.lag < 0:
            raise Refusal(f"lag is {self.lag}; accepted: 0 (synchronous) or more rounds")
        if self.bounded and self.version_schedule:
            raise Refusal(
                "a version schedule says the version of every round: it is replayed, not bounded"
            )
        if self.version_schedule and self.inflight:
            raise Refusal(
                "a version schedule gives every round one version, and in-flight updates give it "
                "several; accepted: one of them"
            )
        if self.pinned:
            self._check_pinned()
        if self.sync_every > 1:
            self._check_alone("sync_every", self.sync_every, "chooses the versions itself", "1")
        if self.staged != "none":
            self._check_staged()
        self._check_buffer()
        if self.version_schedule:
            check_version_schedule(self.version_schedule, self.num_rounds, self.updates_per_round)

    def _check_alone(self, name: str, value: object, why: str, accepted: str) -> None:
        """Raises Refusal for a field beside a clock whose versions are not a formula of rounds."""
        beside = {
            "clock=bounded": self.bounded,
            "weights=inflight": self.inflight,
            "weights=pinned": self.pinned,
            "version_schedule": bool(self.version_schedule),
        }
        for given, is_given in beside.items():
            if is_given and not (name == "buffer_rounds" and given == "version_schedule"):
                raise Refusal(
                    f"{name} is {value!r} beside {given}, which {why}; accepted: {accepted}, or a run "
                    f"without {given}"
                )

    def _check_pinned(self) -> None:
        for name, is_given in (
            ("clock=bounded", self.bounded),
            ("version_schedule", bool(self.version_schedule)),
            ("weights=inflight", self.inflight),
        ):
            if is_given:
                raise Refusal(
                    f"weights=pinned beside {name}: pinned rows have the version of the exact lag; "
                    f"accepted: one of them"
                )

    def _check_staged(self) -> None:
        self._check_alone("staged", self.staged, "has no stages", "none")
        if self.lag:
            raise Refusal(
                f"staged is {self.staged!r} with lag {self.lag}; accepted: lag 0, because a stage is "
                "sampled with the params that the stage before it made"
            )
        if self.buffer_rounds:
            raise Refusal(
                f"staged is {self.staged!r} beside buffer_rounds={self.buffer_rounds}, and both choose "
                "what a round is trained on; accepted: one of them"
            )
        if self.num_rounds % self.sync_every:
            raise Refusal(
                f"staged is {self.staged!r} with sync_every={self.sync_every}, which does not divide "
                f"the run's {self.num_rounds} rounds into whole stages; accepted: a divisor of "
                f"{self.num_rounds}"
            )

    def _check_buffer(self) -> None:
        if self.buffer_rounds < 0:
            raise Refusal(
                f"buffer_rounds is {self.buffer_rounds}; accepted: 0 (no buffer) or more rounds"
            )
        if self.buffer_rounds:
            why = "could not be repeated from its record then"
            self._check_alone("buffer_rounds", self.buffer_rounds, why, "0")
        elif self.buffer_draw != "uniform":
            raise Refusal(
                f"buffer_draw is {self.buffer_draw!r} without a buffer; accepted: buffer_rounds of 1 "
                "or more, or buffer_draw=uniform"
            )
        if self.buffer_draw == "in_order" and self.buffer_rounds > 1:
            raise Refusal(
                f"buffer_draw is 'in_order' with buffer_rounds={self.buffer_rounds}, of which it would "
                "train on the newest alone; accepted: buffer_rounds=1, or lag for older samples"
            )

    @property
    def updates_per_round(self) -> int:
        """u."""
        return self.num_minibatches * self.num_epochs

    @property
    def num_updates(self) -> int:
        """Updates of the whole run."""
        return self.num_rounds * self.updates_per_round

    @property
    def streams(self) -> bool:
        """True where rows are admitted one by one, by `Stream`."""
        return self.inflight or self.pinned

    @property
    def composes(self) -> bool:
        """True where a round is trained on groups that are chosen from its window."""
        return self.buffer_rounds > 0 or self.staged == "shuffled"

    @property
    def max_window(self) -> int:
        """The most rounds that a round's groups are chosen from."""
        rounds = 1 if self.staged == "none" else self.sync_every
        return min(max(rounds, self.buffer_rounds), self.num_rounds)

    def window(self, round_index: int) -> range:
        """The sampled rounds that must be there before a round is trained; its groups are of them.

        Its start never falls, so that rounds before it are not needed again.
        """
        if self.staged != "none":
            begin = round_index - round_index % self.sync_every
            return range(begin, begin + self.sync_every)
        return range(max(0, round_index + 1 - max(1, self.buffer_rounds)), round_index + 1)

    def sources(self, round_index: int) -> range:
        """The sampled rounds whose groups a round is trained on."""
        own = range(round_index, round_index + 1)
        return self.window(round_index) if self.composes else own

    @cached_property
    def max_age(self) -> int:
        """The most updates that a sample may be old when it is trained on."""
        if self.version_schedule:
            oldest = (
                min(map(self.version, self.window(round_index)))
                for round_index in range(self.num_rounds)
            )
            return max(
                self.age(round_index, self.updates_per_round - 1, version)
                for round_index, version in enumerate(oldest)
            )
        rounds = self.lag + self.sync_every
        if self.staged == "none":
            rounds += max(1, self.buffer_rounds) - 1
        if self.sync_every > 1 or self.buffer_rounds:  # an offline run ends before the bound
            rounds = min(rounds, self.num_rounds)
        return self.updates_per_round * rounds - 1

    def version(self, round_index: int) -> int:
        """The version that samples a round; the least one in bounded mode and with in-flight
        updates.
        """
        if self.version_schedule:
            return self.version_schedule[round_index]
        every = self.sync_every
        return self.updates_per_round * every * (max(0, round_index - self.lag) // every)

    def age(self, round_index: int, update_in_round: int, version: int | None = None) -> int:
        """Age, in updates, of a round's samples when they are trained on; 0 is on-policy.

        Args:
          round_index: of the round.
          update_in_round: 0 ... u-1.
          version: the version that sampled the round. Only bounded mode and in-flight updates need
            it.
        """
        sampled_with = self.version(round_index) if version is None else version
        return round_index * self.updates_per_round + update_in_round - sampled_with

    def live_versions(self, asynchronous: bool) -> int:
        """Returns how many published versions may be held at once: a slow sampler may need those of
        the last lag + 1 rounds, of which one in `sync_every` has a version of its own.

        The synchronous loop samples a round when its version is published, and needs that one
        alone. With in-flight updates the trainer may be lag + 1 rounds ahead of the version in use.
        A pinned pool draws with the last lag + 1 versions side by side, beside the new one or, in
        threads, beside the lag + 1 that the trainer may be ahead.
        """
        if self.pinned:
            ahead = self.lag + 1 if asynchronous else 1
            return min(self.lag + 1 + ahead, self.num_rounds)
        if not asynchronous:
            return 1
        if self.inflight:
            return min(self.lag + 2, self.num_rounds)
        if not self.version_schedule:
            return min(-(-self.lag // self.sync_every) + 1, self.num_rounds)
        return 1 + max(
            r - version // self.updates_per_round for r, version in enumerate(self.version_schedule)
        )

    def versions_in_training(self, asynchronous: bool) -> int:
        """Returns how many published versions may be held while a round is scored and trained on.

        Both loops drop a version before the trainer has the last round that it samples. So beside
        the trainer there are those of the rounds that are still to be sampled.
        """
        live = self.live_versions(asynchronous)
        if self.bounded or self.streams or self.version_schedule:
            return live
        if not asynchronous:
            return 0
        return min(-(-(self.lag - 1) // self.sync_every) + 1, live)

    @cached_property
    def held_rounds(self) -> int:
        """The most sampled rounds that are held at once: those that are sampled ahead, and those of
        the window. 1 where rows are admitted one by one, because they are held on the host until
        they are trained on.
        """
        if self.streams:
            return 1
        rounds = range(self.num_rounds)
        versions = sorted(map(self.version, rounds))
        return max(
            bisect_right(versions, r * self.updates_per_round) - self.window(r).start
            for r in rounds
        )

    def check_version(self, round_index: int, oldest: int, newest: int) -> None:
        """Raises RuntimeError if a round was sampled with other versions than this clock's.

        Args:
          round_index: the round that is about to be trained on.
          oldest: the least version of its tokens, in updates.
          newest: the largest version of its tokens.
        """
        versions = [self.version(r) for r in self.window(round_index)]
        least, most = min(versions), max(versions)
        if self.bounded or self.inflight:
            most = round_index * self.updates_per_round
        if not least <= oldest <= newest <= most:
            sampled = f"version {oldest}" if oldest == newest else f"versions {oldest} to {newest}"
            accepted = str(least) if least == most else f"{least} to {most}"
            raise RuntimeError(
                f"round {round_index} was sampled with {sampled}; the clock gives it {accepted}"
            )

    def issued_at(self, round_index: int) -> list[int]:
        """Rounds to sample once version round_index * u is published, before that round is trained.
        Raises Refusal in bounded mode, where that depends on who is slow, and with in-flight
        updates or pinned rows, which are admitted one by one.
        """
        if self.bounded:
            raise Refusal(
                "in bounded mode a round's version is known when it is sampled, not before"
            )
        if self.inflight:
            raise Refusal("with in-flight updates a round has several versions: see `Stream`")
        if self.pinned:
            raise Refusal("pinned rows are admitted one by one: see `Stream`")
        version = round_index * self.updates_per_round
        return [r for r in range(round_index, self.num_rounds) if self.version(r) == version]

    def issued_before(self, round_index: int) -> list[int]:
        """Rounds that are already sampled when `round_index` begins, and are trained on from it on.
        A checkpoint taken there must save their samples.

        Empty in bounded mode: a resumed run samples them again, with versions that the bound
        allows. Empty with in-flight updates and pinned rows: the checkpoint has the stream's rows.
        """
        if self.bounded or self.streams:
            return []
        begin = self.window(round_index).start
        return [r for r in range(begin, self.num_rounds) if self._is_sampled(r, round_index)]

    def _is_sampled(self, sampled: int, round_index: int) -> bool:
        """True where a round is sampled before another one begins."""
        return sampled < round_index or self.version(sampled) < round_index * self.updates_per_round

    def outlives(self, round_index: int, version: int) -> bool:
        """True where a checkpoint may need the samples of a round: it is trained on later than its
        version was made, or in later rounds too.

        Args:
          round_index: of the round.
          version: the oldest that it was sampled with, in updates.
        """
        is_older = version < round_index * self.updates_per_round
        return is_older or self.window(round_index + 1).start <= round_index


def check_version_schedule(
    version_schedule: Sequence[int], num_rounds: int, updates_per_round: int
) -> None:
    """Raises Refusal unless every round has a version that is published when the round begins.

    Args:
      version_schedule: a version for each round, in updates.
      num_rounds: of the run.
      updates_per_round: u; versions are its multiples.
    """
    if len(version_schedule) != num_rounds:
        raise Refusal(
            f"the version schedule has {len(version_schedule)} versions, but the run has "
            f"{num_rounds} rounds"
        )
    for round_index, version in enumerate(version_schedule):
        if version % updates_per_round or not 0 <= version <= round_index * updates_per_round:
            raise Refusal(
                f"the version schedule gives round {round_index} version {version}; accepted: "
                f"multiples of {updates_per_round} "
                f"(updates a round) from 0 to {round_index * updates_per_round}"
            )
