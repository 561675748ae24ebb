"""A run under a plan: searched, written in the config, and another one after a checkpoint; its ends
are those of one mesh.
"""

import contextlib
import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from configs import quickstart
from rlhf_jax import build
from rlhf_jax.devices.placement import parse
from rlhf_jax.planner.costs import hardware
from rlhf_jax.planner.simulation import plan_memory
from rlhf_jax.records.checkpoints import complete_steps
from rlhf_jax.run_directory import starts
from rlhf_jax.runtime import stopping
from rlhf_jax.stages import pipeline, rlhf
from rlhf_jax.stages.common import planning

APART = """generate: 0-3 data=2 fsdp=2; reward: 4; reference: 5; value: 6-7
           train_policy: 0-1 micro_batches=2; train_critic: 2-3 fsdp=2"""
OTHER = "train_policy: 4-7 data=2 tensor=2; train_critic: 0 remat; others: 1-2"


def tiny_config(directory, plan=""):
    """PPO on the quickstart's task in the smallest sizes, at lag 1."""
    config = quickstart.get_config("algorithm=ppo")
    config.directory = str(directory)
    config.plan = plan
    config.model.update({"width": 16, "num_layers": 1, "num_heads": 2, "ffn_width": 32})
    config.lengths.max_completion_tokens = 8
    config.sft.num_updates, config.sft.checkpoint_every, config.sft.rows_per_update = 2, 2, 8
    config.comparisons.num_train, config.comparisons.num_heldout = 64, 64
    config.reward_model.num_updates, config.reward_model.pairs_per_update = 2, 16
    config.reward_model.standardize_prompts = 32
    config.rlhf.total_prompts, config.rlhf.prompts_per_update, config.rlhf.samples_per_prompt = (
        32,
        8,
        2,
    )
    config.rlhf.evaluate_every, config.rlhf.checkpoint_every = 0, 1
    config.evaluate.num_prompts = config.evaluate.num_prompts_between = (
        config.evaluate.prompts_per_batch
    ) = 16
    config.best_of_n, config.best_of_n_prompts = (1,), 16
    return config


def train(config):
    """The RLHF stage of a directory whose other stages are there or are run."""
    prepared = build.prepare(config)
    policy, reward = pipeline.before_rlhf(prepared[0], prepared[1])
    return jax.tree.map(np.asarray, rlhf.run(*prepared, reward, policy))


def check_equal(found, expected):
    for (path, one), other in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(
            one, other, rtol=2e-3, atol=2e-4, err_msg=jax.tree_util.keystr(path)
        )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory with SFT policy and reward model, and the end of RLHF on one mesh in another."""
    first, whole = (
        tmp_path_factory.mktemp("plans") / "first",
        tmp_path_factory.mktemp("plans") / "whole",
    )
    pipeline.before_rlhf(*build.prepare(tiny_config(first))[:2])
    (first / "config.json").unlink()
    shutil.copytree(first, whole)
    return first, train(tiny_config(whole))


def test_a_checkpoint_of_one_plan_goes_on_under_another(base, tmp_path, monkeypatch):
    """Stopped after its second round, whose next one is sampled already; params, moments and
    samples come over.
    """
    first, expected = base
    shutil.copytree(first, tmp_path / "run")
    asked = itertools.count(1)

    @contextlib.contextmanager
    def after_two_rounds():
        yield lambda: next(asked) >= 2

    with monkeypatch.context() as patched:
        patched.setattr(stopping, "asked_to_stop", after_two_rounds)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(tmp_path / "run", APART))
    steps = complete_steps(tmp_path / "run" / "checkpoints" / "rlhf")
    assert steps[-1] == 2
    check_equal(train(tiny_config(tmp_path / "run", OTHER)), expected)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["plan"] == OTHER


def test_a_run_searches_once(base, tmp_path, monkeypatch):
    """What was found stands in config.json as text, and going on takes it from there, unless it is
    of other devices.
    """
    del base
    monkeypatch.setattr(planning, "PROFILE", tmp_path / "profile.json")
    _, stages, _ = build.prepare(tiny_config(tmp_path / "run", "search"))
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["plan"]
    assert stages.plan == stored
    assert set(parse(stored).placements) == {
        "generate",
        "reference",
        "proximal",
        "value",
        "reward",
        "train_policy",
        "train_critic",
    }
    with monkeypatch.context() as patched:
        patched.setattr(planning, "for_run", lambda *_: pytest.fail("it searched again"))
        assert build.prepare(tiny_config(tmp_path / "run", "search"))[1].plan == stored
    path = tmp_path / "run" / starts.FILE
    path.write_text(path.read_text().replace('"num_devices": 8', '"num_devices": 16'))
    monkeypatch.setattr(planning, "for_run", lambda *_: pytest.fail("it searched again"))
    with pytest.raises(pytest.fail.Exception, match="searched again"):
        build.prepare(tiny_config(tmp_path / "run", "search"))


REFUSED = [
    ("generate 0-3", "plan entry 'generate 0-3' names no call; accepted: generate, reference,"),
    ("sample: 0-3", "names no call"),
    ("generate: 0-3 data=3", r"'generate' has 4 devices, but data=3 fsdp=1 tensor=1 needs 3"),
    (
        "generate: 0-3 dat=4",
        r"'generate' has 'dat=4'; accepted: data=n, fsdp=n, tensor=n, micro_batches=n, remat",
    ),
    ("generate: 3-1", "of which some come twice or none is"),
    ("generate: 0-9", "the plan places generate on devices 0-9, but there are 8 here: 0-7"),
    ("generate: 0; generate: 1", "places generate twice"),
    (
        "train_policy: 0-7 micro_batches=3",
        r"of train_policy\) is 8, which does not divide into 3 micro-batch",
    ),
    (
        "generate: 0-6",
        r"rlhf.num_minibatches of generate is 8, which does not divide .* data\*fsdp = 7",
    ),
]


@pytest.mark.parametrize(("plan", "words"), REFUSED)
def test_a_plan_that_cannot_run_is_refused_before_anything_is_written(tmp_path, plan, words):
    with pytest.raises(ValueError, match=words):
        build.prepare(tiny_config(tmp_path / "run", plan))
    assert not (tmp_path / "run").exists()


def test_a_plan_that_does_not_fit_is_refused_where_memory_is_known(tmp_path, monkeypatch):
    """A plan for the devices at hand, as accelerators of 50 kB and of 1 GB; of a CPU nobody knows."""
    for memory, fits in ((5e4, False), (1e9, True)):
        device = dataclasses.replace(hardware.find("h100"), memory_bytes=memory)
        monkeypatch.setattr(hardware, "lookup", lambda _, device=device: device)
        with (
            contextlib.nullcontext()
            if fits
            else pytest.raises(ValueError, match="does not fit on device")
        ):
            build.prepare(tiny_config(tmp_path / "run", OTHER))
        assert (tmp_path / "run").exists() == fits


def test_fit_cuts_the_calls_of_the_runs_own_mesh(base, tmp_path, monkeypatch):
    """On a device of 0.55 MB; the end is that of the same run in one part, and config.json has the
    plan as text, which a later start takes from there.
    """
    first, expected = base
    shutil.copytree(first, tmp_path / "run")
    device = dataclasses.replace(hardware.find("h100"), memory_bytes=5.5e5)
    monkeypatch.setattr(hardware, "lookup", lambda _: device)
    config = tiny_config(tmp_path / "run", "fit")
    check_equal(train(config), expected)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["plan"]
    placements = parse(stored).placements
    assert {placement.devices for placement in placements.values()} == {(0,)}
    assert max(placement.num_micro_batches for placement in placements.values()) > 1
    monkeypatch.setattr(planning, "fitted", lambda *_: pytest.fail("it was chosen again"))
    assert build.prepare(tiny_config(tmp_path / "run", "fit"))[1].plan == stored


@pytest.mark.parametrize("memory", [None, 1e4])
def test_fit_is_one_part_where_memory_is_not_known_and_refused_where_nothing_fits(
    tmp_path, monkeypatch, memory
):
    config = tiny_config(tmp_path / "run", "fit")
    if memory is None:
        assert build.prepare(config)[1].plan == ""
        return
    device = dataclasses.replace(hardware.find("h100"), memory_bytes=memory)
    monkeypatch.setattr(hardware, "lookup", lambda _: device)
    with pytest.raises(ValueError, match=r'no plan fits on 1 device .* --config\.plan="" tries'):
        build.prepare(config)
    assert not (tmp_path / "run").exists()


def test_memory_is_checked_with_the_micro_batches_of_the_run(tmp_path, monkeypatch):
    """Calls that the plan does not name run as the run's settings say."""
    device = dataclasses.replace(hardware.find("h100"), memory_bytes=1e9)
    monkeypatch.setattr(hardware, "lookup", lambda _: device)
    checked = {}
    check = plan_memory.check
    monkeypatch.setattr(
        plan_memory,
        "check",
        lambda plan, *rest: checked.update(plan.placements) or check(plan, *rest),
    )
    config = tiny_config(tmp_path / "run", "generate: 0-1")
    config.rlhf.num_micro_batches = 4
    build.prepare(config)
    assert {name: placement.num_micro_batches for name, placement in checked.items()} == {
        **dict.fromkeys(("generate", "reference", "proximal", "value", "reward"), 1),
        **dict.fromkeys(("train_policy", "train_critic"), 4),
    }


def test_slices_beside_a_plan_are_refused(tmp_path):
    config = tiny_config(tmp_path / "run", "generate: 4-7")
    config.rlhf.sampler_slices = 1
    with pytest.raises(ValueError, match="beside a plan, which places generate itself"):
        build.prepare(config)
