"""RLHF: rounds of sampling, scoring and updating, with evaluations, samples and checkpoints at ends of rounds."""

import contextlib
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from rlhf_jax import plugins, sample, score
from rlhf_jax.jobs import reward_model, sft
from rlhf_jax.jobs._evaluator import Evaluator, learned_scores
from rlhf_jax.jobs._recorder import Recorder
from rlhf_jax.jobs.api import Workspace
from rlhf_jax.observe.progress import progress
from rlhf_jax.observe.samples import SamplesWriter
from rlhf_jax.rewards import learned
from rlhf_jax.runtime import asynchronous, sharding, synchronous
from rlhf_jax.runtime.checkpoint import abstract_like
from rlhf_jax.runtime.clock import Clock
from rlhf_jax.runtime.mesh import check_rows
from rlhf_jax.runtime.program import Critic, Program, Reward, Setup, block_rows
from rlhf_jax.runtime.spool import Spool
from rlhf_jax.types import Algorithm, Params, Prompts, Samples
from rlhf_jax.update import OptimizerConfig, make_optimizer

STAGE = "rlhf"


@dataclass(frozen=True)
class Config:
    """A run of RLHF. A round is P = num_minibatches * prompts_per_update prompts; an update is a step of the optimizer."""

    total_prompts: int = 2048
    prompts_per_update: int = 32
    num_minibatches: int = 1
    num_epochs: int = 1
    samples_per_prompt: int = 4
    lag: int = 0
    trace: tuple[int, ...] = ()
    loop: str = "synchronous"  # or "asynchronous": a sampling thread beside the trainer, and the same numbers
    deadline_seconds: float = 600.0  # asynchronous: how long neither side may hand anything over
    temperature: float = 1.0
    num_micro_batches: int = 1
    evaluate_every: int = 16  # updates, rounded up to ends of rounds; 0: only at the beginning and the end
    checkpoint_every: int = 16  # the same
    log_samples: int = 4  # completions of a round that go to samples.jsonl
    scoring: score.Config = field(default_factory=score.Config)
    share_prompts: bool = True  # a prompt's rows stay together and its tokens are run once; else only units stay so
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    critic_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-3))

    def clock(self) -> Clock:
        """The schedule. Raises ValueError where `total_prompts` is not a whole number of rounds."""
        per_round = self.num_minibatches * self.prompts_per_update
        if self.total_prompts % per_round or self.total_prompts < per_round:
            raise ValueError(
                f"rlhf.total_prompts is {self.total_prompts}; accepted: multiples of num_minibatches * prompts_per_update = "
                f"{self.num_minibatches} * {self.prompts_per_update} = {per_round}"
            )
        num_rounds = self.total_prompts // per_round
        return Clock(num_rounds, self.num_minibatches, self.num_epochs, self.lag, tuple(self.trace))


def check(config: Config, algorithm: Algorithm, mesh: Any) -> None:
    """Raises ValueError for what cannot run, before anything is compiled."""
    clock = config.clock()
    if config.loop not in ("synchronous", "asynchronous"):
        raise ValueError(f"rlhf.loop is {config.loop!r}; accepted: synchronous, asynchronous")
    if config.deadline_seconds <= 0:
        raise ValueError(f"rlhf.deadline_seconds is {config.deadline_seconds}; accepted: positive numbers")
    if config.temperature <= 0:
        raise ValueError(
            f"rlhf.temperature is {config.temperature}; accepted: positive numbers (training needs a law to sample)"
        )
    if config.samples_per_prompt < algorithm.min_samples_per_prompt:
        raise ValueError(
            f"rlhf.samples_per_prompt is {config.samples_per_prompt}; {algorithm.name} needs at least "
            f"{algorithm.min_samples_per_prompt}"
        )
    if algorithm.score_range is not None and config.scoring.replace_missing_eos:
        low, high = algorithm.score_range
        if not low <= config.scoring.missing_eos_score <= high:
            raise ValueError(
                f"rlhf.scoring.missing_eos_score is {config.scoring.missing_eos_score}; {algorithm.name} adjusts scores "
                f"in [{low}, {high}]: widen algorithm.low and algorithm.high, or take a score in between"
            )
    rows = algorithm.rows_per_prompt(config.samples_per_prompt) * config.prompts_per_update
    units = rows // block_rows(algorithm, config.samples_per_prompt, config.share_prompts)
    check_rows("rlhf.prompts_per_update (in units of rows)", units, mesh, config.num_micro_batches)
    check_rows("rlhf.prompts_per_update", config.prompts_per_update * clock.num_minibatches, mesh)


def make_program(
    workspace: Workspace, config: Config, algorithm: Algorithm, reward: Reward, reference_params: Params
) -> Program:
    """The compiled calls of this run."""
    clock = config.clock()
    stream = workspace.stream("train", STAGE)
    prompts_per_round = config.num_minibatches * config.prompts_per_update

    def prompts(round_index: int) -> Prompts:
        return stream.prompts(round_index * prompts_per_round, prompts_per_round)

    critic = None
    if "critic" in algorithm.losses:
        params = critic_params(workspace, reward, reference_params)
        optimizer = make_optimizer(config.critic_optimizer, clock.num_updates, clock.updates_per_round)
        critic = Critic(workspace.value_model, params, optimizer)
    setup = Setup(
        model=workspace.model,
        algorithm=algorithm,
        optimizer=make_optimizer(config.optimizer, clock.num_updates, clock.updates_per_round),
        sampling=sample.Config(workspace.lengths.max_completion_tokens, config.samples_per_prompt, config.temperature),
        scoring=config.scoring,
        reward=reward,
        clock=clock,
        mesh=workspace.mesh,
        prompts=prompts,
        key=workspace.key("rollout"),
        seed=workspace.seed,
        eos_id=workspace.tokenizer.eos_id,
        pad_id=workspace.tokenizer.pad_id,
        num_micro_batches=config.num_micro_batches,
        critic=critic,
        share_prompts=config.share_prompts,
    )
    return Program(setup, reference_params)


def critic_params(workspace: Workspace, reward: Reward, reference_params: Params) -> Params:
    """Where the critic begins: the reward model, its head in units of the standardised score; without one, the SFT
    policy with a fresh head."""
    if reward.params is None:
        return workspace.value_model.init_from(reference_params, workspace.key("critic"))
    head = reward.params["value_head"]
    scaled = {"kernel": head["kernel"] / reward.std, "bias": (head["bias"] - reward.mean) / reward.std}
    return {"backbone": reward.params["backbone"], "value_head": scaled}


def make_reward(workspace: Workspace, stages: Any) -> Reward:
    """The reward of the RLHF stage. A learned one is read, and its stage must have run."""
    if stages.reward == "learned":
        params, standard = reward_model.load(workspace, stages.reward_model)
        return Reward(learned.make(workspace.value_model), params, mean=standard.mean, std=standard.std)
    judge = plugins.find("rewards", stages.reward).make(workspace.task)

    def host(samples: Samples) -> np.ndarray:
        finished = jax.device_get(samples.finished_B).tolist()
        return judge(workspace.prompt_texts(samples), workspace.completions(samples), finished)

    return Reward(host=host)


def load(
    workspace: Workspace, stages: Any, algorithm: Algorithm, reward: Reward, reference_params: Params
) -> tuple[Params, int]:
    """The newest saved policy and its version. Raises FileNotFoundError when the stage has saved none."""
    program = make_program(workspace, stages.rlhf, algorithm, reward, reference_params)
    checkpoints = workspace.checkpoints(STAGE)
    version = checkpoints.latest()
    if version is None:
        raise FileNotFoundError(f"no complete checkpoint in {checkpoints.directory}: run the stage {STAGE!r} first")
    state = checkpoints.restore(version, abstract_like(program.state_shapes, program.state_shardings))
    return state["policy"].params, version


def run(
    workspace: Workspace,
    stages: Any,
    algorithm: Algorithm,
    reward: Reward,
    reference_params: Params,
) -> Params:
    """Trains, or goes on where a checkpoint is, or reads what an earlier run trained. Returns the policy's params."""
    config: Config = stages.rlhf
    check(config, algorithm, workspace.mesh)
    began = time.perf_counter()
    clock = config.clock()
    checkpoints = workspace.checkpoints(STAGE)
    program = make_program(workspace, config, algorithm, reward, reference_params)
    abstract = abstract_like(program.state_shapes, program.state_shardings)
    if checkpoints.latest() == clock.num_updates:
        return checkpoints.restore(clock.num_updates, abstract)["policy"].params
    spool = Spool(workspace.directory / "rounds")

    def complete(step: int) -> bool:
        return spool.has(clock.issued_before(step // clock.updates_per_round))

    begin = checkpoints.latest(complete)
    checkpoints.delete_after(begin)
    states = program.init(reference_params) if begin is None else checkpoints.restore(begin, abstract)
    version = begin or 0
    samples_writer = SamplesWriter(workspace.directory)
    # The version of a checkpoint was evaluated before the checkpoint was written; version 0 has no checkpoint.
    workspace.metrics.resume(STAGE, version, evaluations_from=version + 1 if version else 0)
    samples_writer.resume(STAGE, version)
    first_round = version // clock.updates_per_round
    row_layout = partial(sharding.row_shardings, mesh=workspace.mesh)
    pending = {r: spool.read(r, row_layout) for r in clock.issued_before(first_round)}
    scores = None
    if reward.model is not None:
        scores = learned_scores(reward.model, reward.params, reward.mean, reward.std)
    evaluator = Evaluator(workspace, stages.evaluate, reference_params, scores)
    with progress(algorithm.name, total=clock.num_updates, start=version) as bar:
        if config.loop == "synchronous":
            events = synchronous.run(program, states, first_round, pending)
        else:
            events = asynchronous.run(program, states, first_round, pending, config.deadline_seconds)
        recorder = Recorder(workspace, config, program, evaluator, checkpoints, spool, samples_writer, bar, began)
        try:
            with contextlib.closing(events):  # an interrupt here ends the sampling thread too
                recorder.consume(events)
        finally:
            checkpoints.wait()  # an interrupt must not tear down the threads of a save under way
    workspace.metrics.write_timing(STAGE, {"wall_seconds": time.perf_counter() - began} | recorder.seconds)
    params = checkpoints.restore(clock.num_updates, abstract)["policy"].params
    checkpoints.close()
    return params


def job(workspace: Workspace, stages: Any, algorithm: Algorithm) -> None:
    """`--config.job=rlhf`: this stage alone, from the SFT policy and the reward of the run's directory."""
    run(workspace, stages, algorithm, make_reward(workspace, stages), sft.load(workspace, stages.sft))
