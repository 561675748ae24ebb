"""What the files of a folder say about its text: their precedence, as transformers has it, and one
line for a wrong one.
"""

import json

import pytest

from rlhf_jax.refusal import Refusal
from rlhf_jax.text import encoding, folder_texts, tokenizers
from tests.pretrained import made

IM_START, IM_END = made.BYTES + 1, made.BYTES + 2
FLAGS = {
    "lstrip": False,
    "rstrip": False,
    "single_word": False,
    "normalized": False,
    "special": True,
}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}


def added(**tokens):
    """An `added_tokens_decoder` of texts by their ids, `_259="..."`."""
    return {key[1:]: {"content": text, **FLAGS} for key, text in tokens.items()}


def their_ids(folder, text):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)[
        "input_ids"
    ]


FOLDERS = {
    "decoder": {
        "tokenizer_config": FAST
        | {"eos_token": "<|im_end|>", "added_tokens_decoder": added(_259="<|tool|>", _260="<b>")}
    },
    "decoder whose flags differ": {
        "tokenizer_config": FAST
        | {
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {"258": {"content": "<|im_end|>", "lstrip": True}},
        }
    },
    "not special": {
        "tokenizer_config": FAST
        | {
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {
                "259": {"content": "<|tool|>", "special": False, "normalized": True, "rstrip": True}
            },
        }
    },
    "listed": {
        "tokenizer_config": FAST
        | {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|tool|>", "<b>"]},
    },
    "extra, and named ones that nobody has": {
        "tokenizer_config": FAST
        | {
            "eos_token": "<|im_end|>",
            "pad_token": "<b>",
            "image_token": "<image>",
            "extra_special_tokens": {"video_token": "<|tool|>"},
        },
    },
    "old files": {
        "tokenizer_config": FAST | {"eos_token": "<|im_end|>"},
        "added_tokens": {"<b>": 260, "<|tool|>": 259},
        "special_tokens_map": {"additional_special_tokens": ["<|tool|>"], "unk_token": "<image>"},
    },
    "a map that is not asked": {
        "tokenizer_config": FAST
        | {"eos_token": "<|im_end|>", "added_tokens_decoder": added(_259="<b>")},
        "special_tokens_map": {"additional_special_tokens": ["<|tool|>"]},
        "added_tokens": {"<|tool|>": 260},
    },
}


@pytest.mark.parametrize("name", FOLDERS)
def test_added_tokens_are_those_of_transformers(tmp_path, name):
    folder = made.byte_level(tmp_path, **FOLDERS[name])
    ours = tokenizers.hugging_face(str(folder))
    for text in ("a<|tool|>b", "<b><image> <|im_end|> <|tool|>  c", "<|tool|<b"):
        assert ours.encode(text) == their_ids(folder, text)


def test_added_tokens_of_a_model_of_pieces(tmp_path):
    file = made.pieces(tmp_path, control_symbols=["[INST]"])
    plain = tokenizers.sentencepiece(str(file))
    size = plain.vocab_size
    tokens = {
        str(size): {"content": "<|im_end|>"},
        str(size + 1): {"content": "<|tool|>"},
        "1": {"content": "<s>"},
    }
    made.write(
        tmp_path, tokenizer_config={"eos_token": "<|im_end|>", "added_tokens_decoder": tokens}
    )
    ours = tokenizers.sentencepiece(str(file))
    assert (ours.vocab_size, ours.eos_id, ours.eos_ids) == (size + 2, size, (size,))
    assert ours.encode("<|tool|>hi<|im_end|>") == [size + 1, *ours.encode_after(None, "hi"), size]
    assert ours.decode(ours.encode("<s>hi<|tool|>")) == "<s>hi<|tool|>"
    assert plain.eos_ids == (2,)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"added_tokens_decoder": added(_270="<|tool|>")},
            r"'added_tokens_decoder' of '270' is the token '<\|tool\|>', which",
        ),
        (
            {"added_tokens_decoder": added(_3="<|tool|>")},
            r"'added_tokens_decoder' of '3' is the token '<\|tool\|>', which has",
        ),
        (
            {"added_tokens_decoder": []},
            r"tokenizer_config\.json: 'added_tokens_decoder' is \[\]; accepted: an object",
        ),
        (
            {"added_tokens_decoder": {"x": {"content": "a"}}},
            r"'added_tokens_decoder' of 'x' is .*; accepted: an id, and",
        ),
        (
            {"added_tokens_decoder": {"259": "<b>"}},
            r"of '259' is \"<b>\"; accepted: an id, and an object with a text",
        ),
        (
            {"added_tokens_decoder": {"259": {"content": ""}}},
            r"of '259' is .*; accepted: an id, and an object with a text",
        ),
        (
            {"added_tokens_decoder": {"259": {"content": "b", "lstrip": "no"}}},
            r"accepted for .*lstrip.*: true or false",
        ),
        (
            {"additional_special_tokens": "<b>"},
            r"'additional_special_tokens' is \"<b>\"; accepted: a list of tokens",
        ),
        (
            {"additional_special_tokens": ["<b>", 3]},
            r"'additional_special_tokens' is 3; accepted: a text",
        ),
        (
            {"eos_token": {"__type": "AddedToken"}},
            r"'eos_token' is \{.*; accepted: a text, an object with the text as its",
        ),
        ({"eos_token": ["<|im_end|>", "<|endoftext|>"]}, r"'eos_token' is \[.*; accepted: a text"),
        ({"eos_token": 258}, r"'eos_token' is 258; accepted: a text"),
        ({"eos_token": ""}, r"'eos_token' is \"\"; accepted: a text that is not empty, or null"),
        ({"pad_token": {"content": None}}, r"'pad_token' is .*; accepted: a text"),
    ],
)
def test_an_odd_config_is_one_line_with_its_file(tmp_path, files, message):
    folder = made.byte_level(tmp_path, tokenizer_config={"eos_token": "<|im_end|>"} | files)
    with pytest.raises(Refusal, match=message) as error:
        tokenizers.hugging_face(str(folder))
    assert str(error.value).startswith(str(tmp_path / "tokenizer_config.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["tokenizer_config", "special_tokens_map", "generation_config", "config", "added_tokens"],
)
def test_every_file_is_read_with_the_same_care(tmp_path, name):
    folder = made.byte_level(tmp_path, special=("</s>",))
    for data in (b"[1]", b"{", b'{"x": "\xe9"}', b'{"a": "\\ud800"}', b'{"a": 1, "a": 2}'):
        (folder / f"{name}.json").write_bytes(data)
        with pytest.raises(Refusal, match=rf"^{folder / name}\.json:") as error:
            tokenizers.hugging_face(str(folder))
        assert "\n" not in str(error.value)


def test_special_tokens_have_one_precedence(tmp_path):
    config = {
        "eos_token": {"content": "<|im_end|>"},
        "pad_token": None,
        "bos_token": "<|im_start|>",
        "boi_token": "<i>",
    }
    special = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": ""}
    folder = made.write(tmp_path, tokenizer_config=config, special_tokens_map=special)
    tokens = {"bos_token": "<|im_start|>", "pad_token": "<|endoftext|>", "boi_token": "<i>"}
    texts = folder_texts.FolderTexts(folder)
    assert texts.special_tokens == tokens | {"eos_token": "<|endoftext|>"}
    assert texts.eos_texts == ("<|endoftext|>", "<|im_end|>")
    made.write(tmp_path, tokenizer_config=config | {"added_tokens_decoder": {}})
    texts = folder_texts.FolderTexts(folder)
    assert texts.special_tokens == tokens | {"eos_token": "<|im_end|>"}
    assert texts.eos_texts == ("<|im_end|>", "<|endoftext|>")
    assert folder_texts.FolderTexts(tmp_path / "none").special_tokens == {}


def test_flags_for_a_bos_are_not_read_beside_a_tokenizer_json(tmp_path):
    """transformers 5 leaves them to the post-processor, whatever they say."""
    for bos in ("", "<s>"):
        for flag in (True, False):
            config = FAST | {
                "eos_token": "</s>",
                "bos_token": "<s>",
                "add_bos_token": flag,
                "add_eos_token": flag,
            }
            folder = made.byte_level(
                tmp_path / f"{bos}{flag}", ("<s>", "</s>"), bos, tokenizer_config=config
            )
            ours = encoding.prompt_ids("a", tokenizers.hugging_face(str(folder)))
            transformers = pytest.importorskip("transformers")
            assert ours == transformers.AutoTokenizer.from_pretrained(folder)("a")["input_ids"]


def test_templates_have_one_precedence(tmp_path):
    texts = lambda: folder_texts.FolderTexts(tmp_path).chat_templates  # noqa: E731
    assert texts() == {}
    made.write(tmp_path, chat_template={"chat_template": "of its own file"})
    assert texts() == {"default": ("of its own file", str(tmp_path / "chat_template.json"))}
    named = [{"name": "default", "template": "listed"}, {"name": "tools", "template": ""}]
    made.write(tmp_path, tokenizer_config={"chat_template": named})
    assert {name: text for name, (text, _) in texts().items()} == {"default": "listed", "tools": ""}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("more")
    assert {name: text for name, (text, _) in texts().items()} == {"rag": "more"}
    (tmp_path / "chat_template.jinja").write_bytes("\ufeffnewest é".encode())
    assert {name: text for name, (text, _) in texts().items()} == {
        "rag": "more",
        "default": "newest é",
    }
    (tmp_path / "chat_template.jinja").write_bytes(b"\xe9")
    with pytest.raises(
        Refusal, match=r"chat_template\.jinja:1: found a byte 0xe9 that is not UTF-8"
    ):
        texts()


@pytest.mark.parametrize(
    "value", [3, {"default": "x"}, ["x"], [{"template": "x"}], [{"name": "a", "template": 3}]]
)
def test_a_template_of_another_kind_is_named(tmp_path, value):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(Refusal, match=r"tokenizer_config\.json: 'chat_template'.* accepted: "):
        _ = folder_texts.FolderTexts(tmp_path).chat_templates
