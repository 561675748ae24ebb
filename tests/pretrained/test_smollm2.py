"""SmolLM2-135M-Instruct, 4-bit values: the folder of `experiments/bench/smollm2.py` is read as
transformers reads it.

The tests of the folder run where it is: `SMOLLM2=FOLDER`, or models/smollm2-135m in the clone.
"""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import smollm2
from rlhf_jax.devices import mesh
from rlhf_jax.pretrained.folders import Folder
from rlhf_jax.stages.common import pretrained_models
from rlhf_jax.text import encoding, tokenizers

FOLDER = Path(
    os.environ.get("SMOLLM2", Path(__file__).parents[2] / "models" / "smollm2-135m")
).absolute()
there = pytest.mark.skipif(
    not (FOLDER / "model.safetensors").exists(), reason=f"no folder of SmolLM2 at {FOLDER}"
)
TEXTS = (
    "12 + 7 = 19\n3 + 45 = 48\n23 + 5 =",
    "The soup at the corner café was",
    "a  7\n\n\tb   2024 ",
    "I don't think they'll say “no” — 42°C, naïve 日本語 🙂",
    " leading and trailing ",
)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.make(tokenizers.Config("hf", str(FOLDER)), None, FOLDER)


@there
def test_ids_and_texts_are_those_of_transformers(tokenizer):
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(FOLDER)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == theirs(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_id, tokenizer.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)


@there
def test_every_digit_is_a_token_of_its_own(tokenizer):
    """As SmolLM2 was trained; GPT-2's pieces alone would join the spaces of "a  7" otherwise."""
    texts = {identity: text for text, identity in tokenizer.vocabulary().items()}
    assert [texts[identity] for identity in tokenizer.encode("a  72")] == ["a", "ĠĠ", "7", "2"]


@there
def test_logits_are_those_of_transformers(tokenizer):
    """Of transformers in float64. Float32 leaves errors of up to 1.2e-4 in logits up to 25."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float64)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert not getattr(theirs.config, "quantization_config", None)
    folder = Folder(FOLDER)
    assert folder.family == "llama"
    model = pretrained_models.model_of(folder)
    params = pretrained_models.load_policy(str(FOLDER), model, mesh.make_mesh(mesh.Config()))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 134_515_008
    tokens_BL, mask_BL = encoding.encode_prompts(TEXTS[:3], tokenizer, 29)
    positions_BL = np.maximum(np.cumsum(mask_BL, axis=1) - 1, 0)

    def logits(params):
        hidden, _ = model.apply(params, *map(jnp.asarray, (tokens_BL, positions_BL, mask_BL)))
        return model.head(params, hidden)

    ours = np.asarray(jax.jit(logits)(params))
    with torch.no_grad():
        wanted = theirs(
            torch.tensor(tokens_BL.astype(np.int64)),
            attention_mask=torch.tensor(mask_BL.astype(np.int64)),
            position_ids=torch.tensor(positions_BL.astype(np.int64)),
        ).logits.numpy()
    assert np.abs(wanted[mask_BL.astype(bool)]).max() > 10  # a trained model, and not zeros
    np.testing.assert_allclose(
        ours[mask_BL.astype(bool)], wanted[mask_BL.astype(bool)], rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to={place}/new"], "error: the GGUF file of SmolLM2 is not installed; pip install"),
        (["--to={place}/new", "--gguf={place}/none"], "none', which is not a file"),
        (["--to={place}", "--gguf={place}/a_file"], "is not empty; accepted: a new folder"),
    ],
)
def test_what_cannot_be_made_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "a_file").write_bytes(b"GGUF")
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")
    given = [argument.format(place=tmp_path) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["smollm2", *given])
    with pytest.raises(SystemExit) as left:
        smollm2.main()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
