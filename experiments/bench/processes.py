"""Several processes of one run on this machine, each with CPU devices of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Processes:
    """Processes `0 .. count - 1` of one run, each with its output in a file `log.INDEX`."""

    def __init__(
        self,
        directory: Path,
        command: Sequence[str],
        count: int,
        devices: int,
        environment: Mapping[str, str] | None = None,
    ):
        """Begins them.

        Args:
          directory: of their logs; it is made where it is missing.
          command: arguments of Python.
          count: processes.
          devices: of each.
          environment: variables of all of them, beside those of this process.
        """
        directory.mkdir(exist_ok=True)
        self.port = free_port()
        shared = {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_NUMPY_RANK_PROMOTION": "raise",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{self.port}",
            "JAX_NUM_PROCESSES": str(count),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        } | dict(environment or {})
        self.logs = [directory / f"log.{index}" for index in range(count)]
        self.all = []
        for index, log in enumerate(self.logs):
            with open(log, "w") as file:
                process = subprocess.Popen(
                    [sys.executable, *command],
                    cwd=ROOT,
                    env=os.environ | shared | {"JAX_PROCESS_ID": str(index)},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            self.all.append(process)

    def said(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in self.logs)

    def wait(self, seconds: float) -> list[int]:
        """Exit statuses. A process that outlives the limit is killed: its status says so.

        Args:
          seconds: for all of them.
        """
        deadline = time.monotonic() + seconds
        for process in self.all:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in self.all:
            process.kill()
        return [process.wait() for process in self.all]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
