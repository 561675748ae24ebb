"""The memory of a supervised stage's update: told before anything is compiled, with what would fit."""

import dataclasses
import json

import pytest

from configs import quickstart
from rlhf_jax import build
from rlhf_jax.building import running
from rlhf_jax.planner.costs import hardware
from rlhf_jax.stages.checks import supervised_memory
from rlhf_jax.stages.settings.stages import DPOConfig
from rlhf_jax.types import Placement


def updates(memory_bytes, **settings):
    """SFT, reward model and offline DPO of the quickstart's model on a device of so much memory."""
    config = quickstart.get_config()
    of_dpo = settings.pop("dpo", {})
    for key, value in settings.items():
        config[key].update(value)
    workspace, stages, _ = build.parts(config)
    stages = dataclasses.replace(stages, dpo=DPOConfig(**of_dpo))
    device = dataclasses.replace(hardware.TABLE["h100"], memory_bytes=memory_bytes)
    return {
        name: supervised_memory.update(
            name,
            stages,
            supervised_memory.trained_shape(name, workspace.model),
            workspace.lengths,
            device,
            Placement((0,), (1, 1, 1)),
        )
        for name in supervised_memory.TRAIN
    }


def test_what_fits_says_nothing():
    assert [update.notice() for update in updates(80e9).values()] == ["", "", ""]


@pytest.mark.parametrize("name", supervised_memory.TRAIN)
def test_what_does_not_fit_names_the_keys_with_which_it_would(name):
    update = updates(32e6)[name]
    words = update.notice()
    assert words.startswith(f"{name} may not fit in memory: an update needs ")
    found = update.fastest()
    assert f"--config.{name}.num_micro_batches={found.num_micro_batches}" in words
    again = updates(
        32e6,
        **{name: {"num_micro_batches": found.num_micro_batches}, "model": {"remat": found.remat}},
    )[name]
    assert again.notice() == ""
    assert again.excess <= 0 < update.excess


def test_what_fits_in_no_number_of_parts_says_so():
    assert "no number of micro-batches makes it fit" in updates(1e6)["sft"].notice()


def started(tmp_path, monkeypatch, num_micro_batches):
    """What the start of an SFT run on a device of 16 MB says, and its parts."""
    device = dataclasses.replace(hardware.TABLE["h100"], memory_bytes=16e6)
    monkeypatch.setattr(hardware, "lookup", lambda _: device)
    config = quickstart.get_config()
    config.directory, config.job, config.plan = str(tmp_path / "run"), "sft", "fit"
    config.sft.num_micro_batches = num_micro_batches
    said = []
    workspace, stages, _ = build.prepare(config, said.append)
    return said[1:], workspace, stages


def test_a_run_says_it_at_its_start(tmp_path, monkeypatch):
    said, _, _ = started(tmp_path, monkeypatch, 1)
    assert [line.split(":")[0] for line in said] == ["sft may not fit in memory"]


def test_parts_that_are_left_open_are_chosen_and_stand_in_the_config(tmp_path, monkeypatch):
    said, workspace, stages = started(tmp_path, monkeypatch, 0)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert said == []
    assert stages.sft.num_micro_batches == stored["sft"]["num_micro_batches"] == 2
    assert workspace.model.remat
    assert stored["model"]["remat"]
    assert stored["plan"] == "", "an SFT run needs no plan"


def test_parts_that_are_left_open_are_one_where_memory_is_not_known(tmp_path):
    config = quickstart.get_config()
    config.directory, config.job = str(tmp_path / "run"), "sft"
    config.sft.num_micro_batches = config.reward_model.num_micro_batches = 0
    workspace, stages, _ = build.prepare(config)
    assert (stages.sft.num_micro_batches, stages.reward_model.num_micro_batches) == (1, 1)
    assert not workspace.model.remat


def test_a_remat_policy_that_no_update_follows_is_told(tmp_path):
    """It is told for a model without remat; a plan may have remat where the model has none."""
    config = quickstart.get_config()
    config.directory = str(tmp_path / "run")
    config.model.remat_policy = "dots"
    wanted = "model.remat_policy is 'dots', but no update computes layers again"
    for plan, remat, is_told in (
        ("", False, True),
        ("", True, False),
        ("train_policy: 0 remat; others: 0", False, False),
        ("train_policy: 0; others: 0", False, True),
    ):
        config.plan, config.model.remat = plan, remat
        _, _, notices = running.checked(config)
        assert any(line.startswith(wanted) for line in notices) == is_told


def test_float32_gradients_are_counted():
    """With products in bfloat16 on two shards of rows the most is needed at the head, where no float32
    gradient of a layer is reduced yet: 4 bytes less a param, of 12 that stay.
    """
    config = quickstart.get_config()
    config.model.update({"dtype": "bfloat16", "gradient_dtype": "float32"})
    workspace, stages, _ = build.parts(config)
    shape, placement = (
        supervised_memory.trained_shape("sft", workspace.model),
        Placement((0, 1), (1, 2, 1)),
    )
    device = dataclasses.replace(hardware.TABLE["h100"], memory_bytes=80e9)
    rounded, wide = (
        supervised_memory.update(
            "sft",
            stages,
            dataclasses.replace(shape, float32_gradients=wide),
            workspace.lengths,
            device,
            placement,
        )
        for wide in (False, shape.float32_gradients)
    )
    gradients = wide.costs.state_bytes("policy", placement) / 3
    assert rounded.excess - wide.excess == pytest.approx(gradients)


def test_the_sft_policy_is_counted_where_it_is_held_beside_the_training():
    """It sets the reward's unit and is the reference of DPO: 2 bytes a param, of 12 of the state."""
    found = updates(80e9, model={"dtype": "bfloat16"})
    policy = found["dpo"].costs.shapes["policy"].num_params
    assert found["sft"].beside == 0
    assert found["dpo"].beside == 2 * policy
    assert found["reward_model"].beside == pytest.approx(2 * policy, rel=0.01)
    of_dpo = found["dpo"]
    state = of_dpo.used(of_dpo.mesh).resident_bytes
    assert state == 12 * policy
    working = of_dpo.used(of_dpo.mesh).working_bytes
    assert of_dpo.excess == 14 * policy + working - of_dpo.costs.device_bytes
