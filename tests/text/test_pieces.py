"""Sentencepiece models: control symbols in a text are their ids, and ids of control symbols their
text.
"""

import pytest

from rlhf_jax.text import encoding, tokenizers
from tests.pretrained import made

LITERAL = {"remove_extra_whitespaces": False, "byte_fallback": True, "vocab_size": 340}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    options = {
        "control_symbols": ["[INST]", "[/INST]"],
        "user_defined_symbols": ["<tool>"],
    } | LITERAL
    return tokenizers.sentencepiece(str(made.pieces(folder, **options)), bos=True)


def texts_of(tokenizer, ids):
    names = {identity: text for text, identity in tokenizer.vocabulary().items()}
    return [names[identity] for identity in ids]


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("<s>[INST] hi [/INST]", ["<s>", "[INST]", "\u2581hi"], ["[/INST]"]),
        (
            "[INST]hi[/INST]</s>",
            ["<s>", "[INST]", "h"],
            ["[/INST]", "</s>"],
        ),  # no space where the template has none
        ("hi [/INST][INST]", ["<s>", "\u2581hi"], ["[/INST]", "[INST]"]),
        (
            "<tool> hi",
            ["<s>", "\u2581", "<tool>", "\u2581hi"],
            ["\u2581hi"],
        ),  # which the library knows itself
    ],
)
def test_marks_in_a_text_are_their_ids(tokenizer, text, begin, end):
    ids = encoding.prompt_ids(text, tokenizer)
    told = texts_of(tokenizer, ids)
    assert told[: len(begin)] == begin
    assert told[-len(end) :] == end
    plain = tokenizer.encode(text)
    assert encoding.decode_completions([plain], [[True] * len(plain)], [False], tokenizer)[
        0
    ].strip() == text.removesuffix("</s>")


def test_text_without_marks_is_the_library_s(tokenizer):
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.file))
    for text in ("hi number 7", " it is a hello. ", "[INS] é", "", " "):
        assert tokenizer.encode(text) == list(library.encode(text))
        assert tokenizer.decode(library.encode(text)) == library.decode(library.encode(text))


def test_a_longer_mark_is_not_cut_by_a_shorter_one(tmp_path):
    file = made.pieces(tmp_path, control_symbols=["<a", "<a>", "<a>b"], **LITERAL)
    tokenizer = tokenizers.sentencepiece(str(file))
    assert texts_of(tokenizer, tokenizer.encode("<a>b<a><a"))[:3] == ["<a>b", "<a>", "<a"]


def test_an_id_beyond_the_pieces_is_no_text(tokenizer):
    """Models have rows beyond their tokenizer's; a fresh one samples them."""
    assert tokenizer.decode([*tokenizer.encode("hi"), tokenizer.vocab_size + 3]) == "hi"
