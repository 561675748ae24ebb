"""Vocabularies by content: where they are read from, and what makes two of them differ."""

import pytest

from rlhf_jax.refusal import Refusal
from rlhf_jax.text import tokenizers, vocabularies
from rlhf_jax.text.vocabularies import Vocabulary, difference
from tests.pretrained import made


def test_a_folder_s_vocabulary_is_found_in_each_kind_of_file(tmp_path):
    hf = made.byte_level(tmp_path / "hf")
    pieces = made.pieces(tmp_path / "sp", "mine").parent
    made.write(
        pieces,
        added_tokens={"<b>": tokenizers.sentencepiece(str(pieces / "mine.model")).vocab_size},
    )
    words = made.write(tmp_path / "words", vocab={"a": 0, "b": 1}, added_tokens={"<c>": 2})
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "vocab.txt").write_text("[PAD]\nthe\n##s\n")
    found = {
        name: vocabularies.folder_vocabulary(tmp_path / name)
        for name in ("hf", "sp", "words", "lines", "none")
    }
    assert found["hf"].ids["<|im_end|>"] == made.BYTES + 2
    assert {"<s>", "</s>", "<b>", "\u2581hi"} <= found["sp"].ids.keys()
    assert found["words"].ids == {"a": 0, "b": 1, "<c>": 2}
    assert found["lines"].ids == {"[PAD]": 0, "the": 1, "##s": 2}
    assert found["none"] is None
    assert vocabularies.tokenizer_of(hf).vocab_size == made.BYTES + 3
    assert vocabularies.tokenizer_of(pieces).eos_id == 2
    assert vocabularies.tokenizer_of(tmp_path / "none") is None
    with pytest.raises(
        Refusal, match=r"words holds vocab\.json but no tokenizer\.json: save its tokenizer again"
    ):
        vocabularies.tokenizer_of(words)


def test_one_vocabulary_in_two_forms_is_the_same(tmp_path):
    """A sentencepiece model, and the same tokens in the tokenizers library's form."""
    from tokenizers import Tokenizer, models

    file = made.pieces(tmp_path / "sp")
    ids = tokenizers.sentencepiece(str(file)).vocabulary()
    (tmp_path / "hf").mkdir()
    Tokenizer(models.WordLevel(dict(ids), unk_token="<unk>")).save(
        str(tmp_path / "hf" / "tokenizer.json")
    )
    one, other = (
        vocabularies.folder_vocabulary(tmp_path / "sp"),
        vocabularies.folder_vocabulary(tmp_path / "hf"),
    )
    assert difference(one.ids, other, lacking=True, special=False) == ""


OURS = {"a": 0, "b": 1, "<s>": 2, "<new>": 3}


@pytest.mark.parametrize(
    ("theirs", "strict", "lenient"),
    [
        (OURS | {"more": 4}, "", ""),
        (
            OURS | {"b": 9, "c": 1},
            "token 1 is 'b' here and 'c' there",
            "token 1 is 'b' here and 'c' there",
        ),
        ({"a": 0, "b": 1, "<s>": 2}, "token 3 is '<new>' here and no token there", ""),
        (
            {"a": 0, "b": 1, "<s>": 2, "<reserved>": 3},
            "token 3 is '<new>' here and '<reserved>' there",
            "",
        ),
        (
            {"a": 1, "b": 0, "<s>": 2, "<new>": 3},
            "token 0 is 'a' here and 'b' there",
            "token 0 is 'a' here and 'b' there",
        ),
    ],
)
def test_the_first_difference_is_named(tmp_path, theirs, strict, lenient):
    there = Vocabulary(tmp_path, theirs, frozenset((2, 3)))
    assert difference(OURS, there, lacking=True, special=False) == strict
    assert difference(OURS, there, lacking=False, special=True) == lenient


def test_a_tokenizer_for_a_model_of_fewer_tokens(tmp_path):
    """Tokens of a picture, and a pad that no vocabulary has, need no row of the model; ordinary
    text and the EOS do.
    """
    special = ("<|endoftext|>", "<|im_end|>", "<image>")
    config = {"eos_token": "<|endoftext|>", "pad_token": "<none>"}
    folder = made.byte_level(
        tmp_path / "a", special, tokenizer_config=config, config={"eos_token_id": [258]}
    )
    whole = tokenizers.hugging_face(str(folder))
    assert (whole.vocab_size, whole.eos_ids, whole.pad_id) == (260, (256, 258), 259)
    within = tokenizers.within(whole, 258)
    assert (within.vocab_size, within.eos_ids, within.pad_id) == (258, (256,), 256)
    assert within.encode("a<|im_end|>") == whole.encode("a<|im_end|>")
    assert within.encode_many(["a"]) == whole.encode_many(["a"])
    assert max(within.vocabulary().values()) == 257
    for encode in (
        within.encode,
        lambda text: within.encode_many([text]),
        lambda text: within.encode_after(None, text),
    ):
        with pytest.raises(
            Refusal,
            match=r"a text holds '<image>', token 258 of .*tokenizer\.json, but model\.vocab_size "
            r"is 258",
        ):
            encode("a <image>")
    assert tokenizers.within(whole, 260) is whole
    with pytest.raises(
        Refusal,
        match=r"model\.vocab_size is 256, but the tokenizer has 260 tokens, 'its EOS' among those",
    ):
        tokenizers.within(whole, 256)
    with pytest.raises(
        Refusal,
        match=r"model\.vocab_size is 200, but the tokenizer has 260 tokens, '.' among those beyond",
    ):
        tokenizers.within(whole, 200)
    with pytest.raises(
        Refusal, match=r"model\.vocab_size is 200, but the tokenizer has 258 tokens"
    ):
        tokenizers.within(tokenizers.ByteTokenizer(), 200)
