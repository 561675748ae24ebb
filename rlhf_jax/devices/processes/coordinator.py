"""jax's coordination service in a process of its own, which outlives the first process of a run.

jax runs the service in the first process. When that process dies, jax aborts all others at once with
a stack trace, before they can say why they end. Here the service goes on for `GRACE_SECONDS`, so that
the death of the first process is like that of another one: a collective fails, and each process ends
with its own message. A refusal that the first process is the first to find is printed by all.

jax has no public door to the service. A jax that makes it in another way keeps its own, with a notice.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

GRACE_SECONDS = 45
"""The longest that the service goes on after the first process has died. It ends once no process is
connected, so that the same command finds its port free. jax's heartbeats end a process that has not
noticed before.
"""
ESTABLISHED = "01"
FACTORY = "get_distributed_runtime_service"
BEGUN, GOODBYE = b"begun", b"goodbye"


class Service:
    """The service in a child process, which ends with `shutdown`, or some time after this process."""

    def __init__(self, address: str, num_processes: int, **options: int | bool | None):
        """Begins it.

        Args:
          address: that it listens on.
          num_processes: of the run.
          options: of `get_distributed_runtime_service`.

        Raises RuntimeError where the service does not begin, as with a port that is taken.
        """
        given = json.dumps([address, num_processes, options])
        self.child = subprocess.Popen(
            [sys.executable, "-P", __file__, given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C and a scheduler's SIGTERM are for the run
        )
        assert self.child.stdout is not None
        if self.child.stdout.read(len(BEGUN)) != BEGUN:
            raise RuntimeError(f"the coordination service did not begin at {address}")

    def shutdown(self) -> None:
        """Ends the service after all processes have left it."""
        self.child.communicate(GOODBYE)


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Has `jax.distributed.initialize` begin the service in a process of its own in the block."""
    library = importlib.import_module("jaxlib._jax")  # of which jax takes the service by name
    begin = getattr(library, FACTORY, None)
    if begin is None:
        print(
            "notice: this jax keeps its coordination service in the first process; when that one "
            "dies, the others end with a stack trace",
            file=sys.stderr,
        )
        yield
        return
    setattr(library, FACTORY, Service)
    try:
        yield
    finally:
        setattr(library, FACTORY, begin)


def num_connected(port: int) -> int:
    """The number of connections to a port of this machine, as Linux lists them; 0 elsewhere.

    Args:
      port: that this process listens on.
    """
    count = 0
    for table in (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6")):
        rows = table.read_text().splitlines()[1:] if table.exists() else []
        for _, local, _, state, *_ in map(str.split, rows):
            count += state == ESTABLISHED and int(local.rpartition(":")[2], 16) == port
    return count


def main() -> None:
    """Runs the service until the process that has begun it says goodbye, or has died."""
    library = importlib.import_module("jaxlib._jax")
    address, num_processes, options = json.loads(sys.argv[1])
    service = getattr(library, FACTORY)(address, num_processes, **options)
    sys.stdout.buffer.write(BEGUN)
    sys.stdout.flush()
    if sys.stdin.buffer.read() == GOODBYE:
        service.shutdown()
        return
    deadline, port = time.monotonic() + GRACE_SECONDS, int(address.rpartition(":")[2])
    while num_connected(port) and time.monotonic() < deadline:
        time.sleep(0.2)
    os._exit(0)  # the service would wait for processes that have died


if __name__ == "__main__":
    main()
