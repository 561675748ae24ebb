"""Ages and versions of tokens in a report: of a run whose rows have several versions, and none of
them for other runs.
"""

import pytest

from rlhf_jax.records.ledger import Ledger
from rlhf_jax.records.metrics import MetricsWriter
from rlhf_jax.report import html, read
from rlhf_jax.report.plots import style, tokens

pytestmark = pytest.mark.pictures
ROUNDS = 6
TITLE = "How old the tokens were"


def row(update, *runs):
    """A row of the ledger whose tokens have these runs of versions."""
    mixed = {"versions": [list(run) for run in runs]} if len(runs) > 1 else {}
    length = sum(count for _, count in runs)
    return {"round": update // 2, "version": runs[0][0], "length": length, "text": ""} | mixed


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Rounds of two updates, at lag 1: of each but the first, 30 of 40 tokens are a round old."""
    directory = tmp_path_factory.mktemp("mixed")
    written, writer = Ledger(directory), MetricsWriter(directory)
    for update in range(0, 2 * ROUNDS, 2):
        old = max(0, update - 2)
        runs = [(old, 10), (update, 10)] if update else [(0, 20)]
        written.write(update, [row(update, *runs), row(update, (old, 20))])
        for j in range(2):
            age, share = j + update - old, 0.5 if update else 0.0
            ages = {"age_mean": age - 0.5 if update else age, "age_p95": age, "age_max": age}
            figures = {"loss": 0.5, "age": age, "mixed_share": share} | ages
            writer.write("rlhf", update + j, figures)
    writer.close()
    return read.read_run(directory)


def test_the_histogram_of_a_round_has_its_tokens_by_age(mixed):
    histogram, schedule = style.sheet(tokens.pictures(mixed.tokens_by_version)).axes
    fresh, old = histogram.containers
    assert [patch.get_height() for patch in fresh] == [1.0, *[0.25] * (ROUNDS - 1)]
    assert [patch.get_height() for patch in old] == [0.0, *[0.75] * (ROUNDS - 1)]
    assert [text.get_text() for text in histogram.get_legend().get_texts()] == ["0 old", "2"]
    # cells of two updates each: version 0 in round 0, and a round's own and the one before it
    cells = [(bar.get_x() + 1, bar.get_y() + 1, bar.get_height()) for bar in schedule.patches]
    own, before = ([(u, u - age, 2) for u in range(age, 12, 2)] for age in (0, 2))
    assert sorted(cells) == sorted([*own, *before])
    faint, dark = (schedule.patches[index].get_facecolor()[3] for index in (2, 1))
    assert 0 < faint < dark < 1


def test_rounds_share_a_column_where_there_are_many():
    """1,000 rounds with 40 ages: every column is whole, and there are no more bins than colours."""
    many = {update: {update - age % 41: 1 + age for age in range(3)} for update in range(60, 1060)}
    many |= {update: {update - update % 40: 7} for update in range(60)}
    (histogram, _) = style.sheet(tokens.pictures(many)).axes
    columns = len(histogram.containers[0])
    assert columns <= tokens.MAX_COLUMNS
    assert len(histogram.containers) <= len(style.PART_COLORS)
    tops = [
        sum(bars[column].get_height() for bars in histogram.containers) for column in range(columns)
    ]
    assert tops == pytest.approx([1.0] * columns)


def test_the_report_says_how_old_the_tokens_were(mixed):
    """Mean ages: 0, 1 in round 0 and 1.5, 2.5 in the others; all 40 tokens are fresh in
    round 0 and a quarter in the other five: 90 of 240.
    """
    page = html.write_report(mixed.directory).read_text()
    assert TITLE in page
    assert "42 % of the rows have tokens of more than one version" in page
    assert "A token was 1.75 updates old on average when it was trained on, and 3 at most." in page
    assert tokens.shares(mixed.tokens_by_version) == [("0", "38 %"), ("2", "62 %")]
    assert "Age of the oldest token" not in page  # there is no timeline
    for name in ("Rows of several versions", "Versions of the tokens"):
        assert name in page, name


def test_a_run_of_one_version_a_round_has_none_of_it(reported):
    page = (reported / "report.html").read_text()
    assert TITLE not in page
    assert "Rows of several versions" not in page
    assert tokens.pictures({}) == []
