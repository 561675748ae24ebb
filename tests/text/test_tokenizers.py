"""Ids and back, for every kind of tokenizer, and the errors that a file or a word can cause."""

import json

import pytest

from rlhf_jax.text import tokenizers

TEXTS = ("the room was good .", "good", "", "so , so")
VOCABULARY = (".", ",", "the", "room", "was", "good", "so")


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory):
    """A model of 37 pieces, trained on a few sentences, without a pad."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(text for text in TEXTS if text) + "\nthe bed was so good .\n")
    for name, eos in (("whole", 2), ("endless", -1)):
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(folder / name),
            vocab_size=37,
            hard_vocab_limit=False,
            eos_id=eos,
            pad_id=-1,
            minloglevel=2,
        )
    return folder / "whole.model"


def write_hugging_face(folder, added=(), padding=False):
    """A word-level tokenizer.json over VOCABULARY, and the added special tokens after it."""
    import tokenizers as library

    words = {word: identity for identity, word in enumerate(("[UNK]", *VOCABULARY))}
    tokenizer = library.Tokenizer(library.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(added))
    if padding:  # files saved after training often carry these two
        tokenizer.enable_padding(length=31)
        tokenizer.enable_truncation(max_length=2)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def every_kind(tmp_path, sentencepiece_file):
    folder = write_hugging_face(tmp_path / "hf", added=["</s>"])
    letters = sorted(set("".join(TEXTS)))
    return {
        "words": tokenizers.make(tokenizers.Config("words"), VOCABULARY),
        "characters": tokenizers.make(tokenizers.Config("characters"), letters),
        "bytes": tokenizers.make(tokenizers.Config("bytes"), None),
        "sentencepiece": tokenizers.make(
            tokenizers.Config("sentencepiece", str(sentencepiece_file)), None
        ),
        "hf": tokenizers.make(tokenizers.Config("hf", str(folder)), None),
    }


@pytest.mark.parametrize("kind", ["words", "characters", "bytes", "sentencepiece", "hf"])
def test_text_comes_back_and_special_ids_leave_no_trace(every_kind, kind):
    tokenizer = every_kind[kind]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.eos_id not in ids
        assert tokenizer.pad_id not in ids
        assert (
            tokenizer.decode([tokenizer.pad_id, *ids, tokenizer.eos_id, tokenizer.pad_id]) == text
        )
    assert 0 <= tokenizer.eos_id < tokenizer.vocab_size


def test_ids_of_words_are_counted_after_pad_and_eos():
    tokenizer = tokenizers.words(VOCABULARY)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, 9)
    # "." is word 0 of the list, so id 2; the 3, room 4 + 1, was 6, good 7.
    assert tokenizer.encode("the room was good .") == [4, 5, 6, 7, 2]


def test_ids_of_bytes_are_counted_after_pad_and_eos():
    tokenizer = tokenizers.make(tokenizers.Config("bytes"), None)
    assert tokenizer.encode("é") == [2 + 0xC3, 2 + 0xA9]
    assert tokenizer.decode([2 + 0xC3]) == "\ufffd"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("the dog was good", "'dog'"),
        ("the  room", "''"),
        ("the room ", "''"),
        ("The room", "'The'"),
    ],
)
def test_an_unknown_word_is_named_with_its_text(text, word):
    with pytest.raises(ValueError, match="vocabulary") as error:
        tokenizers.words(VOCABULARY).encode(text)
    assert f"word {word} of the text {text!r}" in str(error.value)


def test_an_id_outside_the_vocabulary_is_an_error():
    for wrong in (-1, 9):
        with pytest.raises(ValueError, match=f"id {wrong} .* 0 to 8"):
            tokenizers.words(VOCABULARY).decode([4, wrong])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tokenizers.words(("a", "b", "a")), "'a' more than once"),
        (lambda: tokenizers.words(("a b",)), "'a b' cannot be a word"),
        (lambda: tokenizers.words(("",)), "'' cannot be a word"),
        (lambda: tokenizers.characters(("ab",)), "'ab' cannot be of the alphabet"),
        (
            lambda: tokenizers.make(tokenizers.Config("word"), VOCABULARY),
            "no tokenizer 'word'; there are: bytes, characters",
        ),
        (
            lambda: tokenizers.make(tokenizers.Config("words"), None),
            "needs a task with a closed vocabulary",
        ),
        (
            lambda: tokenizers.make(tokenizers.Config("hf", "/no/such"), None),
            "'/no/such' is not there",
        ),
        (
            lambda: tokenizers.make(tokenizers.Config("sentencepiece"), None),
            "'' is not there; it should name",
        ),
    ],
)
def test_errors_name_the_value_and_what_is_accepted(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_files_that_are_something_else(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json"):
        tokenizers.hugging_face(str(file))
    with pytest.raises(ValueError, match="is not a sentencepiece model"):
        tokenizers.sentencepiece(str(file))


def test_sentencepiece_pads_with_its_eos_where_it_has_no_pad(sentencepiece_file):
    tokenizer = tokenizers.sentencepiece(str(sentencepiece_file))
    assert tokenizer.eos_id == tokenizer.pad_id == 2


def test_sentencepiece_without_an_end_is_an_error(sentencepiece_file):
    with pytest.raises(ValueError, match=r"endless\.model has no EOS piece"):
        tokenizers.sentencepiece(str(sentencepiece_file.with_name("endless.model")))


def test_hugging_face_finds_eos_and_pad_among_the_added_tokens(tmp_path):
    # 8 words with [UNK], so the added ones are 8 and 9; without a pad, pad is the EOS.
    both = tokenizers.hugging_face(
        str(write_hugging_face(tmp_path / "both", ["<|endoftext|>", "<|padding|>"]))
    )
    assert (both.eos_id, both.pad_id, both.vocab_size) == (8, 9, 10)
    assert both.decode([9, *both.encode("the room"), 8, 9]) == "the room"
    one = tokenizers.hugging_face(str(write_hugging_face(tmp_path / "one", ["<|endoftext|>"])))
    assert (one.eos_id, one.pad_id) == (8, 8)


def test_hugging_face_takes_the_word_of_the_file_beside_it(tmp_path):
    folder = write_hugging_face(tmp_path / "told", ["<|endoftext|>", "<|im_end|>"])
    beside = {
        "eos_token": {"content": "<|im_end|>"},
        "pad_token": "<|endoftext|>",
        "bos_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(beside))
    told = tokenizers.hugging_face(str(folder / "tokenizer.json"))
    assert (told.eos_id, told.pad_id) == (9, 8)
    assert tokenizers.hugging_face(str(folder), eos="<|endoftext|>").eos_id == 8


def test_hugging_face_never_pads_nor_cuts(tmp_path):
    tokenizer = tokenizers.hugging_face(str(write_hugging_face(tmp_path, ["</s>"], padding=True)))
    assert len(tokenizer.encode("the room was good .")) == 5


@pytest.mark.parametrize(
    ("added", "eos", "message"),
    [
        (["<extra>"], "", "does not tell its EOS; set tokenizer.eos.* <extra>"),
        (["</s>", "<eos>"], "", "does not tell its EOS"),
        (["</s>"], "<end>", "has no token '<end>' for the EOS"),
    ],
)
def test_hugging_face_without_one_end_is_an_error(tmp_path, added, eos, message):
    with pytest.raises(ValueError, match=message):
        tokenizers.hugging_face(str(write_hugging_face(tmp_path, added)), eos)
