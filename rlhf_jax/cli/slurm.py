"""Runs the cells of a study as an array of Slurm jobs, through `submitit` (`pip install
rlhf_jax[slurm]`).
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_jax.cli.run import keep_freed_memory
from rlhf_jax.extras import needed
from rlhf_jax.refusal import Failed, Refusal
from rlhf_jax.sweeps import cells
from rlhf_jax.sweeps.study import Cell, Study
from rlhf_jax.sweeps.tasks import Process, Task

MINUTES = 120  # of a job, where the options do not say


def executor(directory: Path, options: str) -> Any:
    """An executor that submits jobs.

    Args:
      directory: of the sweep; its name is that of the jobs.
      options: submitit's, "timeout_min=60,slurm_partition=gpu,gpus_per_node=1".

    Raises Refusal that says what to install, or for an option that is none.
    """
    with needed("slurm", "--slurm"):
        import submitit  # pyright: ignore[reportMissingImports] (an extra of its own)
    submitter = submitit.AutoExecutor(directory / "slurm")
    submitter.update_parameters(name=directory.name, timeout_min=MINUTES)
    try:
        submitter.update_parameters(**parameters(options))
    except NameError as error:  # what submitit raises for a name that it does not know
        raise Refusal(f"--slurm={options}: {error}") from error
    return submitter


def parameters(options: str) -> dict[str, Any]:
    """`name=value,name=value` as numbers where they are.

    Raises Refusal for a part that is no such pair.
    """
    options_by_name: dict[str, Any] = {}
    for part in filter(None, options.split(",")):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise Refusal(
                f"--slurm has the option {part!r}; accepted: name=value, e.g. timeout_min=60"
            )
        options_by_name[name] = int(value) if value.isdecimal() else value
    return options_by_name


def launch(
    submitter: Any, study: Study, argument: str, wanted: Sequence[Cell], num_jobs: int
) -> None:
    """Runs cells in `num_jobs` jobs and waits for them: the shared stages first, a job a seed.

    Raises Failed naming the log of one that failed.
    """
    for parts in cells.phases(cells.Cells(study), wanted, num_jobs):
        jobs = submitter.map_array(work, [argument] * len(parts), parts) if parts else []
        failed = [(job, error) for job in jobs if (error := job.exception()) is not None]
        if failed:
            job, error = failed[0]
            last = str(error).strip().splitlines()[-1:]
            raise Failed(
                f"{len(failed)} of {len(jobs)} jobs failed: see {job.paths.stderr} "
                f"({''.join(last)})"
            )


def work(argument: str, part: Sequence[Cell]) -> None:
    """The body of a job: reads the study again, from the directory where the command was given."""
    keep_freed_memory()
    cells.work(cells.load(argument), part)


@dataclass
class Job:
    """A run as a job of the cluster, with the methods of a process."""

    job: Any
    log: Path

    def poll(self) -> int | None:
        """The exit status; None while the job waits or runs. A job that was lost has failed."""
        return self.wait() if self.job.done() else None

    def terminate(self) -> None:
        """Cancels the job: Slurm sends it SIGTERM, and the run saves its work."""
        self.job.cancel()

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once the job has ended.

        Args:
          timeout: seconds to wait; None: as long as it takes.

        Raises subprocess.TimeoutExpired.
        """
        if timeout is not None:
            deadline = time.monotonic() + timeout
            while not self.job.done():
                if time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired("job", timeout)
                time.sleep(1.0)
        error = self.job.exception()
        if error is None:
            return int(self.job.result())
        with contextlib.suppress(OSError), self.log.open("a") as log:
            log.write(f"{error}\n")
        return 1


def starter(submitter: Any) -> Callable[[Task], Process]:
    """Returns what starts a task of a grid as a job.

    Args:
      submitter: see `executor`.
    """

    def begin(task: Task) -> Process:
        job = submitter.submit(run_task, task.arguments, str(task.log.absolute()))
        return Job(job, task.log)

    return begin


def run_task(arguments: Sequence[str], log: str) -> int:
    """Runs the command `run` as the body of a job, in the directory where the sweep was started.

    Args:
      arguments: of the command.
      log: the file of what it prints.

    Returns the exit status.
    """
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        command = [sys.executable, "-m", "rlhf_jax.cli.run", *arguments]
        return subprocess.run(command, stdout=output, stderr=output, check=False).returncode
