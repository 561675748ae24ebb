"""Openings of opinion sentences: which there are, and how VADER reads what follows them."""

import os
import sys
from pathlib import Path

import pytest

from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks import sentiment
from rlhf_jax.text import tokenizers

FOLDER = Path(
    os.environ.get("SMOLLM2", Path(__file__).parents[2] / "models" / "smollm2-135m")
).absolute()


@pytest.fixture(scope="module")
def task():
    return sentiment.make(sentiment.Config())


def test_300_openings_are_trained_on_and_100_held_out(task):
    assert (task.num_prompts("train"), task.num_prompts("heldout")) == (300, 100)
    assert len(set(sentiment.openings())) == 400


def test_no_opening_has_a_sentiment_of_its_own(task):
    assert {task.judge(text, "", False) for text in sentiment.openings()} == {0.0}


def test_openings_are_of_many_kinds():
    """No first two words begin more than a twelfth of them, and no last two end more."""
    for words in (slice(0, 2), slice(-2, None)):
        kinds = [tuple(text.split()[words]) for text in sentiment.openings()]
        assert max(map(kinds.count, kinds)) <= 34


@pytest.mark.skipif(
    not (FOLDER / "tokenizer.json").exists(), reason=f"no folder of SmolLM2 at {FOLDER}"
)
def test_an_opening_has_eight_tokens():
    tokenizer = tokenizers.make(tokenizers.Config("hf", str(FOLDER)), None, FOLDER)
    assert {len(tokenizer.encode(text)) for text in sentiment.openings()} == {8}


def test_gold_is_vaders_compound_score_of_the_whole_text(task):
    """Formula of VADER: s / sqrt(s^2 + 15) for the summed valence s, to four digits. "good" has 1.9,
    "bad" -2.5; "not" before a word multiplies it by -0.74. Completions of an opening that ends in
    "is".
    """
    prompt = next(text for text in sentiment.openings() if text.endswith(" is"))

    def compound(valence):
        return round(valence / (valence**2 + 15) ** 0.5, 4)

    assert task.judge(prompt, " good", False) == compound(1.9)
    assert task.judge(prompt, " bad", True) == compound(-2.5)
    assert task.judge(prompt, " not good", False) == compound(-0.74 * 1.9)
    assert task.judge(prompt, " blue", False) == 0.0


def test_a_negation_at_the_end_of_a_prompt_counts(task, monkeypatch):
    """The text is read as one."""
    monkeypatch.setattr(task, "_known", frozenset({"It was not"}))
    assert task.judge("It was not", " good", False) < 0 < task.judge("It was not", " bad", False)


def test_another_share_may_be_held_out_but_not_all():
    half = sentiment.make(sentiment.Config(heldout_percent=50))
    assert half.num_prompts("train") + half.num_prompts("heldout") == 400
    assert half.num_prompts("heldout") > 150
    assert sentiment.make(sentiment.Config(heldout_percent=0)).num_prompts("heldout") == 0


def test_without_its_extra_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    with pytest.raises(Refusal, match=r"the task sentiment needs vaderSentiment: pip install 'rlh"):
        sentiment.make(sentiment.Config())
