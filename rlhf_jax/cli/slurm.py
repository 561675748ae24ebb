"""Runs the cells of a study as an array of Slurm jobs, through `submitit` (`pip install
rlhf_jax[slurm]`).
"""

from collections.abc import Sequence
from typing import Any

from rlhf_jax.cli.run import keep_freed_memory
from rlhf_jax.extras import needed
from rlhf_jax.refusal import Failed, Refusal
from rlhf_jax.sweeps import cells
from rlhf_jax.sweeps.study import Cell, Study

MINUTES = 120  # of a job, where the options do not say


def executor(study: Study, options: str) -> Any:
    """An executor that submits jobs: `options` are submitit's,
    "timeout_min=60,slurm_partition=gpu,gpus_per_node=1".

    Raises Refusal that says what to install, or for an option that is none.
    """
    with needed("slurm", "--slurm"):
        import submitit  # pyright: ignore[reportMissingImports] (an extra of its own)
    submitter = submitit.AutoExecutor(study.directory / "slurm")
    submitter.update_parameters(name=study.directory.name, timeout_min=MINUTES)
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
