"""The way from the command to an update is short: a reader of a traceback sees what runs what."""

import dataclasses
import traceback
from pathlib import Path

from rlhf_jax.cli import run
from rlhf_jax.runtime import calls, supervised
from tests.stages import runs

MOST_FRAMES = 8
OURS = tuple(str(Path(__file__).parents[2] / folder) for folder in ("rlhf_jax", "experiments"))


def frames() -> list[str]:
    """Our functions between the command's `main` and the place that dispatches an update."""
    stack = [frame.name for frame in traceback.extract_stack() if frame.filename.startswith(OURS)]
    return stack[stack.index("main") + 1 :]


def test_few_frames_between_the_command_and_an_update(tmp_path, monkeypatch):
    """Of both kinds: the first of all, which is supervised, and the first of RLHF."""
    stacks: dict[str, list[str]] = {}
    update, train = calls.update, supervised.train

    def counted_update(*arguments):
        call = update(*arguments)

        def dispatch(*given):
            stacks.setdefault("rlhf", frames())
            return call.function(*given)

        dispatch.lower = call.function.lower  # type: ignore[attr-defined]
        return dataclasses.replace(call, function=dispatch)

    def counted_train(begin, init, step, *others, **named):
        def dispatch(*given):
            stacks.setdefault("supervised", frames())
            return step(*given)

        return train(begin, init, dispatch, *others, **named)

    monkeypatch.setattr(calls, "update", counted_update)
    monkeypatch.setattr(supervised, "train", counted_train)
    sizes = runs.SIZES | {
        "rlhf.total_prompts": 4,
        "rlhf.evaluate_every": 0,
        "rlhf.checkpoint_every": 0,
    }
    overrides = [f"--config.{key}={value}" for key, value in sizes.items() if key != "best_of_n"]
    run.main(
        ["", "--config=configs/quickstart.py", f"--config.directory={tmp_path / 'run'}", *overrides]
    )
    assert stacks.keys() == {"rlhf", "supervised"}
    assert all(1 < len(stack) <= MOST_FRAMES for stack in stacks.values()), stacks
    assert stacks["rlhf"][-3:] == ["run", "train_round", "update"]
