"""The cells of a study: their configs and digests, those that have ended, and running the others in
this process.
"""

import itertools
import math
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import config_modules
from rlhf_jax.records.jsonl import replace as replace_file
from rlhf_jax.refusal import Failed, MissingInput, Refusal
from rlhf_jax.sweeps import cell_lines, provenance
from rlhf_jax.sweeps.cell_lines import REWARD_STAGES, line_identity
from rlhf_jax.sweeps.shared_stages import take_prompt_values
from rlhf_jax.sweeps.study import Cell, Study

CELLS, BASE, FILE, RESULT = "cells", "base", "cells.jsonl", "result.json"
BULK = ("checkpoints", "rounds", "prompt_values", "tensorboard", "wandb")
"""Folders of a run that no report reads."""
BEFORE_RLHF = (
    "seed", "task", "tokenizer", "model", "pretrained", "lengths", "mesh", "reward", "sft", "comparisons",
    "reward_model",
)  # fmt: skip
"""Nodes of a config that the stages before RLHF read: cells that agree on them share these stages.
"""
LATER_KEYS = {"lengths.prompt_buckets": 1}
"""Keys of these nodes that are newer than ended cells whose reward model is of another variant, and the
value under which the code does what it did. With it a key enters no digest of these stages, so that
such cells are found again. A further key of these nodes belongs here.
"""

Base = tuple[int, str, str]
"""The seed, and the variants of policy and reward model, that the stages before a cell are of."""
Shared = tuple[Any, Any, Callable[[], Any]]
"""SFT policy and reward of a seed, and what reads the policy's params in float32."""
Indexed = tuple[Any, dict[str, list[cell_lines.Line]], Counter[Any]]
"""The state of the file when it was read, its lines by cell, and how many each has."""


class Cells:
    """The cells of one study. Reads the file of ended cells anew whenever it has changed."""

    def __init__(self, study: Study):
        self.study = study
        committed = study.cells is not None and study.cells.parent.is_dir()  # in a clone alone
        self.path = study.cells if study.cells and committed else study.directory / FILE
        self.processor = provenance.processor()
        self._identities: dict[Cell, str] = {}
        self._golden: dict[str, str] = {}
        self._indexed: Indexed = (None, {}, Counter())

    def config(self, cell: Cell) -> ConfigDict:
        """The config of a cell, in its own directory."""
        config = self._config(cell)
        config.directory = str(self.directory(cell))
        return config

    def _config(self, cell: Cell) -> ConfigDict:
        from rlhf_jax import build

        arm = self.study.arm(cell.arm)
        config: Any = self.variant(arm.policy)
        config.algorithm = build.component("algorithms", arm.algorithm)
        for key, value in itertools.chain(arm.overrides.items(), cell.setting):
            config.update_from_flattened_dict({key: value})
        config.seed = cell.seed
        config.rlhf.total_prompts = cell.num_updates * config.rlhf.prompts_per_update
        if cell.purpose == "tune":
            config.rlhf.evaluate_every, config.rlhf.evaluate_at = 0, ()
        config.evaluate.part = 0 if cell.purpose == "tune" else 1
        config.evaluate.num_parts = 2
        return config

    def variant(self, name: str) -> ConfigDict:
        """The study's config with the overrides of a variant."""
        config = self.study.base_config()
        config.update_from_flattened_dict(dict(self.study.variants[name]))
        return config

    def identity(self, cell: Cell) -> str:
        """The digest that a cell is known by: of its config, and thereby of all that the study says
        about it.
        """
        if cell not in self._identities:
            self._identities[cell] = cell_lines.identity(self._values(cell))
        return self._identities[cell]

    def _values(self, cell: Cell) -> dict[str, Any]:
        """The flattened config of a cell, and the digest of its reward model's stages where they
        are of another variant.
        """
        values, arm = flattened(self._config(cell)), self.study.arm(cell.arm)
        if arm.reward == arm.policy:
            return values
        return values | {REWARD_STAGES: self._digest_of_stages(cell.seed, arm.reward)}

    def append(self, cell: Cell, line: Mapping[str, Any]) -> None:
        """Writes the line of a cell that has ended.

        Args:
          cell: of this study.
          line: its figures by name.
        """
        cell_lines.append(self.path, self._values(cell), flattened(self.variant("")), line)

    def directory(self, cell: Cell) -> Path:
        """The directory of a cell's run, named by the cell and by the digest of its config."""
        return self.study.directory / CELLS / f"{cell.name}-{self.identity(cell)[:8]}"

    def golden(self, cell: Cell) -> str:
        """The hash of the golden numbers that a cell depends on, and of the sources of a user's own
        components.
        """
        if cell.arm not in self._golden:
            from rlhf_jax.stages.common import own_code

            sources = own_code.of_sources(self._config(cell).to_dict())
            self._golden[cell.arm] = provenance.golden_hash(
                self.study.arm(cell.arm).algorithm, sources=sources
            )
        return self._golden[cell.arm]

    def _lines(self) -> tuple[dict[str, list[cell_lines.Line]], Counter[Any]]:
        """Lines by digest, and the number of ended cells by purpose, seed and processor."""
        lines = cell_lines.read(self.path)
        if self._indexed[0] is not lines:
            by_identity: dict[str, list[cell_lines.Line]] = {}
            counts: Counter[Any] = Counter()
            for line in lines:
                by_identity.setdefault(line_identity(line, self.path), []).append(line)
                counts[line["purpose"], line["seed"], line["processor"]] += 1
            self._indexed = lines, by_identity, counts
        return self._indexed[1], self._indexed[2]

    def ended(self, cell: Cell) -> cell_lines.Line | None:
        """The line of a cell that has ended, or None.

        Numbers of one seed are compared with each other: of lines of several processors, that of
        the processor which ended most cells of the seed.
        """
        lines, counts = self._lines()
        usable = [
            line
            for line in lines.get(self.identity(cell), ())
            if line["golden"] == self.golden(cell)
        ]
        return max(
            usable,
            key=lambda line: counts[cell.purpose, cell.seed, line["processor"]],
            default=None,
        )

    def results(self, cells: Sequence[Cell]) -> list[cell_lines.Line]:
        """The lines of those cells that have ended."""
        return [line for cell in cells if (line := self.ended(cell)) is not None]

    def left(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells that are to be run here: of each seed those that have not ended on this kind of
        processor.

        A seed all of whose cells have ended on another kind is left alone.
        """
        lines, _ = self._lines()

        def processors(cell: Cell) -> set[str]:
            elsewhere = lines.get(self.identity(cell), ())
            return {line["processor"] for line in elsewhere if line["golden"] == self.golden(cell)}

        missing = []
        for _, together in itertools.groupby(sorted(cells, key=_seed), key=_seed):
            cells_of_seed = list(together)
            processors_of = [processors(cell) for cell in cells_of_seed]
            if not set.intersection(*processors_of):
                missing += [
                    cell
                    for cell, elsewhere in zip(cells_of_seed, processors_of, strict=True)
                    if self.processor not in elsewhere
                ]
        wanted = set(missing)
        return [cell for cell in cells if cell in wanted]

    def base(self, cell: Cell) -> Base:
        """The stages before a cell."""
        arm = self.study.arm(cell.arm)
        return cell.seed, arm.policy, arm.reward

    def base_directory(self, seed: int, variant: str) -> Path:
        """The directory of the stages before RLHF, named by the digest of the keys that they read.

        Args:
          seed: of the run.
          variant: of the study's config; "" is the usual one.
        """
        name = f"{seed}-{self._digest_of_stages(seed, variant)[:8]}"
        return self.study.directory / BASE / (variant or "usual") / name

    def _digest_of_stages(self, seed: int, variant: str) -> str:
        config = self.variant(variant)
        config.seed = seed
        return provenance.digest(
            {
                key: value
                for key, value in flattened(config).items()
                if key.split(".")[0] in BEFORE_RLHF and LATER_KEYS.get(key, ...) != value
            }
        )


def _seed(cell: Cell) -> tuple[str, int]:
    return cell.purpose, cell.seed


def flattened(config: ConfigDict) -> dict[str, Any]:
    """A config's leaves by their keys joined by dots."""
    from rlhf_jax.config import flatten

    return flatten(config.to_dict())


def shared_stages(cells: Cells, seed: int, policy: str = "", reward: str = "") -> Shared:
    """SFT policy and reward of a seed, and what reads the policy's params in float32; a stage that
    has not been run yet is run.

    A reward model of another variant is trained on comparisons of its own SFT policy.

    Args:
      cells: of the study.
      seed: of the run.
      policy: variant of the SFT policy; "" is the usual one.
      reward: variant of the reward, likewise.
    """
    from rlhf_jax import build
    from rlhf_jax.stages import pipeline, sft

    def prepare(name: str) -> tuple[Any, Any]:
        config = cells.variant(name)
        config.seed, config.directory = seed, str(cells.base_directory(seed, name))
        workspace, stages, _ = build.prepare(config)
        return workspace, stages

    workspace, stages = prepare(policy)
    read = partial(sft.load, workspace)
    try:
        if reward == policy or not stages.learned:
            return *pipeline.before_rlhf(workspace, stages), read
        params = workspace.held(sft.run(workspace, stages.sft))
    finally:
        workspace.metrics.close()
    of_reward = prepare(reward)
    try:
        return params, pipeline.before_rlhf(*of_reward)[1], read
    finally:
        of_reward[0].metrics.close()


def run_cells(cells: Cells, wanted: Sequence[Cell], deadline: float = math.inf) -> None:
    """Runs the cells that have not ended, in this process; those of one base follow one another.

    A cell keeps its line, not its checkpoints. A cell with a figure that is not finite has ended:
    it has diverged.

    Args:
      cells: of the study.
      wanted: the cells to run; those that have ended are left out.
      deadline: of `time.time`, after which no cell is begun.

    Raises Failed, after all have been tried, if a cell failed in another way; its traceback is
    printed.
    """
    failed = []
    for base, together in itertools.groupby(
        sorted(cells.left(wanted), key=cells.base), key=cells.base
    ):
        if time.time() > deadline:
            break
        shared = shared_stages(cells, *base)
        for cell in together:
            if time.time() > deadline:
                break
            try:
                run_cell(cells, cell, shared)
            except Exception:
                traceback.print_exc()
                failed.append(cell.name)
    if failed:
        raise Failed(f"{len(failed)} of {len(wanted)} cells failed: {', '.join(failed)}")


def run_cell(cells: Cells, cell: Cell, shared: Shared) -> None:
    """Runs one cell from its shared stages, and writes its line last: with it the cell has ended."""
    from rlhf_jax import build
    from rlhf_jax.stages import rlhf
    from rlhf_jax.sweeps.result import line_of, reward_model_of

    config, diverged, golden = cells.config(cell), "", cells.golden(cell)
    params, reward, read_sft = shared
    shutil.rmtree(cells.directory(cell), ignore_errors=True)  # an interrupted cell begins again
    workspace, stages, algorithm = build.prepare(config)
    measure = cells.study.measure and cells.study.measure(params)
    observed: dict[str, Any] = {"observe": measure.take} if measure else {}
    name, arm = cells.study.directory.name, cells.study.arm(cell.arm)
    bases = [cells.base_directory(cell.seed, variant) for variant in (arm.policy, arm.reward)]
    try:
        take_prompt_values(workspace, config, algorithm, params, reward, bases)
        rlhf.run(workspace, stages, algorithm, reward, params, **observed, read_sft=read_sft)
    except FloatingPointError as error:
        diverged = str(error)
        print(f"{cell.name} diverged: {error}", file=sys.stderr)
    finally:
        workspace.metrics.close()
    line = line_of(workspace.directory, name, arm, cell, stages.rlhf, algorithm, diverged, golden)
    if learned := reward_model_of(cells.base_directory(cell.seed, arm.reward)):
        line["reward_model"] = learned
    if measure:
        line["measured"] = dict(measure.figures())
    for folder in BULK:
        shutil.rmtree(workspace.directory / folder, ignore_errors=True)
    replace_file(workspace.directory / RESULT, cell_lines.encoded(line))
    cells.append(cell, line)


def phases(cells: Cells, wanted: Sequence[Cell], num_parts: int) -> Iterator[list[list[Cell]]]:
    """Yields the cells that are left in two phases, whose lists may run at the same time.

    The first phase is the shared stages, one list per seed. A cell of 0 updates stands for them.
    The second phase is the cells.

    Args:
      cells: of the study.
      wanted: the cells to run; those that have ended are left out.
      num_parts: most lists of the second phase.
    """
    left = cells.left(wanted)
    bases = {cells.base(cell): replace(cell, num_updates=0) for cell in left}
    bases_of_seed: dict[int, list[Cell]] = {}
    for base in sorted(bases):
        bases_of_seed.setdefault(base[0], []).append(bases[base])
    yield list(bases_of_seed.values())
    yield [part for worker in range(num_parts) if (part := left[worker::num_parts])]


def work(study: Study, wanted: Sequence[Cell], deadline: float = math.inf) -> None:
    """Runs the cells of one worker (see `phases`), with the compile cache of all the workers.

    Args:
      study: whose cells they are.
      wanted: those of this worker. One of 0 updates runs the stages that it shares.
      deadline: of `time.time`, after which no cell is begun.

    Raises as `run_cells`.
    """
    from rlhf_jax.devices import compile_cache

    if compile_cache.use(compile_cache.AUTO) is None:
        compile_cache.use(str(study.directory / "compile_cache"))
    cells = Cells(study)
    for base in sorted({cells.base(cell) for cell in wanted if not cell.num_updates}):
        shared_stages(cells, *base)
    run_cells(cells, [cell for cell in wanted if cell.num_updates], deadline)


def load(argument: str) -> Study:
    """The study of `file.py[:argument]` or `studies/name[:argument]`, by its `get_study`.

    Raises Refusal where there is none, and for whatever the code of the file raises.
    """
    given, _, choice = argument.partition(":")
    path = config_modules.path_of(given)
    if not Path(path).is_file():
        known = ", ".join(config_modules.shipped(studies=True).values())
        raise MissingInput(f"no study {given!r}; there are: {known}")
    with config_modules.faults_in(argument, path):
        module = config_modules.execute(path)
        if not hasattr(module, "get_study"):
            raise Refusal(
                "the file has no get_study: it is no study (of a config, --grid or --seeds says "
                "which cells to run)"
            )
        return module.get_study(choice)
