"""The exceptions that name who is at fault: the config ("this cannot run as it was asked for"), or
a user's own function.
"""

import contextlib
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType

INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


class Refusal(ValueError):
    """A config, a file or an argument that cannot be used. The message names the value, its source
    and what is accepted.

    Commands print the message in one line and exit with status 2. Every other exception keeps its
    traceback. Of several problems that were found at once each is an argument, and a line.
    """

    @property
    def messages(self) -> tuple[str, ...]:
        """One sentence per problem."""
        return tuple(map(str, self.args))

    def __str__(self) -> str:
        return "\n".join(self.messages)


class NotFinite(FloatingPointError):
    """A figure of training that is not finite: nothing that was made of it is published or saved.
    The message names it.

    Commands print the message in one line and exit with status 1.
    """


class MissingInput(Refusal, FileNotFoundError):
    """A file or a directory that has to exist first.

    The message names it and the step that makes it.
    """


class Stalled(TimeoutError):
    """A side of a run that has been silent for longer than it may be: see `runtime/stopping.py`.

    Commands print the message in one line and exit with status 1.
    """


class Failed(RuntimeError):
    """A failure that its message explains whole, such as that of another process which wrote a log."""


class ComponentError(Exception):
    """A fault of a component's own code: it raised, or it gave something that training cannot use.

    The message names the component, when it was called, and what it did. What the component raised
    is the `__cause__`, with its own traceback. Commands print that traceback, then the message, and
    exit with status 1.
    """


class RewardError(ComponentError):
    """A fault of a reward, or of a task's gold judge."""


@contextlib.contextmanager
def at_fault(
    who: str, kind: type[ComponentError] = ComponentError, when: str | Callable[[], str] = ""
) -> Iterator[None]:
    """Names the component whose code runs inside in everything that it raises.

    Args:
      who: the component, as the message begins: "the reward brevity".
      kind: the exception that is raised.
      when: the call, as the message goes on: " in round 3". A function of no arguments writes it
        only once it is needed.

    Raises `kind` from any exception of the block, with the file and line that raised it; SystemExit
    (of `sys.exit`) and asyncio's CancelledError are among them. A Refusal passes as it is: it says
    that the config cannot run. So does a ComponentError, which has named its component already, and
    KeyboardInterrupt.
    """
    try:
        yield
    except (Refusal, ComponentError, KeyboardInterrupt, GeneratorExit):
        raise
    # A SystemExit would end the run with the status 0 of one that is done, and without a word.
    except BaseException as error:
        called = (
            error.__traceback__ and error.__traceback__.tb_next
        )  # without this function's own frame
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        call = when if isinstance(when, str) else when()
        raise kind(f"{who} raised{call}: {message} ({_place(called)})") from error.with_traceback(
            called
        )


def _place(called: TracebackType | None) -> str:
    """The innermost file and line of a traceback that is not in an installed package, or else the
    innermost.
    """
    frames = traceback.extract_tb(called)
    user_frames = [frame for frame in frames[1:] if not frame.filename.startswith(INSTALLED)]
    frame = (user_frames or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"
