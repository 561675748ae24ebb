"""Overrides that name another component: its keys take the place of those of the one before."""

import pytest

from rlhf_jax import build, registry
from rlhf_jax.cli import run
from rlhf_jax.refusal import ComponentError, Refusal
from rlhf_jax.rewards.common.nodes import reward_configs, reward_nodes

OWN = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    scale: float = 2.0
    names: tuple[str, ...] = ("a",)

def brevity(completions, config):
    return [config.scale * len(text) for text in completions]

def constant(completions):
    return [1.0] * len(completions)
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return str(path)


def parse(*overrides):
    return run.parse(["run", "--config=configs/quickstart.py", *overrides])


def test_an_algorithm_brings_its_own_keys():
    config = parse(
        "--config.algorithm.kl_weight=0.25", "--config.algorithm.name=grpo", "--config.seed", "3"
    )
    assert config.algorithm.name == "grpo"
    assert (config.algorithm.kl_weight, config.seed) == (0.25, 3)
    assert config.algorithm.to_dict() == build.component("algorithms", "grpo").to_dict() | {
        "kl_weight": 0.25
    }
    assert parse("--config.algorithm.name=online_dpo").algorithm.beta == 0.5, "the file's own value"


def test_a_task_brings_its_own_keys():
    assert parse("--config.task.name", "addition", "--config.task.limit=50").task.limit == 50


def test_keys_of_the_component_before_are_gone():
    with pytest.raises(Refusal, match=r"config\.algorithm has no key 'beta'"):
        parse("--config.algorithm.name=grpo", "--config.algorithm.beta=0.1")


def test_a_reward_brings_its_settings(own):
    name = f"{own}:brevity"
    config = parse(f"--config.reward=gold + 0.5*{name}", "--config.reward_settings.brevity.scale=7")
    assert config.reward_settings.to_dict() == {"brevity": {"scale": 7.0, "names": ("a",)}}
    stages = build.stages(config.to_dict())
    assert stages.reward_settings["brevity"].scale == 7.0
    assert not stages.learned
    assert build.stages(parse().to_dict()).learned
    assert build.stages(parse(f"--config.reward=0.1*{name}+learned").to_dict()).learned


def test_settings_need_no_override(own):
    """A config made in Python names a reward alone: what is resolved has all of its settings."""
    config = build.default()
    config.reward = f"{own}:brevity"
    values = config.to_dict()
    build.stages(values)
    assert values["reward_settings"] == {"brevity": {"scale": 2.0, "names": ("a",)}}


def test_settings_of_no_term_are_named(own):
    with pytest.raises(
        Refusal, match=r"reward_settings has no key 'length', .*; accepted: brevity"
    ):
        reward_nodes(f"{own}:brevity", {"length": {}})
    with pytest.raises(
        Refusal, match=r"reward_settings\.brevity has no key 'scal'; did you mean 'scale'"
    ):
        reward_configs(f"{own}:brevity", {"brevity": {"scal": 1.0}})
    with pytest.raises(Refusal, match=r"reward_settings\.constant has no key 'scale'"):
        reward_configs(f"{own}:constant", {"constant": {"scale": 1.0}})


@pytest.mark.parametrize(
    "override",
    [
        "reward=2*",
        "reward=nowhere.py:f",
        "algorithm.name=nowhere.raft",
        "task.name=x.py",
        "job=nowhere.job",
    ],
)
def test_what_names_nothing_is_one_line(capsys, override):
    with pytest.raises(SystemExit) as left:
        run.main(["run", "--config=configs/quickstart.py", f"--config.{override}"])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_component_that_breaks_keeps_its_traceback(capsys, tmp_path):
    """Exit status 1: its code is at fault, and not the config."""
    path = tmp_path / "broken.py"
    path.write_text("values = {}\nvalues['missing']\n")
    with pytest.raises(SystemExit) as left:
        run.main(["run", "--config=configs/quickstart.py", f"--config.reward={path}"])
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert (
        f"error: importing {path} (rlhf_jax/rewards) raised: KeyError: 'missing' ({path}, line 2)"
        in said
    )


def test_what_makes_no_algorithm_or_task_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def make():\n    return 3\n")
    with pytest.raises(Refusal, match="which makes a int; accepted: an Algorithm"):
        build.algorithm({"name": str(path)})
    with pytest.raises(ComponentError, match=r"is a int without .*num_prompts"):
        build.check_task(3, str(path))


def test_a_stage_of_another_signature_is_refused(capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def job(workspace):\n    pass\n")
    with pytest.raises(SystemExit) as left:
        run.main(["run", "--config=configs/quickstart.py", f"--config.job={path}"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert (
        said
        == f"error: the stage {path} takes (workspace); accepted: (workspace, stages, algorithm)\n"
    )


def test_a_task_whose_vocabulary_is_no_list_of_texts_is_named():
    class Numbers:
        vocabulary = 3

        def __getattr__(self, name):
            return None

    for wrong in (3, "abc", ("a", 1)):
        Numbers.vocabulary = wrong
        with pytest.raises(
            ComponentError,
            match=r"the task mine: vocabulary is .*; accepted: a tuple of texts, or None",
        ):
            build.check_task(Numbers(), "mine")


def test_what_a_module_has_is_what_it_defines(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import json\nfrom dataclasses import dataclass\nfrom rlhf_jax import registry\ndef "
        "make(): pass\n"
    )
    with pytest.raises(Refusal, match=r"has no 'other'; it has make$"):
        registry.entry("tasks", f"{path}:other")
