"""The shares that presets cut in a short run: which of their parts can cut, and how a share is counted
and written.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import preset_runs
from rlhf_jax.algorithms.presets.table import PRESETS
from rlhf_jax.types import Batch


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("reinforce", ()),
        ("asymre", ()),
        ("cispo", ("gate",)),
        ("m2po", ("weight",)),
        ("seq_tis", ("gate", "weight")),
        ("geo_rs", ("gate", "filter", "weight")),
        ("deepseek_v32", ("gate", "filter")),
        ("dapo", ("gate", "groups")),
    ],
)
def test_the_parts_of_a_preset_are_those_that_can_cut(name, parts):
    assert preset_runs.parts_of(PRESETS[name].settings) == parts


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("token_tis", 1),  # 3 is above 2
        ("icepop", 1),  # 0.4 is below 0.5
        ("seq_tis", 2),  # the products are 3 · 0.9 and 0.4: both tokens of the first row
        ("m2po", 2),  # the squares are 1.21, 0.01 and 0.84; their mean is to be below 0.04
    ],
)
def test_a_weight_cuts_where_it_is_not_the_ratio(name, cut):
    """ξ/μ is 3 and 0.9 in a row of two tokens, and 0.4 in a row of one; the masked token has 50."""
    zeros = jnp.zeros((2, 2))
    batch = Batch(
        prompt_tokens_RQ=jnp.zeros((2, 1), jnp.int32),
        prompt_mask_RQ=jnp.ones((2, 1), bool),
        tokens_RC=jnp.zeros((2, 2), jnp.int32),
        mask_RC=jnp.array([[True, True], [True, False]]),
        temperature=jnp.float32(1.0),
        behavior_logprob_RC=zeros,
        proximal_logprob_RC=jnp.log(jnp.array([[3.0, 0.9], [0.4, 50.0]])),
    )
    assert preset_runs.weights_cut(PRESETS[name].settings, batch) == (cut, 3)


def test_a_preset_that_cuts_too_little_or_too_much_is_run_at_another_rate():
    rates = [
        preset_runs.next_rate([{"shares": shares, "learning_rate": preset_runs.RATE}])
        for shares in ({}, {"gate": 0.3}, {"gate": 0.001, "weight": 0.02}, {"gate": 0.009})
    ]
    assert rates == [None, None, None, preset_runs.HIGHER]
    runs = []
    for rate in (preset_runs.RATE, *preset_runs.LOWER):
        runs.append({"shares": {"gate": 0.1, "filter": 0.7}, "learning_rate": rate})
        rates.append(preset_runs.next_rate(runs))
    assert rates[4:] == [*preset_runs.LOWER, None]
    runs[-1] = runs[-1] | {"shares": {"gate": 0.001}}
    assert preset_runs.next_rate(runs) is None


def test_the_words_of_a_run_name_its_parts_its_rate_and_what_is_inert():
    def words(rate, **shares):
        runs = [{"learning_rate": rate, "shares": shares}]
        return preset_runs.text_of({"runs": runs}, PRESETS["geo_rs"].settings)

    assert words(preset_runs.RATE, gate=0.0451, filter=0.2) == "gate 4.5 %, filter 20.0 %"
    assert words(preset_runs.HIGHER, gate=0.0004, filter=0.0) == (
        "gate < 0.1 %, filter 0.0 % at rate 0.004: inert in our settings"
    )
    assert preset_runs.text_of(None, PRESETS["geo_rs"].settings) == "not run"
    assert preset_runs.text_of(None, PRESETS["reinforce"].settings) == "no gate"


def test_a_line_of_other_settings_is_not_read(tmp_path, monkeypatch):
    settings = preset_runs.settings_of(PRESETS["cispo"].settings)
    lines = [
        {"preset": "cispo", "settings": settings},
        {"preset": "topr", "settings": settings},
        {"preset": "gone", "settings": settings},
    ]
    path = tmp_path / "lines.jsonl"
    monkeypatch.setattr(preset_runs, "LINES", path)
    assert preset_runs.read() == {}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(preset_runs.read()) == ["cispo"]


def test_the_committed_shares_are_shares():
    for name, line in preset_runs.read().items():
        for run in line["runs"]:
            values = np.array(list(run["shares"].values()))
            assert ((values >= 0) & (values <= 1)).all(), name
            assert tuple(run["shares"]) == preset_runs.parts_of(PRESETS[name].settings), name
