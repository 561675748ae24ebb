"""RLHF: rounds of sampling, scoring and updating, with evaluations, samples and checkpoints at ends
of rounds.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from functools import partial

import numpy as np

from rlhf_jax.devices import distributed, sharding
from rlhf_jax.devices.mesh import sampler_slices
from rlhf_jax.models.common.adapters import join, split
from rlhf_jax.records import ledger, profiles
from rlhf_jax.records.checkpoints import abstract_like, complete_steps, restore_params
from rlhf_jax.records.ledger import STAGE
from rlhf_jax.records.progress import progress
from rlhf_jax.records.samples import SamplesWriter
from rlhf_jax.records.saved_rounds import FOLDER, SavedRounds
from rlhf_jax.rewards.api import LEARNED
from rlhf_jax.rewards.common import host_rewards
from rlhf_jax.rewards.common.terms import is_plain, parse
from rlhf_jax.run_directory import lock, stage_records
from rlhf_jax.runtime import activity, asynchronous, credit, stopping, synchronous
from rlhf_jax.runtime.program import Critic, Program, ProgramSpec, Reward
from rlhf_jax.stages import reward_model, sft
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.checks import signal
from rlhf_jax.stages.common import kept_answers, resuming
from rlhf_jax.stages.common.evaluator import Evaluator
from rlhf_jax.stages.common.recorder import Recorder
from rlhf_jax.stages.common.reward_unit import learned_scores
from rlhf_jax.stages.inflight import loops
from rlhf_jax.stages.lora import base
from rlhf_jax.stages.prompt_scores import stored
from rlhf_jax.stages.settings.rlhf import Config, check, places, sampling
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.types import Algorithm, Params, Prompts, Samples, States
from rlhf_jax.updating import make_optimizer


def make_program(
    workspace: Workspace,
    config: Config,
    algorithm: Algorithm,
    reward: Reward,
    reference_params: Params,
    plan: str = "",
) -> Program:
    """The compiled calls of this run, each where the plan places it.

    Args:
      workspace: of the run.
      config: of the stage.
      algorithm: that is trained.
      reward: of the samples.
      reference_params: of the SFT policy.
      plan: placements of calls, see `devices/placement.py`; "": all on the mesh of the run.

    Raises as `stored.with_scores`.
    """
    spec = make_spec(workspace, config, algorithm, reward, reference_params, plan)
    return loops.make_program(config, stored.with_scores(spec, workspace, config), reference_params)


def make_spec(
    workspace: Workspace,
    config: Config,
    algorithm: Algorithm,
    reward: Reward,
    reference_params: Params,
    plan: str = "",
) -> ProgramSpec:
    """Makes the specification of this run's program."""
    where = places(config, workspace.mesh, plan)
    clock = config.schedule()
    stream = workspace.stream("train", STAGE)

    def prompts(round_index: int) -> Prompts:
        return stream.prompts(round_index * config.sampled_prompts, config.sampled_prompts)

    critic = None
    if "critic" in algorithm.losses:
        params = base.critic_of_spec(workspace, reward, reference_params)
        optimizer = make_optimizer(
            config.critic_optimizer, clock.num_updates, clock.updates_per_round
        )
        critic = Critic(
            workspace.value_model if reward.params is None else workspace.reward_network,
            params,
            optimizer,
        )
    return ProgramSpec(
        model=workspace.model,
        algorithm=algorithm,
        optimizer=make_optimizer(config.optimizer, clock.num_updates, clock.updates_per_round),
        sampling=sampling(config, workspace.lengths.max_completion_tokens, where.mesh("generate")),
        scoring=config.scoring,
        reward=reward,
        clock=clock,
        mesh=workspace.mesh,
        prompts=prompts,
        key=workspace.key("rollout"),
        seed=workspace.seed,
        eos_id=workspace.tokenizer.eos_ids,
        pad_id=workspace.tokenizer.pad_id,
        num_micro_batches=config.num_micro_batches,
        critic=critic,
        share_prompts=config.share_prompts,
        publish_dtype=config.publish_dtype,
        sampler_slices=sampler_slices(
            workspace.mesh, config.sampler_slices, config.sampler_slice_devices
        ),
        plan=where.plan,
        lora=workspace.lora,
        learning_rate_scale=config.learning_rate_scale,
        gradient_cosine=config.gradient_cosine,
        oversample=config.oversample,
        prompt_buckets=workspace.lengths.prompt_buckets,
        reference_scores=stored.shape(config),  # `make_program` reads the scores
        texts=lambda samples: list(
            zip(stream.texts_of(samples), workspace.completions(samples), strict=True)
        ),
    )


def make_reward(workspace: Workspace, stages: Stages) -> Reward:
    """The reward of the RLHF stage: one, or a sum of several.

    Args:
      workspace: of the run.
      stages: the settings of every stage.

    A learned one is read, and its stage must have run.
    """
    terms = parse(stages.reward)
    learned_parts = reward_model.reward_parts(workspace) if stages.learned else {}
    judges = kept_answers.kept(workspace, stages, make_judges(workspace, stages))
    host = host_scores(workspace, judges) if judges else None
    if not is_plain(terms):
        return Reward(**learned_parts, host=host, name=stages.reward, terms=terms)
    return Reward(
        **learned_parts,
        host=host and (lambda samples: host(samples)[terms[0].label]),
        name=terms[0].name,
    )


def make_judges(workspace: Workspace, stages: Stages) -> dict[str, host_rewards.HostJudge]:
    """The rewards on text, by label.

    Raises Refusal for one that the task cannot have, and RewardError for what its own code raises.
    """
    return {
        term.label: host_rewards.make(term.name, workspace.task, stages.reward_settings[term.label])
        for term in parse(stages.reward)
        if term.name != LEARNED
    }


def host_scores(
    workspace: Workspace, judges: Mapping[str, host_rewards.HostJudge | kept_answers.KeptJudge]
) -> Callable[[Samples], dict[str, np.ndarray]]:
    """The scores of rewards on text, float32 `[B]` by label: texts are decoded once for all of
    them.

    Args:
      workspace: whose task and tokenizer give the texts.
      judges: by label.
    """
    stream = workspace.stream("train", STAGE)

    def scores(samples: Samples) -> dict[str, np.ndarray]:
        finished_B = distributed.fetch(samples.finished_B)
        prompts, completions = stream.texts_of(samples), workspace.completions(samples)
        wanted = any(judge.wants_records for judge in judges.values())
        records = stream.records_of(samples) if wanted else []
        when = credit.round_text(samples)
        found = {}
        for label, judge in judges.items():
            with activity.at_work(f"the reward {judge.name}"):
                found[label] = judge(prompts, completions, finished_B.tolist(), records, when)
                if isinstance(judge, kept_answers.KeptJudge):
                    found[label] = distributed.from_first(found[label], samples.ordinal_B)
        return found

    return scores


def versions(workspace: Workspace) -> list[int]:
    """Versions of the saved policies, oldest first.

    Raises FileNotFoundError where there is none.
    """
    stage = stage_records.policy_stage(workspace.directory)
    return complete_steps(stage_records.folder(workspace.directory, stage))


def load(workspace: Workspace, version: int | None = None) -> tuple[Params, int]:
    """A saved policy and its version: the newest, or the one asked for; of a run of DPO its.

    Args:
      workspace: of the run.
      version: updates; None: the newest.

    Raises FileNotFoundError when it is not there.
    """
    abstract = base.abstract(workspace, workspace.model)
    stage = stage_records.policy_stage(workspace.directory)
    role = "policy" if stage == STAGE else ""  # the checkpoints of DPO hold one state
    folder = stage_records.folder(workspace.directory, stage)
    trained, step = restore_params(folder, abstract, role, version)
    return join(trained, base.of(workspace)), step


def first_policy(workspace: Workspace, reference_params: Params) -> Params:
    """The policy at version 0: the SFT policy, or the version of another run that this one begins
    from.

    Args:
      workspace: of the run.
      reference_params: of the SFT policy, held or not; they are returned as they are.

    Raises MissingInput where that run does not have the version any more.
    """
    begin = workspace.begin
    if begin is None or begin.version is None:
        return reference_params
    source = workspace.source
    return (
        load(source, begin.version)[0] if begin.version else first_policy(source, reference_params)
    )


def run(
    workspace: Workspace,
    stages: Stages,
    algorithm: Algorithm,
    reward: Reward,
    reference_params: Params,
    observe: Callable[[Program, synchronous.Event], None] = lambda program, event: None,
    read_sft: Callable[[], Params] | None = None,
) -> Params:
    """Trains, or goes on where a checkpoint is, or reads what an earlier run trained. Returns the
    policy's params.

    Args:
      workspace: of the run.
      stages: the settings of every stage.
      algorithm: that is trained.
      reward: of the samples.
      reference_params: of the SFT policy, held (`Workspace.held`) or not.
      observe: is told each event of the loop, before it is recorded.
      read_sft: reads the SFT policy's params in float32, which training begins with and which are
        not kept; None: from the run's directory.

    Raises Refusal where the directory has checkpoints that cannot be gone on from, or another
    process holds it.
    """
    config: Config = stages.rlhf
    check(config, algorithm, workspace.mesh, stages.plan)
    reference_params = workspace.held(reference_params)
    with lock.hold(workspace.directory):
        began, clock = time.perf_counter(), config.schedule()
        program = make_program(workspace, config, algorithm, reward, reference_params, stages.plan)
        abstract = abstract_like(program.state_shapes, program.state_shardings)
        checkpoints = workspace.checkpoints(STAGE, config.keep_checkpoints)
        saved_rounds = SavedRounds(workspace.directory / FOLDER)
        layout = partial(sharding.row_shardings, mesh=program.trainer_mesh)
        ended = resuming.ended_rounds(workspace.directory, config)
        snapshots = loops.snapshots_of(workspace, config)
        resume_point = resuming.choose(
            checkpoints, saved_rounds, clock, abstract, layout, ended, snapshots
        )
        version = resume_point.version
        if version == clock.num_updates:
            assert resume_point.policy is not None
            resuming.say_cut(workspace, config, clock)
            return workspace.on_mesh(join(resume_point.policy, split(reference_params)[1]))
        program.check_memory(asynchronous=config.loop == "asynchronous")
        first = None if version else first_policy(workspace, reference_params)
        if first is not None:
            signal.check(workspace, config, first, reward)
        program.compile()
        states = resume_point.states
        if first is not None:
            read = read_sft or partial(sft.load, workspace)
            states = base.fresh_states(workspace, program, reward, first, read)
            first = workspace.held(first)
        assert states is not None
        files = resuming.Files(
            checkpoints,
            saved_rounds,
            SamplesWriter(workspace.directory),
            ledger.Ledger(workspace.directory),
        )
        resuming.cut_back(workspace, config, clock, version, files)
        workspace.record(STAGE)
        with (
            progress(algorithm.name, total=clock.num_updates, start=version) as bar,
            stopping.asked_to_stop() as asked,
        ):
            scores = learned_scores(reward)
            recorder = Recorder(
                workspace=workspace,
                config=config,
                program=program,
                evaluator=Evaluator(workspace, stages.evaluate, reference_params, scores),
                files=files,
                bar=bar,
                began=began,
                first_policy=first,
            )
            monitor = synchronous.LoopMonitor(
                recorder.timeline,
                partial(stopping.any_asked, program.trainer_mesh, asked),
                say=bar.say,
            )
            loop = make_loop(workspace, config, program, states, resume_point, files, monitor)
            try:
                with contextlib.closing(loop):  # an interrupt here ends the sampling thread too
                    chosen = config.profile_updates, workspace.directory, version
                    for event in profiles.traced(loop, synchronous.ended_update, *chosen):
                        observe(program, event)
                        recorder.take(event)
            finally:
                # an interrupt must not tear down the threads of a save under way
                checkpoints.wait()
        if recorder.stopped:
            raise KeyboardInterrupt
        workspace.metrics.write_timing(STAGE, activity.timings_since(began) | recorder.timings())
        saved_rounds.keep_for(clock, checkpoints.steps(), clock.num_rounds)
        policy = resuming.policy_of(checkpoints, clock.num_updates, abstract)
        checkpoints.close()
        return workspace.on_mesh(join(policy, split(reference_params)[1]))


def make_loop(
    workspace: Workspace,
    config: Config,
    program: Program,
    states: States,
    resume_point: resuming.ResumePoint,
    files: resuming.Files,
    monitor: synchronous.LoopMonitor,
) -> Generator[synchronous.Event, None, None]:
    """The events of the loop that the config names; see `synchronous.run`."""
    first_round = resume_point.version // program.spec.clock.updates_per_round
    if config.streams:
        resumed = loops.Resumed(first_round, resume_point.stream)
        return loops.recorded(workspace, config, program, states, resumed, files, monitor)
    pending = resume_point.pending
    if config.loop == "synchronous":
        return synchronous.run(program, states, first_round, pending, monitor)
    limits = config.deadline_seconds, config.device_call_seconds
    return asynchronous.run(program, states, first_round, pending, monitor, *limits)


def job(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> None:
    """`--config.job=rlhf`: this stage alone, from the SFT policy and the reward of the run's
    directory.
    """
    reference_params = workspace.held(sft.load(workspace))
    run(workspace, stages, algorithm, make_reward(workspace, stages), reference_params)
