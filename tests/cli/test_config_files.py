"""A fault in a person's config file is one line with its place; and arguments over a config, read
by one parser.
"""

import re
from pathlib import Path

import pytest

from rlhf_jax import build, config_modules
from rlhf_jax.cli import config_files, run
from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import history
from rlhf_jax.sweeps import cells


@pytest.fixture
def written(tmp_path):
    """Writes a config file and gives its path."""

    def write(text: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return str(tmp_path / name)

    return write


def null_bytes() -> str:
    """The error of this Python: a SyntaxError since 3.11.4, and a ValueError before."""
    try:
        compile("\0", "mine.py", "exec")
    except (SyntaxError, ValueError) as error:
        return type(error).__name__
    return ""


FAULTS = [
    ("import jax\ndef get_config(:\n    pass\n", ":2: SyntaxError: invalid syntax"),
    ("def get_config():\n  x = 1\n    y = 2\n", ":3: IndentationError: unexpected indent"),
    (
        "import nowhere_to_be_found\n",
        ":1: ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    ),
    ("def get_config():\n    return {}['beta']\n", ":2: KeyError: 'beta'"),
    (
        "def get_config():\n    return inner()\ndef inner():\n    raise "
        "ValueError('two\\nlines')\n",
        ":4: ValueError: two lines",
    ),
    ("import json\ndef get_config():\n    return json.loads('{')\n", ":3: JSONDecodeError: "),
    (
        "from rlhf_jax import build\ndef get_config():\n    return build.default().rlfh\n",
        ":3: AttributeError: ",
    ),
    (
        "def get_config():\n    open('/no/such/file')\n",
        ":2: FileNotFoundError: [Errno 2] No such file or directory",
    ),
    ("x = '\0'\n", f": {null_bytes()}: source code string cannot contain null bytes"),
]


@pytest.mark.parametrize(("text", "said"), FAULTS, ids=[said for _, said in FAULTS])
def test_a_fault_is_one_line_with_its_place(written, text, said):
    path = written(text)
    with pytest.raises(Refusal) as refused:
        config_files.load(path)
    (message,) = refused.value.messages
    assert message.startswith(f"{path}{said}")
    assert "\n" not in message


REFUSED = [
    ("x = 1\n", "", "the file has no get_config; it is none"),
    ("def get_study(choice): ...\n", "", "it is a study: python -m experiments.sweep --config="),
    ("def get_config(): ...\n", ":small", "its get_config takes no argument"),
    ("def get_config(): return 3\n", "", "gave a int; accepted: a ConfigDict"),
    (
        "from rlhf_jax.refusal import Refusal\ndef get_config(x): raise Refusal('no such size')\n",
        ":7b",
        ":7b: no such size",
    ),
]


@pytest.mark.parametrize(("text", "argument", "said"), REFUSED, ids=[said for *_, said in REFUSED])
def test_what_is_no_config_is_refused(written, text, argument, said):
    with pytest.raises(Refusal) as refused:
        config_files.load(written(text) + argument)
    assert said in str(refused.value)


def test_a_file_may_define_dataclasses_and_have_any_name(written):
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom rlhf_jax import build\n"
    text += "@dataclass\nclass Size:\n    width: int = 32\n"
    text += "def get_config(argument='x'):\n    config = build.default()\n    config.model.width = Size().width\n"
    text += "    config.directory = argument\n    return config\n"
    path = written(text, "mine.txt")
    assert config_files.load(path).model.width == 32
    assert [config_files.load(path + end).directory for end in ("", ":", ":a:b")] == [
        "x",
        "",
        "a:b",
    ]
    assert not list(Path(path).parent.glob("__pycache__"))


def test_a_name_that_is_no_file_suggests_one(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(
        Refusal, match=r"no config file 'quikstart'; did you mean configs/quickstart\.py\?"
    ):
        config_files.load("quikstart")


def overridden(*arguments: str):
    return run.overridden(build.default(), [f"--config.{argument}" for argument in arguments])


def test_values_are_read_as_their_types():
    config = overridden(
        "rlhf.ledger=False",
        "rlhf.share_prompts=0",
        "rlhf.version_schedule=(0, 2)",
        "best_of_n=(4,)",
        "seed=7",
    )
    assert (config.rlhf.ledger, config.rlhf.share_prompts, config.seed) == (False, False, 7)
    assert (config.rlhf.version_schedule, config.best_of_n) == ((0, 2), (4,))
    config = overridden(
        "rlhf.temperature=1", "plan=data=2: generate", "pretrained.gold=", "seed=1", "seed=2"
    )
    assert isinstance(config.rlhf.temperature, float)
    assert (config.plan, config.pretrained.gold, config.seed) == ("data=2: generate", "", 2)
    assert run.overridden(build.default(), ["--config.rlhf.lag", "3"]).rlhf.lag == 3


def test_the_same_arguments_over_a_config_json(tmp_path):
    """What a run's directory holds is read with its types: tuples are tuples again, and False is
    False.
    """
    given = build.default()
    given.rlhf.version_schedule = (0, 1)
    (tmp_path / "config.json").write_text(given.to_json())
    config = build.config_of(tmp_path)
    assert (config.rlhf.version_schedule, config.best_of_n) == ((0, 1), (1, 2, 4, 8, 16))
    config = run.overridden(config, ["--config.rlhf.ledger=False", "--config.best_of_n=(2, 4)"])
    assert (config.rlhf.ledger, config.best_of_n) == (False, (2, 4))


WRONG = [
    ("seed=many", "seed is 'many'; accepted: int"),
    ("rlhf.temperature=warm", "rlhf.temperature is 'warm'; accepted: float"),
    ("rlhf.ledger=perhaps", "rlhf.ledger is 'perhaps'; accepted: bool"),
    ("rlhf=3", "config.rlhf has keys below it; accepted: --config.rlhf.<key>=<value> with"),
    ("algorithm=grpo", "--config.algorithm.name=grpo takes another one"),
    ("task=addition", "--config.task.name=addition takes another one"),
    ("rlhf.lagg=3", "config.rlhf has no key 'lagg'; did you mean 'lag'?"),
    ("seed.deep=3", "config.seed has no key 'deep'; accepted: no keys below it"),
]


@pytest.mark.parametrize(("argument", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_wrong_override_is_named(argument, said):
    with pytest.raises(Refusal) as refused:
        overridden(argument)
    assert said in str(refused.value)


def test_an_argument_that_is_the_end_of_a_key_suggests_it():
    with pytest.raises(
        Refusal, match=r"unknown argument '--lag'; did you mean --config\.rlhf\.lag\?"
    ):
        run.overridden(build.default(), ["--lag=2"])
    with pytest.raises(Refusal, match="unknown argument 'lag=2'; accepted: "):
        run.overridden(build.default(), ["lag=2"])


def test_another_component_comes_with_its_own_defaults():
    config = overridden("algorithm.name=rloo", "algorithm.clip=0.3", "task.name=addition")
    assert (config.algorithm.name, config.algorithm.clip, config.algorithm.kl_weight) == (
        "rloo",
        0.3,
        0.05,
    )
    assert config.task.to_dict() == build.component("tasks", "addition").to_dict()
    kept = build.default()
    kept.algorithm.beta = 0.7
    assert run.overridden(kept, ["--config.algorithm.name=online_dpo"]).algorithm.beta == 0.7
    with pytest.raises(Refusal, match="no 'ppoo' in rlhf_jax/algorithms/; there are: "):
        overridden("algorithm.name=ppoo")
    with pytest.raises(Refusal, match=r"config\.algorithm has no key 'beta'"):
        overridden("algorithm.name=rloo", "algorithm.beta=0.1")


def test_a_renamed_file_is_refused_with_its_new_name():
    with pytest.raises(Refusal, match=r"the file is now called configs/tldr/comparisons\.py"):
        config_files.load("configs/tldr/relabel.py:size=410m")


@pytest.mark.parametrize(("old", "new"), history.RENAMED.items())
def test_a_renamed_key_is_refused_with_its_new_name(old, new):
    with pytest.raises(
        Refusal, match=re.escape(f"config has no key {old!r}; renamed: {old} is now {new}")
    ):
        overridden(f"{old}=x")


def test_a_config_file_that_sets_a_renamed_key_is_told_the_new_name(written):
    line = "    config = build.default()\n    config.hub.sft = 1\n    return config\n"
    path = written(f"from rlhf_jax import build\ndef get_config():\n{line}")
    with pytest.raises(
        Refusal, match=r"mine\.py:4: AttributeError: .*; renamed: hub\.sft is now pretrained\.sft"
    ):
        config_files.load(path)


def test_a_config_that_was_made_with_a_renamed_key_is_refused():
    values = build.default().to_dict()
    values["rlhf"]["replay"] = values["rlhf"].pop("replay_schedule_of")
    with pytest.raises(Refusal, match=r"rlhf\.replay is now rlhf\.replay_schedule_of"):
        build.check_values(values)


SIZE = "from {package} import {names}\ndef get_config():\n    return {value}\n"


def package(folder: Path, learning_rate: float) -> None:
    """A package of configs of a user's own, with a `common` in it."""
    for name in ("", "common", "mine"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "__init__.py").write_text('"""A part."""\n')
    text = "from rlhf_jax import build\ndef base():\n    config = build.default()\n"
    text += f"    config.sft.optimizer.learning_rate = {learning_rate}\n    return config\n"
    (folder / "common" / "tldr.py").write_text(text)


def test_a_copy_of_a_config_imports_what_the_original_does(tmp_path, monkeypatch):
    """In any folder: of a file outside of a package relative imports mean the configs that come
    with the code.
    """
    monkeypatch.chdir(tmp_path)
    folder = config_modules.folder()
    for name in ("overoptimization.py", "tldr/ppo.py"):
        copy = tmp_path / Path(name).name
        copy.write_bytes((folder / name).read_bytes())
        assert (
            config_files.load(str(copy)).to_dict()
            == config_files.load(str(folder / name)).to_dict()
        )
    (tmp_path / "mine.py").write_text(
        "from rlhf_jax.configs import quickstart\nget_config = quickstart.get_config\n"
    )
    assert config_files.load("mine.py").to_dict() == config_files.load("quickstart").to_dict()


def test_a_copy_of_a_study_imports_what_the_original_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_bytes(
        (config_modules.folder() / "studies" / "grpovi.py").read_bytes()
    )
    assert (
        cells.load("own.py:tiny").base().to_dict()
        == cells.load("studies/grpovi:tiny").base().to_dict()
    )
    (tmp_path / "own.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(
        Refusal, match=r"own\.py:1: ModuleNotFoundError: No module named 'nowhere_to_be_found'$"
    ):
        cells.load("own.py")


def test_a_package_of_ones_own_imports_its_own_parts(tmp_path):
    """Two packages of one name are told apart, and a folder of a copied package falls back to what
    comes with the code.
    """
    for number, rate in enumerate((0.25, 0.5)):
        folder = tmp_path / str(number) / "configs"
        package(folder, rate)
        (folder / "mine" / "first.py").write_text(
            SIZE.format(package="..common", names="tldr", value="tldr.base()")
        )
        assert (
            config_files.load(str(folder / "mine" / "first.py")).sft.optimizer.learning_rate == rate
        )
    package(tmp_path / "configs", 0.75)
    (tmp_path / "configs" / "mine").rename(tmp_path / "mine")
    value = "tldr.base('410m', 'sft')"
    (tmp_path / "mine" / "first.py").write_text(
        SIZE.format(package="..common", names="tldr", value=value)
    )
    assert config_files.load(str(tmp_path / "mine" / "first.py")).directory == "runs/tldr/410m/sft"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "from .helper import size",
            "ModuleNotFoundError: No module named 'rlhf_jax.configs.helper'",
        ),
        (
            "from . import helper",
            "ImportError: cannot import name 'helper' from 'rlhf_jax.configs'",
        ),
    ],
)
def test_a_relative_import_that_finds_nothing_is_one_line(written, line, said):
    path = written(f"{line}\n")
    with pytest.raises(Refusal) as refused:
        config_files.load(path)
    (message,) = refused.value.messages
    assert message.startswith(f"{path}:1: {said}")
    assert "relative imports of a file outside of any package" in message
    assert "\n" not in message
