"""The measure of the study of staleness: how far the trainer of each round is from the policy that
drew it, and how large its updates are.

With l the log-ratio of a token, trainer's over sampler's:

    ess_share_row      effective share of the weights e^(Σ l) of whole completions
    ess_share_token    effective share of the weights e^l of tokens
    kl                 KL of the trainer's policy from the sampler's, by the estimator k3, nats a token
    row_log_ratio      the largest |Σ l| of a completion, nats
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import scoring
from rlhf_jax.models.api import Model
from rlhf_jax.ops.masked import masked_sum
from rlhf_jax.ops.policy_gradient.row_weights import staleness_figures
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.synchronous import Event, RoundEnd, Scored, Updated
from rlhf_jax.sweeps.cell_lines import significant
from rlhf_jax.types import Array, Params, Samples

OF_ROUND = {
    "ess_share_row": "staleness_ess_share_row",
    "ess_share_token": "staleness_ess_share_token",
    "kl": "staleness_kl_k3",
}
OF_UPDATE = ("grad_norm", "update_norm")
SCALE = "learning_rate_scale"  # of updates that are scaled, or whose share of rows is reported


def round_figures(params: Params, samples: Samples, *, model: Model) -> dict[str, Array]:
    """Figures of one round, see the module; one number each.

    Args:
      params: the trainer's at the start of the round.
      samples: of the round.
      model: of the policy.
    """
    logprob_BC = scoring.sample_logprobs(params, samples, model=model)
    arrays = (logprob_BC, samples.behavior_logprob_BC, samples.mask_BC)
    known = staleness_figures(*arrays)
    log_B = masked_sum(logprob_BC - samples.behavior_logprob_BC, samples.mask_BC, dim=1)
    return {name: known[key] for name, key in OF_ROUND.items()} | {
        "row_log_ratio": jnp.abs(log_B).max()
    }


class Staleness:
    """Measures every round before it is trained on, and every update."""

    def __init__(self, params: Params):
        """Begins a cell.

        Args:
          params: of version 0.
        """
        self._params = jax.device_get(params)
        self._compiled: Callable[[Params, Samples], dict[str, Array]] | None = None
        self._series: dict[str, list[float]] = {}

    def take(self, program: Program, event: Event) -> None:
        """Measures a round or an update, or keeps the params after a round."""
        if isinstance(event, Scored):
            if self._compiled is None:
                self._compiled = jax.jit(partial(round_figures, model=program.spec.model))
            self._append(jax.device_get(self._compiled(self._params, event.samples)))
        elif isinstance(event, Updated):
            names = [name for name in (*OF_UPDATE, SCALE) if name in event.metrics]
            self._append({name: event.metrics[name].value() for name in names})
        elif isinstance(event, RoundEnd):
            self._params = jax.device_get(program.policy(event.states))

    def _append(self, figures: Mapping[str, Any]) -> None:
        for name, value in figures.items():
            self._series.setdefault(name, []).append(significant(float(value)))

    def figures(self) -> Mapping[str, Any]:
        """A list over rounds, or updates, of each figure; None where one is not finite."""
        return {
            name: [value if math.isfinite(value) else None for value in values]
            for name, values in self._series.items()
        }
