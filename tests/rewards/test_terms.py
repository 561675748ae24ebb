"""The text of a reward: one name, or a sum of names with weights."""

import pytest

from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards.api import Term
from rlhf_jax.rewards.common.terms import is_plain, parse


@pytest.mark.parametrize(
    "text", ["learned", " gold ", "my_lab.rewards:brevity", "a folder/my-reward.py:f", "1.0*gold"]
)
def test_one_reward_is_plain(text):
    terms = parse(text)
    assert is_plain(terms)
    assert terms[0].name == text.removeprefix("1.0*").strip()


SUMS = [
    (
        "learned + 0.1 * my_lab.rewards:brevity",
        [("learned", "learned", 1.0), ("my_lab.rewards:brevity", "brevity", 0.1)],
    ),
    (
        "learned+.1*lab/brevity.py",
        [("learned", "learned", 1.0), ("lab/brevity.py", "brevity", 0.1)],
    ),
    (
        "1e-3*gold + -2 * exact_match",
        [("gold", "gold", 0.001), ("exact_match", "exact_match", -2.0)],
    ),
    ("1e+3*gold+2E+1*learned", [("gold", "gold", 1000.0), ("learned", "learned", 20.0)]),
    ("0 * a.py:f + b.py:f + f", [("a.py:f", "f", 0.0), ("b.py:f", "f_2", 1.0), ("f", "f_3", 1.0)]),
    ("0.5 * gold", [("gold", "gold", 0.5)]),
]


@pytest.mark.parametrize(("text", "terms"), SUMS)
def test_sums(text, terms):
    found = parse(text)
    assert found == tuple(Term(*term) for term in terms)
    assert not is_plain(found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gold +",
        "+ gold",
        "2 *",
        "a * gold",
        "gold * 2",
        "nan * gold",
        "2 * * gold",
        "1e999*gold",
    ],
)
def test_what_is_no_sum_is_refused(text):
    with pytest.raises(Refusal, match="accepted: a name, or names with weights"):
        parse(text)


def test_a_name_has_one_weight():
    with pytest.raises(Refusal, match="names 'gold' twice"):
        parse("gold + 2 * gold")
