"""Studies: the cells of a protocol, what a cell is known by, resuming, failures, and cells that run
for real.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from configs import quickstart
from rlhf_jax.algorithms.presets.table import PRESETS
from rlhf_jax.cli import sweep
from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps import cell_lines, provenance
from rlhf_jax.sweeps import cells as cell_runs
from rlhf_jax.sweeps import page as page
from rlhf_jax.sweeps import steps as protocol
from rlhf_jax.sweeps.cells import Cells, Failed, run_cell
from rlhf_jax.sweeps.study import Arm, Cell, Rung, Study

ROOT = Path(__file__).parents[2]
RATE, WEIGHT = "rlhf.optimizer.learning_rate", "algorithm.kl_weight"


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def base():
    """The quickstart in sizes for a test."""
    config = quickstart.get_config()
    config.rlhf.loop, config.rlhf.lag, config.rlhf.ledger, config.rlhf.log_samples = (
        "synchronous",
        0,
        False,
        0,
    )
    config.rlhf.checkpoint_every = 0
    config.model.width, config.model.ffn_width, config.model.num_layers = 16, 32, 1
    config.sft.num_updates, config.sft.checkpoint_every = 4, 4
    config.rlhf.prompts_per_update, config.rlhf.samples_per_prompt, config.rlhf.evaluate_every = (
        4,
        4,
        1,
    )
    config.evaluate.num_prompts = config.evaluate.num_prompts_between = (
        config.evaluate.prompts_per_batch
    ) = 16
    config.best_of_n_prompts, config.reward = 16, "gold"
    return config


@pytest.fixture
def study(tmp_path):
    """Two arms tuned over a grid of two keys in two rungs."""
    return Study(
        directory=tmp_path / "study",
        base=base,
        arms=(Arm("plain", "grpo"), Arm("centered", "grpo", {"algorithm.advantage": "centered"})),
        grid={RATE: (5e-4, 1e-3, 2e-3), WEIGHT: (0.0, 0.04, 0.16)},
        open_ended={RATE: 2.0, WEIGHT: 4.0},
        rungs=(Rung(1, (100,), 2), Rung(2, (101,), 1)),
        report_updates=2,
        report_seeds=(0, 1),
        max_widenings=2,
    )


def end(cells: Cells, cell: Cell, gold: float, processor: str | None = None, **changed) -> None:
    """Writes the line of a cell that has ended."""
    curve = [
        {"update": update, "gold_mean": gold * update, "kl": 0.5 * update}
        for update in range(cell.num_updates + 1)
    ]
    line = {
        "arm": cell.arm,
        "setting": dict(cell.setting),
        "seed": cell.seed,
        "purpose": cell.purpose,
        "curve": curve,
    }
    line |= {"golden": cells.golden(cell), "processor": processor or cells.processor} | changed
    cells.append(cell, line)


def conduct(study, gold):
    """Every step of the tuning, each cell's gold a function of its arm and setting; the steps'
    cells.
    """
    steps, cells = [], Cells(study)
    for wanted in protocol.tuning(study, cells.ended):
        steps.append(wanted)
        for cell in cells.left(wanted):
            end(cells, cell, gold(cell.arm, *dict(cell.setting).values()))
    return steps


def interior(arm: str, rate: float, weight: float) -> float:
    """Best at 1e-3 and 0.04, both inside the grid."""
    del arm
    return -abs(math.log(rate / 1e-3)) - abs(weight - 0.04)


def test_a_study_of_another_job_than_rlhf_is_refused(study):
    """Its cells would train with RLHF, whatever the config says."""

    def offline():
        config = base()
        config.job = "dpo"
        return config

    cells = Cells(replace(study, base=offline))
    with pytest.raises(Refusal, match=r"has job 'dpo'.+accepted: pipeline or rlhf.+--grid"):
        cells.config(Cell("plain", ((RATE, 5e-4), (WEIGHT, 0.0)), 0, 2, "report"))


def test_halving_keeps_the_best_and_chooses_it(study):
    first, last = conduct(study, interior)
    assert len(first) == 2 * 9
    assert len(last) == 2 * 2
    assert {cell.seed for cell in first} == {100}
    assert {cell.seed for cell in last} == {101}
    chosen = protocol.chosen_settings(study, Cells(study).ended)
    assert chosen == {
        "plain": (((RATE, 1e-3), (WEIGHT, 0.04)),),
        "centered": (((RATE, 1e-3), (WEIGHT, 0.04)),),
    }
    reported = protocol.report_cells(study, Cells(study).ended)
    assert {cell.seed for cell in reported} == {0, 1}
    assert {cell.purpose for cell in reported} == {"report"}


def test_a_best_setting_on_an_edge_widens_the_grid(study):
    study = replace(study, arms=study.arms[:1])
    steps = conduct(
        study, lambda arm, rate, weight: -abs(math.log(rate / 8e-3)) - abs(weight - 0.04)
    )
    assert [max(dict(cell.setting)[RATE] for cell in cells) for cells in steps] == [
        2e-3,
        2e-3,
        4e-3,
        8e-3,
    ]
    ((chosen,),) = protocol.chosen_settings(study, Cells(study).ended).values()
    assert dict(chosen)[RATE] == 8e-3


def test_a_setting_is_on_no_edge_where_worse_ones_lie_beyond_it(study):
    """The first rung dropped 2e-3: 1e-3 is the largest that is left, and still inside the grid."""
    study = replace(study, arms=study.arms[:1], rungs=(Rung(1, (100,), 1), Rung(2, (101,), 1)))
    assert len(conduct(study, interior)) == 2


def test_no_weight_at_all_is_no_edge(study):
    """A KL weight of 0 has nothing beyond it: widening would only repeat it."""
    study = replace(study, arms=study.arms[:1])
    assert len(conduct(study, lambda arm, rate, weight: -abs(math.log(rate / 1e-3)) - weight)) == 2


def following(study, **changes):
    """An arm that is tuned over another's choice of the learning rate, times factors."""
    arms = (Arm("plain", "grpo"), Arm("stale", "grpo", {"rlhf.lag": 1}, follows="plain", **changes))
    return replace(
        study,
        arms=arms,
        grid={RATE: (1e-3, 2e-3)},
        open_ended={RATE: 2.0},
        factors={RATE: (1.0, 0.5)},
        rungs=study.rungs[-1:],
    )


@pytest.mark.parametrize(
    ("best", "widened"), [(1e-3, []), (2e-3, [4e-3]), (2.5e-4, [2.5e-4, 1.25e-4])]
)
def test_an_arm_that_follows_is_widened_at_both_edges(study, best, widened):
    """The fresh arm chooses 1e-3 once 5e-4 is worse; the stale one has 1e-3 and 5e-4, and goes on
    where its best is an edge.
    """
    study = replace(following(study), factors={RATE: (2.0, 1.0, 0.5)})

    def gold(arm: str, rate: float) -> float:
        return -abs(math.log(rate / (1e-3 if arm == "plain" else best)))

    steps = conduct(study, gold)
    rates = [
        sorted({dict(cell.setting)[RATE] for cell in step if cell.arm == "stale"}) for step in steps
    ]
    given = [5e-4, 1e-3, 2e-3]
    assert sorted(set(rates[-1]) - set(given)) == sorted(widened)
    chosen = protocol.chosen_settings(study, Cells(study).ended)["stale"]
    assert chosen == (((RATE, best),),)


def test_a_setting_may_be_chosen_by_the_worst_of_its_seeds(study):
    """Of 1e-3 and 5e-4 the first is better on average and worse at its worst."""
    for choose, expected in (("mean", 1e-3), ("worst", 5e-4)):
        study = replace(following(study, choose=choose, tuning_seeds=(7, 8)), max_widenings=0)
        study = replace(study, directory=study.directory / choose)
        cells = Cells(study)
        for wanted in protocol.tuning(study, cells.ended):
            for cell in cells.left(wanted):
                rate = dict(cell.setting)[RATE]
                good = {1e-3: {7: 9.0, 8: 0.0, 101: 5.0}, 5e-4: {7: 2.0, 8: 2.0}, 2e-3: {101: 0.0}}
                end(cells, cell, good[rate][cell.seed])
        assert dict(protocol.chosen_settings(study, cells.ended)["stale"][0])[RATE] == expected


def test_without_rungs_every_setting_is_reported(study):
    study = replace(
        study, rungs=(), grid={"rlhf.optimizer.schedule": ("linear", "cosine"), RATE: (1e-3,)}
    )
    only = (("rlhf.optimizer.schedule", "constant"),)
    study = replace(study, arms=(*study.arms, Arm("one", "grpo", settings=(only,))))
    cells = protocol.report_cells(study, Cells(study).ended)
    assert list(protocol.tuning(study, Cells(study).ended)) == []
    assert len(cells) == 2 * (2 * 2 + 1)
    assert {cell.setting for cell in cells if cell.arm == "one"} == {only}
    assert cells[0].name == "plain/linear_0.001-report-2/0"


def test_a_study_that_contradicts_itself_is_refused(study):
    with pytest.raises(Refusal, match="each name once"):
        replace(study, arms=(study.arms[0], study.arms[0]))
    with pytest.raises(Refusal, match="follows 'nobody', which is no arm"):
        replace(study, arms=(Arm("a", "grpo", follows="nobody"),))
    with pytest.raises(Refusal, match="no rungs to tune on"):
        replace(following(study), rungs=())


def test_an_edited_study_asks_for_other_cells(study):
    """The arm keeps its name, and its lag changes: the old line is not its result."""
    cell = Cell("plain", (), 0, 2, "report")
    study = replace(study, rungs=(), grid={})
    end(Cells(study), cell, 1.0)
    assert Cells(study).left([cell]) == []
    edited = replace(study, arms=(Arm("plain", "grpo", {"rlhf.lag": 1}), study.arms[1]))
    assert Cells(edited).left([cell]) == [cell]
    assert Cells(edited).ended(cell) is None

    def longer_sft():
        config = base()
        config.sft.num_updates = 8
        return config

    assert Cells(replace(study, base=longer_sft)).left([cell]) == [cell]
    renamed = replace(study, arms=(Arm("other", "grpo"), study.arms[1]))
    assert Cells(renamed).left([replace(cell, arm="other")]) == []


def test_lines_of_other_golden_numbers_are_never_used(study, monkeypatch):
    cell = Cell("plain", (), 0, 2, "report")
    study = replace(study, rungs=(), grid={})
    end(Cells(study), cell, 1.0)
    monkeypatch.setattr(provenance, "golden_hash", lambda algorithm, sources: "other")
    assert Cells(study).ended(cell) is None
    assert Cells(study).left([cell]) == [cell]


def with_keys(cells: Cells, change) -> None:
    """Changes the base config of a file of cells, as if other keys had been there when they were
    written.
    """
    lines = [json.loads(line) for line in cells.path.read_text().splitlines()]
    for line in lines:
        if "config" in line:
            change(line["config"])
    cells.path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_line_is_found_under_the_new_name_of_a_key(study, monkeypatch):
    study = replace(study, rungs=(), grid={})
    cell = Cell("plain", (), 0, 2, "report")
    end(Cells(study), cell, 1.0)
    with_keys(Cells(study), lambda config: config.update({"rlhf.delay": config.pop("rlhf.lag")}))
    with pytest.raises(
        Refusal, match=r"cells\.jsonl has rlhf\.delay=0: this version of the code has no such key"
    ):
        Cells(study).ended(cell)
    monkeypatch.setitem(cell_lines.history.RENAMED, "rlhf.delay", "rlhf.lag")
    assert Cells(study).left([cell]) == []


def test_a_line_that_is_older_than_a_key_is_of_what_was_done_before(study, monkeypatch):
    """The default of a new key, unless the code did something else before it was there."""
    study = replace(study, rungs=(), grid={})
    cell = Cell("plain", (), 0, 2, "report")
    end(Cells(study), cell, 1.0)
    with_keys(Cells(study), lambda config: config.pop("rlhf.num_epochs"))
    assert Cells(study).left([cell]) == []
    monkeypatch.setitem(cell_lines.history.ADDED, "rlhf.num_epochs", 2)
    assert Cells(study).left([cell]) == [cell]


def test_golden_hashes_tell_algorithms_apart():
    names = ("grpo", "grpovi", "rloo", "online_dpo")
    assert len({provenance.golden_hash(name) for name in names}) == len(names)
    with pytest.raises(Refusal, match="no golden step of 'nothing'"):
        provenance.golden_hash("nothing")


def test_a_preset_without_a_step_has_that_of_its_algorithm():
    known = json.loads(provenance.GOLDEN.read_text())
    without = sorted(set(PRESETS) - known.keys())
    assert without
    hashes = {provenance.golden_hash(name) for name in without}
    assert hashes == {provenance.golden_hash("policy_gradient")}
    assert provenance.golden_hash("token_tis") not in hashes


def test_a_cell_that_cannot_have_a_line_is_refused_before_it_runs(study, monkeypatch):
    cells = Cells(study)
    monkeypatch.setattr(cells, "golden", raising("no golden step"))
    cell = Cell("plain", (), 0, 2, "report")
    with pytest.raises(Refusal, match="no golden step"):
        run_cell(cells, cell, (None, None, None))
    assert not cells.directory(cell).exists()


def raising(message):
    def refuse(cell):
        raise Refusal(message)

    return refuse


def test_the_cells_of_a_seed_are_of_one_kind_of_processor(study):
    """Seed 0 was begun elsewhere: all of it runs here.

    Seed 1 has ended elsewhere: nothing of it does.
    """
    study = replace(study, rungs=(), grid={})
    cells, both = (
        Cells(study),
        protocol.report_cells(replace(study, rungs=(), grid={}), Cells(study).ended),
    )
    first, second = [[cell for cell in both if cell.seed == seed] for seed in (0, 1)]
    end(cells, first[0], 1.0, processor="elsewhere")
    for cell in second:
        end(cells, cell, 2.0, processor="elsewhere")
    assert cells.left(both) == first
    for gold, cell in enumerate(first, 3):
        end(cells, cell, gold)
    assert cells.left(both) == []
    assert [line["curve"][-1]["gold_mean"] for line in cells.results(both)] == [6.0, 8.0, 4.0, 4.0]
    assert {line["processor"] for line in cells.results(first)} == {cells.processor}


def test_a_line_holds_the_whole_config_and_every_digit(study):
    study = replace(study, rungs=(), grid={RATE: (1e-3,)})
    cells = Cells(study)
    (cell, *_) = protocol.report_cells(study, cells.ended)
    end(cells, cell, 1 / 3)
    (line,) = cell_lines.read(cells.path)
    expected = json.loads(json.dumps(cell_runs.flattened(cells.config(cell))))
    assert line["config"] == {
        key: value for key, value in expected.items() if key not in cell_lines.NO_NUMBERS
    }
    assert line["curve"][-1]["gold_mean"] == 2 / 3
    assert line["changes"].keys() == {"algorithm.name", *(key for key in line["changes"] if key.startswith("algorithm."))} | {
        RATE, "rlhf.total_prompts", "evaluate.part", "evaluate.num_parts"
    }  # fmt: skip


def test_a_torn_last_line_is_left_out_and_a_broken_one_is_named(study):
    study = replace(study, rungs=(), grid={})
    cells = Cells(study)
    for cell in protocol.report_cells(study, cells.ended):
        end(cells, cell, 1.0)
    whole = cells.path.read_bytes()
    cells.path.write_bytes(whole + b'{"cell": "abc", "ba')
    assert len(cell_lines.read(cells.path)) == 4
    end(cells, Cell("plain", ((RATE, 1e-3),), 0, 2, "report"), 1.0)
    assert len(cell_lines.read(cells.path)) == 5
    cells.path.write_bytes(whole + b'{"cell": "abc", "ba\n')
    with pytest.raises(Refusal, match=r"cells.jsonl, line 6: no line of a cell"):
        cell_lines.read(cells.path)


def test_a_diverged_cell_is_the_worst_of_its_step(study):
    study = replace(
        study,
        arms=study.arms[:1],
        grid={RATE: (1e-3, 2e-3)},
        rungs=(Rung(1, (100,), 1),),
        max_widenings=0,
    )
    cells = Cells(study)
    for wanted in protocol.tuning(study, cells.ended):
        for cell in wanted:
            diverged = {"diverged": "the loss is nan"} if dict(cell.setting)[RATE] == 1e-3 else {}
            end(cells, cell, 100.0 if diverged else -5.0, **diverged)
    assert protocol.chosen_settings(study, cells.ended)["plain"] == (((RATE, 2e-3),),)


def test_the_page_compares_with_the_first_arm_and_counts_what_diverged(study):
    study = replace(study, rungs=(), grid={}, report_seeds=(0, 1, 2))
    cells = Cells(study)
    reported = protocol.report_cells(study, cells.ended)
    for cell in reported:
        gold = (1.5 if cell.arm == "centered" else 1.0) + 0.25 * cell.seed
        end(cells, cell, gold, **({"diverged": "nan"} if cell == reported[-1] else {}))
    path = page.write_study(
        study.directory, cells.results(reported), [arm.name for arm in study.arms]
    )
    rows = json.loads((study.directory / "summary.json").read_text())["rows"]
    assert [row[:3] for row in rows] == [["plain", "3", "0"], ["centered", "3", "1"]]
    assert rows[1][4] == "+1.000 ± 0.000"  # seeds 0 and 1, paired
    assert "plain" in path.read_text()
    assert (study.directory / "plots" / "against_kl.png").stat().st_size > 5_000


def test_a_figure_that_some_arms_lack_is_drawn_of_the_others(study):
    """Such as the learned reward, where one arm is scored by gold."""
    study = replace(study, rungs=(), grid={}, report_seeds=(0,))
    cells = Cells(study)
    reported = protocol.report_cells(study, cells.ended)
    for cell in reported:
        end(cells, cell, 1.0)
    results = cells.results(reported)
    with_reward = [
        result | {"curve": [point | {"reward_mean": 0.5} for point in result["curve"]]}
        for result in results[:1]
    ]
    found = page.curves({"plain": with_reward, "centered": results[1:]}, "update", "update")
    drawn = {ax.get_title("left"): len(ax.get_lines()) for ax in found.axes}
    assert drawn["Learned reward"] == 1
    assert set(drawn.values()) == {1, 2}


def test_a_study_without_results_says_so(tmp_path):
    with pytest.raises(Refusal, match=r"no cell of .* has ended"):
        page.write_study(tmp_path, [], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/studies/none.py"],
            "no study 'configs/studies/none.py'; there are: configs/studies/corrections.py, ",
        ),
        (["--config=configs/quickstart.py"], "has no get_study"),
        (
            ["--config=configs/studies/grpovi.py:huge"],
            "the study's argument is 'huge'; accepted: tiny",
        ),
        (
            ["--config=configs/studies/grpovi.py:tiny", "--workers=0"],
            "--workers is 0; accepted: 1 or more",
        ),
    ],
)
def test_what_is_no_study_is_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as left:
        sweep.main(arguments)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_failed_seed_does_not_stop_the_others(study):
    """The second seed is run although the first failed; the error at the end names what failed."""
    study, seen = replace(study, rungs=(), grid={}), []

    def run(wanted):
        seen.append({cell.seed for cell in wanted})
        if seen[-1] == {0}:
            raise Failed("a worker ran out of memory")

    with pytest.raises(Failed, match=r"a worker ran out of memory. The same command"):
        sweep.conduct(study, run)
    assert seen == [{0}, {1}]


@pytest.fixture(scope="module")
def conducted(tmp_path_factory):
    """A study of three arms, run in this process: one with evaluations inside a round, one that
    diverges, one that fails.
    """

    def dense():
        config = base()
        config.rlhf.evaluate_every, config.rlhf.evaluate_at = 0, (1, 3)
        return config

    arms = (
        Arm("rounds_of_two", "grpo", {"rlhf.num_minibatches": 2, "rlhf.evaluate_at": (1, 3)}),
        Arm("diverges", "grpo", {"rlhf.optimizer.learning_rate": 1e38}),
        Arm("fails", "grpo", {"algorithm.advantage": "nonsense"}),
        Arm("centered", "grpo", {"algorithm.advantage": "centered"}),
    )
    study = Study(
        directory=tmp_path_factory.mktemp("conducted"),
        base=dense,
        arms=arms,
        grid={},
        open_ended={},
        rungs=(),
        report_updates=4,
        report_seeds=(3,),
    )
    with pytest.raises(Failed, match="1 of 4 cells failed: fails/-report-4/3"):
        sweep.conduct(study, lambda wanted: cell_runs.run_cells(Cells(study), wanted))
    return study


def test_cells_run_and_are_not_run_again(conducted):
    cells = Cells(conducted)
    reported = protocol.report_cells(conducted, cells.ended)
    assert [cell.arm for cell in cells.left(reported)] == ["fails"]
    whole, diverged, centered = cells.results(reported)
    assert [line["update"] for line in whole["curve"]] == [0, 1, 3, 4]
    assert [line["update"] for line in centered["curve"]] == [0, 1, 3, 4]
    assert whole["curve"][0]["gold_mean"] == centered["curve"][0]["gold_mean"], (
        "cells of a seed begin as one policy"
    )
    assert len({line["kl"] for line in whole["curve"]}) == 4, (
        "each evaluation is of another version"
    )
    assert whole["ages"] == {"mean": 0.5, "max": 1}
    assert (
        "not finite" in diverged["diverged"]
        or "nan" in diverged["diverged"]
        or "inf" in diverged["diverged"]
    )
    assert whole["processor"] == provenance.processor()
    assert "reward_model" not in whole  # gold is no learned reward
    directory = cells.directory(reported[0])
    assert json.loads((directory / "result.json").read_text())["curve"] == whole["curve"]
    assert not (directory / "checkpoints").exists()


def test_version_1_of_a_round_of_two_is_that_of_rounds_of_one(conducted):
    """In round 0 both minibatches are sampled by version 0: after one update of the same prompts
    the params are the same.
    """
    cells = Cells(conducted)
    once = replace(
        conducted, arms=(replace(conducted.arms[0], overrides={"rlhf.evaluate_at": (1,)}),)
    )
    other = Cells(replace(once, directory=conducted.directory / "once"))
    (cell,) = protocol.report_cells(once, other.ended)
    cell_runs.run_cells(other, [cell])
    (of_one,), (of_two, *_) = (
        other.results([cell]),
        cells.results(protocol.report_cells(conducted, cells.ended)),
    )
    assert of_one["curve"][1]["update"] == of_two["curve"][1]["update"] == 1
    assert of_one["curve"][1]["kl"] == pytest.approx(of_two["curve"][1]["kl"], rel=1e-3)
