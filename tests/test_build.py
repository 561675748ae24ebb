"""Configs become components: every key with its type, and the resolved text of every file of
configs/ as it was.
"""

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from configs import quickstart
from rlhf_jax import build, registry
from rlhf_jax.config import fill
from rlhf_jax.ops.scalars import scalars_of_function
from rlhf_jax.refusal import Refusal

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "configs"
CONFIGS = ROOT / "configs"
NAMES = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in CONFIGS.rglob("[!_]*.py")
    if path.parent.name not in ("studies", "common")
)


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    count: int = 3
    name: str = "a"
    flag: bool = False
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = field(default_factory=Inner)


def test_a_node_has_every_key_and_turns_back():
    node = build.node(Outer())
    assert node.to_dict() == {
        "count": 3,
        "name": "a",
        "flag": False,
        "sizes": (1, 2),
        "inner": {"rate": 0.5},
    }
    assert fill(Outer, node.to_dict(), "outer") == Outer()
    assert fill(Outer, {"inner": {"rate": 2}}, "outer") == Outer(inner=Inner(2.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 1}, r"outer has no key 'cuont'; did you mean 'count'\?"),
        ({"zzz": 1}, "outer has no key 'zzz'; accepted: count, name, flag, sizes, inner"),
        ({"inner": {"rte": 1.0}}, r"outer\.inner has no key 'rte'; did you mean 'rate'\?"),
        ({"count": "3"}, r"outer\.count is '3', a str; accepted: int"),
        ({"count": 3.0}, r"outer\.count is 3\.0, a float; accepted: int"),
        ({"count": True}, r"outer\.count is True, a bool; accepted: int"),
        ({"name": 3}, r"outer\.name is 3, a int; accepted: str"),
        ({"flag": 1}, r"outer\.flag is 1, a int; accepted: bool"),
        ({"sizes": (1, "2")}, r"outer\.sizes is '2', a str; accepted: int"),
        ({"inner": {"rate": "x"}}, r"outer\.inner\.rate is 'x', a str; accepted: float"),
    ],
)
def test_a_wrong_key_or_type_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        fill(Outer, values, "outer")


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(
        ValueError, match=r"no preset 'huge' of the model family gpt_neox; there are: .*pythia-70m"
    ):
        build.model("gpt_neox", "huge")


def test_choices_are_over_the_defaults():
    assert build.choices("", algorithm="online_dpo", size="small") == {
        "algorithm": "online_dpo",
        "size": "small",
    }
    chosen = build.choices("size=large,algorithm=grpo", algorithm="online_dpo", size="small")
    assert chosen == {"algorithm": "grpo", "size": "large"}


@pytest.mark.parametrize(
    "argument", ["grpo", "algoritm=grpo", "algorithm=", "=grpo", "algorithm=grpo,x"]
)
def test_what_chooses_nothing_is_refused(argument):
    part = argument.split(",")[-1]
    with pytest.raises(
        ValueError, match=rf"'{part}' chooses nothing; accepted: algorithm=\.\.\., size=\.\.\."
    ):
        build.choices(argument, algorithm="online_dpo", size="small")


def scheduled(name: str, correction: dict, **schedule) -> dict:
    """A run's values after `resolve_auto`."""
    config = build.default()
    config.algorithm = build.component("algorithms", name)
    values = config.to_dict()
    values["algorithm"]["correction"] |= correction
    values["rlhf"] |= schedule
    build.resolve_auto(values)
    return values


@pytest.mark.parametrize(
    ("schedule", "correction", "expected"),
    [
        ({}, {}, ("behavior", "none")),
        ({"num_minibatches": 4, "num_epochs": 2}, {}, ("behavior", "none")),
        ({"lag": 1}, {}, ("proximal", "truncate")),
        ({"version_schedule": (0, 0)}, {}, ("proximal", "truncate")),
        ({"sync_every": 2}, {}, ("proximal", "truncate")),
        ({"buffer_rounds": 2}, {}, ("proximal", "truncate")),
        ({"buffer_rounds": 1}, {}, ("behavior", "none")),
        ({"lag": 1}, {"correction": "none"}, ("proximal", "none")),
        ({"lag": 1}, {"ratio_to": "behavior"}, ("behavior", "none")),
        ({"lag": 1}, {"correction": "second_moment"}, ("behavior", "second_moment")),
    ],
)
def test_auto_is_resolved_by_the_schedule(schedule, correction, expected):
    """Nothing is left to "auto" in what becomes config.json; the level is the algorithm's own."""
    for name, level in (("grpo", "token"), ("rloo", "sequence")):
        if name == "rloo" and expected[1] == "second_moment":
            continue
        values = scheduled(name, correction, **schedule)
        found = values["algorithm"]["correction"]
        assert (found["ratio_to"], found["correction"], found["level"]) == (*expected, level)
        assert "auto" not in str(values["algorithm"])
        needs = build.algorithm(values["algorithm"]).needs
        assert ("proximal" in needs) == (expected != ("behavior", "none"))


@pytest.mark.parametrize(
    "changed", [{"model.dtype": "bfloat16"}, {"rlhf.publish_dtype": "bfloat16"}]
)
def test_a_sampler_in_bfloat16_is_not_the_trainers_policy(changed):
    """On-policy too, "auto" takes the ratio to the proximal policy; a ratio to the behavior policy
    is told about.
    """
    config = build.default()
    config.algorithm = build.component("algorithms", "rloo")
    config.update_from_flattened_dict(changed)
    values = config.to_dict()
    build.resolve_auto(values)
    assert values["algorithm"]["correction"]["ratio_to"] == "proximal"
    assert values["algorithm"]["correction"]["correction"] == "truncate"
    assert build.inexact_ratio(values) == ""
    config.algorithm.correction.ratio_to = "behavior"
    values = config.to_dict()
    build.resolve_auto(values)
    assert "computes in bfloat16: ratios differ from 1" in build.inexact_ratio(values)
    assert build.inexact_ratio(values | {"algorithm": {"name": "online_dpo"}}) == ""


def test_a_clip_of_completions_as_wide_as_one_of_tokens_is_said():
    values = {"algorithm": build.component("algorithms", "gspo").to_dict()}
    assert build.inert_clip(values) == ""
    values["algorithm"]["surrogate"]["low"] = 0.2
    assert "surrogate.low is 0.2 at level 'sequence_mean'" in build.inert_clip(values)
    assert build.inert_clip({"algorithm": build.component("algorithms", "dapo").to_dict()}) == ""
    assert build.inert_clip({"algorithm": build.component("algorithms", "ppo").to_dict()}) == ""


def test_an_interpolation_needs_stale_samples():
    config = build.default()
    config.algorithm = build.component("algorithms", "a3po")
    config.rlhf.lag = 2
    build.resolve_auto(config.to_dict())
    config.rlhf.lag = 0
    with pytest.raises(Refusal, match=r"interpolation is 0\.5 in a run without a lag; accepted: 0"):
        build.resolve_auto(config.to_dict())
    for clock in ("sync_every", "buffer_rounds"):
        older = config.to_dict()
        older["rlhf"][clock] = 2
        build.resolve_auto(older)
    config.algorithm.interpolation, config.algorithm.interpolation_by = 0.0, "age"
    with pytest.raises(Refusal, match="interpolation_by is 'age' in a run without a lag; accepted"):
        build.resolve_auto(config.to_dict())


def test_the_noise_of_scores_has_the_seed_of_the_run():
    """Another one that is given stays; without noise there is nothing to be seeded."""
    config = build.default()
    config.algorithm, config.seed = build.component("algorithms", "redit"), 7
    values = config.to_dict()
    build.resolve_auto(values)
    assert values["algorithm"]["advantage"]["noise_seed"] == 7
    values["seed"] = 8
    build.resolve_auto(values)
    assert values["algorithm"]["advantage"]["noise_seed"] == 7
    config.algorithm.advantage.noise = 0.0
    values = config.to_dict()
    build.resolve_auto(values)
    assert values["algorithm"]["advantage"]["noise_seed"] == -1


@pytest.mark.parametrize(
    ("node", "key", "value"),
    [
        ("correction", "correction", "mask"),
        ("surrogate", "cap", 3.0),
        ("advantage", "shift", -0.1),
        ("penalty", "kl_weight", 0.1),
        ("filter", "high", 1.0),
    ],
)
def test_a_refusal_of_the_pieces_names_the_key_as_it_is_typed(node, key, value):
    values = build.component("algorithms", "policy_gradient").to_dict()
    values["correction"]["ratio_to"] = "behavior"
    values[node][key] = value
    with pytest.raises(Refusal, match=f"^algorithm.{node}."):
        build.algorithm(values)


def test_a_refusal_of_a_combination_names_the_key_as_it_is_typed():
    values = build.component("algorithms", "sapo").to_dict()
    values["correction"]["correction"] = "auto"
    with pytest.raises(Refusal, match=r"^algorithm.correction.correction is 'auto' with surrogate"):
        build.algorithm(values)


@pytest.mark.parametrize("name", registry.presets("algorithms"))
def test_a_preset_is_a_choice_of_a_config_and_its_keys_are_overridden(name):
    """The lag of the quickstart resolves what is left to "auto"."""
    config = quickstart.get_config(f"algorithm={name}")
    assert config.algorithm.name == name
    assert config.directory == f"runs/quickstart_{name}"
    config.algorithm.penalty.entropy = 0.125
    values = config.to_dict()
    build.resolve_auto(values)
    made = build.algorithm(values["algorithm"])
    assert made.name == name
    assert scalars_of_function(made.losses["policy"])["penalty.entropy"] == 0.125


def test_algorithms_without_a_correction_are_as_they_were():
    values = build.default().to_dict()
    before = json.dumps(values)
    build.resolve_auto(values)
    assert json.dumps(values) == before


def test_a_wrong_correction_is_named():
    with pytest.raises(
        ValueError, match=r"algorithm\.correction has no key 'ratio'; did you mean 'ratio_to'\?"
    ):
        scheduled("grpo", {"ratio": "behavior"})
    with pytest.raises(ValueError, match="correction is 'truncate' with ratio_to 'behavior'"):
        scheduled("grpo", {"ratio_to": "behavior", "correction": "truncate"})


def module(name: str):
    return importlib.import_module(f"configs.{name.replace('/', '.')}")


def resolved(name: str) -> dict:
    """What a run would write to config.json."""
    values = module(name).get_config().to_dict()
    build.stages(values)
    build.resolve_auto(values)
    build.algorithm(values["algorithm"])
    return json.loads(json.dumps(values))


@pytest.mark.parametrize("name", NAMES)
def test_resolved_configs_are_as_they_were(name):
    """A change of a default anywhere shows here, and in the diff of the golden file."""
    path, values = GOLDEN / f"{name}.json", resolved(name)
    hint = f"configs/{name}.py resolves to other values than tests/golden/configs/{name}.json"
    again = "if that is meant, say why in the commit, with the file that `python tests/test_build.py` writes"
    assert path.exists(), f"no {path.name}: {again}"
    assert values == json.loads(path.read_text()), f"{hint}; {again}"


@pytest.mark.parametrize("name", NAMES)
def test_every_config_says_how_it_is_run(name):
    docstring = module(name).__doc__ or ""
    assert f"--config=configs/{name}.py" in docstring


def test_goldens_are_of_configs_that_exist():
    assert (
        sorted(str(path.relative_to(GOLDEN).with_suffix("")) for path in GOLDEN.rglob("*.json"))
        == NAMES
    )


if __name__ == "__main__":
    for config in NAMES:
        (GOLDEN / f"{config}.json").parent.mkdir(exist_ok=True)
        (GOLDEN / f"{config}.json").write_text(
            json.dumps(resolved(config), indent=1, sort_keys=True) + "\n"
        )
