"""Shapes and shardings of the arguments of a round's calls, for compiling ahead of time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.dataflow import REWARD, SCORES, Call
from rlhf_jax.devices import sharding
from rlhf_jax.models.common.adapters import Rest, join
from rlhf_jax.records.checkpoints import abstract_like
from rlhf_jax.runtime.calls import params_shardings
from rlhf_jax.runtime.spec import ProgramSpec
from rlhf_jax.types import Batch, Params, Samples, Scores, States, TrainState
from rlhf_jax.updating import init_state


@dataclass(frozen=True)
class Shapes:
    """Arguments of the calls of one program, each a `jax.ShapeDtypeStruct` with its sharding.

    Attributes:
      sampled: shapes of the samples that a round draws; it is trained on `samples`, as many unless
        the run oversamples.
      states: shapes of the train states; `state_shardings` are theirs.
      frozen: params of calls whose role is not trained, as arrays on the call's mesh.
      trainer_mesh: the policy's training mesh, where credit runs.
      rest_of: gives what is not trained of the params of a call's role, on the call's mesh.
    """

    spec: ProgramSpec
    sampled: Samples
    states: States
    state_shardings: States
    frozen: Mapping[str, Params]
    trainer_mesh: Mesh
    rest_of: Callable[[Call], Rest]

    @property
    def samples(self) -> Samples:
        """Shapes of the samples that a round is trained on."""
        if self.spec.oversample == 1:
            return self.sampled
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (x.shape[0] // self.spec.oversample, *x.shape[1:]) if x.ndim else (), x.dtype
            ),
            self.sampled,
        )

    def score_arguments(self, call: Call) -> tuple[Params, Samples]:
        """Params and samples of an inference call."""
        mesh = self.spec.resolved_plan.mesh(call.name)
        if call.name in self.frozen:
            params = self.frozen[call.name]
        else:
            shapes = self.states[call.role].params
            trained = abstract_like(shapes, params_shardings(self.spec, call, shapes))
            params = join(trained, self.rest_of(call))
        # Every group that was sampled is judged, and of those that are kept the rest is computed.
        samples = self.sampled if call.name == REWARD else self.samples
        return params, sharding.abstract_rows(samples, mesh)

    def policy(self) -> Params:
        """Params of the policy as training holds them, which `publish` copies."""
        state = self.states["policy"].params
        return abstract_like(state, self.state_shardings["policy"].params)

    def update_arguments(self, call: Call, minibatch: Batch) -> tuple[TrainState, Batch]:
        """State and rows of a training call."""
        state = abstract_like(self.states[call.role], self.state_shardings[call.role])
        return state, sharding.abstract_rows(minibatch, self.spec.resolved_plan.mesh(call.name))

    def credit_arguments(self) -> tuple[Samples, object, object]:
        """Samples, raw scores and outputs of the other scores, as `Program` passes them to credit."""
        rows, length = self.samples.tokens_BC.shape
        sizes = {"B": (rows,), "BC": (rows, length)}
        scores = [
            SCORES[call.name]
            for call in self.spec.calls
            if call.kind == "infer" and call.name != REWARD
        ]
        outputs = {
            score.output: jax.ShapeDtypeStruct(sizes[score.shape], np.float32) for score in scores
        }
        outputs |= {
            name: jax.ShapeDtypeStruct((rows, stored.shape[1]), np.float32)
            for name, stored in self.spec.stored.items()
        }
        raw_B = jax.ShapeDtypeStruct((rows,), np.float32)
        terms = self.spec.reward.terms
        raw = {term.label: raw_B for term in terms} if terms else raw_B
        return sharding.abstract_rows((self.samples, raw, outputs), self.trainer_mesh)

    def minibatch(self, credit: Callable[..., tuple[Scores, Batch]]) -> Batch:
        """Shapes of the rows of one update.

        Args:
          credit: takes `credit_arguments` and returns a round's scores and rows.
        """
        _, batch = jax.eval_shape(credit, *self.credit_arguments())
        size = batch.tokens_RC.shape[0] // self.spec.clock.num_minibatches
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]) if x.ndim else (), x.dtype), batch
        )


def state_shapes(spec: ProgramSpec, params: Mapping[str, Params]) -> tuple[States, States]:
    """Shapes and shardings of the train states.

    Args:
      spec: of the program.
      params: of each trained role, arrays or their shapes.
    """
    shapes: States = {
        role: jax.eval_shape(partial(init_state, optimizer=optimizer), params[role])
        for role, (_, optimizer) in spec.trained.items()
    }
    meshes = {
        call.role: spec.resolved_plan.mesh(call.name) for call in spec.calls if call.kind == "train"
    }
    shardings: States = {
        role: sharding.state_shardings(network, shapes[role], optimizer, meshes[role])
        for role, (network, optimizer) in spec.trained.items()
    }
    return shapes, shardings
