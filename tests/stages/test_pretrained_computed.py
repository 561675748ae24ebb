"""How a model is computed is the run's to say, whatever folder its params come from."""

import pytest

from rlhf_jax import build
from rlhf_jax.models import gpt_neox
from rlhf_jax.pretrained import export
from rlhf_jax.stages.common import pretrained_models
from tests.models.families import random_params

SAID = {"dtype": "bfloat16", "remat": True, "attention": "dot_product"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> pretrained_models.Config:
    folder = tmp_path_factory.mktemp("published") / "policy"
    model = gpt_neox.make(gpt_neox.Config(13, 8, 1, 2, 16, rotary_fraction=0.5))
    export.save(folder, model, random_params(model, 0), token_ids={})
    return pretrained_models.Config(base=str(folder))


@pytest.mark.parametrize("family", ["pretrained", "gpt_neox"])
def test_dtype_remat_and_attention_are_the_run_s(pretrained, family):
    """With the folder's shape taken, and with one that is named and compared with it."""
    named = {
        "family": family,
        "vocab_size": 13,
        "width": 8,
        "num_layers": 1,
        "num_heads": 2,
        "ffn_width": 16,
    }
    values = build.model("gpt_neox", "tiny").to_dict() | named | SAID | {"rotary_fraction": 0.5}
    found = pretrained_models.model_values(values, pretrained)
    assert {key: found[key] for key in SAID} == SAID
    assert (found["family"], found["width"]) == ("gpt_neox", 8)


def test_a_run_from_before_such_a_key_takes_the_default(pretrained):
    values = build.model("gpt_neox", "tiny").to_dict() | {"family": "pretrained"}
    del values["remat"]
    assert pretrained_models.model_values(values, pretrained)["remat"] is False


def test_a_shape_that_is_not_the_folder_s_is_still_refused(pretrained):
    named = {"vocab_size": 13, "width": 8, "num_heads": 2, "ffn_width": 16}
    values = build.model("gpt_neox", "tiny").to_dict() | named | SAID
    with pytest.raises(ValueError, match=r"model\.num_layers is 4, but the folder .* has 1"):
        pretrained_models.model_values(values, pretrained)
