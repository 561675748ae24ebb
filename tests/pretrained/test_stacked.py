"""Folders do not depend on whether a model's layers are stacked: written and read in both forms."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from rlhf_jax import randomness
from rlhf_jax.devices import sharding
from rlhf_jax.models.common import adapters, stacking
from rlhf_jax.models.common.adapters import Adapted
from rlhf_jax.models.common.family import find
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.pretrained import export, folders, peft
from tests.models.families import config_of, random_params
from tests.pretrained import published

LORA = adapters.Config(rank=3, alpha=6.0)
LAYERS = {"phi3": 2, "gemma3": 5}  # matrices that are published as one; two periods and a rest


def models(name: str) -> tuple:
    """A model that never stacks its layers, and the same that does."""
    # gemma3's folder names its layers with a window by the interval.
    config = dataclasses.replace(config_of(name), num_layers=LAYERS[name], scan_layers=0)
    return tuple(
        find(name).make(dataclasses.replace(config, scan_layers=least)) for least in (0, 2)
    )


def layout(model, params):
    return sharding.params_shardings(model, params, tiny.make_mesh((1, 2, 2)))


@pytest.mark.parametrize("name", LAYERS)
def test_a_folder_is_written_and_read_in_both_forms(name, tmp_path):
    plain, stacked = models(name)
    params = random_params(plain, 0)
    deep = stacked.stacked(params)
    for place, model, own in (("plain", plain, params), ("deep", stacked, deep)):
        export.save(tmp_path / place, model, own, token_ids={})
    one, other = (load_file(tmp_path / place / folders.SINGLE) for place in ("plain", "deep"))
    published.check_equal(one, other)
    folder = folders.Folder(tmp_path / "deep")
    shardings = layout(stacked, deep)
    read = folders.load(folder, stacked, shardings)
    published.check_equal(read, deep)
    assert jax.tree.map(lambda x: x.sharding, read) == shardings
    published.check_equal(folders.load(folder, plain, layout(plain, params)), params)


def test_a_reward_model_is_written_and_read_in_both_forms(tmp_path):
    plain, stacked = (ValueModel(model) for model in models("gemma3"))
    params = plain.init_from(random_params(plain.backbone, 0), jax.random.key(1))
    deep = {**params, "backbone": stacked.backbone.stacked(params["backbone"])}
    export.save(tmp_path / "deep", stacked.backbone, deep, token_ids={"pad_token_id": 0})
    folder = folders.Folder(tmp_path / "deep")
    shapes = folders.value_shapes(stacked, folder)
    assert stacking.is_stacked(shapes)
    read = folders.load_value(folder, stacked, layout(stacked, shapes))
    published.check_equal(stacking.unstack(read), params)


def test_an_adapter_is_written_and_read_in_both_forms(tmp_path):
    plain, stacked = models("gemma3")
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: adapters.init(plain, LORA, randomness.key(0)))
    adapter = jax.tree.map(lambda x: random.standard_normal(x.shape, np.float32), shapes)
    own = Adapted(random_params(plain, 0), adapter, LORA.scale)
    for place in ("plain", "deep"):
        (tmp_path / place).mkdir()
    peft.write(tmp_path / "plain", plain, own, LORA, "", "float32")
    peft.write(tmp_path / "deep", stacked, stacked.stacked(own), LORA, "", "float32")
    one, other = (load_file(tmp_path / place / peft.WEIGHTS) for place in ("plain", "deep"))
    published.check_equal(one, other)
    read = peft.read(tmp_path / "plain", stacked, LORA)
    published.check_equal(read, stacked.stacked(adapter))
