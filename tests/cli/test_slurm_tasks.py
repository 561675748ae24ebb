"""Tasks of a grid as jobs of a cluster: a job has the methods of a process."""

import subprocess

import pytest

from rlhf_jax.cli import slurm
from rlhf_jax.sweeps.tasks import Task, last_line


class FakeJob:
    """A job that has run in this process, or that was lost."""

    def __init__(self, status: int, error: Exception | None = None, ended: bool = True) -> None:
        self.status, self.error, self.ended, self.cancelled = status, error, ended, False

    def done(self) -> bool:
        return self.ended

    def exception(self) -> Exception | None:
        return self.error

    def result(self) -> int:
        return self.status

    def cancel(self) -> None:
        self.cancelled = True


class FakeExecutor:
    """Runs a job's function when it is submitted."""

    def submit(self, function, *arguments) -> FakeJob:
        return FakeJob(function(*arguments))


def test_a_task_is_a_job_that_runs_the_command_and_keeps_its_log(tmp_path):
    task = Task("cell", tmp_path / "cell", ["no_such_config"], tmp_path / "logs" / "cell.log")
    job = slurm.starter(FakeExecutor())(task)
    assert job.poll() == 2
    assert last_line(task.log).startswith("error: no config file 'no_such_config'")


def test_a_job_is_waited_for_and_cancelled_and_a_lost_one_has_failed(tmp_path):
    at_work = slurm.Job(FakeJob(0, ended=False), tmp_path / "log")
    assert at_work.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        at_work.wait(0.0)
    at_work.terminate()
    assert at_work.job.cancelled
    lost = slurm.Job(FakeJob(0, RuntimeError("node n7 is gone")), tmp_path / "log")
    assert lost.poll() == 1
    assert last_line(tmp_path / "log") == "node n7 is gone"
