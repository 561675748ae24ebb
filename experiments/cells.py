"""The cells of a study in this process: their configs, the stages that they share, and running them."""

import dataclasses
import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.study import RESULT, Cell, Study
from rlhf_jax.refusal import Refusal


def variant(study: Study, name: str) -> ConfigDict:
    """The study's config with the overrides of a variant."""
    config = study.base()
    config.update_from_flattened_dict(dict(study.variants[name]))
    return config


def config_of(study: Study, cell: Cell) -> ConfigDict:
    """The resolved config of a cell, in its own directory."""
    from rlhf_jax import build

    arm = study.arm(cell.arm)
    config: Any = variant(study, arm.policy)
    config.algorithm = build.component("algorithms", arm.algorithm)
    for key, value in itertools.chain(arm.overrides.items(), cell.setting):
        config.update_from_flattened_dict({key: value})
    config.seed = cell.seed
    config.directory = str(study.directory / cell.path)
    config.rlhf.total_prompts = cell.num_updates * config.rlhf.prompts_per_update
    if cell.purpose == "tune":
        config.rlhf.evaluate_every = 0
    config.evaluate.part = 0 if cell.purpose == "tune" else 1
    config.evaluate.num_parts = 2
    return config


def shared_stages(study: Study, seed: int, policy: str = "", reward: str = "") -> tuple[Any, Any]:
    """The SFT params and the reward of a seed, each of its variant, trained in `base/` where they are not there yet."""
    from rlhf_jax import build
    from rlhf_jax.jobs import pipeline, sft

    def prepare(name: str) -> tuple[Any, Any]:
        config = variant(study, name)
        config.seed, config.directory = seed, str(study.directory / "base" / name / str(seed))
        workspace, stages, _ = build.prepare(config)
        return workspace, stages

    workspace, stages = prepare(policy)
    if reward == policy or stages.reward != "learned":
        return pipeline.before_rlhf(workspace, stages)
    return sft.run(workspace, stages.sft), pipeline.before_rlhf(*prepare(reward))[1]


def base_of(study: Study, cell: Cell) -> tuple[int, str, str]:
    """The seed and variants that the stages before a cell are of."""
    arm = study.arm(cell.arm)
    return cell.seed, arm.policy, arm.reward


def run_cells(study: Study, cells: Sequence[Cell]) -> None:
    """Runs cells that have no result yet in this process, those of one base together. A cell keeps its figures, not its
    checkpoints."""
    from experiments.result import finish
    from rlhf_jax import build
    from rlhf_jax.jobs import rlhf

    def base(cell: Cell) -> tuple[int, str, str]:
        return base_of(study, cell)

    for of_base, together in itertools.groupby(sorted(cells, key=base), key=base):
        left = [cell for cell in together if not (study.directory / cell.path / RESULT).exists()]
        if not left:
            continue
        params, reward = shared_stages(study, *of_base)
        for cell in left:
            workspace, stages, algorithm = build.prepare(config_of(study, cell))
            rlhf.run(workspace, stages, algorithm, reward, params)
            workspace.metrics.close()
            finish(study, cell, stages.rlhf, algorithm)


def phases(study: Study, cells: Sequence[Cell], num_parts: int) -> Iterator[list[list[Cell]]]:
    """What is left to do, in lists that may run at once: the shared stages, those of a seed in one; then the cells.

    A cell of 0 updates stands for the stages that it shares.
    """
    left = [cell for cell in cells if not (study.directory / cell.path / RESULT).exists()]
    bases = {base_of(study, cell): dataclasses.replace(cell, num_updates=0) for cell in left}
    of_seed: dict[int, list[Cell]] = {}
    for base in sorted(bases):
        of_seed.setdefault(base[0], []).append(bases[base])
    yield list(of_seed.values())
    yield [part for place in range(num_parts) if (part := left[place::num_parts])]


def work(study: Study, cells: Sequence[Cell]) -> None:
    """What a worker does with its cells (see `phases`), with the compile cache that the study's workers have in common."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(study.directory / "compile_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    for base in sorted({base_of(study, cell) for cell in cells if not cell.num_updates}):
        shared_stages(study, *base)
    run_cells(study, [cell for cell in cells if cell.num_updates])


def load(argument: str) -> Study:
    """The study of `file.py[:argument]`, by its `get_study`. Raises Refusal where there is none."""
    path, _, choice = argument.partition(":")
    if not Path(path).is_file():
        there = ", ".join(str(found) for found in sorted(Path("configs/studies").glob("[!_]*.py")))
        raise Refusal(f"no study {path!r}; there are: {there}")
    spec = importlib.util.spec_from_file_location("study", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_study"):
        raise Refusal(f"{path} has no get_study: it is no study (python -m experiments.run runs a config)")
    return module.get_study(choice)
