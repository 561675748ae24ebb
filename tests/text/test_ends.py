"""Every id that ends a text, from all files that name one."""

import numpy as np
import pytest

from rlhf_jax.refusal import Refusal
from rlhf_jax.text import encoding, tokenizers
from tests.pretrained import made

END, START, IM_END = (made.BYTES + place for place in range(3))
TOLD = {"tokenizer_config": {"eos_token": "<|im_end|>"}}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (TOLD, (IM_END,)),
        (TOLD | {"generation_config": {"eos_token_id": [END, IM_END]}}, (IM_END, END)),
        (
            TOLD | {"generation_config": {"eos_token_id": START}, "config": {"eos_token_id": END}},
            (IM_END, START, END),
        ),
        (TOLD | {"config": {"eos_token_id": [IM_END, END]}}, (IM_END, END)),
        (TOLD | {"special_tokens_map": {"eos_token": "<|endoftext|>"}}, (END, IM_END)),
        (
            {
                "tokenizer_config": {"eos_token": "<|im_end|>", "added_tokens_decoder": {}},
                "special_tokens_map": {"eos_token": {"content": "<|endoftext|>"}},
            },
            (IM_END, END),
        ),
        ({"special_tokens_map": {"eos_token": "<|im_end|>"}}, (IM_END,)),
        (
            {"generation_config": {"eos_token_id": [IM_END, START]}},
            (IM_END, START),
        ),  # before the customary <|endoftext|>
        ({"config": {"eos_token_id": None}, "generation_config": {"eos_token_id": []}}, (END,)),
        (TOLD | {"special_tokens_map": {"eos_token": "</s>"}, "config": {"eos_token_id": 2}}, None),
        # Defaults of a config's class: an ordinary token, and one that is not there.
        (TOLD | {"config": {"eos_token_id": 2}}, (IM_END,)),
        (TOLD | {"config": {"eos_token_id": [50256, END]}}, (IM_END, END)),
        (TOLD | {"generation_config": {"eos_token_id": 2, "_from_model_config": True}}, (IM_END,)),
        (
            TOLD | {"generation_config": {"eos_token_id": END, "_from_model_config": True}},
            (IM_END, END),
        ),
    ],
)
def test_every_file_is_asked(tmp_path, files, expected):
    folder = made.byte_level(tmp_path, **files)
    if expected is None:  # the first EOS is no token
        with pytest.raises(
            Refusal,
            match=r"has no token '</s>' for the EOS; set tokenizer\.eos.* to one of .*<\|im_end\|>",
        ):
            tokenizers.hugging_face(str(folder))
        return
    tokenizer = tokenizers.hugging_face(str(folder))
    assert tokenizer.eos_ids == expected
    assert tokenizer.eos_id == expected[0]


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        (
            {"eos_token_id": [IM_END, 2]},
            r"generation_config\.json says that token 2 ends a text, .* the ordinary '#'; set",
        ),
        (
            {"eos_token_id": 50256},
            r"generation_config\.json says that token 50256 ends a text, .* has 259 tokens; set "
            r"tok",
        ),
        (
            {"eos_token_id": "258"},
            r"generation_config\.json: 'eos_token_id' is \"258\"; accepted: an id of 0 or more, a "
            r"list",
        ),
        ({"eos_token_id": [258, True]}, r"'eos_token_id' is \[258, true\]; accepted"),
        ({"eos_token_id": 258.0}, r"'eos_token_id' is 258\.0; accepted"),
        ({"eos_token_id": -1}, r"'eos_token_id' is -1; accepted"),
    ],
)
def test_files_that_contradict_one_another_are_named(tmp_path, generation, message):
    folder = made.byte_level(tmp_path, generation_config=generation, **TOLD)
    with pytest.raises(Refusal, match=message) as error:
        tokenizers.hugging_face(str(folder))
    assert "\n" not in str(error.value)
    if "contradicts" in str(error.value):
        assert tokenizers.hugging_face(str(folder), "<|im_end|>").eos_ids == (IM_END,)


def test_a_user_says_what_ends_a_text_and_no_file_is_asked(tmp_path):
    folder = made.byte_level(tmp_path, **TOLD, generation_config={"eos_token_id": 2})
    assert tokenizers.hugging_face(str(folder), "<|endoftext|>").eos_ids == (END,)
    assert tokenizers.hugging_face(str(folder), "<|endoftext|> <|im_end|>").eos_ids == (END, IM_END)
    config = tokenizers.Config("hf", str(folder), "<|im_end|>")
    assert tokenizers.make(config, None).eos_ids == (IM_END,)
    with pytest.raises(Refusal, match=r"has no token '</s>' for the EOS"):
        tokenizers.hugging_face(str(folder), "<|endoftext|> </s>")


def test_the_policy_s_folder_is_asked_where_the_tokenizer_is_another_s(tmp_path):
    tokenizer = made.byte_level(
        tmp_path / "tokenizer", **TOLD, generation_config={"eos_token_id": START}
    )
    policy = made.write(tmp_path / "policy", generation_config={"eos_token_id": [END]})
    config = tokenizers.Config("hf", str(tokenizer))
    assert tokenizers.make(config, None, policy).eos_ids == (IM_END, END)
    assert tokenizers.make(config, None, tmp_path / "silent").eos_ids == (IM_END, START)


def test_a_model_of_pieces_has_the_ends_of_its_folder_too(tmp_path):
    file = str(made.pieces(tmp_path, control_symbols=["[INST]", "[/INST]"], pad_id=3))
    alone = tokenizers.sentencepiece(file)
    mark = alone.marks["[/INST]"]
    assert (alone.eos_ids, alone.pad_id) == ((2,), 3)
    made.write(tmp_path, generation_config={"eos_token_id": [2, mark]})
    assert tokenizers.sentencepiece(file).eos_ids == (2, mark)
    assert tokenizers.sentencepiece(file, eos="[/INST]").eos_ids == (mark,)
    made.write(tmp_path, generation_config={"eos_token_id": [2, 9]})
    with pytest.raises(
        Refusal,
        match=r"says that token 9 ends a text, which contradicts .*\.model, where it is the "
        r"ordinary",
    ):
        tokenizers.sentencepiece(file)


def test_every_end_is_dropped_and_one_is_appended(tmp_path):
    folder = made.byte_level(tmp_path, **TOLD, generation_config={"eos_token_id": [END, IM_END]})
    tokenizer = tokenizers.hugging_face(str(folder))
    tokens, mask = encoding.encode_completions(["hi", "hi<|endoftext|>"], tokenizer, 4)
    np.testing.assert_array_equal(tokens[:, 2], [IM_END, END])
    assert mask.sum() == 6
    assert encoding.decode_completions(tokens, mask, np.array([True, True]), tokenizer) == [
        "hi",
        "hi",
    ]
    assert tokenizer.decode([*tokenizer.encode("hi"), END, IM_END]) == "hi"
