"""An algorithm whose loss is a mean over rows, where the sum is promised: micro-batches do not add
up.
"""

from dataclasses import replace

from my_lab import leave_out

from rlhf_jax.types import Algorithm, Array, Batch, Metrics, Outputs

Config = leave_out.Config


def mean_loss(config: leave_out.Config) -> Algorithm:
    """The laboratory's algorithm with that loss."""

    def loss(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        loss_sum, metrics = leave_out.loss(outputs, batch)
        return loss_sum / batch.tokens_RC.shape[0], metrics

    return replace(leave_out.leave_out(config), name="mean_loss", losses={"policy": loss})
