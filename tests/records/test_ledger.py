"""The ledger: what a row says of a sample, worked out by hand; torn and cut files; a version
schedule read back.
"""

import zlib

import jax.numpy as jnp
import numpy as np
import pandas
import pytest

from rlhf_jax.algorithms import grpo, online_dpo
from rlhf_jax.clock import Clock
from rlhf_jax.records import ledger
from rlhf_jax.types import Samples, Scores

PROMPTS = ["good", "bad", "odd"]
TEXTS = ["a", "b", "c", "d", "e", "f"]


def samples_of(version: int = 3) -> Samples:
    """P=3, G=2, C=4: lengths 4, 1, 2, 3, 1, 1."""
    mask_BC = np.arange(4)[None] < np.array([4, 1, 2, 3, 1, 1])[:, None]
    return Samples(
        prompt_tokens_BQ=jnp.ones((6, 2), jnp.int32),
        prompt_mask_BQ=jnp.ones((6, 2), bool),
        tokens_BC=jnp.where(mask_BC, 5, 0),
        mask_BC=jnp.asarray(mask_BC),
        behavior_logprob_BC=jnp.where(mask_BC, -0.5, 0.0),
        finished_B=jnp.array([False, True, True, True, True, True]),
        ordinal_B=jnp.array([7, 7, 8, 8, 9, 9], jnp.int32),
        sample_index_B=jnp.array([0, 1, 0, 1, 0, 1], jnp.int32),
        version_BC=jnp.where(mask_BC, version, 0),
        temperature=jnp.float32(1.0),
        samples_per_prompt=2,
    )


def scores_of() -> Scores:
    raw_B = jnp.array([1.0, 2.0, 3.0, 1.0, 2.0, 2.0])
    score_B = raw_B.at[0].set(-1.0)
    return Scores(raw_B, raw_B / 2, score_B, reference_logprob_BC=jnp.full((6, 4), -0.25))


def rows_of(algorithm, uses) -> list[dict]:
    samples, scores = samples_of(), scores_of()
    batch = algorithm.credit(samples, scores)
    return ledger.rows(4, samples, scores, uses, batch, algorithm, PROMPTS, TEXTS, np.arange(6.0))


def test_a_row_says_what_a_sample_was():
    row = rows_of(grpo.grpo(grpo.Config()), {5: np.array([0, 1]), 8: np.array([1])})[1]
    assert row == {
        "round": 4,
        "ordinal": 7,
        "prompt_hash": zlib.crc32(b"good"),
        "sample": 1,
        "version": 3,
        "ages": [2, 5],
        "length": 1,
        "finished": True,
        "raw": 2.0,
        "standardized": 1.0,
        "score": 2.0,
        "behavior_logprob": -0.5,
        "proximal_logprob": None,
        "reference_logprob": -0.25,
        "advantage": pytest.approx(1.0, abs=1e-3),  # scores -1 and 2: mean 0.5, deviation 1.5
        "place": None,
        "gold": 1.0,
        "text": "b",
    }


def test_a_row_of_several_versions_says_which_tokens_have_which():
    """Lengths 4 and 2 of row 0 and 2 have two versions. Update 6 is the first of round 3 with u = 2.

    Row 0: versions 3, 3, 5, 5, whose mean is 4, so that its mean age is 6 - 4 = 2 in update 6.
    """
    algorithm, samples, scores = grpo.grpo(grpo.Config()), samples_of(), scores_of()
    version_BC = samples.version_BC.at[0, 2:].set(5).at[2, 1].set(4)
    samples = samples.replace(version_BC=version_BC)
    batch = algorithm.credit(samples, scores)
    uses = {6: np.array([0, 1]), 7: np.array([0, 2])}
    rows = ledger.rows(3, samples, scores, uses, batch, algorithm, PROMPTS, TEXTS, None)
    assert [row["version"] for row in rows] == [3] * 6
    assert [row["ages"] for row in rows] == [[3, 4], [3], [4], [], [], []]
    mixed = {index: row for index, row in enumerate(rows) if "versions" in row}
    assert {index: row["versions"] for index, row in mixed.items()} == {
        0: [[3, 2], [5, 2]],
        2: [[3, 1], [4, 1]],
    }
    assert {index: row["age_mean"] for index, row in mixed.items()} == {0: [2.0, 3.0], 2: [3.5]}
    assert all(("age_mean" in row) == ("versions" in row) for row in rows)


def test_tokens_of_a_round_are_counted_by_version(tmp_path):
    made = ledger.Ledger(tmp_path)
    trap = 'said "versions": [[9, 9]]'
    plain = {"round": 0, "version": 0, "length": 4, "text": trap}
    mixed = {"round": 1, "version": 0, "length": 5, "text": "", "versions": [[0, 2], [1, 3]]}
    made.write(0, [plain, plain])
    made.write(2, [mixed, plain | {"round": 1, "version": 1}])
    assert ledger.tokens_by_version(made.path) == {0: {0: 8}, 2: {0: 2, 1: 7}}


def test_a_replay_needs_rounds_of_one_version(written):
    """Every row begins with the version of its round, so that `version` alone does not tell."""
    row = {"round": 3, "version": 4, "text": ""}
    written.write(6, [row, row | {"versions": [[4, 2], [6, 1]]}])
    with pytest.raises(ValueError, match=r"versions \[4, 6\] of round 3; a replay"):
        ledger.version_schedule(written.path, Clock(4, 2))


def test_sums_are_over_the_completion():
    rows = rows_of(grpo.grpo(grpo.Config()), {})
    assert [row["behavior_logprob"] for row in rows] == [-2.0, -0.5, -1.0, -1.5, -0.5, -0.5]
    assert [row["reference_logprob"] for row in rows] == [-1.0, -0.25, -0.5, -0.75, -0.25, -0.25]


def test_pairs_have_places_and_a_tie_has_none():
    """Scores -1 < 2, 3 > 1, 2 = 2."""
    rows = rows_of(online_dpo.online_dpo(online_dpo.Config()), {3: np.array([1, 0, 2, 3, 4, 4])})
    assert [row["place"] for row in rows] == [-1, 1, 1, -1, 0, 0]
    assert [row["ages"] for row in rows] == [[0], [0], [0], [0], [0, 0], []]
    assert {row["advantage"] for row in rows} == {None}


def test_what_is_not_finite_can_be_said():
    assert ledger.numbers([np.nan, np.inf, 1 / 3]) == ["NaN", "Infinity", 0.3333333]


@pytest.fixture
def written(tmp_path) -> ledger.Ledger:
    """Three rounds of two updates, sampled with versions 0, 0, 2."""
    made = ledger.Ledger(tmp_path)
    for round_index, version in enumerate((0, 0, 2)):
        made.write(
            2 * round_index,
            [{"round": round_index, "version": version, "text": t} for t in ("NaN", "x")],
        )
    return made


def test_pandas_reads_it(written):
    frame = pandas.read_json(written.path, lines=True)
    assert frame.groupby("round").version.max().tolist() == [0, 0, 2]
    assert len(frame) == 6


def test_a_text_stays_text(written):
    assert [row["text"] for row in ledger.read(written.path)[:2]] == ["NaN", "x"]


def test_it_is_cut_back_to_a_checkpoint_and_loses_a_torn_line(written):
    with written.path.open("ab") as file:
        file.write(b'{"stage": "rlhf", "upd')
    again = ledger.Ledger(written.path.parent)
    assert len(ledger.read(again.path)) == 6
    again.resume(4)
    assert [row["round"] for row in ledger.read(again.path)] == [0, 0, 1, 1]


def test_a_trace_is_read_back(written):
    assert ledger.version_schedule(written.path, Clock(3, 2)) == (0, 0, 2)
    assert ledger.version_schedule(written.path, Clock(2, 2)) == (0, 0)


def test_a_trace_that_does_not_fit_is_an_error(written):
    with pytest.raises(ValueError, match=r"versions \[\] of round 3; a replay of 4 rounds"):
        ledger.version_schedule(written.path, Clock(4, 2))
    written.write(4, [{"round": 2, "version": 4}])
    with pytest.raises(ValueError, match=r"versions \[2, 4\] of round 2"):
        ledger.version_schedule(written.path, Clock(3, 2))
    with pytest.raises(
        FileNotFoundError, match=r"rlhf\.replay_schedule_of names the directory of a run"
    ):
        ledger.version_schedule(written.path.parent / "nowhere" / ledger.FILE, Clock(3, 2))
