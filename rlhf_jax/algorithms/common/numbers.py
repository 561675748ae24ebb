"""The numbers of an algorithm that compiled programs take as arguments."""

import dataclasses

from rlhf_jax import registry
from rlhf_jax.config import Settings
from rlhf_jax.ops.scalars import scaled
from rlhf_jax.types import Algorithm


def with_arguments(algorithm: Algorithm, name: str, config: Settings) -> Algorithm:
    """The algorithm, whose credit and losses take the numbers that its module names in `SCALARS`
    as arguments of their programs.

    `SCALARS` are dotted names of fields of the module's `Config`. The function that makes the
    algorithm is called again inside traces, with a config that has traced numbers in these fields,
    and must not branch on them but by `ops.scalars.is_zero`. An algorithm without `SCALARS` is
    returned as it is.

    Args:
      algorithm: what the function made of `config`.
      name: as `registry.find` takes it.
      config: the algorithm's settings.

    Raises as `registry.entry`.
    """
    module, _ = registry.located("algorithms", name)
    names = getattr(module, "SCALARS", ())
    if not names:
        return algorithm
    make = registry.entry("algorithms", name)
    losses = {
        role: scaled(lambda config, role=role: make(config).losses[role], config, names)
        for role in algorithm.losses
    }
    credit = scaled(lambda config: make(config).credit, config, names)
    return dataclasses.replace(algorithm, credit=credit, losses=losses)
