"""TL;DR: every published form of posts and comparisons, and prompts that are cut as OpenAI's
procedure cuts them.
"""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rlhf_jax.tasks import tldr
from rlhf_jax.tasks.corpora import corpus
from tests.tasks import published

TRAIN = published.tldr_rows(published.NUM_TRAIN)
HELDOUT = published.tldr_rows(published.NUM_HELDOUT, first=100)
FORMAT = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return published.write_tldr(tmp_path_factory.mktemp("tldr"))


@pytest.fixture(scope="module")
def task(folder):
    return tldr.make(tldr.Config(str(folder), str(folder)))


@pytest.fixture(scope="module")
def count():
    """Token counts of a byte-level BPE trained on the posts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=331, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([FORMAT.format(**row) for row in TRAIN], trainer)
    return lambda texts: [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


def everything(task, split):
    rows = [
        (task.prompt(split, index), *task.references(split, index))
        for index in range(task.num_prompts(split))
    ]
    return rows, list(task.comparisons(split))


def expected(rows):
    posts = [(FORMAT.format(**row), " " + row["summary"]) for row in rows]
    return posts, [
        (prompt, summary, f" {row['title']}.")
        for (prompt, summary), row in zip(posts, rows, strict=True)
    ]


def test_openais_files(task):
    assert task.prompt("train", 0) == (
        "SUBREDDIT: r/relationships\n\nTITLE: [20M] my friend Ada takes all apples\n\nPOST: Ada "
        "and I argue about apples,"
        " for the 1. time.\n\nWhat would you do?\n\nTL;DR:"
    )
    posts, pairs = expected(TRAIN)
    assert everything(task, "train") == (posts, [*pairs[::2], *pairs[1::2]])
    posts, pairs = expected(HELDOUT)
    # 13 training pairs before them: the first of these is the second of its file's turn.
    assert everything(task, "heldout") == (posts, [*pairs[1::2], *pairs[::2]])
    pairs = task.comparisons("train")
    assert pairs[3:11:2] == list(pairs)[3:11:2]
    assert pairs[-1] == list(pairs)[-1]
    assert not task.has_gold
    assert not task.verifiable


def test_without_comparisons_there_are_none(folder):
    task = tldr.make(tldr.Config(str(folder)))
    assert len(task.comparisons("train")) == 0
    assert not task.comparisons("heldout")


def ready(row):
    return {
        **row,
        "query": FORMAT.format(**row),
        "query_token": [7, 11],
        "reference_response": f" {row['summary']}<|endoftext|>",
        "reference_response_token_len": 2,
    }


def prompt_completion(row):
    return {"prompt": FORMAT.format(**row), "completion": f" {row['summary']}"}


@pytest.mark.parametrize("form", [dict, ready, prompt_completion])
def test_posts_as_they_are_published_as_tables(tmp_path, form):
    published.write_parquet(
        tmp_path / "data" / "train-00000-of-00002.parquet", map(form, TRAIN[:7])
    )
    published.write_parquet(
        tmp_path / "data" / "train-00001-of-00002.parquet", map(form, TRAIN[7:])
    )
    published.write_parquet(
        tmp_path / "data" / "validation-00000-of-00001.parquet", map(form, HELDOUT)
    )
    published.write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", map(form, TRAIN))
    task = tldr.make(tldr.Config(str(tmp_path)))
    assert everything(task, "train")[0] == expected(TRAIN)[0]
    assert everything(task, "heldout")[0] == expected(HELDOUT)[0]


def ready_pair(row):
    pair = {
        "chosen": f" {row['summary']}<|endoftext|>",
        "rejected": f" {row['title']}.<|endoftext|>",
    }
    raw = published.openai_comparison(row, "train", 0)
    raw["info"] |= {"site": None, "article": None}
    return (
        raw
        | pair
        | {"query": FORMAT.format(**row), "query_chosen": "not read", "policies": "ref--sup1"}
    )


def relabelled(row):
    prompt = FORMAT.format(**row)
    pair = {
        "prompt": prompt,
        "chosen": f" {row['summary']}<|endoftext|>",
        "rejected": f" {row['title']}.<|endoftext|>",
    }
    # The relabelling swaps the pair and its scores, but leaves these two as people had it.
    return pair | {
        "prompt_chosen": prompt + pair["rejected"],
        "prompt_rejected": prompt + pair["chosen"],
    }


def converted(row):
    raw = published.openai_comparison(row, "valid1", 1)
    raw["info"] |= {"site": None, "article": None}
    return raw


@pytest.mark.parametrize("form", [ready_pair, relabelled, converted])
def test_comparisons_as_they_are_published_as_tables(folder, tmp_path, form):
    names = (
        "comparisons/{}/0000.parquet" if form is converted else "data/{}-00000-of-00001.parquet"
    ).format
    published.write_parquet(tmp_path / names("train"), map(form, TRAIN))
    published.write_parquet(tmp_path / names("validation"), map(form, HELDOUT))
    published.write_parquet(
        tmp_path / "data" / "validation_cnndm-00000-of-00001.parquet", map(form, TRAIN)
    )
    task = tldr.make(tldr.Config(str(folder), str(tmp_path)))
    assert list(task.comparisons("train")) == expected(TRAIN)[1]
    assert list(task.comparisons("heldout")) == expected(HELDOUT)[1]


def openai(folder, *rows):
    """A folder with comparisons of both splits and these rows."""
    both = [
        published.openai_comparison(TRAIN[0], "train", 0),
        published.openai_comparison(HELDOUT[0], "valid2", 1),
    ]
    published.write_jsonl(folder / "batch3.json", [*both, *rows])
    return folder


def test_news_and_pairs_of_equal_texts_are_left_out(folder, tmp_path):
    news = published.openai_comparison(TRAIN[1], "valid1", 0)
    news["info"] = {"id": "x", "title": "t", "site": "cnn", "article": "a"}
    equal = published.openai_comparison(TRAIN[2], "train", 0)
    equal["summaries"] = [equal["summaries"][0], equal["summaries"][0]]
    missing = published.openai_comparison(TRAIN[3], "train", 0)
    del missing["extra"], missing["info"]["id"]
    twice = published.openai_comparison(TRAIN[0], "train", 0)
    task = tldr.make(tldr.Config(str(folder), str(openai(tmp_path, news, equal, missing, twice))))
    pairs = expected(TRAIN)[1]
    assert list(task.comparisons("train")) == [pairs[0], pairs[3], pairs[0]]
    assert len(task.comparisons("heldout")) == 1
    assert task.description.endswith(
        "comparisons: train: 3 of 4 rows (92858 are published); heldout: 1 of 2 rows (83802 or "
        "86086 are published)"
    )


def test_held_out_comparisons_of_a_training_prompt_are_left_out(folder, tmp_path):
    both_sides = published.openai_comparison(TRAIN[0], "valid1", 0)
    task = tldr.make(tldr.Config(str(folder), str(openai(tmp_path, both_sides))))
    assert list(task.comparisons("heldout")) == expected(HELDOUT)[1][:1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"split": "test"},
            r"batch3\.json:3: 'split' is \"test\"; accepted: train, valid1, valid2",
        ),
        (
            {"choice": 2},
            r":3: found info .*, choice 2; accepted: a post, two summaries, and 0 or 1",
        ),
        ({"summaries": []}, r":3: found .* summaries \[\]"),
        ({"info": None}, r":3: found info null"),
        ({"info": {"title": "t", "subreddit": "s"}}, r":3: 'post' is null; accepted: a text"),
        (
            {"summaries": [{"text": "a"}, {"text": None}]},
            r":3: 'text' is null; accepted: a text that is not empty",
        ),
        ({"summaries": [{"text": "a"}, "b"]}, r":3: found .*two summaries"),
    ],
)
def test_a_malformed_comparison_is_named(folder, tmp_path, changes, message):
    row = published.openai_comparison(TRAIN[1], "train", 0) | changes
    with pytest.raises(ValueError, match=message):
        tldr.make(tldr.Config(str(folder), str(openai(tmp_path, row))))


def test_other_columns_and_prompts_are_refused(folder, tmp_path):
    row = {"query": FORMAT.format(**TRAIN[0]), "response0": " a", "response1": " b", "choice": 0}
    for split in ("train", "validation"):
        published.write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", [row])
    with pytest.raises(
        ValueError,
        match=r"has the columns query, response0, .*; accepted: query, chosen, rejected; or pro",
    ):
        tldr.make(tldr.Config(str(folder), str(tmp_path)))
    for prompt in ("Summarise this.", FORMAT.format(**TRAIN[0]) + " "):
        published.write_jsonl(tmp_path / "train.jsonl", [{"prompt": prompt, "completion": " x"}])
        published.write_jsonl(tmp_path / "valid.jsonl", HELDOUT)
        for table in (tmp_path / "data").glob("*"):
            table.unlink()
        with pytest.raises(
            ValueError,
            match=r"train\.jsonl:1: 'prompt' is .*; accepted: a text with .* that ends in",
        ):
            tldr.make(tldr.Config(str(tmp_path)))


@pytest.mark.parametrize(
    "empty", ["<|endoftext|>", " <|endoftext|>", "<|endoftext|>\n<|endoftext|> ", "  \n"]
)
@pytest.mark.parametrize("form", [dict, ready, prompt_completion])
def test_a_completion_that_is_an_eos_alone_is_empty(tmp_path, form, empty):
    column = {dict: "summary", ready: "reference_response", prompt_completion: "completion"}[form]
    published.write_jsonl(tmp_path / "valid.jsonl", map(form, HELDOUT))
    published.write_jsonl(
        tmp_path / "train.jsonl", [form(TRAIN[0]), {**form(TRAIN[1]), column: empty}]
    )
    with pytest.raises(
        ValueError,
        match=rf"train\.jsonl:2: '{column}' is .*; accepted: a text that is not empty before",
    ):
        tldr.make(tldr.Config(str(tmp_path)))


def test_a_side_of_a_comparison_that_is_an_eos_alone_is_empty(folder, tmp_path):
    published.write_jsonl(tmp_path / "validation.jsonl", [ready_pair(HELDOUT[0])])
    for side in ("chosen", "rejected"):
        row = {**ready_pair(TRAIN[1]), side: "<|endoftext|>"}
        published.write_jsonl(tmp_path / "train.jsonl", [ready_pair(TRAIN[0]), row])
        with pytest.raises(
            ValueError,
            match=rf"train\.jsonl:2: '{side}' is .*; accepted: a text that is not empty before",
        ):
            tldr.make(tldr.Config(str(folder), str(tmp_path)))


def cut(row, count, limit):
    """The published procedure, told again for one row and one limit."""
    fields = dict(row)
    while count([FORMAT.format(**fields)])[0] > limit:
        assert fields["post"]
        try:
            end = fields["post"].rindex("\n")
        except ValueError:
            end = -1
        fields["post"] = fields["post"][:end]
    return FORMAT.format(**fields)


@pytest.mark.parametrize("limit", [83, 71, 53])
def test_prompts_are_cut_as_published(task, count, limit, monkeypatch):
    monkeypatch.setattr(corpus, "RECORDS_PER_BATCH", 5)
    fitted = task.fitted(count, limit)
    whole = []
    for split, rows in (("train", TRAIN), ("heldout", HELDOUT)):
        told = [cut(row, count, limit) for row in rows]
        assert [fitted.prompt(split, index) for index in range(fitted.num_prompts(split))] == list(
            dict.fromkeys(told)
        )
        assert sorted(prompt for prompt, _, _ in fitted.comparisons(split)) == sorted(told)
        whole += [
            cut_prompt == FORMAT.format(**row) for cut_prompt, row in zip(told, rows, strict=True)
        ]
    assert not all(whole)
    assert any(whole) == (limit > 60)
    assert [task.prompt("train", n) for n in range(published.NUM_TRAIN)] == [
        prompt for prompt, _ in expected(TRAIN)[0]
    ]


@pytest.mark.parametrize(
    ("room", "kept"),
    [
        (13, "abcde\nfgh\n\nij"),
        (12, "abcde\nfgh\n"),
        (10, "abcde\nfgh\n"),
        (9, "abcde\nfgh"),
        (8, "abcde"),
        (3, "abc"),
        (0, ""),
    ],
)
def test_by_hand_a_post_loses_lines_then_characters(tmp_path, room, kept):
    post = {"subreddit": "s", "title": "t", "post": "abcde\nfgh\n\nij", "summary": "x"}
    published.write_jsonl(tmp_path / "train.jsonl", [post])
    published.write_jsonl(tmp_path / "valid.jsonl", [{**post, "title": "u", "post": "\nb"}])
    task = tldr.make(tldr.Config(str(tmp_path)))
    around = len(FORMAT.format(subreddit="s", title="t", post=""))
    fitted = task.fitted(
        lambda texts: [len(text) for text in texts], around + room
    )  # a character is a token
    assert fitted.prompt("train", 0) == FORMAT.format(subreddit="s", title="t", post=kept)
    assert fitted.prompt("heldout", 0) == FORMAT.format(
        subreddit="s", title="u", post="\nb" if room > 1 else ""
    )


def test_prompts_that_cutting_made_equal_are_kept_once(tmp_path):
    post = {"subreddit": "s", "title": "t", "post": "abc", "summary": "x"}
    published.write_jsonl(
        tmp_path / "train.jsonl", [post, {**post, "post": "abd"}, {**post, "post": "acd"}]
    )
    published.write_jsonl(
        tmp_path / "valid.jsonl", [{**post, "post": "abe"}, {**post, "post": "ade"}]
    )
    task = tldr.make(tldr.Config(str(tmp_path)))
    around = len(FORMAT.format(subreddit="s", title="t", post=""))
    fitted = task.fitted(lambda texts: [len(text) for text in texts], around + 2)
    found = {
        split: [fitted.prompt(split, n) for n in range(fitted.num_prompts(split))]
        for split in ("train", "heldout")
    }
    assert found["train"] == [FORMAT.format(**post | {"post": kept}) for kept in ("ab", "ac")]
    assert found["heldout"] == [FORMAT.format(**post | {"post": "ad"})]
    with pytest.raises(
        ValueError,
        match=r"tldr: none of 2 heldout prompts is left with max_prompt_tokens = \d+; raise it",
    ):
        task.fitted(lambda texts: [len(text) for text in texts], around + 1)


def test_a_prompt_that_is_too_long_without_its_post_is_an_error(task, count):
    with pytest.raises(
        ValueError,
        match=r"tokens without its post; accepted: at most max_prompt_tokens = 11: \"SUBREDDIT",
    ):
        task.fitted(count, 11)


def test_a_text_is_counted_once(task):
    asked = []

    def count(texts):
        asked.extend(texts)
        return [0] * len(texts)

    task.fitted(count, 5)
    assert sorted(asked) == sorted(FORMAT.format(**row) for row in TRAIN + HELDOUT)


def test_small_files_are_written_as_openai_writes_them(folder):
    row = json.loads((folder / "comparisons" / "batch3.json").read_text().split("\n")[0])
    assert sorted(row) == ["batch", "choice", "extra", "info", "split", "summaries", "worker"]
    assert sorted(row["info"]) == ["id", "post", "subreddit", "title"]
