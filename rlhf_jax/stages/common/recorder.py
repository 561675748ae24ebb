"""Turns what happens in the loop into metrics, samples, evaluations and checkpoints."""

import dataclasses
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import jax
import numpy as np

from rlhf_jax.devices import distributed
from rlhf_jax.planner.costs import utilization
from rlhf_jax.records import jsonl, ledger, rates, timeline
from rlhf_jax.records.ledger import STAGE
from rlhf_jax.records.progress import Bar
from rlhf_jax.records.rates import RoundRates
from rlhf_jax.records.samples import Sample
from rlhf_jax.records.timeline import Timeline
from rlhf_jax.report.notices import Limits, Notices
from rlhf_jax.runtime import activity, synchronous
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.sampler import token_counts, version_range
from rlhf_jax.stages.api import PromptStream, Workspace
from rlhf_jax.stages.common.evaluator import Evaluator, kept
from rlhf_jax.stages.common.resuming import Files
from rlhf_jax.stages.common.round_metrics import RoundMetrics
from rlhf_jax.stages.settings.rlhf import Config
from rlhf_jax.types import Params
from rlhf_jax.updating import learning_rate_schedule


@dataclass(kw_only=True)
class Recorder:
    """Turns events of the loop into metrics, samples, evaluations and checkpoints."""

    workspace: Workspace
    config: Config
    program: Program
    evaluator: Evaluator
    files: Files
    bar: Bar
    began: float  # seconds of `time.perf_counter`
    # version 0, which is evaluated after its params were trained on; None once it was
    first_policy: Params | None
    timeline: Timeline = field(default_factory=Timeline)
    late: tuple[synchronous.Updated, tuple[Any, ...]] | None = None
    scored: synchronous.Scored | None = None
    # of the scored round: figures, and lengths and signs, on the device; its tokens by version, and
    # figures of how it was drawn
    of_round: tuple[Any, ...] = ()
    uses: dict[int, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"evaluate_seconds": 0.0})
    stopped: bool = False
    compiled: activity.CompileCounter = field(default_factory=activity.CompileCounter)
    compiled_first: int | None = None

    @cached_property
    def rates(self) -> RoundRates:
        """The speed of rounds, which every update's line has."""
        config = self.config
        num_samples = config.num_minibatches * config.prompts_per_update * config.samples_per_prompt
        known = utilization.of_spec(self.program.spec, config.num_epochs)
        return RoundRates(self.timeline, num_samples, known, self.program.spec.composes)

    @cached_property
    def notices(self) -> Notices:
        """Told every round's figures."""
        scoring = self.config.scoring
        score = scoring.missing_eos_score if scoring.replace_missing_eos else None
        return Notices(self.bar.say, Limits(self.workspace.lengths.max_completion_tokens, score))

    @cached_property
    def stream(self) -> PromptStream:
        """The stream of prompts for rounds."""
        return self.workspace.stream("train", STAGE)

    def take(self, event: synchronous.Event) -> None:
        """Records one event of the loop.

        Metrics are read one update late, so that the device is never waited for.
        """
        round_index = self._round_of(event)
        recording = activity.during(f"the recording of round {round_index}", "")
        with self.timeline.span("trainer", "host", round_index), recording:
            self._take(event)

    def _round_of(self, event: synchronous.Event) -> int:
        return (
            event.update // self._updates_per_round
            if isinstance(event, synchronous.Updated)
            else event.round_index
        )

    def _take(self, event: synchronous.Event) -> None:
        match event:
            case synchronous.Sampled(round_index, samples):
                if self.program.spec.clock.outlives(round_index, version_range(samples)[0]):
                    self.files.saved_rounds.write(round_index, samples)
            case synchronous.Scored():
                self.scored, self.uses = event, {}
                self.rates.scored(event.round_index)
                rows = event.samples, event.scores, event.batch, event.selection
                signs = self._round_metrics.signs(event.batch, len(event.samples.mask_BC))
                self.of_round = (
                    self._round_metrics.measure(*rows),
                    (self.rates.lengths(event.samples), signs),
                    token_counts(event.samples),
                    event.figures,
                )
            case synchronous.Updated():
                self._flush()
                self.late = (event, self.of_round)
                self.uses[event.update] = event.sample_R
                within_round = (event.update + 1) % self._updates_per_round
                if within_round and event.update + 1 in self.config.evaluate_at:
                    policy = self.workspace.on_mesh(self.program.policy(event.states))
                    self.evaluate(policy, event.update + 1, full=False)
            case synchronous.RoundEnd():
                self._round_end(event)

    @property
    def _updates_per_round(self) -> int:
        return self.program.spec.clock.updates_per_round

    @cached_property
    def _round_metrics(self) -> RoundMetrics:
        return RoundMetrics(self.program.spec.algorithm)

    def _flush(self) -> None:
        if self.late is None:
            return
        (event, (round_figures, of_rows, tokens, drawn)), self.late = self.late, None
        with activity.during(
            f"update {event.update}", "call"
        ):  # dispatched before, and waited for here
            figures: dict[str, Any] = distributed.fetch(round_figures)
            metrics: dict[str, Any] = distributed.fetch(event.metrics)
            (lengths, signs), rows = distributed.fetch((of_rows, event.sample_R))
        clock = self.program.spec.clock
        metrics |= tokens.ages(event.update, clock.max_age + 1, rows, signs)
        values = {name: float(value) for name, value in figures.items()} | dict(drawn)
        values |= {name: metric.value() for name, metric in metrics.items()}
        schedule = learning_rate_schedule(
            self.config.optimizer, clock.num_updates, clock.updates_per_round
        )
        values |= {
            "age": float(event.age),
            "learning_rate": float(cast(Any, schedule(event.update))),
        }
        sampled_length, round_index = values["sampled_length"], self._round_of(event)
        speed = self.rates.update(round_index, sampled_length, metrics, lengths)
        self.workspace.metrics.write(
            STAGE, event.update, values | speed, time.perf_counter() - self.began
        )
        if event.update % self._updates_per_round == 0:
            self.notices.take(event.update // self._updates_per_round, values)
        shown = {"reward": values["reward_standardized"], "loss": values["loss"]}
        self.bar.advance(1, **shown, **rates.shown(speed))
        synchronous.require_finite(event.update, values)

    def _round_end(self, event: synchronous.RoundEnd) -> None:
        assert self.scored is not None
        clock, round_index, states = self.program.spec.clock, event.round_index, event.states
        version = (round_index + 1) * clock.updates_per_round
        last = version == clock.num_updates
        self.write_samples(self.scored, version - clock.updates_per_round)
        self.write_ledger(self.scored, version - clock.updates_per_round)
        if (
            round_index == 0
        ):  # only now, so that nobody waits for its programs to see that training works
            assert self.first_policy is not None
            self.evaluate(self.first_policy, 0, full=True)
            self.first_policy = None
        listed = version in self.config.evaluate_at
        if last or listed or crosses(version, clock.updates_per_round, self.config.evaluate_every):
            policy = self.workspace.on_mesh(self.program.policy(states))
            self.evaluate(policy, version, full=last)
        if (
            last
            or event.stopping
            or crosses(version, clock.updates_per_round, self.config.checkpoint_every)
        ):
            self._flush()
            began = time.perf_counter()
            with activity.at_work(f"the checkpoint of version {version}"):
                self.files.checkpoints.save(version, states)
            self.rates.paused(round_index, time.perf_counter() - began)
        self.files.saved_rounds.keep_for(clock, self.files.checkpoints.held(), round_index + 1)
        self.stopped = event.stopping
        self._write_timeline()
        if self.compiled_first is None:
            self.compiled_first = self.compiled.count

    def timings(self) -> dict[str, float]:
        """Seconds by what took them, and the programs compiled in the first round of this process
        and after it.
        """
        first = self.compiled_first or 0
        return self.seconds | {
            "first_round_programs": first,
            "later_programs": self.compiled.count - first,
        }

    def write_samples(self, scored: synchronous.Scored, update: int) -> None:
        """A few completions of a round, with their scores.

        Args:
          scored: the round.
          update: the version that it was trained from.
        """
        count = min(self.config.log_samples, scored.samples.tokens_BC.shape[0])
        if not count:
            return
        take = jax.tree.map(lambda x: x[:count] if x.ndim else x, distributed.fetch(scored.samples))
        prompts, texts = self.stream.texts_of(take), self.workspace.completions(take)
        # A gold reward model would hold the round up for four texts.
        with activity.at_work("the gold judge"):
            gold = (
                None
                if self.workspace.pretrained.gold
                else self.evaluator.gold(prompts, texts, take.finished_B)
            )
        reward, terms = distributed.fetch((scored.scores.standardized_B, scored.scores.terms))
        kept = [
            Sample(
                ordinal=int(take.ordinal_B[row]),
                prompt=prompts[row],
                completion=texts[row],
                finished=bool(take.finished_B[row]),
                gold=None if gold is None else float(gold[row]),
                reward=float(reward[row]),
                terms=terms and {label: float(of_term[row]) for label, of_term in terms.items()},
            )
            for row in range(count)
        ]
        self.files.samples.write(STAGE, update, "during", kept)

    def write_ledger(self, scored: synchronous.Scored, update: int) -> None:
        """A row for each of a round's samples.

        Args:
          scored: the round.
          update: the version that it was trained from.
        """
        if not self.config.ledger:
            return
        samples = distributed.fetch(scored.samples)
        one_each = jax.tree.map(
            lambda x: x[:: samples.samples_per_prompt] if x.ndim else x, samples
        )
        prompts, texts = self.stream.texts_of(one_each), self.workspace.completions(samples)
        gold = None
        if self.config.ledger_gold:
            repeated = np.repeat(prompts, samples.samples_per_prompt).tolist()
            with activity.at_work("the gold judge"):
                gold = self.evaluator.gold(repeated, texts, samples.finished_B)
        uses = distributed.fetch(self.uses)
        algorithm = self.program.spec.algorithm
        rows = ledger.rows(
            scored.round_index,
            samples,
            scored.scores,
            uses,
            scored.batch,
            algorithm,
            prompts,
            texts,
            gold,
            None if scored.selection is None else scored.selection.left_out,
        )
        self.files.ledger.write(update, rows)

    def _write_timeline(self) -> None:
        """The spans that have ended.

        A resumed run need not repeat them: none is cut, and `began` tells processes apart.
        """
        spans = [dataclasses.asdict(span) for span in self.timeline.take()]
        began = self.timeline.began_at
        jsonl.append_all(
            self.workspace.directory / timeline.FILE,
            [{"stage": STAGE, "began": began, **span} for span in spans],
        )

    def evaluate(self, params: Params, version: int, full: bool) -> None:
        """Evaluates a version on held-out prompts; of the first and the last, fully, and with texts
        kept.

        Args:
          params: of the policy, on the mesh of the run.
          version: of them.
          full: True: on `evaluate.num_prompts` prompts, and some texts are kept. False: on
            `num_prompts_between`.
        """
        self._flush()
        began = time.perf_counter()
        config = self.evaluator.config
        with activity.at_work(f"the evaluation of version {version}"):
            num_prompts = config.num_prompts if full else config.num_prompts_between
            figures, judged = self.evaluator.evaluate(params, num_prompts)
        now = time.perf_counter()
        self.seconds["evaluate_seconds"] += activity.seconds_without_compiling(began, now)
        if self.scored is not None:
            self.rates.paused(self.scored.round_index, now - began)
        self.workspace.metrics.write(
            "evaluate", version, figures, time.perf_counter() - self.began, of=STAGE
        )
        shown = {"gold": "gold_mean", "win": "win_rate", "kl": "kl"}
        self.bar.advance(
            0, **{short: figures[name] for short, name in shown.items() if name in figures}
        )
        if full:
            self.files.samples.write(
                STAGE, version, "after" if version else "before", kept(judged, config)
            )


def crosses(version: int, step: int, every: int) -> bool:
    """True where a multiple of `every` lies in (version - step, version]."""
    return bool(every) and version // every > (version - step) // every
