"""Panels of a policy's training, and the curves in each.

Figures that are looked for by name:

    of an evaluation   gold_mean, win_rate, win_rate_strict, win_rate_greedy, finished, reward_mean, kl, entropy,
                       completion_length, distinct_completions, and `<name>_stderr` of any of them
    of an update       loss, and of the samples of its round: reward_standardized, behavior_kl_k1, entropy,
                       sampled_length, finished

and of offline DPO, of an update: accuracy, margin, chosen_reward, rejected_reward, and of an
evaluation the same with "heldout_" before it.

`units.py` says what they are measured in. Whatever else an update says is drawn by
`curves.stage_curves` under its own name.
"""

from dataclasses import dataclass, replace

from rlhf_jax.report import glossary
from rlhf_jax.report.plots.style import HELDOUT, SECOND, THIRD, TRAINING
from rlhf_jax.report.read import DPO
from rlhf_jax.report.units import EVALUATED_AT, Units


@dataclass(frozen=True)
class Curve:
    """A figure in a panel: its name, whether evaluations or updates have it, and how it looks."""

    name: str
    label: str
    color: str = HELDOUT
    evaluated: bool = True
    line: str = "-"


@dataclass(frozen=True)
class Panel:
    """A pair of axes; `level` is a value to read the curves against."""

    title: str
    unit: str
    note: str
    curves: tuple[Curve, ...]
    level: float | None = None
    share: bool = False


def panels_of(stage: str, units: Units) -> tuple[Panel, ...]:
    """The panels of the stage that trained a policy, in the units of its run.

    Args:
      stage: "rlhf" or "dpo".
      units: of the run.
    """
    return panels(units) + (comparisons() if stage == DPO else ())


def comparisons() -> tuple[Panel, ...]:
    """The panels of a policy that learns from comparisons."""

    def both(name: str, label: str = "", color: str = HELDOUT) -> tuple[Curve, ...]:
        """A figure on the comparisons of updates, dotted, and on held-out ones."""
        label = f"{label}, " * bool(label)
        training = Curve(name, f"{label}training", color, evaluated=False, line=":")
        return training, Curve(f"heldout_{name}", f"{label}held-out", color)

    return (
        Panel(
            "Comparisons ordered as labelled",
            "share of pairs",
            glossary.note("accuracy"),
            both("accuracy"),
            level=0.5,
            share=True,
        ),
        Panel(
            "Implicit rewards",
            "β times nats",
            glossary.note("chosen_reward"),
            both("chosen_reward", "chosen") + both("rejected_reward", "rejected", SECOND),
        ),
        Panel("Margin", "nats", glossary.note("margin"), both("margin")),
    )


def panels(units: Units) -> tuple[Panel, ...]:
    """The panels of a policy's training, in the units of its run."""
    at_sampling, at_evaluation = "training samples", "held-out prompts"
    if units.temperature is not None and units.temperature != EVALUATED_AT:
        at_sampling = f"training, temperature {units.temperature:g}"
        at_evaluation = f"held-out, temperature {EVALUATED_AT:g}"

    def both(name: str, training_name: str | None = None) -> tuple[Curve, ...]:
        training = Curve(training_name or name, at_sampling, TRAINING, evaluated=False)
        return training, Curve(name, at_evaluation)

    rewards = (
        Panel(
            units.reward.title,
            units.reward.unit,
            "Mean reward that the policy is trained for.",
            (Curve("reward_standardized", at_sampling, TRAINING, evaluated=False),),
            share=units.reward.share,
        ),
        Panel(
            units.learned.title,
            units.learned.unit,
            glossary.note("reward_mean"),
            (Curve("reward_mean", at_evaluation),),
            share=units.learned.share,
        ),
    )
    if (
        units.reward == units.learned
    ):  # one quantity, so that training samples and evaluations go into one panel
        rewards = (replace(rewards[0], curves=both("reward_mean", "reward_standardized")),)
    gold_note = glossary.note("gold_mean")
    return (
        Panel(
            units.gold.title,
            units.gold.unit,
            gold_note,
            (Curve("gold_mean", at_evaluation),),
            share=units.gold.share,
        ),
        Panel(
            "Win-rate against references (gold)",
            "share of pairs",
            glossary.note("win_rate"),
            (
                Curve("win_rate", "ties count ½"),
                Curve("win_rate_greedy", "greedy", SECOND, line="--"),
                Curve("win_rate_strict", "ties lose", THIRD, line=":"),
            ),
            level=0.5,
            share=True,
        ),
        *rewards,
        Panel(
            "KL to the SFT policy", "nats per completion", glossary.note("kl") + " Of training: an "
                                                                                 "estimate on the "
                                                                                 "rows "
            "that were trained on.", both("kl", "behavior_kl_k1"),
        ),
        Panel("Entropy", "nats per token", glossary.note("entropy"), both("entropy")),
        Panel(
            "Completion length", "tokens", glossary.note("completion_length"), both("completion_length", "sampled_length")
        ),
        Panel(
            "Distinct completions", "share of samples", glossary.note("distinct_completions"),
            (Curve("distinct_completions", at_evaluation),), share=True,
        ),
        Panel("Completions that end (EOS)", "share of samples", glossary.note("finished"), both("finished"), share=True),
        Panel(
            "Loss", "mean of a minibatch", glossary.note("loss"),
            (Curve("loss", "training samples", TRAINING, evaluated=False),),
        ),
    )  # fmt: skip
