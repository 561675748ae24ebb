"""Sources of a user's own components, in the digests of a run: what counts as another one."""

import json

import pytest

from configs import quickstart
from rlhf_jax import build
from rlhf_jax.cli import run
from rlhf_jax.refusal import ComponentError, Refusal
from rlhf_jax.run_directory import digests, made, run_config, starts
from rlhf_jax.stages.common import own_code

OWN = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    scale: float = 2.0

def brevity(completions, config: Config):
    return [-config.scale * len(text) for text in completions]

def job(workspace, stages, algorithm):
    pass
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


@pytest.fixture
def begun(own, tmp_path):
    """A run with two rewards of a user's own that has come to version 16, and what its config is."""
    config = quickstart.get_config()
    config.directory, config.reward = str(tmp_path / "run"), f"{own}:brevity + 0.5*gold"
    build.prepare(config)
    shared = build.checked(config)[1][0]
    for stage, version in (("sft", 500), ("rlhf", 16)):
        (shared.directory / "checkpoints" / stage / str(version)).mkdir(parents=True)
        shared.record(stage)
    return shared.directory, config


def digest_of(path, key="reward.brevity", **named):
    values = quickstart.get_config().to_dict() | {"reward": f"{path}:brevity"} | named
    return own_code.of_sources(values)[f"code.{key}"]


def test_modules_of_a_users_own(own):
    config = run.parse(
        ["run", "--config=configs/quickstart.py", f"--config.reward=learned + 2*{own}:brevity", f"--config.job={own}"]
    )
    found = own_code.modules(config.to_dict())
    assert {key: module.__file__ for key, module in found.items()} == {"job": str(own), "reward.brevity": str(own)}
    assert own_code.modules(quickstart.get_config().to_dict()) == {}


def test_modules_that_python_finds(own, monkeypatch):
    monkeypatch.syspath_prepend(own.parent)
    (own.parent / "my_own_lab.py").write_text(OWN)
    by_module = own_code.of_sources(quickstart.get_config().to_dict() | {"reward": "my_own_lab.brevity"})
    assert by_module == {"code.reward.brevity": digest_of(own)}


def test_a_comment_is_no_other_source(own):
    before = digest_of(own)
    own.write_text(OWN.replace("    return", "    # shorter is better\n    return"))
    assert digest_of(own) == before
    own.write_text(OWN.replace("-config", "config"))
    assert digest_of(own) != before


def test_digests_are_where_those_of_a_run_are(begun, own):
    directory, _ = begun
    expected = digest_of(own)
    assert run_config.read(directory)[1]["code.reward.brevity"] == expected
    assert starts.read(directory)[-1]["digests"]["code.reward.brevity"] == expected
    record = json.loads((directory / "checkpoints/rlhf" / made.FILE).read_text())
    assert record["config"]["reward_settings.brevity.scale"] == 2.0


def test_another_source_is_told_with_the_version(begun, own, capsys):
    """A reward that has raised is mended in its place: the run goes on, and its directory says from where."""
    directory, config = begun
    build.prepare(config)
    assert "differs" not in capsys.readouterr().err
    own.write_text(OWN.replace("-config", "config"))
    build.prepare(config)
    said = capsys.readouterr().err
    assert said.count("note: the code of reward.brevity differs from that which made versions up to 16 of rlhf\n") == 1
    before, last = starts.read(directory)[-2:]
    assert last["at"] == {"sft": 500, "rlhf": 16}
    assert before["digests"]["code"] == last["digests"]["code"]
    assert before["digests"]["code.reward.brevity"] != last["digests"]["code.reward.brevity"]
    build.prepare(config)
    assert "differs" not in capsys.readouterr().err, "it is told once"


def test_other_settings_of_a_reward_are_refused_with_what_forks(begun):
    _, config = begun
    with config.unlocked():
        config.reward_settings = {"brevity": {"scale": 3.0}}
    with pytest.raises(Refusal, match=r"reward_settings\.brevity\.scale \(2\.0 there, 3\.0 now\).*--config\.begin="):
        build.prepare(config)


def test_another_reward_is_one_change(begun):
    """The settings that go and come with it are no news."""
    _, config = begun
    config.reward = "gold"
    with pytest.raises(Refusal, match=r"made with another config: reward \([^,]*, 'gold' now\): enters the numbers"):
        build.prepare(config)


TASK = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    seed: int = 0

class Task:
    verifiable, has_gold, vocabulary, level, wrong = False, True, None, 1, -1

    def num_prompts(self, split):
        return 40

    def prompt(self, split, index):
        return f"{split} {index}"

    def references(self, split, index):
        return ("yes",) if index != self.wrong else (None,)

    def record(self, split, index):
        return {"level": self.level, "of": {"source": object()}}

    def judge(self, prompt, completion, finished):
        return 1.0

def make(config: Config):
    return Task()
"""


def task_of(path, **changed):
    text = TASK
    for name, value in changed.items():
        text = text.replace(name, value)
    path.write_text(text)
    return build.registry.make("tasks", str(path), None)


def test_rows_of_a_task_are_its_data(tmp_path):
    """A reward may read them; an object among them has no text that is the same in every process."""
    of_task, path = digests.of_task, tmp_path / "task.py"
    before = of_task(task_of(path))
    assert of_task(task_of(path)) == before
    assert of_task(task_of(path, **{"None, 1": "None, 2"})) != before


def test_every_row_of_a_task_is_looked_at_for_its_digest(tmp_path):
    with pytest.raises(ComponentError, match=r"references\('train', 17\) gave \(None,\); accepted: a tuple of texts"):
        digests.of_task(task_of(tmp_path / "task.py", **{", -1": ", 17"}))
