"""Every key of every component has a class, chosen in one table; and which stages a key enters."""

import dataclasses

import pytest

from rlhf_jax import build, registry
from rlhf_jax.building import nodes
from rlhf_jax.config import flatten
from rlhf_jax.run_directory import keys
from rlhf_jax.run_directory.keys import Class


def every_key() -> set[str]:
    """Of the defaults, of nodes that only some configs have, and of every algorithm, task and model
    family of the package.
    """
    found = set(flatten(build.default().to_dict()))
    for node, config in nodes.OPTIONAL.items():
        found |= set(flatten({node: build.node(config()).to_dict()}))
    for folder, node in (("algorithms", "algorithm"), ("tasks", "task")):
        for name in registry.names(folder):
            found |= {f"{node}.{key}" for key in flatten(build.component(folder, name).to_dict())}
    for name in registry.names("models"):
        family = registry.find("models", name)
        if hasattr(family, "PRESETS"):
            found |= {f"model.{field.name}" for field in dataclasses.fields(family.Config)}
    return found


def test_every_key_has_a_class():
    """A new key is a choice: does it change numbers, and how? See `run_directory/keys.py`, and
    `run_directory/history.py` for old runs.
    """
    assert not every_key() - keys.CLASSES.keys(), "keys without a class"
    assert not keys.CLASSES.keys() - every_key(), "classes of keys that no component has"


def test_a_key_has_one_class():
    listed = [key for kind in keys._OF_CLASS.values() for key in kind.split()]
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("rlhf.loop", Class.FREE),
        ("rlhf.num_micro_batches", Class.ROUNDING),
        ("rlhf.total_prompts", Class.EXTENDING),
        ("rlhf.lag", Class.NUMBERS),
        ("rlhf.critic_optimizer.beta2", Class.NUMBERS),
        ("pretrained.sft", Class.PLACE),
        ("algorithm.a_key_of_somebody_else", Class.NUMBERS),
    ],
)
def test_classes(key, kind):
    assert keys.class_of(key) is kind


ENTERED = [
    ("seed", ["sft", "comparisons", "reward_model", "prompt_values", "rlhf", "dpo"]),
    ("sft.num_updates", ["sft", "comparisons", "reward_model", "prompt_values", "rlhf", "dpo"]),
    ("comparisons.num_train", ["comparisons", "reward_model", "prompt_values", "rlhf", "dpo"]),
    ("pretrained.gold", ["comparisons", "reward_model", "prompt_values", "rlhf", "dpo"]),
    ("reward_model.standardize", ["reward_model", "prompt_values", "rlhf"]),
    ("rlhf.temperature", ["prompt_values", "rlhf"]),
    ("reward_settings.label.key", ["prompt_values", "rlhf"]),
    ("algorithm.beta", ["rlhf"]),
    ("rlhf.lag", ["rlhf"]),
    ("dpo.beta", ["dpo"]),
    ("evaluate.num_prompts", []),
]


@pytest.mark.parametrize(("key", "stages"), ENTERED)
def test_a_key_enters_its_stage_and_those_after_it(key, stages):
    assert [stage for stage in keys.STAGES if keys.enters(key, stage)] == stages
