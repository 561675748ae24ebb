"""The selection of a round's live groups by the raw reward, and the groups that a round is trained
on among those that were kept of its window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.clock import choice, live
from rlhf_jax.devices import distributed
from rlhf_jax.rewards.common import host_rewards
from rlhf_jax.runtime import credit
from rlhf_jax.runtime.spec import ProgramSpec
from rlhf_jax.types import Array, Samples


@dataclass(frozen=True)
class Selection:
    """The raw scores of the rows that a round is trained on, and the groups that it kept of its own."""

    raw: credit.RawScores
    kept: live.Kept
    first_ordinal: int  # of the prompts that the round sampled

    @property
    def left_out(self) -> dict[str, list[int]]:
        """Ordinals of the prompts that the round did not keep: see `live.Kept.left_out`."""
        return self.kept.left_out(self.first_ordinal)

    def figures(self) -> dict[str, Array]:
        """Metrics of the round: see `docs/reference/run_directory.md`."""
        return {
            "live_group_share": jnp.float32(self.kept.live_share),
            "kept_flat_share": jnp.float32(self.kept.flat_share),
            "prompts_sampled": jnp.float32(self.first_ordinal + len(self.kept.is_live_N)),
        }


Selections = Sequence[Selection]
"""Of the rounds of a window, oldest first; () where all that is sampled is kept."""


def select(spec: ProgramSpec, samples: Samples, model_scores_B: Array | None) -> Selection:
    """The live groups of a sampled round, by its raw scores.

    A sum of rewards is the sum of its standardised and weighted terms, added in float64.

    Args:
      spec: of the program.
      samples: of the round, κP groups.
      model_scores_B: as `raw_scores` takes them.

    Raises RewardError for a score that is not finite.
    """
    raw = distributed.fetch(credit.raw_scores(spec.reward, samples, model_scores_B))
    named = raw if isinstance(raw, Mapping) else {spec.reward.name: raw}
    for label, raw_B in named.items():
        if not np.isfinite(raw_B).all():
            texts = spec.texts and spec.texts(samples).__getitem__
            when = credit.round_text(samples)
            host_rewards.numbers(f"the reward {label}", raw_B, raw_B.shape[0], texts, when)
    if isinstance(raw, Mapping):
        score_B = sum(
            weight * (np.asarray(raw[label], np.float64) - mean) / std
            for label, (weight, mean, std) in spec.reward.units.items()
        )
    else:
        score_B = raw
    is_live_N = live.live_groups(np.asarray(score_B), samples.samples_per_prompt)
    kept = live.keep(is_live_N, len(is_live_N) // spec.oversample)
    return Selection(raw, kept, int(np.asarray(distributed.fetch(samples.ordinal_B)).min()))


def raw_of_groups(
    rounds: Sequence[credit.RawScores], group_P: np.ndarray, group: int
) -> credit.RawScores:
    """The raw scores of chosen groups.

    Args:
      rounds: of a window, oldest first; the groups are those of all rounds one after another.
      group_P: indices of groups.
      group: G, rows of a group.
    """

    def take(*scores: np.ndarray) -> np.ndarray:
        return np.concatenate(scores).reshape(-1, group)[group_P].reshape(-1)

    return jax.tree.map(take, *rounds)


def chosen(
    spec: ProgramSpec,
    rounds: Sequence[Samples],
    round_index: int,
    selections: Selections,
) -> tuple[Sequence[Samples], np.ndarray, Selection | None]:
    """The groups that a round is trained on; see `rlhf_jax/clock/choice.py`.

    Args:
      spec: of the program.
      rounds: sampled ones, the clock's sources of the round in order.
      round_index: of the round that is about to be trained.
      selections: of the same rounds, where more is sampled than is kept.

    Returns the rounds, filled up to the longest window, so that one program serves all; the groups
    among all of theirs; and with `selections` the raw scores of those groups beside the round's own
    kept ones.
    """
    clock, group = spec.clock, rounds[0].samples_per_prompt
    num_sampled = rounds[0].tokens_BC.shape[0] // group
    num_kept = num_sampled // spec.oversample
    group_P, most = np.arange(num_kept, dtype=np.int32), 1
    if clock.composes:
        group_P, most = choice.chosen(clock, num_kept, spec.key, round_index), clock.max_window
    padded = [*rounds, *[rounds[-1]] * (most - len(rounds))]
    if not selections:
        return padded, group_P, None
    kept = [selection.kept.group_P for selection in selections]
    group_P = choice.within_sampled(group_P, kept, num_sampled)
    raw = raw_of_groups([selection.raw for selection in selections], group_P, group)
    own = selections[round_index - clock.sources(round_index).start]
    return padded, group_P, replace(own, raw=raw)
