"""The papers' recipes: each runs its `:debug` end to end on small files in the published formats,
two updates a stage.
"""

import importlib
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rlhf_jax import build
from rlhf_jax.models import gpt_neox
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.pretrained import export
from rlhf_jax.stages import rlhf
from rlhf_jax.stages.common import pretrained_models
from tests.models.families import random_params
from tests.tasks import published
from tests.test_build import CONFIGS

RECIPES = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for folder in ("tldr", "no_robots", "gsm8k", "ultrafeedback")
    for path in (CONFIGS / folder).glob("[!_]*.py")
)
BYTES = 258


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folders of every task, and a published reward model of bytes."""
    place = tmp_path_factory.mktemp("data")
    published.write_tldr(place / "tldr")
    published.write_gsm8k(place / "gsm8k")
    published.write_no_robots(place / "no_robots")
    published.write_ultrafeedback(place / "ultrafeedback")
    prompts = [{"prompt": f"{n} apples?", "references": ["Yes."]} for n in range(40)]
    published.write_jsonl(place / "pairs" / "prompts.jsonl", prompts)
    pairs = [{"prompt": line["prompt"], "chosen": "Yes.", "rejected": "No."} for line in prompts]
    published.write_jsonl(place / "pairs" / "comparisons.jsonl", pairs)
    model = gpt_neox.make(gpt_neox.Config(BYTES, 16, 1, 2, 32))
    params = ValueModel(model).init_from(random_params(model, 0), jax.random.key(0))
    export.save(place / "reward", model, params, token_ids={"pad_token_id": 0})
    return place


def debug_config(name, data, directory):
    config = importlib.import_module(f"configs.{name.replace('/', '.')}").get_config("debug")
    config.directory = str(directory)
    task = config.task.name
    if task == "jsonl":
        config.task.prompts = str(data / "pairs" / "prompts.jsonl")
        config.task.comparisons = str(data / "pairs" / "comparisons.jsonl")
        return config
    config.task.data_dir = str(data / task)
    if task == "tldr":
        config.task.comparisons_dir = str(data / "tldr" / "comparisons")
        config.pretrained.gold = str(data / "reward")
    if task == "no_robots":
        config.pretrained.reward_model = str(data / "reward")
    return config


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def ran(data, tmp_path_factory):
    """Runs a recipe's `:debug` once, and gives its directory."""
    finished = {}

    def run(name):
        if name not in finished:
            directory = tmp_path_factory.mktemp("runs") / name.replace("/", "_")
            config = debug_config(name, data, directory)
            if config.job in (
                "comparisons",
                "reward_model",
            ):  # which begin with the policy of pretrained.sft, and :debug has none
                build.run(with_job(config, "sft"))
            build.run(config)
            finished[name] = directory
        return finished[name]

    return run


def with_job(config, job):
    other = config.copy_and_resolve_references()
    other.job = job
    return other


@pytest.mark.parametrize("name", RECIPES)
def test_debug_runs_end_to_end(name, ran):
    directory = ran(name)
    job = debug_job(name)
    updates = [
        line["update"] for line in metrics(directory) if line["stage"] == job and "update" in line
    ]
    if job == "comparisons":
        found = [line for line in metrics(directory) if line.get("of") == "comparisons"]
        assert {"train_agreement", "heldout_agreement"} <= found[0].keys()
        return
    assert len(updates) >= 2
    if job == "rlhf":
        assert (directory / "report.html").exists()
        last = [line for line in metrics(directory) if line.get("of") == "rlhf"][-1]
        assert np.isfinite(last["kl"])


def debug_job(name):
    job = importlib.import_module(f"configs.{name.replace('/', '.')}").get_config("debug").job
    return "rlhf" if job == "pipeline" else job


def test_synchronous_is_asynchronous(ran, data, tmp_path):
    """Online DPO on TL;DR: the threaded run that the recipe is, and the synchronous loop of its
    lag, end alike bit for bit.
    """
    name = "tldr/online_dpo"
    threaded = ran(name)
    config = debug_config(name, data, tmp_path / "run")
    assert config.rlhf.loop == "asynchronous"
    assert config.rlhf.lag == 1
    config.rlhf.loop = "synchronous"
    build.run(config)
    workspace, *_ = build.of_directory(tmp_path / "run")
    other, *_ = build.of_directory(threaded)
    one, two = flatten_dict(rlhf.load(workspace)[0]), flatten_dict(rlhf.load(other)[0])
    for path, array in one.items():
        np.testing.assert_array_equal(
            np.asarray(array), np.asarray(two[path]), err_msg="/".join(path)
        )


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_needs_is_named(name, data, tmp_path, monkeypatch):
    """Without its data and folders a recipe is one clear line, before anything is written."""
    monkeypatch.chdir(tmp_path)
    config = importlib.import_module(f"configs.{name.replace('/', '.')}").get_config()
    config.mesh.fsdp = 1  # not all eight devices of the tests, which not every batch divides into
    with pytest.raises(ValueError, match=r"data/|models/"):
        build.prepare(config)
    assert not list(tmp_path.iterdir())


def test_a_recipe_refuses_another_size():
    from configs.tldr import online_dpo

    with pytest.raises(ValueError, match=r"the recipe's size is '7b'; accepted: 410m, 1b, 2.8b"):
        online_dpo.get_config("size=7b")
    assert online_dpo.get_config("size=1b").model.width == 2048


def test_relabelled_pairs_are_in_the_order_of_gold(ran):
    directory = ran("tldr/comparisons")
    workspace, *_ = build.of_directory(directory)
    lines = [
        json.loads(line)
        for line in (directory / "comparisons" / "train.jsonl").read_text().splitlines()
    ]
    assert len(lines) == published.NUM_TRAIN
    judge = pretrained_models.Judge(workspace.pretrained, workspace.tokenizer, workspace.mesh)
    prompts, ended = [line["prompt"] for line in lines], [True] * len(lines)
    chosen, rejected = (
        judge(prompts, [line[side] for line in lines], ended) for side in ("chosen", "rejected")
    )
    assert (chosen >= rejected).all()
    assert (chosen > rejected).any()
