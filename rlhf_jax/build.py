"""Turns a ConfigDict into components: the only reader of a config, and where a run begins.

The pieces stand in `building/`: `nodes` makes configs, `validation` checks their values,
`components` makes what they name, `directory` compares a start with an earlier run's, and
`running` does all of it in order.
"""

from rlhf_jax.building.components import (
    algorithm,
    inert_clip,
    inexact_ratio,
    parts,
    planned_model,
    problem,
    resolve_auto,
    stages,
    workspace,
)
from rlhf_jax.building.directory import config_of, of_directory
from rlhf_jax.building.nodes import (
    NODES,
    Run,
    choices,
    component,
    default,
    defaults,
    known_keys,
    model,
    node,
)
from rlhf_jax.building.running import (
    checked,
    parts_for,
    prepare,
    run,
)
from rlhf_jax.building.validation import check_task, check_values

__all__ = [
    "NODES",
    "Run",
    "algorithm",
    "check_task",
    "check_values",
    "checked",
    "choices",
    "component",
    "config_of",
    "default",
    "defaults",
    "inert_clip",
    "inexact_ratio",
    "known_keys",
    "model",
    "node",
    "of_directory",
    "parts",
    "parts_for",
    "planned_model",
    "prepare",
    "problem",
    "resolve_auto",
    "run",
    "stages",
    "workspace",
]
