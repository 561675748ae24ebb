"""The ids of a prompt and its completion are those of both as one text, and decode to it, for every
kind of tokenizer.
"""

import numpy as np
import pytest

from rlhf_jax.text import encoding, tokenizers
from tests.pretrained import made

TEXTS = [
    ("TL;DR:", " it is"),
    ("Solution:", "\n2+2=4\n"),
    ("[INST] hi [/INST]", "Hello"),
    ("a", " a"),
    ("a.", "com is it"),
    ("it:\n\n", ".com"),
    ("x", "  two  spaces "),
    ("say", "\n\n it"),
    ("1", "2é"),
    ("hi ", "it"),
]
HUGGING_FACE = {
    "byte_level": lambda folder: made.byte_level(
        folder, special=("<mark>", "</s>"), merges=[("i", "t"), ("Ġ", "a")]
    ),
    "prefix_space": lambda folder: made.byte_level(
        folder, special=("<mark>", "</s>"), prefix_space=True
    ),
    **{
        kind: lambda folder, kind=kind: made.metaspace(folder, kind)
        for kind in ("prepend", "first", "always", "plain")
    },
}
SENTENCEPIECE = {
    "bpe": {"remove_extra_whitespaces": False, "byte_fallback": True, "vocab_size": 340},
    "unigram": {
        "model_type": "unigram",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "vocab_size": 340,
    },
    "no_dummy_prefix": {
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
    }
    | {"vocab_size": 340},
}
EVERY = [*HUGGING_FACE, *SENTENCEPIECE]
AMBIGUOUS = {"always", "prefix_space"}
APART = {
    "byte_level",
    "plain",
    "no_dummy_prefix",
}  # of which a completion may be encoded on its own


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Builds a tokenizer of a kind once."""
    built = {}

    def build(kind):
        if kind not in built:
            folder = tmp_path_factory.mktemp(kind)
            if kind in HUGGING_FACE:
                built[kind] = tokenizers.hugging_face(str(HUGGING_FACE[kind](folder)))
            else:
                marks = {"control_symbols": ["<mark>"], **SENTENCEPIECE[kind]}
                built[kind] = tokenizers.sentencepiece(str(made.pieces(folder, **marks)), bos=True)
        return built[kind]

    return build


def completion(tokenizer, text, before=None):
    tokens, mask = encoding.encode_completions([text], tokenizer, 64, before)
    assert tokens[mask][-1] == tokenizer.eos_id
    return tokens[mask].tolist()[:-1]


def decoded(tokenizer, ids, before=None):
    rows = np.array([ids], np.int32), np.ones((1, len(ids)), bool), np.array([False])
    return encoding.decode_completions(*rows, tokenizer, before)[0]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(("prompt", "text"), TEXTS)
def test_prompt_and_completion_are_one_text(tokenizer, kind, prompt, text):
    built = tokenizer(kind)
    start, whole = encoding.prompt_ids(prompt, built), encoding.prompt_ids(prompt + text, built)
    ids = completion(built, text)
    if whole[: len(start)] == start:  # no token lies across the boundary
        assert [*start, *ids] == whole
    assert decoded(built, ids) == text


@pytest.mark.parametrize("kind", EVERY)
def test_a_completion_that_follows_a_special_token(tokenizer, kind):
    """Llama 2's tokenizer begins anew after a special token, others do not.

    Two of those that do give a text with a space and one without the same ids there, so that
    neither can come back surely.
    """
    built = tokenizer(kind)
    mark = built.marks["<mark>"]
    for text in ("Hello", " it is", "\nHello"):
        whole = encoding.prompt_ids(f"hi<mark>{text}", built)
        before = encoding.prompt_ids("hi<mark>", built)
        ids = completion(built, text, [before[-1]])
        assert before[-1] == mark
        assert [*before, *ids] == whole
        assert decoded(built, ids, [mark]).strip(" ") == text.strip(" ")
        assert decoded(built, ids, [mark]) == text or kind in AMBIGUOUS
    assert built.looks_back == (kind in {"prepend", *AMBIGUOUS})
    last = encoding.last_id("hi<mark>", built)
    assert last == (mark if built.looks_back else None)


@pytest.mark.parametrize("kind", EVERY)
def test_what_needs_no_care_is_encoded_as_it_was(tokenizer, kind):
    built = tokenizer(kind)
    own = all(completion(built, text) == built.encode(text) for _, text in TEXTS)
    assert own == (kind in APART)


def test_words_bytes_and_words_of_a_file_are_encoded_apart(tmp_path):
    from tests.text.test_tokenizers import VOCABULARY, write_hugging_face

    of_file = tokenizers.hugging_face(str(write_hugging_face(tmp_path, ["</s>"])))
    for tokenizer in (of_file, tokenizers.words(VOCABULARY)):
        ids = completion(tokenizer, "so good")
        assert ids == tokenizer.encode("so good")
        assert decoded(tokenizer, ids) == "so good"
    assert decoded(tokenizers.ByteTokenizer(), completion(tokenizers.ByteTokenizer(), " é")) == " é"


def test_bytes_that_are_no_character_end_nothing(tokenizer):
    """Sampled bytes of half a character, behind every anchor, are a replacement character and no
    lost text.
    """
    built = tokenizer("bpe")
    half = built.vocabulary()["<0xE2>"]
    assert decoded(built, [half, *completion(built, " it")]) == "\ufffd it"


def test_a_small_alphabet_has_anchors_of_its_own(tmp_path):
    """A model that knows neither a full stop nor an "a": text that it knows comes back, behind what
    it knows.
    """
    (tmp_path / "words.txt").write_text("good hollow looks\n" * 20)
    built = tokenizers.sentencepiece(
        str(made.pieces(tmp_path, input=str(tmp_path / "words.txt"), vocab_size=30))
    )
    whole = encoding.prompt_ids("look good", built)
    assert [*encoding.prompt_ids("look", built), *completion(built, " good")] == whole
    assert decoded(built, completion(built, " good")) == " good"
    assert decoded(built, completion(built, "good")) == "good"


def test_a_text_that_spells_out_its_eos_gets_no_second(tokenizer):
    for kind in EVERY:
        built = tokenizer(kind)
        plain = encoding.ended_ids("it", built)
        assert plain[-1] == built.eos_id
        assert encoding.ended_ids("it</s>", built) == plain
        assert encoding.ended_ids("", built) == [built.eos_id]
        with pytest.raises(
            ValueError, match="a completion is '</s></s>', which is nothing but an EOS"
        ):
            encoding.ended_ids("</s></s>", built)
