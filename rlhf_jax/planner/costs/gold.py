"""A gold model beside the rounds of a plan: the memory that it takes on the run's mesh, and the
seconds in which it scores.

Gold is no call of a round: the host asks it for scores of text between calls. It stays on the
devices once it has scored.
"""

import math
from dataclasses import dataclass, replace

from rlhf_jax.dataflow import Call
from rlhf_jax.devices import mesh
from rlhf_jax.planner.api import CostModel, Workload
from rlhf_jax.planner.costs.analytic import AnalyticCostModel
from rlhf_jax.planner.costs.hardware import Hardware
from rlhf_jax.planner.costs.hosts import OnEveryHost
from rlhf_jax.planner.costs.shapes import Shape
from rlhf_jax.types import Placement

SCORE = Call("gold", "gold", "infer", (), (), per_token=False)
"""One batch of rows, each of which gets one score."""
LEAST_TOKENS = 16
"""Positions of the shortest rows; longer ones are padded to a power of two."""


@dataclass(frozen=True)
class Seconds:
    """Seconds in which a gold model scores."""

    of_round: float  # the rows of one round
    of_evaluation: float  # the rows of one evaluation between the first and the last
    of_each_round: float  # both, for each round in the mean


@dataclass(frozen=True)
class Gold:
    """A gold model, the mesh that it is sharded over, and the rows that it scores.

    Texts are taken to have at most as many tokens as the run's rows: gold may have a tokenizer of
    its own, and texts of references any length.
    """

    shape: Shape  # in the dtype in which it is held
    mesh: mesh.Config  # of the run
    rows_per_batch: int
    round_tokens: int  # positions of a row of a round: prompt and completion
    evaluation_tokens: int  # the same of an evaluation
    rows_per_round: int = 0  # rows of each round that it scores
    rows_per_evaluation: int = 0
    evaluations_per_round: float = 0.0

    def placement(self, num_devices: int) -> Placement:
        """The run's mesh on one host's devices.

        Args:
          num_devices: of the host.
        """
        shape = mesh.mesh_shape(self.mesh, num_devices)
        return Placement(tuple(range(math.prod(shape))), shape)

    def memory(self, hardware: Hardware, num_devices: int, num_hosts: int) -> tuple[float, float]:
        """Bytes of each device of the mesh: of the params, and those that scoring needs beside them.

        Args:
          hardware: of the devices.
          num_devices: of all hosts.
          num_hosts: that have one part of the rows each, and all params.
        """
        costs = self._costs(hardware, num_devices, num_hosts, self._longest)
        placement = self.placement(num_devices // num_hosts)
        return costs.params_bytes("gold", placement), costs.working_bytes(SCORE, placement)

    def seconds(self, hardware: Hardware, num_devices: int, num_hosts: int) -> Seconds:
        """Seconds of scoring by formulas.

        Args:
          hardware: of the devices.
          num_devices: of all hosts.
          num_hosts: as in `memory`.
        """
        placement = self.placement(num_devices // num_hosts)
        found = []
        for rows, tokens in (
            (self.rows_per_round, self.round_tokens),
            (self.rows_per_evaluation, self.evaluation_tokens),
        ):
            costs = self._costs(hardware, num_devices, num_hosts, tokens)
            num_batches = math.ceil(rows / self.rows_per_batch)
            found.append(num_batches * costs.seconds(SCORE, placement) if num_batches else 0.0)
        of_round, of_evaluation = found
        each_round = of_round + self.evaluations_per_round * of_evaluation
        return Seconds(of_round, of_evaluation, each_round)

    @property
    def _longest(self) -> int:
        return max(self.round_tokens if self.rows_per_round else 0, self.evaluation_tokens)

    def _batch(self, tokens: int) -> Workload:
        """The rows that are scored at once, padded."""
        length = LEAST_TOKENS
        while length < tokens:
            length *= 2
        rows = self.rows_per_batch
        return Workload(rows, 1, prompt_tokens=length, completion_tokens=0)

    def _costs(
        self, hardware: Hardware, num_devices: int, num_hosts: int, tokens: int
    ) -> CostModel:
        batch = self._batch(tokens)
        costs = AnalyticCostModel(hardware, num_devices, {"gold": self.shape}, batch)
        if num_hosts == 1:
            return costs
        return OnEveryHost(costs, num_hosts, num_devices // num_hosts)


def beside(costs: AnalyticCostModel, gold: Gold, num_hosts: int) -> AnalyticCostModel:
    """Costs of a round's calls on devices that hold a gold model, which scores between the calls.

    Every device is counted as one of the run's mesh, also where a plan has devices beside it.

    Args:
      costs: of the calls alone.
      gold: the model.
      num_hosts: that the devices fill.
    """
    held, scoring = gold.memory(costs.hardware, costs.num_devices, num_hosts)
    return replace(costs, held_bytes=held, scoring_bytes=scoring, _parts={})
