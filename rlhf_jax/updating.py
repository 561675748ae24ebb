"""One update: gradients of a summed loss over micro-batches, divided once, then one step of the
optimizer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Literal, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.config import Bounds, Natural, NonNegative, Positive
from rlhf_jax.micro_batches import collapse, split_rows
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.adapters import Rest, join
from rlhf_jax.models.common.linear import reducing_gradients
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.once import once
from rlhf_jax.ops.optimizers import schedules
from rlhf_jax.ops.optimizers.adam import scale_by_adam
from rlhf_jax.ops.policy_gradient.consecutive_gradients import Remembered, cosine
from rlhf_jax.ops.policy_gradient.learning_rate_scale import ROW_SHARE, Scale
from rlhf_jax.ops.policy_gradient.minibatches import of_minibatch
from rlhf_jax.ops.scalars import Scalars, at, is_zero, scalars_of_function, scaled, through
from rlhf_jax.refusal import Refusal
from rlhf_jax.scoring import critic_outputs, policy_outputs
from rlhf_jax.types import (
    Aggregation,
    Array,
    Batch,
    EffectiveShare,
    Mean,
    Metric,
    Metrics,
    Outputs,
    Params,
    TrainState,
)


class Rows(Protocol):
    """Rows to train on: a pytree of arrays with R rows first, and of scalars."""

    @property
    def mask_RC(self) -> Array:
        """Bool, true on the tokens that count."""
        ...


RowsT = TypeVar("RowsT", bound=Rows)
Objective = Callable[[Params, RowsT], tuple[Array, Metrics]]
"""(params, rows) -> (loss summed over the rows, metrics)."""
Gradients = Callable[[Params, RowsT, tuple[Scalars, Rest]], tuple[Params, Array, Metrics]]
"""(params, rows, (scalars of the objective, params that are not trained)) -> (gradient of the summed
loss, summed loss, metrics)."""
Loss = Callable[[Outputs, Batch], tuple[Array, Metrics]]
"""(outputs, rows) -> (loss summed over the rows, metrics)."""
NO_SCALARS: Mapping[str, Scalars] = {}
SCALARS = (
    *("learning_rate", "epsilon", "weight_decay", "max_grad_norm"),
    *("beta1", "beta2", "new_weight1", "new_weight2"),
)
"""Numbers of `OptimizerConfig` that are arguments of compiled updates."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a schedule that counts updates.

    Defaults: betas, epsilon and no decay as Hugging Face's AdamW, linear decay, which the async
    RLHF code inherits (arXiv 2410.18252). Clipping at 1 is its GSM8K setting; 0 turns it off.
    """

    learning_rate: NonNegative = 3e-4  # 0 trains nothing: a control
    # The first two reach 0; for the last see `learning_rate_schedule`.
    schedule: Literal["linear", "cosine", "constant", "linear_by_round"] = "linear"
    warmup_updates: Natural = 0  # the rate rises linearly from 0 over these
    beta1: Annotated[float, Bounds(least=0, below=1)] = 0.9  # decay of the mean of gradients
    # decay of the mean of squared gradients
    beta2: Annotated[float, Bounds(least=0, below=1)] = 0.999
    epsilon: Positive = 1e-8  # added to the denominator of a step
    weight_decay: NonNegative = 0.0  # decoupled, as AdamW has it
    # All params, as optax has it, or no decay of norms, biases and embeddings, as others do.
    decay_on: Literal["all", "matrices"] = "all"
    # gradients with a larger global norm are scaled down; 0: none are
    max_grad_norm: NonNegative = 1.0

    @cached_property
    def new_weight1(self) -> float:
        """1 - beta1 in float64. In float32 it would differ by as much as 1e-5 of its value."""
        return 1 - self.beta1

    @cached_property
    def new_weight2(self) -> float:
        """1 - beta2 in float64."""
        return 1 - self.beta2


@dataclass(frozen=True)
class Horizon:
    """Optimizer of a run of so many updates.

    Attributes:
      config: AdamW and its schedule.
      warmup: updates of the warmup.
      decay: updates after it.
      updates_per_round: of the schedule "linear_by_round".
    """

    config: OptimizerConfig
    warmup: float
    decay: float
    updates_per_round: int = 1

    @classmethod
    def of(cls, config: OptimizerConfig, num_updates: int, updates_per_round: int) -> "Horizon":
        """The optimizer of a run of `num_updates` updates, warmup included."""
        decay = max(1, num_updates - config.warmup_updates)
        return cls(config, config.warmup_updates, decay, updates_per_round)


def learning_rate_schedule(
    config: OptimizerConfig, num_updates: int, updates_per_round: int = 1
) -> optax.Schedule:
    """Learning rate as a function of updates done; linear and cosine reach 0 after `num_updates`.

    "linear_by_round" is linear as the async RLHF code steps it, once a round and before it: the
    last round trains at 0, and the mean over n rounds is (n − 1) / 2n of the learning rate.

    Args:
      config: schedule, learning rate and warmup.
      num_updates: of the whole run, warmup included.
      updates_per_round: of "linear_by_round".

    Raises Refusal for an unknown schedule.
    """
    return _schedule(Horizon.of(config, num_updates, updates_per_round))


def _schedule(horizon: Horizon) -> optax.Schedule:
    config, per_round = horizon.config, horizon.updates_per_round
    rate = config.learning_rate
    linear = schedules.linear(rate, horizon.decay)
    after = {
        "linear": linear,
        "cosine": schedules.cosine(rate, horizon.decay),
        "constant": optax.constant_schedule(rate),
        "linear_by_round": lambda step: linear((step // per_round + 1) * per_round),
    }
    if config.schedule not in after:
        raise Refusal(
            f"optimizer.schedule is {config.schedule!r}; accepted: {', '.join(sorted(after))}"
        )
    chosen = after[config.schedule]
    return chosen if is_zero(horizon.warmup) else schedules.warmed(rate, horizon.warmup, chosen)


def check_schedule(
    config: OptimizerConfig, where: str, num_updates: int, updates_per_round: int = 1
) -> None:
    """Raises Refusal for a learning rate that is never reached, or 0 in every update, over a run of
    `num_updates` updates.

    Args:
      config: whose schedule is meant.
      where: its dotted key, for messages.
      num_updates: of the run.
      updates_per_round: of "linear_by_round".
    """
    if config.warmup_updates >= num_updates:
        raise Refusal(
            f"{where}.warmup_updates is {config.warmup_updates}, but there are {num_updates} "
            "updates: none would have the "
            f"learning rate; accepted: 0 to {num_updates - 1}"
        )
    if config.schedule == "linear_by_round" and num_updates <= updates_per_round:
        raise Refusal(
            f"{where}.schedule is 'linear_by_round', whose last round has the learning rate 0, but "
            "there is one round; "
            "accepted: two rounds or more, or another schedule"
        )


@once
def make_optimizer(
    config: OptimizerConfig, num_updates: int, updates_per_round: int = 1
) -> optax.GradientTransformation:
    """The optimizer of `config`, whose `SCALARS` a compiled update takes as arguments, with the
    lengths of its schedule.

    Args:
      config: AdamW and its schedule.
      num_updates: of the run.
      updates_per_round: of the schedule "linear_by_round".

    Raises:
      Refusal: the schedule or `decay_on` is not one of those that are accepted.
    """
    horizon = Horizon.of(config, num_updates, updates_per_round)
    names = ("warmup", "decay", *(f"config.{name}" for name in SCALARS))
    return _adamw(horizon)._replace(
        update=scaled(lambda horizon: _adamw(horizon).update, horizon, names)
    )


def _adamw(horizon: Horizon) -> optax.GradientTransformation:
    """`optax.adamw`, and clipping before it."""
    config = horizon.config
    if config.decay_on not in ("all", "matrices"):
        raise Refusal(f"optimizer.decay_on is {config.decay_on!r}; accepted: all, matrices")
    mask = None if config.decay_on == "all" else matrices
    betas = config.beta1, config.beta2
    adamw = optax.chain(
        scale_by_adam(betas, (config.new_weight1, config.new_weight2), config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask),
        optax.scale_by_learning_rate(_schedule(horizon)),
    )
    if is_zero(config.max_grad_norm):
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adamw)


def matrices(params: Params) -> Mapping[str, object]:
    """A tree of bools: True for kernels, False for norms, biases and embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and path[-1].key == "kernel", params
    )


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state at version 0.

    Args:
      params: kept as they are, without a copy.
      optimizer: whose state is begun on `params`.
    """
    return TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params))


def denominator(mask_RC: Array, aggregation: Aggregation, counted_R: Array | None = None) -> Array:
    """Divisor of the summed loss of a whole minibatch, float32: see `types.Algorithm`.

    Args:
      mask_RC: bool, of the whole minibatch.
      aggregation: number of tokens (at least 1), rows, pairs (R / 2), or R * C.
      counted_R: 1 for the rows that count and 0 for the others; None: all of them count. At least
        one row or token is counted, so that a minibatch without any has loss 0.
    """
    num_rows, length = mask_RC.shape
    if counted_R is not None:
        mask_RC = mask_RC & (counted_R[:, None] > 0)
        num_rows = jnp.maximum(jnp.sum(counted_R, dtype=jnp.float32), 1.0)
    counts = {
        "token": jnp.maximum(mask_RC.sum(dtype=jnp.float32), 1.0),
        "sequence": jnp.float32(num_rows),
        "pair": jnp.float32(num_rows / 2),
        "constant_length": jnp.float32(num_rows * length),
    }
    return counts[aggregation]


@once
def policy_objective(loss: Loss, model: Model, rows_per_prompt: int = 1) -> Objective[Batch]:
    """The objective of a policy: the model's outputs on the rows, then the algorithm's loss.

    Args:
      loss: of the algorithm, `(outputs, batch) -> (sum, metrics)`.
      model: of the policy.
      rows_per_prompt: rows come in groups of this size, each of one prompt, which is run once.
    """

    def objective_of(loss: Loss) -> Objective[Batch]:
        def objective(params: Params, batch: Batch) -> tuple[Array, Metrics]:
            rows = (batch.prompt_tokens_RQ, batch.prompt_mask_RQ, batch.tokens_RC, batch.mask_RC)
            outputs = policy_outputs(
                params, *rows, batch.temperature, model=model, rows_per_prompt=rows_per_prompt
            )
            return loss(outputs, batch)

        return reducing_gradients(objective, model)

    return through(loss, objective_of)


@once
def critic_objective(loss: Loss, model: ValueModel, rows_per_prompt: int = 1) -> Objective[Batch]:
    """The objective of a critic: its values on the rows, then the algorithm's loss.

    Args:
      loss: of the algorithm, `(outputs, batch) -> (sum, metrics)`.
      model: of the critic.
      rows_per_prompt: as in `policy_objective`.
    """

    def objective_of(loss: Loss) -> Objective[Batch]:
        def objective(params: Params, batch: Batch) -> tuple[Array, Metrics]:
            rows = (batch.prompt_tokens_RQ, batch.prompt_mask_RQ, batch.tokens_RC, batch.mask_RC)
            return loss(
                critic_outputs(params, *rows, model=model, rows_per_prompt=rows_per_prompt), batch
            )

        return reducing_gradients(objective, model)

    return through(loss, objective_of)


def summed_gradients(
    params: Params,
    batch: RowsT,
    objective: Objective[RowsT],
    num_micro_batches: int,
    unit_rows: int,
) -> tuple[Params, Array, Metrics]:
    """Accumulates the gradient of a summed loss over micro-batches in a scan.

    Args:
      params: of the role.
      batch: rows of a minibatch.
      objective: gives the loss *summed* over rows.
      num_micro_batches: divides the groups of rows; 1: no scan.
      unit_rows: rows that are never separated.

    Returns: the gradient of the summed loss, the summed loss, and the objective's metrics.
    """
    gradient = jax.value_and_grad(objective, has_aux=True)
    if num_micro_batches == 1:
        (loss, metrics), grads = gradient(params, batch)
        return grads, loss, metrics
    micro_batches = split_rows(batch, num_micro_batches, unit_rows)

    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], micro_batches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[1], shapes[0][0]))

    def accumulate(
        sums: tuple[Params, Array], micro_batch: RowsT
    ) -> tuple[tuple[Params, Array], Metrics]:
        (loss, metrics), grads = gradient(params, micro_batch)
        return (jax.tree.map(jnp.add, sums[0], grads), sums[1] + loss), metrics

    (grads, loss), stacked = jax.lax.scan(accumulate, zeros, micro_batches)
    return grads, loss, collapse(stacked)


def step_scalars(
    objective: Callable[..., object],
    optimizer: optax.GradientTransformation,
    scale: Scale | None = None,
) -> dict[str, dict[str, float]]:
    """The numbers of an update that a compiled `train_step` takes as its argument `scalars`.

    Args:
      objective: of the update, or the loss that it is made of.
      optimizer: of the update.
      scale: of the update.
    """
    scalars = {
        "objective": scalars_of_function(objective),
        "optimizer": scalars_of_function(optimizer.update),
    }
    return scalars if scale is None else scalars | {"scale": scalars_of_function(scale)}


def on_rest(objective: Objective[RowsT], rest: Rest) -> Objective[RowsT]:
    """An objective of the trained part of params.

    Args:
      objective: of whole params.
      rest: the other part, which gets no gradient.
    """
    if rest is None:
        return objective
    return lambda trained, rows: objective(join(trained, rest), rows)


def train_step(
    state: TrainState,
    batch: RowsT,
    scalars: Mapping[str, Scalars] = NO_SCALARS,
    rest: Rest = None,
    *,
    objective: Objective[RowsT],
    optimizer: optax.GradientTransformation,
    aggregation: Aggregation,
    unit_rows: int = 1,
    num_micro_batches: int = 1,
    scale: Scale | None = None,
    over_copies: Callable[[Gradients[RowsT]], Gradients[RowsT]] | None = None,
) -> tuple[TrainState, dict[str, Metric]]:
    """One update of a role on one minibatch.

    Args:
      batch: a pytree with `mask_RC`, arrays of R rows, and scalars.
      scalars: numbers of objective and optimizer, as `step_scalars` gives them; without them these
        numbers are constants of the compiled program.
      rest: the part of the role's params that no update changes, such as the base of an adapter:
        see `models.common.adapters.split`.
      objective: gives the loss *summed* over rows.
      aggregation: names the minibatch's denominator, by which the sum is divided once, whatever
        `num_micro_batches` is.
      over_copies: wraps the function that gives the gradients, where copies of the params are on
        several hosts: see `devices.copies`. None: the compiler sums over all devices.
      scale: gives a factor of the update from the metric `row_ess_share` of the whole minibatch,
        which the objective has: see `with_row_share`. None: updates are not scaled.

    Returns: the state at version step + 1, and metrics: the objective's, and loss, grad_norm,
    update_norm; with `scale` also learning_rate_scale; with an optimizer of `remembering` also
    gradient_cosine.
    """
    if isinstance(batch, Batch):
        batch = of_minibatch(batch, state.step)
    update = at(optimizer.update, scalars.get("optimizer", {}))

    def gradients(
        params: Params, rows: RowsT, constants: tuple[Scalars, Rest]
    ) -> tuple[Params, Array, Metrics]:
        of_rows = on_rest(at(objective, constants[0]), constants[1])
        return summed_gradients(params, rows, of_rows, num_micro_batches, unit_rows)

    summed = gradients if over_copies is None else over_copies(gradients)
    constants = (scalars.get("objective", {}), rest)
    grads, loss_sum, metrics = summed(state.params, batch, constants)
    count = denominator(batch.mask_RC, aggregation, getattr(batch, "counted_R", None))
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, opt_state = update(grads, state.opt_state, state.params)
    one, extra = jnp.float32(1.0), {}
    if isinstance(state.opt_state, Remembered):
        extra["gradient_cosine"] = cosine(grads, state.opt_state.last)
    if scale is not None:
        weights = metrics[ROW_SHARE]
        assert isinstance(weights, EffectiveShare)
        factor = at(scale, scalars.get("scale", {}))(weights, state.step)
        updates = jax.tree.map(lambda u: (factor * u).astype(u.dtype), updates)
        extra["learning_rate_scale"] = Mean(factor, one)
    params = optax.apply_updates(state.params, updates)
    extra |= {
        "loss": Mean(loss_sum, count),
        "grad_norm": Mean(optax.tree.norm(grads), one),
        "update_norm": Mean(optax.tree.norm(updates), one),
    }
    trained = replace(state, step=state.step + 1, params=params, opt_state=opt_state)
    return trained, {**metrics, **extra}
