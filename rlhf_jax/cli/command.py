"""The exit statuses of every command, and what a person sees where one ends early.

    0     done
    1     a fault of code (its traceback), a figure that is not finite, a full disk or a side that hangs (one line each)
    2     refused: a config, an argument or a file that cannot be used; a line per problem
    130   interrupted by Ctrl-C, or preempted (SIGTERM)

A component's own code, such as a user's reward, is named after its traceback.
Only `rlhf_jax.refusal` says that a config cannot run. A ValueError or a FileNotFoundError of
anybody else's code, such as a user's reward, keeps its traceback.
"""

import atexit
import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from rlhf_jax.refusal import ComponentError, Failed, NotFinite, Refusal, Stalled

REFUSED, FAILED, INTERRUPTED = 2, 1, 130
SCRIPT = "rlhf-jax"
"""Name of the console script."""
NO_BACKEND = "Unable to initialize backend"
"""Beginning of JAX's message where the platform that it is told to use cannot be used."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
WRITERS = ("rlhf_jax.records.", "orbax.")
"""Modules that write a run's directory; a user's code is called by none of them."""
REDELIVER_SECONDS = 0.1
_started = False
GOODBYE_SECONDS = 10.0  # that other threads have to end in, once a command has failed


@dataclass
class Place:
    """Directory that a command writes, once it is known; a failing disk is named by it."""

    directory: Path | None = None


def call(body: Callable[[Place], None], again: str = "the same command begins again") -> int:
    """Runs the body of a command. Returns its exit status, having printed what was wrong.

    Args:
      body: is given the `Place` whose directory it sets.
      again: what repeating the command does, as a message about an interruption ends.

    Raises whatever the body raises that is neither refused nor interrupted nor a disk's failure.
    """
    place = Place()
    try:
        body(place)
    except Exception as error:
        status, lines = explained(error, place.directory, again)
        if not lines:
            raise
        print(*lines, sep="\n", file=sys.stderr)
        return status
    except KeyboardInterrupt as error:
        status, lines = explained(error, place.directory, again)
        print("", *lines, sep="\n", file=sys.stderr)
        return status
    return 0


def explained(error: BaseException, directory: Path | None, again: str) -> tuple[int, list[str]]:
    """The exit status of an exception, and the lines that explain it.

    There are no lines for an exception whose traceback must be shown.

    Args:
      error: the exception that ended the command.
      directory: of the run; None if there is none yet.
      again: what repeating the command does, the end of a message.
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, [f"interrupted; {again}"]
    if isinstance(error, Refusal):
        return REFUSED, [f"error: {one_line(message)}" for message in error.messages]
    if isinstance(error, ComponentError):
        cause = [] if error.__cause__ is None else traceback.format_exception(error.__cause__)
        return FAILED, ["".join(cause).rstrip()] * bool(cause) + [f"error: {one_line(str(error))}"]
    if isinstance(error, NotFinite | Failed | Stalled):
        return FAILED, [f"error: {one_line(str(error))}"]
    if isinstance(error, RuntimeError) and str(error).startswith(NO_BACKEND):
        named = os.environ.get("JAX_PLATFORMS", "")
        return FAILED, [
            f"error: JAX_PLATFORMS is {named!r}: {one_line(str(error)).partition(' (set JAX')[0]}; "
            "accepted: a platform of this machine that no other process holds, such as cpu, or "
            "JAX_PLATFORMS unset"
        ]
    if directory is not None and (cause := disk_failure(error, directory)):
        return FAILED, [
            f"error: cannot write to {directory}: {cause}; once that is mended, {again}"
        ]
    return FAILED, []


def one_line(message: str) -> str:
    """A message without line breaks."""
    return " ".join(message.split())


def disk_failure(error: BaseException, directory: Path) -> str:
    """Cause of an exception that a full or read-only disk of a directory raised; "" for any other
    exception.

    The exception names a file of the directory. Or it names none, and came from a writer of the
    directory, or the disk is full now. Orbax raises ValueErrors and RuntimeErrors that quote the
    system's error.
    """
    names = {str(directory), str(directory.absolute())}
    for link in _chain(error):
        text = str(link)
        number = link.errno if isinstance(link, OSError) and not isinstance(link, Refusal) else None
        quoted = isinstance(link, ValueError | RuntimeError) and any(
            os.strerror(code) in text for code in DISK_ERRORS
        )
        if number not in DISK_ERRORS and not quoted:
            continue
        has_file = isinstance(link, OSError) and bool(link.filename)
        nameless = not has_file and not quoted and (_is_of_a_writer(link) or _is_full(directory))
        if nameless or any(name in text for name in names):
            return one_line(text)
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it came from."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        yield link
        link = link.__cause__ or link.__context__


def _is_of_a_writer(error: BaseException) -> bool:
    """True where an exception came out of what writes a run's files."""
    modules = (
        frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)
    )
    return any(module.startswith(WRITERS) for module in modules)


def _is_full(directory: Path) -> bool:
    above = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    disk = os.statvfs(above)
    return disk.f_bavail == 0 or bool(disk.f_flag & os.ST_RDONLY)


def program(name: str) -> str:
    """A command as it was called, for messages and help: by the console script, or as a module of
    `experiments`.
    """
    return (
        f"{SCRIPT} {name}" if Path(sys.argv[0]).name == SCRIPT else f"python -m experiments.{name}"
    )


def use_compile_cache(setting: object = None) -> None:
    """Has JAX keep the programs that this command compiles: see `devices/compile_cache.py`.

    Args:
      setting: the config's key `compile_cache`; None: there is no config, or it has no such key.

    Raises Refusal for a given folder that cannot be written.
    """
    from rlhf_jax.devices import compile_cache

    compile_cache.use(compile_cache.AUTO if setting is None else str(setting))


def use_compile_cache_of(directory: Path) -> None:
    """`use_compile_cache` with the setting of a run that is there.

    Args:
      directory: of the run.

    Raises Refusal where there is no run, and as `use_compile_cache`.
    """
    from rlhf_jax.run_directory import run_config

    use_compile_cache(run_config.read(directory)[0].get("compile_cache"))


class _Unbroken:
    """A stream whose reader may go away: what is printed then is lost, and nothing raises."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._lose()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._lose()

    def _lose(self) -> None:
        """Sends the stream nowhere, also what it holds, and what other code writes to its file."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        print(
            f"note: nobody reads the standard {self._name} any more, and the command goes on; its "
            "directory has what it finds",
            file=sys.stderr,
            flush=True,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_readers() -> None:
    """Has this command go on where the reader of what it prints ends, as `| head` does: it writes
    its figures to files.
    """
    sys.stdout = cast(TextIO, _Unbroken(sys.stdout, "output"))
    sys.stderr = cast(TextIO, _Unbroken(sys.stderr, "error"))


def is_started() -> bool:
    """True where this process is a command's, and not somebody's who has imported its `main`."""
    return _started


def start(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main` as a program: SIGTERM interrupts as Ctrl-C does, and no interruption
    is lost.
    """
    ending = [FAILED]  # until `main` has come to an end
    atexit.register(
        _leave, ending
    )  # before jax is imported, so that it is the last of all calls at the exit
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.unraisablehook = _redeliver(sys.unraisablehook)
    # Orbax logs what its threads raise, with tracebacks, and then raises it where it is waited for.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    global _started
    _started = True
    status: int | str | None = FAILED
    try:
        status = main() or 0
    except SystemExit as left:
        status = left.code
    finally:
        if stopping := sys.modules.get(
            "rlhf_jax.runtime.stopping"
        ):  # where the command has run anything at all
            stopping.leave_hung(status)
    if (
        isinstance(status, int) and status
    ):  # where a disk failed, threads of orbax wait for its directory for five minutes
        watch = threading.Timer(GOODBYE_SECONDS, os._exit, (status,))
        watch.daemon = True
        watch.start()
        # What they raise meanwhile is no news: orbax's find the interpreter's pools closed.
        threading.excepthook = lambda raised: None
    ending[:] = [status] if isinstance(status, int) and status else []
    sys.exit(status)


def _leave(ending: list[int]) -> None:
    """Ends a command that failed, with its status, before the interpreter takes its modules apart.

    An interruption or an exception leaves calls of the devices running, and XLA crashes where its
    client is destroyed under one: the status would be a signal's.
    """
    if ending:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ending[0])


def _redeliver(
    before: Callable[["sys.UnraisableHookArgs"], object],
) -> Callable[["sys.UnraisableHookArgs"], None]:
    """A hook for exceptions that nobody can catch: interrupts once more, where one came into a
    callback of the collector.

    XLA has such a callback; Python prints what is raised in it, and goes on. The hook runs inside
    of it, hence the timer.
    """

    waiting: list[threading.Timer] = []

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is not None and issubclass(unraisable.exc_type, KeyboardInterrupt):
            if not any(
                timer.is_alive() for timer in waiting
            ):  # a second one would come into the command's end
                waiting[:] = [
                    threading.Timer(REDELIVER_SECONDS, os.kill, (os.getpid(), signal.SIGINT))
                ]
                waiting[0].start()
        else:
            before(unraisable)

    return hook
