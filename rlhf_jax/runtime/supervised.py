"""The loop of a stage that learns from given rows (sft, reward_model): update, report, save,
resume.
"""

from collections.abc import Callable
from typing import Any

from rlhf_jax.devices import distributed
from rlhf_jax.records.checkpoints import Checkpoints, abstract_like
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.stopping import asked_to_stop
from rlhf_jax.types import Metrics, TrainState

AGREE_EVERY = 8
Report = Callable[[int, Metrics], None]
"""(update, metrics on the host) -> None; called in order, one update late."""


def resumed(
    checkpoints: Checkpoints, shapes: TrainState, shardings: TrainState, num_updates: int
) -> tuple[int, TrainState] | None:
    """The newest checkpoint of a stage that can be read, and its state; None where there is none;
    collective.

    Raises Refusal where there are checkpoints and none can be read, or one of more updates than the
    stage has.
    """
    newest, stage = checkpoints.latest(), checkpoints.directory.name
    if newest is not None and newest > num_updates:
        raise Refusal(
            f"{checkpoints.directory} has {newest} updates, but {stage}.num_updates is "
            f"{num_updates}: it was made with another "
            f"config; accepted: {stage}.num_updates={newest}, or a directory without it"
        )
    return checkpoints.newest(
        lambda step: checkpoints.restore(step, abstract_like(shapes, shardings))
    )


def train(
    begin: tuple[int, TrainState] | None,
    init: Callable[[], TrainState],
    step: Callable[[TrainState, Any], tuple[TrainState, Any]],
    rows: Callable[[int], Any],
    num_updates: int,
    checkpoints: Checkpoints,
    checkpoint_every: int,
    on_resume: Callable[[int], object],
    report: Report,
) -> TrainState:
    """Runs updates up to `num_updates`.

    Args:
      begin: what `resumed` has found: the updates that are done, and the state.
      init: makes the state at version 0; not called where there is one to begin with.
      step: one compiled update, donating the state.
      rows: the rows of an update, a function of its number alone, so that a resumed run sees the
        same.
      on_resume: is told the update that comes next, before anything is reported.

    Of several processes any may be asked to stop; they agree on it every `AGREE_EVERY` updates, and
    `step` and `rows` are collective.

    Raises KeyboardInterrupt after saving, where SIGINT or SIGTERM asked for it.
    """
    first, state = begin or (0, init())
    checkpoints.set_aside_after(first)
    on_resume(first)
    try:
        with asked_to_stop() as asked:
            late: tuple[int, Any] | None = None
            for update in range(first, num_updates):
                state, metrics = step(state, rows(update))
                if late is not None:
                    report(late[0], distributed.fetch(late[1]))
                late = (update, metrics)
                done, stopping = update + 1, _stopping(update + 1, asked)
                if stopping or done % checkpoint_every == 0 or done == num_updates:
                    report(update, distributed.fetch(metrics))
                    late = None
                    checkpoints.save(done, state)
                if stopping:
                    raise KeyboardInterrupt
    finally:
        checkpoints.wait()  # an interrupt must not tear down the threads of a save under way
    return state


def _stopping(done: int, asked: Callable[[], bool]) -> bool:
    """True where any process was asked to stop; one that stops alone would leave the others in a
    collective.
    """
    if not distributed.several():
        return asked()
    return done % AGREE_EVERY == 0 and any(distributed.everyone(asked()))
