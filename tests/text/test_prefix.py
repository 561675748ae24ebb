"""A tokenizer that begins texts with a BOS begins prompts with exactly one, as transformers does,
and completions with none.
"""

import json

import numpy as np
import pytest
import tokenizers as library
from tokenizers import models, pre_tokenizers, processors

from rlhf_jax.text import encoding, tokenizers

VOCABULARY = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "<pad>": 4, "[UNK]": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer.json of words whose post-processor puts a BOS before and an EOS after a text."""
    place = tmp_path_factory.mktemp("tokenizer")
    made = library.Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<s>", "</s>", "<pad>"])
    made.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made.save(str(place / "tokenizer.json"))
    texts = {
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (place / "tokenizer_config.json").write_text(json.dumps(texts))
    return place


def test_the_prefix_is_what_the_file_puts_before_a_text(folder):
    tokenizer = tokenizers.hugging_face(str(folder))
    assert tokenizer.prefix_ids == (0,)
    assert tokenizer.encode("a b") == [2, 3]
    assert encoding.prompt_ids("a b", tokenizer) == [0, 2, 3]


def test_a_text_that_brings_its_bos_gets_no_second(folder):
    tokenizer = tokenizers.hugging_face(str(folder))
    assert encoding.prompt_ids("<s> a", tokenizer) == [0, 2]


def test_prompts_are_padded_before_the_prefix_and_counted_with_it(folder):
    tokenizer = tokenizers.hugging_face(str(folder))
    tokens, mask = encoding.encode_prompts(["a", "<s>b b"], tokenizer, 4)
    np.testing.assert_array_equal(tokens, [[4, 4, 0, 2], [4, 0, 3, 3]])
    np.testing.assert_array_equal(mask, [[False, False, True, True], [False, True, True, True]])
    assert encoding.count_tokens(tokenizer, ["a", "<s>b b"]) == [2, 3]
    with pytest.raises(
        ValueError, match="a prompt has 3 tokens; accepted: 1 to max_prompt_tokens = 2"
    ):
        encoding.encode_prompts(["a b"], tokenizer, 2)


def test_completions_have_no_bos_and_one_eos(folder):
    tokenizer = tokenizers.hugging_face(str(folder))
    tokens, mask = encoding.encode_completions(["a"], tokenizer, 3)
    np.testing.assert_array_equal(tokens[mask], [2, 1])


def test_prompts_are_token_for_token_those_of_transformers(folder):
    transformers = pytest.importorskip("transformers")
    theirs, ours = (
        transformers.AutoTokenizer.from_pretrained(folder),
        tokenizers.hugging_face(str(folder)),
    )
    for text in ("a", "b a b", "a unknown b"):
        assert [*encoding.prompt_ids(text, ours), ours.eos_id] == theirs(text)["input_ids"]


def test_tokenizers_without_a_prefix_have_none():
    for tokenizer in (
        tokenizers.ByteTokenizer(),
        tokenizers.words(["a"]),
        tokenizers.characters(["a"]),
    ):
        assert encoding.prompt_ids("a", tokenizer) == tokenizer.encode("a")
        assert encoding.count_tokens(tokenizer, ["a"]) == [1]


def test_a_sentencepiece_model_gives_its_bos_when_asked(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("good film bad film\n" * 20)
    prefix = str(tmp_path / "model")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=prefix, vocab_size=20, hard_vocab_limit=False, minloglevel=2
    )
    plain = tokenizers.sentencepiece(f"{prefix}.model")
    asked = tokenizers.make(tokenizers.Config("sentencepiece", f"{prefix}.model", bos=True), None)
    assert plain.prefix_ids == ()
    assert encoding.prompt_ids("good", asked) == [
        1,
        *plain.encode("good"),
    ]  # <s> is 1 unless a model is trained otherwise
