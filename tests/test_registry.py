"""The folder is the registry, and a module or a file of a user's own needs no folder; a wrong name
lists the neighbours.
"""

import re
import sys
from pathlib import Path

import pytest

from rlhf_jax import registry
from rlhf_jax.refusal import ComponentError, Refusal

FOLDERS = ("algorithms", "rewards", "tasks", "models", "stages")


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_are_the_files_of_the_folder(folder):
    root = Path(registry.__file__).parent / folder
    paths = [*root.glob("*.py")]
    for name in registry.SUBFOLDERS.get(folder, ()):
        paths += (root / name).glob("*.py")
    files = [path.stem for path in paths if path.stem not in ("api", "__init__")]
    assert registry.names(folder) == sorted(files), "a name of two files would hide one of them"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_component_is_found(folder):
    for name in registry.names(folder):
        path = registry.find(folder, name).__name__
        assert path.startswith(f"rlhf_jax.{folder}.")
        assert path.endswith(f".{name}")
        assert registry.find(folder, path) is registry.find(folder, name)
        assert registry.canonical(folder, path) == name


def test_a_preset_is_a_component_under_a_name_of_its_own():
    assert {"cispo", "gspo", "dppo_tv"} <= set(registry.presets("algorithms"))
    assert not set(registry.presets("algorithms")) & set(registry.names("algorithms"))
    assert not registry.presets("tasks")
    for name in registry.presets("algorithms"):
        config = registry.settings("algorithms", name)()
        assert config == registry.settings("algorithms", name)()
        assert registry.make("algorithms", name, config).name == name
        for path in (name, f"{registry.PRESETS['algorithms']}:{name}"):
            assert registry.canonical("algorithms", path) == name
            assert registry.is_of_package("algorithms", path)


@pytest.mark.parametrize("name", ["online_dop", "api", "__init__", "../stages/sft", ""])
def test_a_wrong_name_lists_its_neighbours(name):
    listed = "; presets: ".join(
        ", ".join(names("algorithms")) for names in (registry.names, registry.presets)
    )
    with pytest.raises(
        ValueError, match=re.escape(f"no {name!r} in rlhf_jax/algorithms/; there are: {listed}")
    ):
        registry.find("algorithms", name)


def test_a_renamed_component_is_refused_with_its_new_name():
    with pytest.raises(Refusal, match="'relabel' in rlhf_jax/stages/ is now called 'comparisons'"):
        registry.find("stages", "relabel")


SOURCE = '''
"""A component of a user's own."""
from dataclasses import dataclass
import helper_of_mine

@dataclass(frozen=True)
class Config:
    scale: float = 2.0

@dataclass(frozen=True)
class Other:
    margin: int = 1

def make(config: Config):
    return ("made", config, helper_of_mine.VALUE)

def other(config: Other | None = None):
    return ("other", config)

def bare():
    return "bare"

NUMBER = 3
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package and a file of the user's: `my_lab.mine` and `mine.py`, which imports from its own
    folder.
    """
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        monkeypatch.delitem(sys.modules, name)  # of another test's package of that name
    before = set(sys.modules)
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "__init__.py").write_text("")
    (tmp_path / "my_lab" / "mine.py").write_text(
        SOURCE.replace("helper_of_mine", "my_lab.helper as helper_of_mine", 1)
    )
    (tmp_path / "my_lab" / "helper.py").write_text("VALUE = 5\n")
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "mine.py").write_text(SOURCE)
    (folder / "helper_of_mine.py").write_text("VALUE = 7\n")
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["my_lab.mine", "FILE"])
def test_a_users_own_module_or_file_is_found(own, name):
    file = own / "a folder" / "mine.py"
    name = str(file) if name == "FILE" else name
    value = 7 if name == str(file) else 5
    assert registry.settings("tasks", name)().scale == 2.0
    assert registry.make("tasks", name, registry.settings("tasks", name)()) == (
        "made",
        registry.settings("tasks", name)(),
        value,
    )
    assert registry.make("tasks", f"{name}:other", None) == ("other", None)
    assert registry.settings("tasks", f"{name}:other")().margin == 1
    assert registry.make("tasks", f"{name}:bare", None) == "bare"
    assert registry.settings("tasks", f"{name}:bare") is registry.NoSettings
    assert registry.find("tasks", name) is registry.find("tasks", name), (
        "one module, however often it is named"
    )


def test_the_attribute_may_follow_a_dot(own):
    assert registry.entry("tasks", "my_lab.mine.other") is registry.entry(
        "tasks", "my_lab.mine:other"
    )


def test_an_algorithm_is_the_function_of_its_modules_name(own):
    (own / "my_lab" / "raft.py").write_text("def raft(config=None):\n    return 'raft'\n")
    (own / "raft.py").write_text("def make():\n    return 'made'\n")
    assert registry.make("algorithms", "my_lab.raft", None) == "raft"
    assert registry.make("algorithms", str(own / "raft.py"), None) == "made"


def test_a_file_relative_to_the_working_directory(own, monkeypatch):
    monkeypatch.chdir(own / "a folder")
    assert registry.make("tasks", "mine.py:bare", None) == "bare"


def test_the_names_of_the_package_come_first_and_may_be_whole(own):
    (own / "reviews.py").write_text("raise RuntimeError('not this one')\n")
    assert registry.find("tasks", "reviews") is registry.find("tasks", "rlhf_jax.tasks.reviews")


def test_a_changed_file_is_read_again(own, monkeypatch):
    """In a notebook, a function is written, tried, and written again: also in one second, in as many
    characters.
    """
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = own / "again.py"
    for value in (1, 2):
        file.write_text(f"def make():\n    return {value}\n")
        assert registry.make("tasks", str(file), None) == value


WRONG = [
    ("nowhere.mine", "no 'nowhere.mine' in rlhf_jax/tasks/; there are: addition"),
    ("nowhere/mine.py", "no file 'nowhere/mine.py'"),
    ("my_lab.mine:missing", "has no 'missing'; it has .*make, other, bare"),
    ("my_lab.mine:NUMBER", "is 3; accepted: a function or a class"),
    ("my_lab.helper", "has no function make"),
    ("my_lab:", "no 'my_lab:'"),
]


@pytest.mark.parametrize(("name", "message"), WRONG)
def test_what_a_name_lacks_is_said(own, name, message):
    with pytest.raises(Refusal, match=message):
        registry.entry("tasks", name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def make(:\n", "SyntaxError"),
        ("import a_library_that_is_not_there\n", "No module named 'a_library_that_is_not_there'"),
        ("raise ValueError('at import')\n", r"ValueError: at import \(.*broken\.py, line 1\)"),
    ],
)
def test_a_module_that_breaks_is_its_own_fault_and_keeps_its_traceback(own, text, said):
    """A ValueError at import is no wrong config."""
    (own / "my_lab" / "broken.py").write_text(text)
    for name in ("my_lab.broken", str(own / "my_lab" / "broken.py"), "my_lab.broken:make"):
        with pytest.raises(ComponentError, match=said) as raised:
            registry.entry("tasks", name)
        assert raised.value.__cause__ is not None


def test_settings_need_defaults(own):
    (own / "my_lab" / "bare.py").write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass Config:\n    rate: float\ndef "
        "make(config: Config):\n    pass\n"
    )
    with pytest.raises(Refusal, match="rate of its settings have no default"):
        registry.settings("tasks", "my_lab.bare")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("gold", "gold"),
        ("my_lab.rewards:brevity", "brevity"),
        ("my_lab.rewards.brevity", "brevity"),
        ("my_lab.brevity:reward", "brevity"),
        ("lab/brevity.py", "brevity"),
        ("lab/brevity.py:make", "brevity"),
        ("lab/rewards.py:brevity", "brevity"),
        ("reward", "reward"),
    ],
)
def test_labels(name, label):
    assert registry.label(name) == label
