"""Runs of older versions are read as what they were: renamed, removed and newer keys."""

import json

import pytest

from rlhf_jax import build
from rlhf_jax.config import flatten
from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import history
from rlhf_jax.stages.common import stored_config


def stored() -> dict:
    """As a run writes its config."""
    return stored_config.as_json(build.default().to_dict())


def completed(values: dict) -> dict:
    return flatten(stored_config.completed(values, "run/config.json", build.defaults))


def test_a_config_is_read_as_it_was_written():
    values = stored()
    values["rlhf"]["lag"], values["algorithm"]["beta"] = 3, 0.25
    assert completed(values) == flatten(values)


def test_a_renamed_key_is_read_under_its_new_name(monkeypatch):
    """Never at the default, which is another value."""
    monkeypatch.setitem(history.RENAMED, "rlhf.delay", "rlhf.lag")
    values = stored()
    values["rlhf"]["delay"] = values["rlhf"].pop("lag") + 7
    assert completed(values)["rlhf.lag"] == 7


def test_a_key_that_moved_to_another_node_is_found_there(monkeypatch):
    monkeypatch.setitem(history.RENAMED, "kl.beta", "algorithm.beta")
    values = stored()
    del values["algorithm"]["beta"]
    values["kl"] = {"beta": 0.125}
    assert completed(values)["algorithm.beta"] == 0.125


def test_a_renamed_component_is_read_under_its_new_name():
    values = stored()
    values["job"] = "relabel"
    assert completed(values)["job"] == "comparisons"


def test_a_renamed_key_of_one_algorithm_is_another_algorithms_own():
    for name, key in (("ppo", "algorithm.gae_lambda"), ("my_lab.mine", "algorithm.decay")):
        old = {"algorithm.name": name, "algorithm.decay": 0.5}
        assert history.translated(old, "run/config.json")[key] == 0.5
        assert history.is_renamed("algorithm.decay", old) == (name == "ppo")


def test_an_unknown_key_is_refused_by_name():
    values = stored()
    values["rlhf"]["delay"] = 3
    with pytest.raises(
        Refusal,
        match=r"run/config\.json has rlhf\.delay=3: this version of the code has no such key",
    ):
        completed(values)


def test_a_removed_key_is_read_where_its_value_is_still_computed(monkeypatch):
    monkeypatch.setitem(history.REMOVED, "rlhf.whiten", False)
    values = stored()
    values["rlhf"]["whiten"] = False
    assert completed(values) == flatten(stored())
    values["rlhf"]["whiten"] = True
    with pytest.raises(
        Refusal, match=r"rlhf\.whiten=True; the key was removed, and the code computes False alone"
    ):
        completed(values)


def test_a_newer_key_takes_the_value_of_before(monkeypatch):
    """A default that changes numbers is for new runs only."""
    values = stored()
    del values["rlhf"]["temperature"], values["rlhf"]["lag"], values["pretrained"]
    monkeypatch.setitem(history.ADDED, "rlhf.temperature", 0.5)
    found = completed(values)
    assert found["rlhf.temperature"] == 0.5
    assert found["rlhf.lag"] == 0, "without an entry the default does what was done before"
    assert found["pretrained.base"] == ""


def test_a_run_goes_on_with_a_newer_key_as_before(tmp_path, monkeypatch):
    """Unless the config asks for something else, which is then a change."""
    monkeypatch.setitem(history.ADDED, "rlhf.temperature", 0.5)
    values = stored()
    del values["rlhf"]["temperature"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = build.default()
    config.directory = str(tmp_path)
    now = config.to_dict()
    stored_config.as_before(now, build.defaults)
    assert now["rlhf"]["temperature"] == 0.5
    config.rlhf.temperature = 0.75
    now = config.to_dict()
    stored_config.as_before(now, build.defaults)
    assert now["rlhf"]["temperature"] == 0.75
