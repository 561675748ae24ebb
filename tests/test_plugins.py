"""The folder is the registry: names are files, and a wrong one lists its neighbours."""

import re
from pathlib import Path

import pytest

from rlhf_jax import plugins

FOLDERS = ("algorithms", "rewards", "tasks", "models", "jobs")


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_are_the_files_of_the_folder(folder):
    files = {path.stem for path in (Path(plugins.__file__).parent / folder).glob("*.py")}
    assert set(plugins.names(folder)) == {name for name in files if name != "api" and not name.startswith("_")}
    assert plugins.names(folder) == sorted(plugins.names(folder))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_component_is_found(folder):
    for name in plugins.names(folder):
        assert plugins.find(folder, name).__name__ == f"rlhf_jax.{folder}.{name}"


@pytest.mark.parametrize("name", ["online_dop", "api", "__init__", "../jobs/sft", ""])
def test_a_wrong_name_lists_its_neighbours(name):
    listed = ", ".join(plugins.names("algorithms"))
    with pytest.raises(ValueError, match=re.escape(f"no {name!r} in rlhf_jax/algorithms/; there are: {listed}")):
        plugins.find("algorithms", name)
