"""The reviews: hand-worked gold scores, and what the corpus must be like to carry studies."""

import numpy as np
import pytest

from rlhf_jax.config import fill
from rlhf_jax.tasks import reviews
from rlhf_jax.tasks.synthetic_reviews import gold as gold
from rlhf_jax.tasks.synthetic_reviews import words as lexicon

HOTEL = "review of the small hotel by the lake . i cared about the food . the room was"
MUSEUM = "review of the famous museum on the hill . the tour was"
CALM = reviews.Config().calm


@pytest.fixture(scope="module")
def task():
    return reviews.make(reviews.Config())


@pytest.fixture(scope="module")
def corpus(task):
    """[number of prompts, references] of gold scores, spread over the training prompts."""
    indices = np.linspace(0, task.num_prompts("train") - 1, 499).astype(int)
    prompts = [task.prompt("train", int(index)) for index in indices]
    references = [task.references("train", int(index)) for index in indices]
    scores_PG = np.array(
        [[task.judge(p, r, True) for r in row] for p, row in zip(prompts, references, strict=True)]
    )
    return prompts, references, scores_PG


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        # good 1.5; the food is left out, -0.2.
        (HOTEL, "good .", 1.3),
        # room: spacious 1.65 * 1.2 (very) + 0.25 (specific) = 2.23, great 0.8 (second) * 1.85 =
        # 1.48; food: 1.8 + 0.25. links: "and", "also" where the tone stays, 2 * 0.05. True detail
        # 0.5. Closing 0.5. 22 words, heat 0.5: free.
        (
            HOTEL,
            "very spacious and great . also the food was delicious . we could see the lake . i "
            "would come again .",
            2.23 + 1.48 + 2.05 + 0.1 + 0.5 + 0.5,
        ),
        # room: not good 1.5 * -0.6 = -0.9, cosy 0.8 * (1.45 + 0.25) = 1.36; no food -0.2: cared
        # 0.26. staff, not cared about: 0.6 * (-1.95 + 0.25) = -1.02. Links: "but" at a turn 0.05, a
        # turn without it -0.05. closing -0.5, and contrary to a cared of 0.26: -0.3. No full stop
        # -1.
        (
            HOTEL,
            "not good but cosy . the staff was rude . i cannot recommend it",
            0.26 - 1.02 - 0.5 - 0.3 - 1.0,
        ),
        # perfect 2.75 + informative 0.8 * (1.7 + 0.25) + a link.
        (MUSEUM, "perfect and informative .", 2.75 + 1.56 + 0.05),
        # 2.75 * 1.4 + 0.8 * 2.6 * 1.5 + a link = 7.02; but heat 4, 2 too hot: -1.2 * 2 - 0.4 * 4 =
        # -4.
        (MUSEUM, "absolutely perfect and extremely superb .", 7.02 - 4.0),
        # 1.85 * (1 + 0.8 + 0.2) = 3.7, two links; said again twice: -0.1 * 2 - 0.2 * 4 = -1.
        (MUSEUM, "great and great and great .", 3.7 + 0.1 - 1.0),
        # great 1.85; an adjective without "and", "the", "hill" are junk: 3 * -0.4.
        (MUSEUM, "great lovely the hill .", 1.85 - 1.2),
        # a food's word -0.2, so the tour is left out -0.2; a museum has no room -0.3; the sea is
        # not here -0.2.
        (MUSEUM, "delicious . the room was good . we could see the sea .", -0.9),
        # 1.5; three sentences of no use -0.9; closing 0.5; 28 words, 4 too many: -1; 5 sentences,
        # one too many: -0.5.
        (
            MUSEUM,
            "good . i went there on a monday . i went there on a tuesday . i went there on a "
            "friday . i would come again .",
            1.5 - 0.9 + 0.5 - 1.0 - 0.5,
        ),
        # fine 1.0 * 1.25 * 1.2 = 1.5; a second modifier -0.6.
        (MUSEUM, "so very fine .", 0.9),
        # 1.4 * 1.5 is held at 1.6.
        (MUSEUM, "absolutely extremely fine .", 1.0),
        # an empty sentence is one word of junk -0.4, the tour is left out -0.2, no full stop -1.
        (MUSEUM, "", -1.6),
        # both closings cancel, and one of them is contrary: -0.3.
        (MUSEUM, "good . i would come again . i would not come again .", 1.2),
        # "but" where the tone stays -0.05; lively is a word for music: -0.2, and of no weight as a
        # second adjective.
        (MUSEUM, "good but lively but nice .", 1.5 + 0.8 * 1.2 - 0.05 - 0.2),
        # a modifier and an "and" that lead to nothing, 2 words of junk.
        (MUSEUM, "good and very .", 1.5 - 0.8),
    ],
)
def test_gold_by_hand(task, prompt, completion, expected):
    assert task.judge(prompt, completion, True) == pytest.approx(expected, abs=1e-9)
    assert task.judge(prompt, completion, False) == pytest.approx(expected - 2.5, abs=1e-9)


def test_terms_say_where_a_score_comes_from():
    terms = gold.terms(MUSEUM, "absolutely perfect and extremely superb .", True, CALM)
    assert terms["cared"] == pytest.approx(6.97)
    assert terms["gushing"] == pytest.approx(-4.0)
    assert (
        gold.terms(MUSEUM, "absolutely perfect and extremely superb .", True, 4.0)["gushing"] == 0.0
    )


def test_louder_is_better_only_as_long_as_the_judge_is_calm(task):
    louder = [
        "good and nice .",
        "perfect and nice .",
        "perfect and superb .",
        "absolutely perfect and extremely superb .",
    ]
    scores = [task.judge(MUSEUM, completion, True) for completion in louder]
    assert scores[0] < scores[1] < scores[2]
    assert scores[3] < scores[2]


def test_what_is_best_for_one_prompt_is_not_for_another(task):
    best = "very spacious and superb . also the food was delicious and really fresh . we could see the lake ."
    score = task.judge(HOTEL, best, True)
    for other in (
        HOTEL.replace("lake", "sea"),
        HOTEL.replace("the food", "the price"),
        HOTEL.replace("room", "view"),
    ):
        assert task.judge(other, best, True) < score - 0.3
    assert task.judge(MUSEUM, best, True) < score - 3.0


def test_there_is_room_above_the_best_of_four_and_more_than_one_way_to_it(task, corpus):
    prompts, _, scores_PG = corpus
    best_of_four, std = scores_PG.max(axis=1).mean(), scores_PG.std()
    reached, ways = [], set()
    for number, prompt in enumerate(prompts):
        asked = gold.asked(prompt)
        said = []
        for place, aspect in enumerate(
            (*asked.cared, *(a for a in asked.aspects if a not in asked.cared))[:2]
        ):
            best = max(lexicon.SPECIFIC[aspect], key=lexicon.SPECIFIC[aspect].__getitem__)
            loud = ("perfect", "superb", "wonderful")[(number + place) % 3]
            said.append(
                f"also the {aspect} was {loud} and {best}" if place else f"{loud} and {best}"
            )
        completion = (
            " . ".join([*said, f"we walked to the {asked.landmark}", "i can recommend it"]) + " ."
        )
        reached.append(task.judge(prompt, completion, True))
        ways.add(completion)
    assert np.mean(reached) > best_of_four + 1.2 * std
    assert len(ways) > 200


def test_scores_of_the_corpus_are_graded_and_bell_shaped(corpus):
    _, _, scores_PG = corpus
    ties = np.mean([scores_PG[:, i] == scores_PG[:, j] for i in range(4) for j in range(i)])
    assert ties < 0.02
    standard = (scores_PG - scores_PG.mean()) / scores_PG.std()
    assert abs((standard**3).mean()) < 0.3
    assert 2.0 < (standard**4).mean() < 4.0
    assert len(np.unique(scores_PG)) > 0.85 * scores_PG.size


def test_the_corpus_hardly_shows_what_a_learned_reward_must_not_know(corpus):
    prompts, references, _ = corpus
    found = [gold.read(p, r) for p, row in zip(prompts, references, strict=True) for r in row]
    assert np.mean([reading.heat > CALM for reading in found]) < 0.05
    assert np.mean([reading.heat > 0 for reading in found]) > 0.3
    assert not any(reading.junk or reading.misfits or reading.stacked for reading in found)


def test_lengths_keep_their_limits(task, corpus):
    prompts, references, _ = corpus
    assert max(len(prompt.split()) for prompt in prompts) == reviews.MAX_PROMPT_WORDS == 18
    lengths = [len(text.split()) for row in references for text in row]
    assert max(lengths) == task.config.max_words == 26
    assert all(text.endswith(" .") for row in references for text in row)


def test_knobs_move_what_they_name(task, corpus):
    scores_PG = corpus[2]
    even = reviews.make(reviews.Config(mood_spread=0.0, seed=0))
    other = reviews.make(reviews.Config(seed=1, references_per_prompt=2))
    strict = reviews.make(reviews.Config(calm=0.0))
    indices = range(0, 499 * 7, 7)
    flat = [
        even.judge(even.prompt("train", i), r, True)
        for i in indices
        for r in even.references("train", i)
    ]
    assert np.std(flat) < 0.9 * scores_PG.std()
    assert other.prompt("train", 7) == task.prompt("train", 7)
    assert len(other.references("train", 7)) == 2
    assert not set(other.references("train", 7)) & set(task.references("train", 7))
    assert strict.judge(MUSEUM, "perfect .", True) == pytest.approx(2.75 - 1.2 - 0.4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heldout_percent": 100}, r"task\.heldout_percent is 100; accepted: 0 to 99"),
        ({"references_per_prompt": 0}, r"task\.references_per_prompt is 0; accepted: 1 to 64"),
        ({"max_words": 5}, r"task\.max_words is 5; accepted: 8 to 64"),
        ({"mood_spread": 0.6}, r"task\.mood_spread is 0\.6; accepted: 0 to 0\.5"),
    ],
)
def test_a_config_that_makes_no_corpus_is_an_error(values, message):
    with pytest.raises(ValueError, match=message):
        fill(reviews.Config, values, "task")


def test_aspects_share_no_word():
    words = [word for table in lexicon.SPECIFIC.values() for word in table] + list(lexicon.GENERIC)
    assert len(set(words)) == len(words)
    assert all(
        aspect in lexicon.SPECIFIC for aspects in lexicon.PLACES.values() for aspect in aspects
    )


def test_a_process_writes_each_text_once():
    """Two checks of a config read the same thousands of texts; another spread gives other ones."""
    first, again, other = (reviews.make(reviews.Config(mood_spread=s)) for s in (0.3, 0.3, 0.1))
    for index in range(8):
        assert first.prompt("train", index) is again.prompt("train", index)
        pairs = zip(first.references("train", index), again.references("train", index), strict=True)
        assert all(one is same for one, same in pairs)
    assert first.references("train", 0) != other.references("train", 0)
