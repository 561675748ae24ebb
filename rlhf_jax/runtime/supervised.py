"""The loop of a stage that learns from given rows (sft, reward_model): update, report, save,
resume.
"""

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from rlhf_jax.devices import distributed
from rlhf_jax.records.checkpoints import Checkpoints, abstract_like
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.stopping import asked_to_stop
from rlhf_jax.types import Metrics, TrainState

AGREE_EVERY = 8
Rows = TypeVar("Rows")
Report = Callable[[int, Metrics], None]
"""(update, metrics on the host) -> None; called in order, one update late."""


def newest_state(
    checkpoints: Checkpoints, shapes: TrainState, shardings: TrainState, num_updates: int
) -> tuple[int, TrainState] | None:
    """The newest readable checkpoint of a stage, as its number of updates and its state; None for a
    stage without a checkpoint; collective.

    Of a stage that has made all of its updates the optimizer is not read: `opt_state` is ().

    Args:
      checkpoints: of the stage.
      shapes: of its state.
      shardings: of its state.
      num_updates: of the whole stage.

    Raises Refusal where there are checkpoints and none can be read, or one has more updates than
    the stage.
    """
    newest, stage = checkpoints.latest(), checkpoints.directory.name
    if newest is not None and newest > num_updates:
        raise Refusal(
            f"{checkpoints.directory} has {newest} updates, but {stage}.num_updates is "
            f"{num_updates}: it was made with another "
            f"config; accepted: {stage}.num_updates={newest}, or a directory without it"
        )
    whole = abstract_like(shapes, shardings)

    def read(step: int) -> TrainState:
        if step < num_updates:
            return checkpoints.restore(step, whole)
        wanted = {"step": whole.step, "params": whole.params}
        return TrainState(**checkpoints.restore_part(step, wanted), opt_state=())  # type: ignore[arg-type]

    return checkpoints.newest(read)


def train(
    begin: tuple[int, TrainState] | None,
    init: Callable[[], TrainState],
    step: Callable[[TrainState, Rows], tuple[TrainState, Metrics]],
    rows: Callable[[int], Rows],
    num_updates: int,
    checkpoints: Checkpoints,
    checkpoint_every: int,
    on_resume: Callable[[int], object],
    report: Report,
    evaluate: Callable[[int, TrainState], object] | None = None,
    evaluate_at: Collection[int] = (),
) -> TrainState:
    """Runs updates up to `num_updates`.

    Args:
      begin: the result of `newest_state`: the number of updates that are done, and the state.
      init: makes the state at version 0.
      step: one compiled update, donating the state.
      rows: the rows of an update, a function of its number alone, so that a resumed run sees the
        same rows.
      num_updates: of the whole stage.
      checkpoints: of the stage.
      checkpoint_every: updates between two checkpoints; the last update has one, too.
      on_resume: is called with the number of the next update, before anything is reported.
      report: is called with every update.
      evaluate: is called with these versions and their states, after their updates are reported and
        before their checkpoints are written; collective.
      evaluate_at: the versions, from 1.

    Any of several processes may be asked to stop. They agree on it every `AGREE_EVERY` updates;
    `step` and `rows` are collective. In a single process the next update's rows are made in a
    thread while the devices compute this one.

    Raises KeyboardInterrupt after saving, where SIGINT or SIGTERM asked for it.
    """
    first, state = begin or (0, init())
    checkpoints.set_aside_after(first)
    on_resume(first)
    try:
        with asked_to_stop() as asked, ahead(rows, num_updates) as take:
            late: tuple[int, Metrics] | None = None
            for update in range(first, num_updates):
                state, metrics = step(state, take(update))
                if late is not None:
                    report(late[0], distributed.fetch(late[1]))
                late = (update, metrics)
                done, stopping = update + 1, _stopping(update + 1, asked)
                saved = stopping or done % checkpoint_every == 0 or done == num_updates
                evaluated = evaluate is not None and done in evaluate_at
                if saved or evaluated:
                    report(update, distributed.fetch(metrics))
                    late = None
                if evaluate is not None and evaluated:
                    evaluate(done, state)
                if saved:
                    checkpoints.save(done, state)
                if stopping:
                    raise KeyboardInterrupt
    finally:
        checkpoints.wait()  # an interrupt must not tear down the threads of a save under way
    return state


@contextmanager
def ahead(rows: Callable[[int], Rows], num_updates: int) -> Iterator[Callable[[int], Rows]]:
    """`rows` that makes the next update's rows in a thread once it has given those of an update.

    With several processes `rows` itself: it is collective, and collectives of two threads may come
    in another order in another process.

    Args:
      rows: of an update, a function of its number alone. What it raises comes out where the rows
        are asked for.
      num_updates: of the whole stage.
    """
    if distributed.several():
        yield rows
        return
    pool, futures = ThreadPoolExecutor(1, "rows"), dict[int, Future[Rows]]()

    def take(update: int) -> Rows:
        current = (futures.pop(update, None) or pool.submit(rows, update)).result()
        if update + 1 < num_updates:
            futures[update + 1] = pool.submit(rows, update + 1)
        return current

    try:
        yield take
    finally:
        pool.shutdown(cancel_futures=True)


def _stopping(done: int, asked: Callable[[], bool]) -> bool:
    """True where any process was asked to stop.

    A process that stopped alone would leave the others in a collective.
    """
    if not distributed.several():
        return asked()
    return done % AGREE_EVERY == 0 and any(distributed.all_gather(asked()))
