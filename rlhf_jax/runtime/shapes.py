"""Shapes and shardings of what a round's calls take, known before anything runs: for compiling
ahead of time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.dataflow import REWARD, SCORES, Call
from rlhf_jax.devices import sharding
from rlhf_jax.records.checkpoints import abstract_like
from rlhf_jax.runtime.calls import params_shardings
from rlhf_jax.runtime.spec import ProgramSpec
from rlhf_jax.types import Batch, Params, Samples, States
from rlhf_jax.updating import init_state


@dataclass(frozen=True)
class Shapes:
    """Arguments of the calls of one program, as `jax.ShapeDtypeStruct`s with shardings.

    Attributes:
      samples: shapes of a round's samples.
      states: shapes of the train states; `state_shardings` are theirs.
      frozen: params of calls whose role is not trained, as arrays on the call's mesh.
      home: the policy's training mesh, where credit runs.
    """

    spec: ProgramSpec
    samples: Samples
    states: States
    state_shardings: States
    frozen: Mapping[str, Params]
    home: Mesh

    def of_score(self, call: Call) -> tuple[Any, Any]:
        """Params and samples of an inference call."""
        mesh = self.spec.places.mesh(call.name)
        params = self.frozen.get(call.name)
        if call.name not in self.frozen:
            shapes = self.states[call.role].params
            params = abstract_like(shapes, params_shardings(self.spec, call, shapes))
        return params, sharding.abstract_rows(self.samples, mesh)

    def of_update(self, call: Call, minibatch: Batch) -> tuple[Any, Any]:
        """State and rows of a training call."""
        state = abstract_like(self.states[call.role], self.state_shardings[call.role])
        return state, sharding.abstract_rows(minibatch, self.spec.places.mesh(call.name))

    def of_credit(self) -> tuple[Any, Any, Any]:
        """Samples, raw scores and outputs of the other scores, as credit takes them."""
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
        raw: Any = jax.ShapeDtypeStruct((rows,), np.float32)
        if self.spec.reward.terms:
            raw = {term.label: raw for term in self.spec.reward.terms}
        return sharding.abstract_rows((self.samples, raw, outputs), self.home)

    def minibatch(self, credit: Callable[..., Any]) -> Batch:
        """Shapes of the rows of one update, given the function of `of_credit`'s arguments that
        makes a round's rows.
        """
        _, batch = jax.eval_shape(credit, *self.of_credit())
        size = batch.tokens_RC.shape[0] // self.spec.clock.num_minibatches
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]) if x.ndim else (), x.dtype), batch
        )


def of_states(spec: ProgramSpec, params: Mapping[str, Params]) -> tuple[States, States]:
    """Shapes and shardings of the train states, from the params of each trained role."""
    shapes: States = {
        role: jax.eval_shape(partial(init_state, optimizer=optimizer), params[role])
        for role, (_, optimizer) in spec.trained.items()
    }
    meshes = {call.role: spec.places.mesh(call.name) for call in spec.calls if call.kind == "train"}
    shardings: States = {
        role: sharding.state_shardings(network, shapes[role], optimizer, meshes[role])  # type: ignore[arg-type]
        for role, (network, optimizer) in spec.trained.items()
    }
    return shapes, shardings
