"""The memory of a supervised stage's update by the planner's formulas: whether it fits on a device,
and the micro-batches and remat with which it would.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax

from rlhf_jax.dataflow import Call
from rlhf_jax.devices import distributed
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.planner.api import Workload
from rlhf_jax.planner.costs import hardware
from rlhf_jax.planner.costs.analytic import AnalyticCostModel
from rlhf_jax.planner.costs.gold import Gold, beside
from rlhf_jax.planner.costs.hardware import Hardware
from rlhf_jax.planner.costs.shapes import FULL, Shape, model_shape
from rlhf_jax.planner.options import Option, option, variants
from rlhf_jax.planner.search.fit import MICRO_BATCHES
from rlhf_jax.planner.simulation.plan_memory import gigabytes
from rlhf_jax.stages.api import Lengths, Workspace
from rlhf_jax.stages.common import planning
from rlhf_jax.stages.settings.rlhf import places
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.types import Placement

Name = Literal["sft", "reward_model", "dpo"]
TRAIN: dict[Name, Call] = {
    "sft": Call("train_policy", "policy", "train", (), ()),
    "reward_model": Call("train_critic", "critic", "train", (), (), per_token=False),
    "dpo": Call("train_policy", "policy", "train", (), ()),
}
"""The call that stands for a stage's update: a reward model reads a score for each row."""
HOLD_SFT_POLICY = ("reward_model", "dpo")
"""Stages that hold the SFT policy while they train: its samples set the reward's unit, and it is the
reference of DPO. It has as many params as the model that is trained.
"""


@dataclass(frozen=True)
class Update:
    """An update of a stage on the devices of a mesh."""

    stage: Name
    costs: AnalyticCostModel
    mesh: Placement  # devices and shape, with the micro-batches and the remat of the config
    beside: float = 0.0  # bytes of a device that frozen models take there

    def used(self, placement: Placement) -> Option:
        """Bytes and seconds under a number of micro-batches and remat."""
        return option(TRAIN[self.stage], self.costs, placement)

    @property
    def excess(self) -> float:
        """Bytes that the update needs of a device more than it has; 0 or less: it fits."""
        needs = self.used(self.mesh)
        return self.beside + needs.working_bytes + needs.resident_bytes - self.costs.device_bytes

    def fastest(self) -> Placement | None:
        """The micro-batches and the remat of least seconds that fit; None where none do."""
        place = Placement(self.mesh.devices, self.mesh.mesh_shape)
        room = self.costs.device_bytes - self.beside
        fitting = [
            found
            for found in variants(TRAIN[self.stage], self.costs, place, MICRO_BATCHES)
            if found.working_bytes + found.resident_bytes <= room
        ]
        return min(fitting, key=lambda found: found.seconds).placement if fitting else None

    def notice(self) -> str:
        """One line where the update may not fit, with what would; "" where it fits."""
        if self.excess <= 0:
            return ""
        needs, found = self.used(self.mesh), self.fastest()
        remedy = (
            f"it would fit with --config.{self.stage}.num_micro_batches={found.num_micro_batches} "
            f"--config.model.remat={found.remat}"
            if found
            else "no number of micro-batches makes it fit: take more devices, or shorter rows"
        )
        gold = f", and the gold model {gigabytes(self.costs.held_bytes)}"
        room = self.costs.device_bytes + self.costs.held_bytes
        return (
            f"{self.stage} may not fit in memory: an update needs {gigabytes(needs.working_bytes)} "
            f"of a device beside {gigabytes(self.beside + needs.resident_bytes)} that stay there"
            f"{gold if self.costs.held_bytes else ''}, of {gigabytes(room)}; {remedy}"
        )


def trained_shape(stage: Name, model: Model, lora: adapters.Config = FULL) -> Shape:
    """The shape of the model that a stage trains: the policy, or a head for scores on it.

    Args:
      stage: that trains.
      model: the policy.
      lora: adapters that are trained in the place of all params.
    """
    return model_shape(ValueModel(model) if stage == "reward_model" else model, lora=lora)


def update(
    stage: Name,
    stages: Stages,
    shape: Shape,
    lengths: Lengths,
    device: Hardware,
    placement: Placement,
    gold: Gold | None = None,
) -> Update:
    """An update of a stage.

    Args:
      stage: that trains.
      stages: settings of every stage.
      shape: of what is trained, see `trained_shape`.
      lengths: of prompts and completions.
      device: its memory and speed.
      placement: devices and mesh; the micro-batches are those of the stage's settings, and remat
        is what the shape says.
      gold: a gold model that stays on the devices, see `gold_of`.
    """
    settings = getattr(stages, stage)
    pairs = getattr(settings, "pairs_per_update", 0)
    work = Workload(
        num_prompts=pairs or stages.sft.rows_per_update,
        samples_per_prompt=2 if pairs else 1,
        prompt_tokens=lengths.max_prompt_tokens,
        completion_tokens=lengths.max_completion_tokens,
        share_prompts=False,
    )
    role = TRAIN[stage].role
    # Params that no update changes are held in the dtype of products.
    shape = replace(shape, copy_bytes=shape.compute_bytes)
    costs = AnalyticCostModel(device, len(placement.devices), {role: shape}, work)
    if gold is not None:
        costs = beside(costs, gold, 1)
    placement = replace(placement, num_micro_batches=settings.num_micro_batches, remat=shape.remat)
    frozen = costs.params_bytes(role, placement) if stage in HOLD_SFT_POLICY else 0.0
    return Update(stage, costs, placement, frozen)


def gold_of(stage: Name, names: Collection[str], gold: Gold | None) -> Gold | None:
    """The gold model where it is on the devices while a stage trains: it has relabelled or judged
    the comparisons of the reward model's stage, and it judges the evaluations of DPO.

    Args:
      stage: that trains.
      names: of the stages that the run has.
      gold: of the run.
    """
    scores = {"sft": False, "reward_model": "comparisons" in names, "dpo": True}
    return gold if scores[stage] else None


def chosen(
    workspace: Workspace, stages: Stages, names: Collection[str]
) -> tuple[Workspace, Stages]:
    """The run with the micro-batches of least seconds that fit on the devices at hand, for each
    stage that leaves them open (`num_micro_batches=0`), and with remat where one of them needs it.

    They are 1 where the memory is not known, as on a CPU, on several processes, for a stage that
    the run does not have, and where nothing fits, which `notices` tells.

    Args:
      workspace: of the run.
      stages: settings of every stage.
      names: of the stages that the run has.
    """
    known = not distributed.several() and planning.memory_is_known()
    for name, count in micro_batches(stages).items():
        if count:
            continue
        found = None
        if known and name in names:
            found = _here(name, workspace, stages, names).fastest()
        settings = replace(
            getattr(stages, name), num_micro_batches=found.num_micro_batches if found else 1
        )
        stages = replace(stages, **{name: settings})
        if found and found.remat and not workspace.model.remat:
            workspace = replace(workspace, model=workspace.model.with_config(remat=True))
    return workspace, stages


def micro_batches(stages: Stages) -> dict[Name, int]:
    """`num_micro_batches` of every supervised stage that there is; 0: left open."""
    settings: dict[Name, Any] = {name: getattr(stages, name) for name in TRAIN}
    return {name: one.num_micro_batches for name, one in settings.items() if one is not None}


def _here(name: Name, workspace: Workspace, stages: Stages, names: Collection[str]) -> Update:
    """A stage's update on the devices at hand."""
    gold = gold_of(name, names, planning.gold_of_run(workspace, stages))
    mesh = places(stages.rlhf, workspace.mesh, "").placement("train_policy")
    device = hardware.lookup(jax.devices()[0])
    shape = trained_shape(name, workspace.model, workspace.lora)
    return update(name, stages, shape, workspace.lengths, device, mesh, gold)


def notices(workspace: Workspace, stages: Stages, names: Collection[str]) -> list[str]:
    """A line for each stage whose update may not fit on the devices at hand, where their memory is
    known.

    Args:
      workspace: of the run.
      stages: settings of every stage.
      names: of the stages that the run has.
    """
    if distributed.several() or not planning.memory_is_known():
        return []
    found = [_here(name, workspace, stages, names).notice() for name in TRAIN if name in names]
    return list(filter(None, found))
