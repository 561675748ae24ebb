"""Calls a task's methods and checks their results, because a task may be a user's own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_jax.refusal import ComponentError, at_fault
from rlhf_jax.tasks.api import Split, Task


def num_prompts(task: Task, split: Split) -> int:
    """Returns the number of distinct prompts of a split.

    Args:
      task: to read.
      split: "train" or "heldout".

    Raises:
      ComponentError: for an exception of the task's own code, and for a result that is no whole
        number.
    """
    count = _asked(task, "num_prompts", split)
    if isinstance(count, bool) or not hasattr(count, "__index__") or count < 0:
        raise ComponentError(_wrong(task, "num_prompts", (split,), count, "a whole number"))
    return int(count)


def prompt(task: Task, split: Split, index: int) -> str:
    """Returns a prompt's text.

    Args:
      task: to read.
      split: "train" or "heldout".
      index: of the prompt in the split.

    Raises:
      ComponentError: for an exception of the task's own code, and for a result that is no text or
        an empty one.
    """
    return _prompt(task, split, index, _asked(task, "prompt", split, index))


def prompts(task: Task, split: Split) -> Iterator[str]:
    """Yields the texts of all prompts of a split, in order.

    Args:
      task: to read.
      split: "train" or "heldout".

    Raises:
      ComponentError: as `prompt`.
    """
    index = 0

    def call() -> str:
        return f" in {_call('prompt', (split, index))}"

    # One block for all calls: to enter one for each takes as long as the call.
    with at_fault(f"the task {type(task).__name__}", when=call):
        for index in range(num_prompts(task, split)):
            yield _prompt(task, split, index, task.prompt(split, index))


def _prompt(task: Task, split: Split, index: int, text: Any) -> str:
    if not isinstance(text, str) or not text:
        raise ComponentError(
            _wrong(task, "prompt", (split, index), text, "a text that is not empty")
        )
    return text


def references(task: Task, split: Split, index: int) -> tuple[str, ...]:
    """Returns a prompt's references.

    Args:
      task: to read.
      split: "train" or "heldout".
      index: of the prompt in the split.

    Raises:
      ComponentError: for an exception of the task's own code, and for a result that is no tuple or
        list of texts.
    """
    texts = _asked(task, "references", split, index)
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ComponentError(_wrong(task, "references", (split, index), texts, "a tuple of texts"))
    return tuple(texts)


def reference(task: Task, split: Split, index: int, number: int) -> str | None:
    """Returns one of a prompt's references, without making the others if the task has `reference`.

    Args:
      task: to read.
      split: of the prompt.
      index: of the prompt in the split.
      number: from 0; past the last reference it begins again with the first.

    Returns None for a prompt without references.

    Raises:
      ComponentError: for an exception of the task's own code, and for a result that is no text.
    """
    if not hasattr(task, "reference"):
        texts = references(task, split, index)
        return texts[number % len(texts)] if texts else None
    text = _asked(task, "reference", split, index, number)
    if text is not None and not isinstance(text, str):
        raise ComponentError(_wrong(task, "reference", (split, index, number), text, "a text"))
    return text


def record(task: Task, split: Split, index: int) -> Mapping[str, Any]:
    """Returns the fields of a prompt's row: see `tasks.api.Task`.

    Args:
      task: to read.
      split: "train" or "heldout".
      index: of the prompt in the split.

    Raises:
      ComponentError: for an exception of the task's own code, and for a result that is no mapping.
    """
    if not hasattr(task, "record"):
        return {"references": references(task, split, index)}
    fields = _asked(task, "record", split, index)
    if not isinstance(fields, Mapping):
        raise ComponentError(_wrong(task, "record", (split, index), fields, "a mapping of fields"))
    return fields


def comparisons(task: Task, split: Split) -> Sequence[tuple[str, str, str]]:
    """Returns (prompt, chosen, rejected) of a split; none if the task has no `comparisons`.

    Args:
      task: to read.
      split: "train" or "heldout".

    Raises:
      ComponentError: for an exception of the task's own code, and for an entry that is not three
        texts.
    """
    if not hasattr(task, "comparisons"):
        return []
    pairs = _asked(task, "comparisons", split)
    for index, pair in enumerate(pairs):
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 3
            or not all(isinstance(text, str) for text in pair)
        ):
            accepted = "(prompt, chosen, rejected), texts"
            raise ComponentError(
                f"{_wrong(task, 'comparisons', (split,), pair, accepted)} (entry {index})"
            )
    return pairs


def _asked(task: Task, method: str, split: Split, *index: int) -> Any:
    arguments = (split, *map(int, index))

    def call() -> str:
        return f" in {_call(method, arguments)}"

    # A run reads every prompt of a task: the text of the call is written for an error alone.
    with at_fault(f"the task {type(task).__name__}", when=call):
        return getattr(task, method)(*arguments)


def _call(method: str, arguments: Sequence[Any]) -> str:
    return f"{method}({', '.join(map(repr, arguments))})"


def _wrong(task: Task, method: str, arguments: Sequence[Any], given: object, accepted: str) -> str:
    plain = [argument if isinstance(argument, str) else int(argument) for argument in arguments]
    return f"the task {type(task).__name__}: {_call(method, plain)} gave {given!r:.60}; accepted: {accepted}"
