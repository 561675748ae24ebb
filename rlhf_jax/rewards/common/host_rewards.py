"""The door of rewards on text: calls a user's function with what it asks for, and checks what it
gives, once.
"""

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax import registry
from rlhf_jax.refusal import Refusal, RewardError, at_fault
from rlhf_jax.rewards.api import OwnReward, is_asked_once
from rlhf_jax.tasks.api import Task

GIVEN = ("prompts", "completions", "finished", "records", "config")
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
TEXT_SHOWN = 120  # characters of a prompt or a completion in a message
VALUE_SHOWN = 40


@dataclass(frozen=True)
class HostJudge:
    """A reward on text: its function, and the names of what that takes; (): three by their places."""

    name: str
    function: OwnReward
    takes: tuple[str, ...]
    config: object
    asked_once: bool = False  # its answers are to be kept: see `rewards/api.py`

    @property
    def wants_finished(self) -> bool:
        """True where the function takes whether a completion had an EOS."""
        return not self.takes or "finished" in self.takes

    @property
    def wants_records(self) -> bool:
        """True where the function takes the fields of the rows."""
        return "records" in self.takes

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        finished: Sequence[bool],
        records: Sequence[Mapping[str, Any]],
        when: str,
    ) -> np.ndarray:
        """Scores of completions. The function is given copies: it may change its arguments.

        Args:
          prompts: of each completion; `finished` and `records` alike, the latter empty where they
            are not wanted.
          when: the call, as a message goes on: " in round 3".

        Returns float32 `[B]`, finite.

        Raises RewardError for what the function raises, and for a result that is not one finite
        number a completion.
        """
        who = f"the reward {self.name}"
        # What a function changes in its arguments must reach neither the next reward nor the ledger.
        # Samples of one prompt share its record, and rounds share what the record holds.
        lists = [list(prompts), list(completions), list(finished)]
        given: dict[str, Any] = dict(zip(GIVEN, (*lists, records, self.config), strict=True))
        if self.wants_records:
            given["records"] = [copy.deepcopy(record) for record in records]
        try:
            with at_fault(who, RewardError, when):
                named = {name: given[name] for name in self.takes}
                values = self.function(**named) if self.takes else self.function(*lists)
        except RewardError as error:
            if str(error).startswith(who):
                raise
            raise RewardError(
                f"{error} ({who[4:]}{when})"
            ) from error.__cause__  # of a judge that it asks
        texts = list(zip(prompts, completions, strict=True))
        return numbers(who, values, len(completions), texts.__getitem__, when).astype(np.float32)


def make(name: str, task: Task, config: object) -> HostJudge:
    """The reward that a name means.

    Args:
      name: as `registry.find` takes it.
      task: given to a factory `make(task, config)`.
      config: settings of the class that `registry.settings` says.

    Raises as `registry.entry`; Refusal for a function whose parameters are not those of a reward.
    """
    made_by = registry.entry("rewards", name)
    if not is_factory(made_by):
        return HostJudge(name, made_by, parameters(name, made_by), config, is_asked_once(made_by))
    count = len([p for p in inspect.signature(made_by).parameters.values() if p.kind in POSITIONAL])
    with at_fault(f"making the reward {name}", RewardError):
        function = made_by(*(task, config)[:count])
    if not callable(function):
        raise Refusal(f"the reward {name} makes a {type(function).__name__}; accepted: a function")
    once = is_asked_once(function) or is_asked_once(made_by)
    return HostJudge(name, function, parameters(name, function), config, once)


def is_factory(function: Callable[..., Any]) -> bool:
    """True for `make(task, config)`, False for the reward itself."""
    signature = list(inspect.signature(function).parameters.values())
    named = {parameter.name for parameter in signature}
    required = [p for p in signature if p.kind in POSITIONAL and p.default is p.empty]
    return (
        "completions" not in named
        and len(required) < 3
        and not any(p.kind is p.VAR_KEYWORD for p in signature)
    )


def parameters(name: str, function: OwnReward) -> tuple[str, ...]:
    """Names of the arguments that a reward is called with.

    Args:
      name: of the reward, for the message.
      function: the reward.

    Returns names of `GIVEN`, in the function's order. (): three positional arguments of other
    names. A function with `**kwargs` is given all but the config.

    Raises Refusal for any other signature.
    """
    signature = list(inspect.signature(function).parameters.values())
    required = [
        p.name
        for p in signature
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if any(p.kind is p.VAR_KEYWORD for p in signature) and set(required) <= set(GIVEN):
        return GIVEN[:4]
    if set(required) <= set(GIVEN) and "completions" in required:
        return tuple(p.name for p in signature if p.name in GIVEN)
    if len(required) == 3 and all(p.kind in POSITIONAL for p in signature if p.name in required):
        return ()
    raise Refusal(
        f"the reward {name} takes ({', '.join(p.name for p in signature)}); accepted: completions "
        f"and any of {', '.join(GIVEN)}"
    )


def judge(
    task: Task, prompts: Sequence[str], completions: Sequence[str], finished: Sequence[bool]
) -> np.ndarray:
    """Gold scores by the judge of a task, float64 `[B]`, finite.

    Args:
      task: that judges.
      prompts: B texts.
      completions: B texts, without the EOS.
      finished: B times, True where an EOS was sampled.

    Raises RewardError for what the judge raises, and for anything but a finite number; Refusal of
    the judge as it is.
    """
    who = f"the gold judge of the task {type(task).__name__}"
    scores = []
    for prompt, completion, end in zip(prompts, completions, finished, strict=True):
        with at_fault(
            who, RewardError, f" on prompt {short(prompt)} and completion {short(completion)}"
        ):
            scores.append(task.judge(prompt, completion, bool(end)))
    return numbers(
        who, _objects(scores), len(scores), lambda index: (prompts[index], completions[index])
    )


def numbers(
    who: str,
    values: object,
    count: int,
    texts: Callable[[int], tuple[str, str]] | None = None,
    when: str = "",
) -> np.ndarray:
    """A component's scores as one finite number a completion.

    Args:
      who: the component, as the message begins.
      values: a list, a tuple or an array, of numbers or booleans.
      count: how many there must be.
      texts: gives a completion's prompt and text, for the message.
      when: the call, as the message goes on: " in round 3".

    Returns float64 `[B]`; each is finite as float32 too.

    Raises RewardError that says how many were given for how many completions, and for an entry that
    is no finite number its index, prompt and completion.
    """
    wanted = f"accepted: {count} finite numbers, one for each completion"
    values = list(values) if isinstance(values, Iterator) else values
    if inspect.isawaitable(values) or inspect.isasyncgen(values):
        if inspect.iscoroutine(values):
            values.close()  # Python warns of one that nobody has awaited
        raise RewardError(
            f"{who} gave {_kind(values)} for {count} completions{when}; {wanted}, of a function "
            "without `async`: call asyncio.run in it"
        )
    if values is None or isinstance(values, (str, bytes, Mapping, Set)):
        raise RewardError(f"{who} gave {_kind(values)} for {count} completions{when}; {wanted}")
    array = _array(values)
    if array is None or array.shape != (count,):
        raise RewardError(
            f"{who} gave {_shape(values, array)} for {count} completions{when}; {wanted}"
        )
    listed = (
        [_number(value) for value in array.tolist()] if array.dtype == object else _numbers(array)
    )
    if listed is None:
        raise RewardError(
            f"{who} gave an array of {array.dtype} for {count} completions{when}; {wanted}"
        )
    wide_B = np.array([np.nan if value is None else value for value in listed], np.float64)
    with np.errstate(over="ignore"):
        wrong = np.flatnonzero(~np.isfinite(wide_B.astype(np.float32)))
    if wrong.size:
        first = int(wrong[0])
        shown = repr(array.tolist()[first])[:VALUE_SHOWN]
        raise RewardError(
            f"{who} gave {shown} for {completion(first, count, texts, when, wrong.size)}; {wanted}"
        )
    return wide_B


def completion(
    index: int,
    count: int,
    texts: Callable[[int], tuple[str, str]] | None,
    when: str,
    num_wrong: int,
) -> str:
    """The part of a message that names the first of `num_wrong` completions without a finite
    number; see `numbers`.
    """
    shown = "" if texts is None else ": prompt {}, completion {}".format(*map(short, texts(index)))
    return f"completion {index} of {count}{when} ({num_wrong} in all are no finite number){shown}"


def short(text: str) -> str:
    """A text as a message shows it, on one line."""
    shown = json.dumps(text, ensure_ascii=False)
    return shown if len(shown) <= TEXT_SHOWN else f"{shown[: TEXT_SHOWN - 4]}...{shown[-1]}"


def _array(values: Any) -> np.ndarray | None:
    """Values as an array, of objects where they are no plain numbers; None where numpy cannot read
    them as a rectangle.
    """
    if np.ma.is_masked(values):
        values = values.tolist()  # None where an entry is masked
    is_list = isinstance(values, (list, tuple)) and not all(_is_plain(value) for value in values)
    if is_list and not any(np.ndim(_host(value)) for value in values):
        return _objects(values)
    array = _host(values)
    return array if isinstance(array, np.ndarray) else None


def _objects(values: Sequence[Any]) -> np.ndarray:
    """A list as an array of objects, arrays of one number as that number."""
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        host = _host(value)
        array[index] = host.item() if isinstance(host, np.ndarray) and not host.ndim else value
    return array


def _is_plain(value: object) -> bool:
    return isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating))


def _host(value: object) -> np.ndarray | list[Any]:
    """The value as an array; a list of it where numpy cannot read it, such as an array on another
    library's device.
    """
    try:
        return np.asarray(value)
    except Exception:
        return [value]


def _numbers(array: np.ndarray) -> list[float] | None:
    """Entries of an array of numbers or booleans; None for another kind."""
    if not (array.dtype.kind in "biu" or jnp.issubdtype(array.dtype, jnp.floating)):
        return None
    return array.astype(np.float64).tolist()


def _number(value: object) -> float | None:
    """An entry of an array of objects as a number; None where it is none."""
    try:
        return float(value) if isinstance(value, Real) else None
    except OverflowError:
        return None


def _kind(values: object) -> str:
    return "None" if values is None else f"a {type(values).__name__}"


def _shape(values: object, array: np.ndarray | None) -> str:
    if array is None:
        return f"a {type(values).__name__} that is no rectangle of numbers"
    if array.ndim == 1:
        return f"{array.shape[0]} values (shape {array.shape})"
    return (
        f"one value ({type(values).__name__})"
        if array.ndim == 0
        else f"an array of shape {array.shape}"
    )
