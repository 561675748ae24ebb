"""Sources of a user's own components, in the digests of a run: what counts as another one."""

import importlib
import json
import sys

import pytest

from configs import quickstart
from rlhf_jax import build, registry
from rlhf_jax.cli import run
from rlhf_jax.refusal import ComponentError, Refusal
from rlhf_jax.run_directory import component_names, digests, run_config, stage_records, starts
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
        [
            "run",
            "--config=configs/quickstart.py",
            f"--config.reward=learned + 2*{own}:brevity",
            f"--config.job={own}",
        ]
    )
    found = own_code.modules(config.to_dict())
    assert {key: module.__file__ for key, module in found.items()} == {
        "job": str(own),
        "reward.brevity": str(own),
    }
    assert own_code.modules(quickstart.get_config().to_dict()) == {}


def test_modules_that_python_finds(own, monkeypatch):
    monkeypatch.syspath_prepend(own.parent)
    (own.parent / "my_own_lab.py").write_text(OWN)
    by_module = own_code.of_sources(
        quickstart.get_config().to_dict() | {"reward": "my_own_lab.brevity"}
    )
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
    record = json.loads((directory / "checkpoints/rlhf" / stage_records.FILE).read_text())
    assert record["config"]["reward_settings.brevity.scale"] == 2.0


def test_another_source_is_told_with_the_version(begun, own, capsys):
    """A reward that has raised is mended in its place: the run goes on, and its directory says from
    where.
    """
    directory, config = begun
    build.prepare(config)
    assert "differs" not in capsys.readouterr().err
    own.write_text(OWN.replace("-config", "config"))
    build.prepare(config)
    said = capsys.readouterr().err
    assert (
        said.count(
            "note: the code of reward.brevity differs from that which made versions up to 16 of "
            "rlhf\n"
        )
        == 1
    )
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
    with pytest.raises(
        Refusal, match=r"reward_settings\.brevity\.scale \(2\.0 there, 3\.0 now\).*--config\.begin="
    ):
        build.prepare(config)


def test_another_reward_is_one_change(begun):
    """The settings that go and come with it are no news."""
    _, config = begun
    config.reward = "gold"
    with pytest.raises(
        Refusal, match=r"made with another config: reward \([^,]*, 'gold' now\): enters the numbers"
    ):
        build.prepare(config)


def write_package(folder, helper="VALUE = 1\n", more=""):
    """A package with a reward that imports a helper, which imports another one when it is called."""
    folder.mkdir(parents=True)
    texts = {
        "__init__.py": '"""A laboratory."""\n',
        "rewards.py": f"import numpy as np\nfrom {folder.name} import helper\n{more}\n\ndef "
        "brevity(completions):\n"
        "    return [helper.value() * len(text) for text in completions]\n",
        "helper.py": "def value():\n    from . import deep\n    return deep.VALUE\n",
        "deep.py": helper,
        "unrelated.py": "OTHER = 1\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def of_reward(name):
    return own_code.of_sources(quickstart.get_config().to_dict() | {"reward": name})[
        "code.reward.brevity"
    ]


def test_what_a_component_imports_of_its_package_is_its_code(tmp_path, monkeypatch):
    """Directly, through another module, and inside a function; neither other modules nor installed
    packages.
    """
    monkeypatch.syspath_prepend(tmp_path)
    lab = write_package(tmp_path / "lab_of_imports")
    found = {
        path.name for path in own_code.sources(importlib.import_module("lab_of_imports.rewards"))
    }
    assert found == {"rewards.py", "__init__.py", "helper.py", "deep.py"}
    name = "lab_of_imports.rewards:brevity"
    before = of_reward(name)
    (lab / "unrelated.py").write_text("OTHER = 2\n")
    (lab / "helper.py").write_text((lab / "helper.py").read_text() + "# a comment\n")
    assert of_reward(name) == before
    for changed in ("deep.py", "helper.py"):
        (lab / changed).write_text((lab / changed).read_text() + "MORE = 2\n")
        assert of_reward(name) != before, changed
        before = of_reward(name)


def test_what_a_file_imports_of_its_folder_is_its_code(tmp_path):
    (tmp_path / "own_helper_of_a_file.py").write_text("VALUE = 1\n")
    (tmp_path / "mine.py").write_text(
        "import own_helper_of_a_file\nfrom rlhf_jax import registry\n\ndef brevity(completions):\n"
        "    return [own_helper_of_a_file.VALUE for _ in completions]\n"
    )
    before = of_reward(f"{tmp_path / 'mine.py'}:brevity")
    (tmp_path / "own_helper_of_a_file.py").write_text("VALUE = 2\n")
    assert of_reward(f"{tmp_path / 'mine.py'}:brevity") != before


def test_the_digest_does_not_depend_on_the_place(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "one")
    write_package(tmp_path / "one" / "lab_of_places")
    write_package(tmp_path / "two" / "lab_of_places")
    by_name = of_reward("lab_of_places.rewards:brevity")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lab_of_places"]:
        del sys.modules[name]
    sys.path[0] = str(tmp_path / "two")
    importlib.invalidate_caches()
    assert of_reward("lab_of_places.rewards:brevity") == by_name


def test_modules_beside_a_lone_installed_one_are_not_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(own_code, "APART", (tmp_path,))
    (tmp_path / "lone_reward.py").write_text(
        "import lone_library\n\ndef brevity(completions):\n    return []\n"
    )
    (tmp_path / "lone_library.py").write_text("VALUE = 1\n")
    assert len(own_code.sources(importlib.import_module("lone_reward"))) == 1
    write_package(tmp_path / "lab_installed")
    assert len(own_code.sources(importlib.import_module("lab_installed.rewards"))) == 4


def test_another_name_of_the_same_reward_is_no_change(begun, own, capsys):
    """`mine.py` beside `mine.py:reward`, a relative path, spaces and a weight written otherwise."""
    directory, config = begun
    own.write_text(OWN.replace("def brevity", "def reward") + "\nbrevity = reward\n")
    capsys.readouterr()
    config.reward = f" {own}:brevity+.5 * gold"
    build.prepare(config)
    assert "reward" not in starts.read(directory)[-1]["changed"]
    for named in (f"{own}:reward + 0.5*gold", f"{own} + 0.5*gold"):
        assert component_names.same("reward", f"{own} + 0.5*gold", named)
    assert not component_names.same("reward", f"{own} + 0.5*gold", f"{own} + 0.6*gold")
    assert not component_names.same("reward", f"{own} + 0.5*gold", f"0.5*gold + {own}"), (
        "sums are taken in order"
    )
    assert not component_names.same("reward", f"{own}", "gone.py")
    assert component_names.same("reward", "gone.py", "gone.py")


def test_names_of_one_component_are_one(own, monkeypatch):
    monkeypatch.chdir(own.parent)
    assert component_names.same("job", "mine.py", f"{own}:job")
    assert component_names.same("task.name", "rlhf_jax.tasks.reviews", "reviews")
    assert component_names.same("model.family", "gpt_neox", "rlhf_jax.models.gpt_neox")
    assert not component_names.same("model.family", "gpt_neox", "llama")
    assert not component_names.same("algorithm.name", "grpo", "rloo")
    assert not component_names.same("directory", "mine.py", f"{own}:job")


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
    return registry.make("tasks", str(path), None)


def test_rows_of_a_task_are_its_data(tmp_path):
    """A reward may read them; an object among them has no text that is the same in every process."""
    digest_task, path = digests.digest_task, tmp_path / "task.py"
    before = digest_task(task_of(path))
    assert digest_task(task_of(path)) == before
    assert digest_task(task_of(path, **{"None, 1": "None, 2"})) != before


def test_every_row_of_a_task_is_looked_at_for_its_digest(tmp_path):
    with pytest.raises(
        ComponentError,
        match=r"references\('train', 17\) gave \(None,\); accepted: a tuple of texts",
    ):
        digests.digest_task(task_of(tmp_path / "task.py", **{", -1": ", 17"}))
