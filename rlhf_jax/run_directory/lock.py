"""One process at a time writes to a run directory: a lock that ends with the process, whatever ends
it.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rlhf_jax.devices import distributed
from rlhf_jax.refusal import Refusal

FILE = ".lock"
PATIENCE_SECONDS = 1.0
"""How long a lock is waited for: longer than a config is checked and written, much shorter than a
run. A requeued job beside a predecessor that has not ended is refused, and has to be started again.
"""
NOT_OFFERED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@dataclass
class _Held:
    descriptor: int | None
    count: int = 0


_held: dict[str, _Held] = {}


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Holds the lock of a run directory, which is made where it is missing; a process may hold it
    several times over.

    The lock is `flock` on `.lock` in the directory: it ends with the process that holds it, and
    works over NFS. Of several processes of one run the first holds it for all; collective.

    Raises Refusal where another process holds it, naming the process, its host and its start.
    """
    key = os.path.realpath(directory)
    if key not in _held:
        problem, descriptor = "", None
        if distributed.is_first():
            try:
                descriptor = _acquire(Path(key))
            except Refusal as error:
                problem = str(error)
        if distributed.several():  # a message between processes has so many bytes
            problem = distributed.agree(problem.encode("ascii", "replace").decode()[:400])
        if problem:
            raise Refusal(problem)
        _held[key] = _Held(descriptor)
    _held[key].count += 1
    try:
        yield
    finally:
        _held[key].count -= 1
        if not _held[key].count:
            descriptor = _held.pop(key).descriptor
            if descriptor is not None:
                os.close(descriptor)


def is_held(directory: Path) -> bool:
    """True while a process, perhaps this one, holds the lock of a directory.

    False too on a filesystem that offers no locks.
    """
    try:
        descriptor = os.open(directory / FILE, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # over NFS a conflict may be either
        return True
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        os.close(descriptor)
    return False


def _acquire(directory: Path) -> int | None:
    """The descriptor that holds the lock; None on a filesystem that offers none, which is said."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / FILE, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError):  # over NFS a conflict may be either
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            holder = _holder(descriptor)
            os.close(descriptor)
            raise Refusal(
                f"{directory} is in use by {holder}; accepted: one process at a time in a directory"
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in NOT_OFFERED:
                raise
            print(
                f"note: the disk of {directory} has no locks: nothing keeps a second process out",
                file=sys.stderr,
            )
            return None
    text = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(text).encode(), 0)
    return descriptor


def _holder(descriptor: int) -> str:
    """The holder of a lock, in words; it writes them just after it has taken the lock."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
