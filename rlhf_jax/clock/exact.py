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
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_jax.refusal import Refusal


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

    def __post_init__(self) -> None:
        for name in ("num_rounds", "num_minibatches", "num_epochs", "sync_every"):
            if getattr(self, name) < 1:
                raise Refusal(f"{name} is {getattr(self, name)}; accepted: 1 or more")
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
        self._check_sync()
        if self.version_schedule:
            check_version_schedule(self.version_schedule, self.num_rounds, self.updates_per_round)

    def _check_sync(self) -> None:
        """Raises Refusal where `sync_every` is set and something else chooses the versions."""
        if self.sync_every == 1:
            return
        if self.bounded:
            why = (
                "a bounded clock, whose rounds take the newest version; accepted: 1, or clock=exact"
            )
        elif self.inflight:
            why = "in-flight updates, which renew rows at boundaries; accepted: 1, or weights=round"
        elif self.version_schedule:
            why = (
                "a version schedule, which gives the version of every round; accepted: one of them"
            )
        else:
            return
        raise Refusal(f"sync_every is {self.sync_every} with {why}")

    @property
    def updates_per_round(self) -> int:
        """u."""
        return self.num_minibatches * self.num_epochs

    @property
    def num_updates(self) -> int:
        """Updates of the whole run."""
        return self.num_rounds * self.updates_per_round

    @property
    def max_age(self) -> int:
        """The most updates that a sample may be old when it is trained on."""
        if not self.version_schedule:
            rounds = self.lag + self.sync_every
            if self.sync_every > 1:  # as many as an offline run has, and no more
                rounds = min(rounds, self.num_rounds)
            return self.updates_per_round * rounds - 1
        return max(
            self.age(r, self.updates_per_round - 1, version)
            for r, version in enumerate(self.version_schedule)
        )

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
        """
        if not asynchronous:
            return 1
        if self.inflight:
            return min(self.lag + 2, self.num_rounds)
        if not self.version_schedule:
            return min(-(-self.lag // self.sync_every) + 1, self.num_rounds)
        return 1 + max(
            r - version // self.updates_per_round for r, version in enumerate(self.version_schedule)
        )

    def check_version(self, round_index: int, oldest: int, newest: int) -> None:
        """Raises RuntimeError if a round was sampled with other versions than this clock's.

        Args:
          round_index: the round that is about to be trained on.
          oldest: the least version of its tokens, in updates.
          newest: the largest version of its tokens.
        """
        least, most = self.version(round_index), round_index * self.updates_per_round
        most = most if self.bounded or self.inflight else least
        if not least <= oldest <= newest <= most:
            sampled = f"version {oldest}" if oldest == newest else f"versions {oldest} to {newest}"
            accepted = str(least) if least == most else f"{least} to {most}"
            raise RuntimeError(
                f"round {round_index} was sampled with {sampled}; the clock gives it {accepted}"
            )

    def issued_at(self, round_index: int) -> list[int]:
        """Rounds to sample once version round_index * u is published, before that round is trained.
        Raises Refusal in bounded mode, where that depends on who is slow, and with in-flight
        updates, where rows are admitted one by one.
        """
        if self.bounded:
            raise Refusal(
                "in bounded mode a round's version is known when it is sampled, not before"
            )
        if self.inflight:
            raise Refusal("with in-flight updates a round has several versions: see `Stream`")
        version = round_index * self.updates_per_round
        return [r for r in range(round_index, self.num_rounds) if self.version(r) == version]

    def issued_before(self, round_index: int) -> list[int]:
        """Rounds >= `round_index` that are already sampled when it begins. A checkpoint taken there
        must save their samples.

        Empty in bounded mode: a resumed run samples them again, with versions that the bound
        allows. Empty with in-flight updates: the checkpoint has the stream's rows.
        """
        if self.bounded or self.inflight:
            return []
        version = round_index * self.updates_per_round
        return [r for r in range(round_index, self.num_rounds) if self.version(r) < version]


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
