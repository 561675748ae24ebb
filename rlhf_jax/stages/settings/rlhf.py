"""The settings of the RLHF stage, its clock, and what cannot run."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from jax.sharding import Mesh

from rlhf_jax import dataflow
from rlhf_jax.clock import Clock, Stream
from rlhf_jax.config import Bounds, Count, Fraction, Natural, NonNegative, Positive
from rlhf_jax.devices import distributed, placement
from rlhf_jax.devices.mesh import check_rows, sampler_slices
from rlhf_jax.devices.placement import ResolvedPlan
from rlhf_jax.devices.transfer.per_host import local_mesh
from rlhf_jax.ops.policy_gradient.learning_rate_scale import LearningRateScale
from rlhf_jax.records import ledger
from rlhf_jax.records.streams import schedules
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.spec import block_rows
from rlhf_jax.sampling import Config as SamplingConfig
from rlhf_jax.scoring import Config as ScoringConfig
from rlhf_jax.stages.settings.clocks import ClockConfig
from rlhf_jax.stages.settings.engine import EngineConfig
from rlhf_jax.stages.settings.prompt_values import PromptValuesConfig
from rlhf_jax.types import Algorithm
from rlhf_jax.updating import OptimizerConfig, check_schedule


@dataclass(frozen=True)
class SignalConfig:
    """A measurement of the first policy, before the first update: its pass rate under a reward of
    0 and 1, and its flat groups, whose samples all pass or all fail. A run outside of the bounds
    ends there. The bounds are those within which most groups have an advantage.
    """

    num_prompts: Natural = 0  # training prompts, samples_per_prompt samples each; 0: not measured
    min_pass_rate: Fraction = 0.2  # below it the reward is too rare to learn from
    max_pass_rate: Fraction = 0.6  # above it there is little left to learn
    max_flat_groups: Fraction = 0.35  # share of the prompts

    def __post_init__(self) -> None:
        if self.min_pass_rate > self.max_pass_rate:
            raise Refusal(
                f"rlhf.signal.min_pass_rate is {self.min_pass_rate}; accepted: at most "
                f"rlhf.signal.max_pass_rate = {self.max_pass_rate}"
            )


@dataclass(frozen=True)
class Config(ClockConfig, EngineConfig):
    """A run of RLHF. A round is P = num_minibatches * prompts_per_update prompts; an update is a
    step of the optimizer.
    """

    # of the run: a whole number of rounds; with oversample those that are kept
    total_prompts: Count = 2048
    prompts_per_update: Count = 32  # of one minibatch
    num_minibatches: Count = 1  # of a round; more than 1 trains on samples that are older
    num_epochs: Count = 1  # passes over a round's minibatches
    samples_per_prompt: Count = 4  # G, the size of a group
    lag: Natural = 0  # rounds that the sampler is behind
    clock: Literal["exact", "bounded"] = (
        "exact"  # bounded: the lag is the most, and what it is depends on who is slow
    )
    version_schedule: tuple[Natural, ...] = ()  # a version for every round, instead of a lag
    replay_schedule_of: str = ""  # the directory of a run, whose ledger gives the version schedule
    # asynchronous: a sampling thread beside the trainer, and the same numbers
    loop: Literal["synchronous", "asynchronous"] = "synchronous"
    # Device slices beside the trainer's mesh that share a round's prompts; 0: its own devices. With
    # engine=slots each has num_slots slots, and prompt p belongs to slice p mod sampler_slices.
    sampler_slices: Natural = 0
    sampler_slice_devices: Count = 1  # of each, along `data`
    # Of the sampler's params: bfloat16 halves what a token reads and what a version takes.
    publish_dtype: Literal["float32", "bfloat16"] = "float32"
    # Asynchronous: how long a side may be silent in nothing that is known to take long (see
    # `runtime/activity.py`). Rewards, evaluations, checkpoints and compiles may take longer: a
    # notice says so.
    deadline_seconds: Positive = 600.0
    device_call_seconds: NonNegative = (
        0.0  # the longest call of the devices, such as sampling a round; 0: deadline_seconds
    )
    temperature: Positive = 1.0  # of sampling, and of the log-probabilities that are trained
    num_micro_batches: Count = 1  # parts of a minibatch whose gradients are added: less memory
    evaluate_every: Natural = (
        16  # updates, rounded up to ends of rounds; 0: only at the beginning and the end
    )
    evaluate_at: tuple[
        Count, ...
    ] = ()  # and after these updates, within a round too: densely where a curve is steep
    # updates of which `jax.profiler` writes a trace into the folder `profile`; 1 is the first
    profile_updates: tuple[Count, ...] = ()
    checkpoint_every: Natural = 16  # updates, rounded up to ends of rounds; 0: only at the end
    keep_checkpoints: Count = (
        2  # newest ones; `experiments.evaluate` evaluates every one that is kept
    )
    log_samples: Natural = 4  # completions of a round that go to samples.jsonl
    ledger: bool = True  # a row for every sample in ledger.jsonl
    ledger_gold: bool = False  # the task judges each of them, too
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    signal: SignalConfig = field(default_factory=SignalConfig)
    prompt_values: PromptValuesConfig = field(default_factory=PromptValuesConfig)
    # Of the sampler's batch as its rows end: each a quarter, compiled apart (see
    # `sampling._decode`); 4^8 rows are 65,536.
    num_compactions: Annotated[int, Bounds(least=0, most=8)] = 0
    share_prompts: bool = (
        True  # a prompt's rows stay together and its tokens are run once; else only units stay so
    )
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    learning_rate_scale: LearningRateScale = field(default_factory=LearningRateScale)
    # measures the cosine of each gradient of the policy with the last one, and keeps a copy of it
    gradient_cosine: bool = False
    critic_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3)
    )

    @property
    def sampled_prompts(self) -> int:
        """Prompts that a round samples, kept or not."""
        return self.oversample * self.num_minibatches * self.prompts_per_update

    def schedule(self) -> Clock:
        """The clock, a replayed version schedule read. Raises Refusal where `total_prompts` is not
        a whole number of rounds, or for a schedule that contradicts itself; FileNotFoundError for a
        replay of what is not there.
        """
        per_round = self.num_minibatches * self.prompts_per_update
        if self.total_prompts % per_round or self.total_prompts < per_round:
            raise Refusal(
                f"rlhf.total_prompts is {self.total_prompts}; accepted: multiples of "
                "num_minibatches * prompts_per_update = "
                f"{self.num_minibatches} * {self.prompts_per_update} = {per_round}"
            )
        if self.replay_schedule_of and self.version_schedule:
            raise Refusal(
                f"rlhf.version_schedule and rlhf.replay_schedule_of={self.replay_schedule_of!r} "
                "both give "
                "versions; accepted: one of them"
            )
        num_rounds = self.total_prompts // per_round
        plain = Clock(
            num_rounds,
            self.num_minibatches,
            self.num_epochs,
            self.lag,
            tuple(self.version_schedule),
            self.clock == "bounded",
            self.weights == "inflight",
            self.sync_every,
            self.staged,
            self.buffer_rounds,
            self.buffer_draw,
            self.weights == "pinned",
        )
        if not self.replay_schedule_of:
            return plain
        self.check_replay(self.replay_schedule_of)
        if plain.streams:  # `stream` reads it
            return dataclasses.replace(plain, bounded=False)
        found = ledger.version_schedule(Path(self.replay_schedule_of) / ledger.FILE, plain)
        changes = {"version_schedule": found, "bounded": False, "sync_every": 1}
        return dataclasses.replace(plain, **changes)


def stream(config: Config) -> Stream:
    """The clock of in-flight updates and pinned rows. Raises as `Config.schedule`.

    `replay_schedule_of` gives the boundaries of another run.
    """
    clock, recorded = config.schedule(), None
    if config.replay_schedule_of:
        recorded = schedules.boundaries(Path(config.replay_schedule_of) / schedules.FILE, clock)
    return config.stream(clock, _rows_per_round(config), recorded, config.sampler_slices)


def _rows_per_round(config: Config) -> int:
    """B."""
    return config.prompts_per_update * config.num_minibatches * config.samples_per_prompt


def advice(config: Config, most_tokens: int, lengths: Sequence[int] = ()) -> str:
    """`EngineConfig.advice` of a run, and `ClockConfig.expectations`.

    Args:
      config: of the stage.
      most_tokens: C.
      lengths: of completions; (): all have every token.
    """
    mean_length = sum(lengths) / len(lengths) if lengths else float(most_tokens)
    clock, rows_per_round = config.schedule(), _rows_per_round(config)
    texts = (
        config.advice(clock, rows_per_round, most_tokens, mean_length, config.sampler_slices),
        config.expectations(clock),
    )
    return " ".join(filter(None, texts))


def replayed(config: Config) -> tuple[int, ...]:
    """The numbers that a replay repeats: a version for each round, or boundaries of the stream."""
    if config.streams:
        return stream(config).trained_boundaries or ()
    return config.schedule().version_schedule


def places(config: Config, mesh: Mesh, plan: str) -> ResolvedPlan:
    """The placement of each call.

    Raises Refusal for a plan that says nothing, or names devices that are not there.
    """
    return ResolvedPlan(
        mesh, distributed.devices_by_host(), placement.parse(plan), config.num_micro_batches
    )


def sampling(config: Config, max_completion_tokens: int, mesh: Mesh) -> SamplingConfig:
    """Sampling settings of a round: on the devices of a sampler slice, or on each host's part of
    the mesh.

    Args:
      config: of the stage.
      max_completion_tokens: C.
      mesh: of the run.
    """
    mesh = local_mesh(mesh)
    row_shards = (
        config.sampler_slice_devices
        if config.sampler_slices
        else mesh.shape["data"] * mesh.shape["fsdp"]
    )
    return SamplingConfig(
        max_completion_tokens,
        config.samples_per_prompt,
        config.temperature,
        config.num_compactions,
        row_shards,
    )


def check(config: Config, algorithm: Algorithm, mesh: Mesh, plan: str = "") -> None:
    """Raises Refusal for what cannot run, before anything is compiled.

    Args:
      config: of the stage.
      algorithm: that is trained.
      mesh: of the run.
      plan: placements of calls.
    """
    clock = config.schedule()
    config.check_engine(clock, _rows_per_round(config), config.sampler_slices)
    config.check_oversample(config.samples_per_prompt, config.engine)
    check_schedule(config.optimizer, "rlhf.optimizer", clock.num_updates, clock.updates_per_round)
    config.learning_rate_scale.check(clock.num_updates)
    if "critic" in algorithm.losses:
        check_schedule(
            config.critic_optimizer,
            "rlhf.critic_optimizer",
            clock.num_updates,
            clock.updates_per_round,
        )
    if config.clock == "bounded" and config.loop != "asynchronous":
        raise Refusal(
            "rlhf.clock is 'bounded', which needs rlhf.loop=asynchronous: alone, nobody is slow"
        )
    if config.clock == "bounded" and distributed.several():
        raise Refusal(
            "rlhf.clock is 'bounded' on several processes, whose samplers would each take the "
            "newest version that they have; "
            "accepted: exact"
        )
    outside = [update for update in config.evaluate_at if update > clock.num_updates]
    if outside:
        raise Refusal(
            f"rlhf.evaluate_at has {outside[0]}; accepted: updates from 1 to the run's last, "
            f"{clock.num_updates} "
            "(version 0 is always evaluated)"
        )
    outside = [update for update in config.profile_updates if update > clock.num_updates]
    if outside:
        raise Refusal(
            f"rlhf.profile_updates has {outside[0]}; accepted: updates from 1 to the run's last, "
            f"{clock.num_updates}"
        )
    if config.samples_per_prompt < algorithm.min_samples_per_prompt:
        raise Refusal(
            f"rlhf.samples_per_prompt is {config.samples_per_prompt}; {algorithm.name} needs at "
            "least "
            f"{algorithm.min_samples_per_prompt}"
        )
    if algorithm.score_range is not None and config.scoring.replace_missing_eos:
        low, high = algorithm.score_range
        if not low <= config.scoring.missing_eos_score <= high:
            raise Refusal(
                f"rlhf.scoring.missing_eos_score is {config.scoring.missing_eos_score}; "
                f"{algorithm.name} adjusts scores "
                f"in [{low}, {high}]: widen algorithm.low and algorithm.high, or take a score in "
                "between"
            )
    check_placements(config, algorithm, places(config, mesh, plan))
    prompts_per_round = config.prompts_per_update * clock.num_minibatches
    slices = sampler_slices(mesh, config.sampler_slices, config.sampler_slice_devices)
    if slices and plan:
        raise Refusal(
            f"rlhf.sampler_slices is {config.sampler_slices} beside a plan, which places generate "
            "itself; accepted: one of them"
        )
    config.check_shares(prompts_per_round)
    num_hosts = distributed.num_hosts()
    shards = config.sampler_slices * config.sampler_slice_devices * num_hosts
    on_hosts = f" on each of {num_hosts} hosts" if num_hosts > 1 else ""
    if slices and prompts_per_round % shards:
        raise Refusal(
            f"a round has {prompts_per_round} prompts, which {config.sampler_slices} sampler "
            "slice(s) of "
            f"{config.sampler_slice_devices} device(s){on_hosts} cannot share; accepted: multiples "
            f"of {shards}"
        )


def check_placements(config: Config, algorithm: Algorithm, where: ResolvedPlan) -> None:
    """Raises Refusal, naming the call, for rows that do not divide over the shards and
    micro-batches of its placement.
    """
    rows = algorithm.rows_per_prompt(config.samples_per_prompt) * config.prompts_per_update
    units = rows // block_rows(algorithm, config.samples_per_prompt, config.share_prompts)
    prompts = config.prompts_per_update * config.num_minibatches
    for call in dataflow.roles():
        named = f" of {call}" if where.plan.placements else ""
        if call in dataflow.TRAIN_CALLS:
            name, count = f"rlhf.prompts_per_update (in units of rows{named})", units
        else:
            name, count = f"rlhf.prompts_per_update * rlhf.num_minibatches{named}", prompts
        check_rows(name, count, where.mesh(call), where.micro_batches(call))
