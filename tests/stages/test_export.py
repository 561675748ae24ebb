"""What an export says of token ids, and folders of every family as the model of a run that is
opened again.
"""

import json
from types import SimpleNamespace

import pytest

from rlhf_jax import registry
from rlhf_jax.config import fill
from rlhf_jax.stages import export
from rlhf_jax.stages.common import pretrained_models
from tests.pretrained import published

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("tokenizer", "config", "expected"),
    [
        ({"eos_ids": (1,), "pad_id": 0}, {}, {"eos_token_id": 1, "pad_token_id": 0}),
        (
            {"eos_ids": (1,), "pad_id": 1},
            {"pad_token_id": None},
            {"eos_token_id": 1, "pad_token_id": None},
        ),
        ({"eos_ids": (4, 1), "pad_id": 0}, {"pad_token_id": 7}, {"eos_token_id": [4, 1]}),
        ({"eos_ids": (1, 5), "pad_id": 5}, {}, {"eos_token_id": [1, 5], "pad_token_id": None}),
        (
            {"eos_ids": (1, 5), "pad_id": 0},
            {"eos_token_id": 2},
            {"eos_token_id": [1, 5], "pad_token_id": 0},
        ),
    ],
)
def test_token_ids(tokenizer, config, expected):
    """The ends that the tokenizer found in its folder, no default of a config; the folder's
    padding, never an EOS for it.
    """
    assert export.token_ids(SimpleNamespace(**tokenizer), config) == expected


@pytest.mark.parametrize("name", published.FOLDERS)
def test_the_stored_model_of_a_folder_is_that_folder_s(name, tmp_path):
    """config.json of a run holds the folder's numbers; the run is opened again with them, and
    compared with the folder.
    """
    pretrained = pretrained_models.Config(base=str(published.write(tmp_path / "folder", name)))
    values = pretrained_models.model_values({"family": "pretrained"}, pretrained)
    stored = json.loads(json.dumps(values))
    again = pretrained_models.model_values(stored, pretrained)
    family = again.pop("family")
    model = registry.find("models", family).make(
        fill(registry.find("models", family).Config, again, "model")
    )
    assert model == pretrained_models.model_of(published.folders.Folder(tmp_path / "folder"))
