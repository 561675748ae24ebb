"""The files that an export takes over: everything but weights and a trainer's state, each under the
name that is looked for.
"""

import json

import pytest

from rlhf_jax.models import gemma2, llama
from rlhf_jax.pretrained import carried, export
from rlhf_jax.refusal import Refusal
from rlhf_jax.text import file_tokenizers
from tests.models.families import random_params

tokenizers = pytest.importorskip("tokenizers")

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
)
TOKENIZER += (
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "qwen.tiktoken",
    "spiece.model",
)
MODEL = (
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "USE_POLICY.md",
    "preprocessor_config.json",
)
MODEL += ("modeling_mine.py", "something_new.json")
LEFT = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "pytorch_model.bin",
)
LEFT += (
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "training_args.bin",
)
LEFT += (
    "trainer_state.json",
    "consolidated.00.pth",
    "model.gguf",
    "flax_model.msgpack",
    "tf_model.h5",
    "model.onnx",
)
LEFT += (
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
    ".gitattributes",
    "train.jsonl",
    "zero_to_fp32.py",
)
LEFT += ("pytorch_model.bin.index.json", "config.json", "events.out.tfevents.1", "all_results.json")


def folder(path, names, content="{}"):
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).write_text(content)
    return path


def byte_level(file, extra=("<|endoftext|>", "<|im_end|>")):
    """A tokenizer of bytes in a file of any name."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(
        models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[])
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(list(extra))
    file.parent.mkdir(parents=True, exist_ok=True)
    library.save(str(file))
    return file


def test_all_but_weights_and_a_trainer_s_state_is_taken_over(tmp_path):
    path = folder(tmp_path / "model", (*TOKENIZER, *MODEL, *LEFT))
    folder(path / "additional_chat_templates", ["rag.jinja"])
    folder(path / "checkpoint-500", ["tokenizer.json"])
    folder(path / "original", ["tokenizer.model"])
    expected = {*TOKENIZER, *MODEL, "additional_chat_templates/rag.jinja"}
    assert set(carried.files(path, None)) == expected
    assert set(carried.files(path, path)) == expected
    carried.copy(carried.files(path, path), folder(tmp_path / "out", []))
    assert (tmp_path / "out" / "additional_chat_templates" / "rag.jinja").exists()


def test_a_large_file_that_is_no_tokenizer_s_is_data(tmp_path, monkeypatch):
    monkeypatch.setattr(carried, "MAX_BYTES", 3)
    path = folder(tmp_path / "model", ("config.json", "tokenizer.json", "notes.txt"), "long")
    assert set(carried.files(path, path)) == {"tokenizer.json"}


def test_a_tokenizer_of_another_folder_takes_the_place_of_the_model_s(tmp_path):
    """No file of two tokenizers is mixed; the model's own other files stay."""
    model = folder(tmp_path / "model", ("config.json", *TOKENIZER, *MODEL))
    other = folder(
        tmp_path / "other",
        ("config.json", "tokenizer.json", "chat_template.jinja", "LICENSE", "new.json"),
    )
    found = carried.files(other, model)
    assert set(found) == {*MODEL, "tokenizer.json", "chat_template.jinja"}
    assert found["tokenizer.json"].parent == other
    assert found["LICENSE"].parent == model
    assert set(carried.files(None, model)) == {*MODEL}
    assert carried.files(None, None) == {}


def test_of_a_folder_without_a_model_the_tokenizer_is_taken(tmp_path):
    path = folder(
        tmp_path / "notes",
        ("tokenizer.json", "tokenizer_config.json", "diary.txt", "data.json", "LICENSE"),
    )
    assert set(carried.files(path, None)) == {"tokenizer.json", "tokenizer_config.json", "LICENSE"}


@pytest.mark.parametrize("named", [True, False])
def test_a_tokenizer_under_another_name(tmp_path, named):
    file = byte_level(tmp_path / "mine.json")
    folder(tmp_path, ("tokenizer_config.json", "data.json"))
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    found = carried.files(file if named else tmp_path, None)
    assert found["tokenizer.json"] == file
    assert set(found) == {"tokenizer.json", "tokenizer_config.json"}


def test_a_tokenizer_that_is_named_is_taken_beside_one_of_the_usual_name(tmp_path):
    """And what belongs to the other is left."""
    byte_level(tmp_path / "tokenizer.json")
    file = byte_level(tmp_path / "mine.json", extra=("<eos>",))
    folder(tmp_path, ("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"))
    assert carried.files(tmp_path, None)["tokenizer.json"] == tmp_path / "tokenizer.json"
    assert carried.files(tmp_path / "tokenizer.json", None)["merges.txt"] == tmp_path / "merges.txt"
    found = carried.files(file, None)
    assert found == {
        "tokenizer.json": file,
        "chat_template.jinja": tmp_path / "chat_template.jinja",
    }


def test_a_sentencepiece_model_under_another_name(tmp_path):
    path = folder(tmp_path, ("mine.model",))
    assert carried.files(path, None) == {"tokenizer.model": path / "mine.model"}
    assert carried.files(path / "mine.model", None) == {"tokenizer.model": path / "mine.model"}
    assert set(carried.files(folder(tmp_path / "t5", ("spiece.model",)), None)) == {"spiece.model"}


def test_of_several_tokenizers_one_has_to_be_named(tmp_path):
    byte_level(tmp_path / "mine.json")
    byte_level(tmp_path / "yours.json")
    with pytest.raises(
        Refusal,
        match=r"holds several tokenizers, mine.json, yours.json, and none called tokenizer.json",
    ):
        carried.files(tmp_path, None)
    assert carried.files(tmp_path / "yours.json", None) == {
        "tokenizer.json": tmp_path / "yours.json"
    }


@pytest.mark.parametrize(
    ("ids", "before", "expected"),
    [
        ([5], None, 5),
        ([5], 5, 5),
        ([5], [5, 6], [5, 6]),
        ([6], [5, 6], [5, 6]),
        ([7], [5, 6], [7, 5, 6]),
        ([7, 6], [5, 6], [5, 6, 7]),
        ([7], 0, [7, 0]),
        ([], None, None),
    ],
)
def test_ends_are_merged(ids, before, expected):
    assert carried.merged(ids, before) == expected


@pytest.mark.parametrize(
    ("content", "ids", "expected"),
    [
        ({"eos_token_id": [5, 6], "top_p": 0.9}, [5], {"eos_token_id": [5, 6], "top_p": 0.9}),
        ({"eos_token_id": 2}, [5], {"eos_token_id": [5, 2]}),
        (
            {"eos_token_id": 2, "_from_model_config": True},
            [5],
            {"eos_token_id": 5, "_from_model_config": True},
        ),
        (
            {"eos_token_id": [5, 6], "_from_model_config": True},
            [5],
            {"eos_token_id": [5, 6], "_from_model_config": True},
        ),
        ({"top_p": 0.9}, [5, 6], {"eos_token_id": [5, 6], "top_p": 0.9}),
    ],
)
def test_generation_ends_where_the_run_ends_texts(tmp_path, content, ids, expected):
    """A default of a class that a generation_config.json was made from is no end of this
    vocabulary.
    """
    path = folder(tmp_path, ("config.json", "generation_config.json"), json.dumps(content))
    assert carried.generation(carried.files(None, path), ids) == expected
    assert carried.generation({}, ids) is None


@pytest.mark.parametrize("family", [llama, gemma2])
def test_transformers_reads_the_exported_tokenizer_as_we_do(family, tmp_path):
    """Gemma's own class would look for tokens that this file has not; the written description names
    none but ours.
    """
    transformers = pytest.importorskip("transformers")
    file = byte_level(tmp_path / "place" / "mine.json")
    ours = file_tokenizers.hugging_face(str(file), "<|im_end|>")
    model = family.make(family.Config(300, 16, 1, 2, 1, 24, head_width=8))
    ids = {"eos_token_id": ours.eos_id, "pad_token_id": ours.pad_id}
    export.save(
        tmp_path / "out", model, random_params(model, 0), token_ids=ids, tokenizer_from=file
    )
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("two  spaces é", " a", "x<|im_end|>y"):
        assert read(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert (read.eos_token_id, read.eos_token) == (ours.eos_id, "<|im_end|>")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_sentencepiece_model_is_read_by_transformers_as_it_is(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    transformers = pytest.importorskip("transformers")
    (tmp_path / "text").write_text(
        "\n".join(["the quick brown fox jumps over the lazy dog", "hello world how are you"] * 9)
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "mine"),
        vocab_size=34,
        model_type="bpe",
        minloglevel=2,
    )
    ours = file_tokenizers.sentencepiece(str(tmp_path / "mine.model"))
    model = gemma2.make(gemma2.Config(40, 16, 1, 2, 1, 24, head_width=8))
    export.save(
        tmp_path / "out",
        model,
        random_params(model, 0),
        token_ids={"eos_token_id": ours.eos_id},
        tokenizer_from=ours.folder,
    )
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("hello world", "the  dog"):
        assert read(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert read.eos_token_id == ours.eos_id
