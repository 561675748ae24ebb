"""The loss of learning from old samples: Online DPO, RLOO, PPO and best-of-2 by minibatches a round
and by lag.

Command:   python -m experiments.sweep --config=configs/studies/offpolicyness.py --workers=2
Hardware:  two CPU cores
Protocol:  experiments/studies/offpolicyness/protocol.md (hypotheses, cells, margins, stop rule)
Budget:    44 arms x 64 updates: 40 cells tune the learning rates at age 0, 376 those of the stale arms, 220 are reported
Result:    docs/results/offpolicyness.md, written from experiments/studies/offpolicyness/cells.jsonl
Full:      `:full`, 256 updates of 128 prompts; parts `:part=epochs`, `samples`, `losses`, `policy_size`, `reward_size`, with
           protocols of their own in experiments/studies/<part>; `:tiny` is for tests

The question is that of Noukhovitch et al. 2024 (arXiv 2410.18252), section 3. Two axes, never
pooled: `num_minibatches` at lag 0, and lag with one minibatch. Every arm has the same prompts in
the same order, the same updates, and the same completions per update: K = 2 of every prompt for all
four (the paper's 512 are 512 completions for PPO and RLOO, and 1,024 for Online DPO and best-of-2).
Weights of KL and DPO are the paper's (0.05, 0.1).

RLOO and PPO have a ratio, so that a stale arm of theirs needs a correction. It is an axis of lag
alone: at lag 0 behavior and proximal are one policy. `behavior`: the ratio is taken to the policy
that drew the sample, and clipped there. `proximal`: it is taken to the policy at the start of the
round, without a weight, which is what the paper's code does; with one update per round nothing is
clipped. `truncate`: the same with a truncated weight. Online DPO and best-of-2 have no ratio.

The learning rate is tuned for each algorithm at age 0 by gold; a stale arm takes the best of 2, 1,
1/2 and 1/4 times it. Both grids are widened where the best lies on an edge. Settings are chosen on
other seeds and held-out prompts than are reported: by the mean of seeds 100 and 101, for best-of-2,
whose runs collapse, by the worst of seeds 100 to 103. PPO's critic keeps its learning rate. Cells
run the synchronous loop, whose numbers are those of the asynchronous one of the same lag.

`:schedule=rounds` steps the linear schedule once per round, as the paper's code does: a last round
at learning rate 0, and less learning the fewer rounds there are. The parts run at the paper's
one-step asynchrony (lag 1): `epochs` (T updates per minibatch), `samples` (K); by minibatches per
round: `policy_size` and `reward_size` (models of half and twice the width; the learning rate tuned for each
size). Reward models of another width are trained on comparisons of their own SFT policy. `losses` has
three younger losses, and Online DPO whose sampler is renewed every so many rounds, at the largest ages
of both axes.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import build
from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps.measures.reward_spread import RewardSpread
from rlhf_jax.sweeps.study import Arm, Rung, Study

from ..common import reviews

ALGORITHMS = ("online_dpo", "rloo", "ppo", "best_of_n")
CORRECTIONS = {
    "behavior": ("behavior", "none"),
    "proximal": ("proximal", "none"),
    "truncate": ("proximal", "truncate"),
}
RATIO = ("rloo", "ppo")  # the algorithms that have a correction to name
YOUNGER = ("gspo", "cispo", "oapl")
WITH_RATIO = (*RATIO, "gspo", "cispo")
UNSTABLE = ("best_of_n",)  # the algorithms whose settings are chosen by the worst of more seeds
RATE = "rlhf.optimizer.learning_rate"
USUAL = "width 64"
SIZES = {  # of models: half and twice the quickstart's width, heads of 16
    "width 32": {"model.width": 32, "model.ffn_width": 128, "model.num_heads": 2},
    USUAL: {},
    "width 128": {
        "model.width": 128,
        "model.ffn_width": 512,
        "model.num_heads": 8,
        "sft.optimizer.learning_rate": 3e-3,
        "reward_model.optimizer.learning_rate": 1e-3,
    },
}
SCHEDULES = {"updates": "linear", "rounds": "linear_by_round"}


@dataclass(frozen=True)
class Instance:
    """The size of a study."""

    num_updates: int
    prompts_per_update: int
    evaluate_at: tuple[int, ...]
    minibatches: tuple[int, ...] = (1, 2, 4, 16, 64)
    lags: tuple[int, ...] = (0, 1, 3, 15)
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    tuning_seeds: tuple[int, ...] = (100, 101)
    unstable_seeds: tuple[int, ...] = (100, 101, 102, 103)
    max_widenings: int = 2


INSTANCES = {
    "small": Instance(64, 32, (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)),
    "full": Instance(
        256, 128, (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256), tuning_seeds=(100, 101, 102)
    ),
    "tiny": Instance(2, 4, (1,), (1, 2), (0, 1), (1e-3, 2e-3), (100,), (100, 101), max_widenings=0),
}


def arm(
    algorithm: str,
    instance: Instance,
    follows: str = "",
    policy: str = "",
    reward: str = "",
    correction: str = "",
    **schedule: int,
) -> Arm:
    """An arm, named by its differences to age 0: "ppo", "ppo-num_minibatches4",
    "rloo-lag3-truncate".

    `correction` is a key of `CORRECTIONS` for an algorithm with a ratio; "" takes it to the
    behavior policy.
    """
    parts = [
        f"{role}_{name.replace(' ', '_')}"
        for role, name in (("policy", policy), ("reward", reward))
        if name
    ]
    parts += [f"{key}{value}" for key, value in schedule.items()]
    name = "-".join([algorithm, *parts, *filter(None, [correction])])
    overrides: dict[str, Any] = {f"rlhf.{key}": value for key, value in schedule.items()}
    if algorithm in WITH_RATIO:
        ratio_to, kind = CORRECTIONS[correction or "behavior"]
        overrides |= {
            "algorithm.correction.ratio_to": ratio_to,
            "algorithm.correction.correction": kind,
        }
    if algorithm not in UNSTABLE:
        return Arm(name, algorithm, overrides, follows, policy, reward)
    return Arm(
        name,
        algorithm,
        overrides,
        follows,
        policy,
        reward,
        tuning_seeds=instance.unstable_seeds,
        choose="worst",
    )


def ages(instance: Instance) -> tuple[Arm, ...]:
    """Every algorithm at every age of both axes; age 0 is one arm of both.

    Lags of a ratio with every correction.
    """
    found = []
    for algorithm in ALGORITHMS:
        found.append(arm(algorithm, instance))
        found += [
            arm(algorithm, instance, algorithm, num_minibatches=count)
            for count in instance.minibatches[1:]
        ]
        corrections = tuple(CORRECTIONS) if algorithm in RATIO else ("",)
        found += [
            arm(algorithm, instance, algorithm, correction=correction, lag=lag)
            for correction in corrections
            for lag in instance.lags[1:]
        ]
    return tuple(found)


def epochs(instance: Instance) -> tuple[Arm, ...]:
    """T = 1, 2, 3 updates a minibatch, at lag 1; and age 0."""
    stale = [
        arm("online_dpo", instance, "online_dpo", lag=1, num_epochs=count) for count in (1, 2, 3)
    ]
    return arm("online_dpo", instance), *stale


def samples(instance: Instance) -> tuple[Arm, ...]:
    """K = 2, 4, 8 samples a prompt of which best and worst are trained on, at lag 1; and age 0."""
    stale = [
        arm("online_dpo", instance, "online_dpo", lag=1, samples_per_prompt=count)
        for count in (2, 4, 8)
    ]
    return arm("online_dpo", instance), *stale


def sizes(instance: Instance, role: str) -> tuple[Arm, ...]:
    """Online DPO by minibatches a round, with models of three sizes in a role; the other role's has
    the usual size.
    """
    found = []
    for name in SIZES:
        models = {"policy": USUAL, "reward": USUAL} | {role: name}
        fresh = arm("online_dpo", instance, **models)
        found += [fresh]
        found += [
            arm("online_dpo", instance, fresh.name, **models, num_minibatches=n)
            for n in instance.minibatches[1:]
        ]
    return tuple(found)


def losses(instance: Instance) -> tuple[Arm, ...]:
    """Online DPO and three younger losses at age 0 and at the largest ages of both axes, and Online DPO
    whose sampler is renewed as seldom.
    """
    lag, count = instance.lags[-1], instance.minibatches[-1]
    found = []
    for algorithm in ("online_dpo", *YOUNGER):
        found += [
            arm(algorithm, instance),
            arm(algorithm, instance, algorithm, lag=lag),
            arm(algorithm, instance, algorithm, num_minibatches=count),
        ]
    cadences = dict.fromkeys((lag + 1, count))  # ages up to the lag, and up to those of minibatches
    found += [arm("online_dpo", instance, "online_dpo", sync_every=each) for each in cadences]
    return tuple(found)


PARTS = {
    "ages": ages,
    "epochs": epochs,
    "samples": samples,
    "losses": losses,
    "policy_size": partial(sizes, role="policy"),
    "reward_size": partial(sizes, role="reward"),
}


def base(instance: Instance, schedule: str) -> ConfigDict:
    """The chain on templated reviews with two samples a prompt."""
    config = reviews.base()
    config.algorithm = build.component("algorithms", "online_dpo")
    config.rlhf.loop, config.rlhf.lag, config.rlhf.ledger = "synchronous", 0, False
    config.rlhf.prompts_per_update = instance.prompts_per_update
    config.rlhf.total_prompts = instance.num_updates * instance.prompts_per_update
    config.rlhf.samples_per_prompt = 2
    config.rlhf.evaluate_every, config.rlhf.evaluate_at = 0, instance.evaluate_at
    config.rlhf.checkpoint_every = 0
    config.rlhf.log_samples = 0
    config.rlhf.optimizer.schedule = config.rlhf.critic_optimizer.schedule = SCHEDULES[schedule]
    config.evaluate.num_prompts = 512
    config.evaluate.num_prompts_between = config.evaluate.prompts_per_batch = 128
    return config


def tiny(instance: Instance, schedule: str) -> ConfigDict:
    """Sizes for a test: what is learned is of no interest."""
    config = base(instance, schedule)
    config.model.width, config.model.ffn_width, config.model.num_layers = 16, 32, 1
    config.sft.num_updates, config.sft.checkpoint_every = 4, 4
    config.comparisons.num_train, config.comparisons.num_heldout = 64, 64
    config.reward_model.num_updates, config.reward_model.pairs_per_update = 2, 32
    config.reward_model.standardize_prompts = 64
    config.evaluate.num_prompts = config.evaluate.num_prompts_between = (
        config.evaluate.prompts_per_batch
    ) = 16
    config.best_of_n_prompts = 16
    return config


def chosen(argument: str) -> dict[str, str]:
    """The instance, part and schedule of `:full`, `:part=epochs,size=full`, ... Raises Refusal for
    any other.
    """
    named = ",".join(f"size={part}" if part in INSTANCES else part for part in argument.split(","))
    found = build.choices(named, size="small", part="ages", schedule="updates")
    for key, accepted in (("size", INSTANCES), ("part", PARTS), ("schedule", SCHEDULES)):
        if found[key] not in accepted:
            raise Refusal(f"the study's {key} is {found[key]!r}; accepted: {', '.join(accepted)}")
    return found


def get_study(argument: str = "") -> Study:
    """The study: the small instance of the ages, or what the argument chooses."""
    choice = chosen(argument)
    instance = INSTANCES[choice["size"]]
    apart = [value for value in choice.values() if value not in ("small", "ages", "updates")]
    part = choice["part"] if apart == [choice["part"]] else ""
    records = Path("experiments/studies", part or "offpolicyness")
    name = "cells.jsonl" if part else "_".join(["cells", *apart]) + ".jsonl"
    return Study(
        directory=Path("runs/studies", "_".join(["offpolicyness", *apart])),
        base=partial(tiny if choice["size"] == "tiny" else base, instance, choice["schedule"]),
        arms=PARTS[choice["part"]](instance),
        grid={RATE: instance.rates},
        open_ended={RATE: 2.0},
        rungs=(Rung(instance.num_updates, instance.tuning_seeds, 1),),
        max_widenings=instance.max_widenings,
        factors={RATE: (2.0, 1.0, 0.5, 0.25)},
        variants={"": {}} | SIZES,
        report_updates=instance.num_updates,
        report_seeds=(0, 1, 2, 3, 4),
        cells=None if choice["size"] == "tiny" else records / name,
        measure=RewardSpread if choice["part"] == "reward_size" else None,
    )
