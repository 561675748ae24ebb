"""Wiring of a stage that learns from given rows (sft, reward_model): layout, compiled update,
metrics and checkpoints around `runtime.supervised`.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import jax
import optax

from rlhf_jax.devices import distributed, sharding
from rlhf_jax.devices.copies import copies_of
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.adapters import Rest, join, split
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.once import bound
from rlhf_jax.records.checkpoints import Checkpoints
from rlhf_jax.records.progress import progress
from rlhf_jax.records.rates import StepRates
from rlhf_jax.runtime import supervised
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.lora import base
from rlhf_jax.types import Aggregation, Metrics, Params, TrainState
from rlhf_jax.updating import (
    Objective,
    OptimizerConfig,
    init_state,
    make_optimizer,
    step_scalars,
    train_step,
)


class Config(Protocol):
    """Settings that every supervised stage has."""

    @property
    def num_updates(self) -> int: ...
    @property
    def num_micro_batches(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...


@dataclass(frozen=True)
class SupervisedStage:
    """A stage that trains one model on rows that are a function of the update's number.

    `title` is shown beside the progress bar, with the metrics that `shown` names.
    """

    workspace: Workspace
    name: str
    title: str
    model: Model | ValueModel
    config: Config
    shown: Sequence[str] = ("loss",)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of the stage's schedule."""
        return make_optimizer(self.config.optimizer, self.config.num_updates)

    @cached_property
    def shapes(self) -> TrainState:
        """Shapes of the state."""
        return jax.eval_shape(self.init_state, adapters.shapes(self.model, self.workspace.lora))

    @cached_property
    def rest(self) -> Rest:
        """The part of the model's params that the stage does not train."""
        return base.rest(self.workspace, self.model)

    def params(self, state: TrainState) -> Params:
        """The model's params in a state: an adapter is put on its base."""
        return join(state.params, self.rest)

    @cached_property
    def shardings(self) -> TrainState:
        """Shardings of the state on the mesh of the run."""
        return sharding.state_shardings(
            self.model, self.shapes, self.optimizer, self.workspace.mesh
        )

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints of the stage in the run's directory."""
        return self.workspace.checkpoints(self.name)

    def init_state(self, params: Params) -> TrainState:
        """The state at version 0 on `params`, of which an adapter alone is trained."""
        return init_state(split(params)[0], self.optimizer)

    def newest_state(self) -> tuple[int, TrainState] | None:
        """The newest checkpoint that can be read. Raises as `runtime.supervised.newest_state`."""
        return supervised.newest_state(
            self.checkpoints, self.shapes, self.shardings, self.config.num_updates
        )

    def train(
        self,
        begin: tuple[int, TrainState] | None,
        init: Callable[[], TrainState],
        rows: Callable[[int], object],
        objective: Objective,
        aggregation: Aggregation,
        unit_rows: int = 1,
        on_resume: Callable[[int], object] | None = None,
        evaluate: Callable[[int, TrainState], object] | None = None,
        evaluate_at: Collection[int] = (),
    ) -> TrainState:
        """Runs the updates that are left, and closes the checkpoints.

        Args:
          begin: what `newest_state` returned.
          init: makes the state at version 0; not called where there is one to begin with.
          rows: of an update, by its number.
          objective: gives the loss summed over rows, and metrics.
          aggregation: names the denominator of the loss.
          unit_rows: rows that are never separated.
          on_resume: cuts the stage's records back to the next update, whose number it is given;
            None: its metrics are cut back.
          evaluate, evaluate_at: as in `runtime.supervised.train`.

        Raises KeyboardInterrupt after saving, where SIGINT or SIGTERM asked for it.
        """
        config, workspace, began = self.config, self.workspace, time.perf_counter()
        scalars = step_scalars(objective, self.optimizer)
        step = bound(
            train_step,
            objective=objective,
            optimizer=self.optimizer,
            aggregation=aggregation,
            unit_rows=unit_rows,
            num_micro_batches=config.num_micro_batches or 1,  # left open: not chosen here
            over_copies=copies_of(self.model, workspace.mesh),
        )
        compiled = distributed.compiled(
            sharding.keeping_rows(step, workspace.mesh),
            donate_argnums=0,
            out_shardings=(self.shardings, sharding.replicated(workspace.mesh)),
        )
        start = begin[0] if begin else 0
        rates, num_rows = StepRates(), 0

        def counted_rows(update: int) -> object:
            nonlocal num_rows
            made = rows(update)
            num_rows = jax.tree.leaves(made)[0].shape[0]
            return made

        def paused_evaluate(version: int, state: TrainState) -> None:
            assert evaluate is not None
            evaluate(version, state)
            rates.pause()

        with progress(self.title, total=config.num_updates, start=start) as bar:

            def report(update: int, metrics: Metrics) -> None:
                values = {name: metric.value() for name, metric in metrics.items()}
                tokens = getattr(metrics.get("entropy"), "count", None)
                speed = rates.step(num_rows, None if tokens is None else float(tokens))
                if (update + 1) % (config.checkpoint_every or config.num_updates) == 0:
                    rates.pause()
                workspace.metrics.write(
                    self.name, update, values | speed, time.perf_counter() - began
                )
                bar.advance(1, **{name: values[name] for name in self.shown})

            state = supervised.train(
                begin=begin,
                init=init,
                step=lambda state, rows: compiled(state, rows, scalars, self.rest),
                rows=counted_rows,
                num_updates=config.num_updates,
                checkpoints=self.checkpoints,
                checkpoint_every=config.checkpoint_every or config.num_updates,
                on_resume=on_resume or partial(workspace.metrics.resume, self.name),
                report=report,
                evaluate=None if evaluate is None else paused_evaluate,
                evaluate_at=evaluate_at,
            )
        self.checkpoints.close()
        return state
