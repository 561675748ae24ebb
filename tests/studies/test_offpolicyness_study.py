"""The protocol of off-policyness: its arms, tuning at age 0, cells of it, Slurm arrays, and four
cells run for real.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_jax import build
from rlhf_jax.cli import slurm, sweep
from rlhf_jax.config import flatten
from rlhf_jax.stages import rlhf
from rlhf_jax.sweeps import cells as cell_runs
from rlhf_jax.sweeps import result
from rlhf_jax.sweeps import steps as protocol
from rlhf_jax.sweeps.cells import Cells, Failed
from rlhf_jax.sweeps.study import Cell

ROOT = Path(__file__).parent.parent.parent
CONFIG = "configs/studies/offpolicyness.py"
RATE = "rlhf.optimizer.learning_rate"


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def study(tmp_path):
    return replace(cell_runs.load(CONFIG), directory=tmp_path, cells=None)


def settled(study, arm: str) -> dict:
    """Every value of an arm's reported cell."""
    return (
        Cells(study).config(Cell(arm, ((RATE, 1e-3),), 0, study.report_updates, "report")).to_dict()
    )


def end(cells: Cells, cell: Cell, gold: float) -> None:
    """Writes the line of a cell that has ended."""
    line = {
        "arm": cell.arm,
        "setting": dict(cell.setting),
        "seed": cell.seed,
        "purpose": cell.purpose,
    }
    line |= {
        "golden": cells.golden(cell),
        "processor": cells.processor,
        "curve": [{"gold_mean": gold}],
    }
    cells.append(cell, line)


def conduct(study, gold):
    """Every step of the tuning, each cell's gold a function of its arm and learning rate; the
    steps' cells.
    """
    steps, cells = [], Cells(study)
    for wanted in protocol.tuning(study, cells.ended):
        steps.append(wanted)
        for cell in cells.left(wanted):
            end(cells, cell, gold(cell.arm, dict(cell.setting)[RATE]))
    return steps


def test_the_two_axes_are_never_pooled(study):
    """Every arm is at age 0 in all but one thing; lags of RLOO and PPO have three corrections each."""
    usual = {"lag": 0, "num_minibatches": 1, "num_epochs": 1, "samples_per_prompt": 2}
    seen = []
    for arm in study.arms:
        schedule = settled(study, arm.name)["rlhf"]
        differing = {key: schedule[key] for key in usual if schedule[key] != usual[key]}
        assert len(differing) <= 1, arm.name
        assert bool(differing) == bool(arm.follows), "age 0 is tuned, all else follows it"
        seen.append((arm.algorithm, *differing.items()))
    expected = []
    for name in ("online_dpo", "rloo", "ppo", "best_of_n"):
        lags = [("lag", n) for n in (1, 3, 15)] * (3 if name in ("rloo", "ppo") else 1)
        stale = [("num_minibatches", n) for n in (2, 4, 16, 64)] + lags
        expected += [(name,), *((name, place) for place in stale)]
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize("argument", ["", "full", "tiny", "schedule=rounds"])
def test_arms_differ_in_age_and_algorithm_alone(argument):
    """Prompts, completions per update, updates, optimizer and evaluations are those of the first
    arm; all can run.
    """
    study = cell_runs.load(f"{CONFIG}:{argument}")
    free = {"algorithm", "directory", "rlhf.num_minibatches", "rlhf.lag"}
    first = None
    for arm in study.arms:
        values = settled(study, arm.name)
        clock = build.stages(values).rlhf.schedule()
        assert clock.num_updates == study.report_updates
        build.algorithm(values["algorithm"])
        fixed = {
            key: value
            for key, value in flatten(values).items()
            if not free & {key, key.split(".")[0]}
        }
        first = fixed if first is None else first
        assert fixed == first, arm.name
    assert max(first["rlhf.evaluate_at"]) <= study.report_updates
    assert len(study.report_seeds) >= 5
    schedules = {first["rlhf.optimizer.schedule"], first["rlhf.critic_optimizer.schedule"]}
    assert schedules == {"linear_by_round" if "rounds" in argument else "linear"}


def test_the_correction_of_every_arm_is_named_and_an_axis_of_lag_alone(study):
    """ "auto" would correct stale arms and not fresh ones: age and correction could not be told
    apart.
    """
    expected = {
        "behavior": ("behavior", "none"),
        "proximal": ("proximal", "none"),
        "truncate": ("proximal", "truncate"),
    }
    for arm in study.arms:
        correction = settled(study, arm.name)["algorithm"].get("correction")
        assert (correction is None) == (arm.algorithm in ("online_dpo", "best_of_n"))
        if correction is not None:
            named = arm.name.rpartition("-")[2] if "-lag" in arm.name else "behavior"
            assert (correction["ratio_to"], correction["correction"]) == expected[named], arm.name


@pytest.mark.parametrize("part", ["epochs", "samples", "losses", "policy_size", "reward_size"])
def test_parts_can_run(part):
    study = cell_runs.load(f"{CONFIG}:part={part}")
    for arm in study.arms:
        values = settled(study, arm.name)
        settings = build.stages(values).rlhf
        assert settings.total_prompts == 64 * 32, "epochs add updates, not prompts"
        assert settings.schedule().num_updates == 64 * settings.num_epochs
        assert values["model"]["width"] == int((arm.policy or "width 64").split()[1])
        assert not arm.follows or study.arm(arm.follows).policy == arm.policy
    assert study.directory.name == f"offpolicyness_{part}"
    assert str(study.cells) == f"experiments/studies/{part}/cells.jsonl"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("huge", "'huge' chooses nothing; accepted: size=..., part=..., schedule=..."),
        ("size=huge", "the study's size is 'huge'; accepted: small, full, tiny"),
        (
            "part=all",
            "the study's part is 'all'; accepted: ages, epochs, samples, losses, policy_size, "
            "reward_size",
        ),
    ],
)
def test_an_unknown_choice_names_those_there_are(argument, message):
    with pytest.raises(ValueError, match="accepted") as raised:
        cell_runs.load(f"{CONFIG}:{argument}")
    assert message in str(raised.value)


def test_stale_arms_are_tuned_over_multiples_of_what_their_fresh_arm_chose(study):
    """Fresh arms are best at 1e-3, PPO at 2e-3; arms with a lag at a quarter of that, those with
    minibatches at twice.
    """
    study = replace(study, max_widenings=0)

    def gold(arm: str, rate: float) -> float:
        at = 2e-3 if arm.startswith("ppo") else 1e-3
        factor = 0.25 if "-lag" in arm else 2 if "-num" in arm else 1
        return -abs(math.log(rate / (at * factor)))

    first, last = conduct(study, gold)
    assert {cell.arm for cell in first} == {"online_dpo", "rloo", "ppo", "best_of_n"}
    assert len(first) == 3 * 4 * 2 + 4 * 4
    assert len(last) == 33 * 4 * 2 + 7 * 4 * 4
    assert {dict(cell.setting)[RATE] for cell in last if cell.arm.startswith("ppo")} == {
        4e-3,
        2e-3,
        1e-3,
        5e-4,
    }
    chosen = protocol.chosen_settings(study, Cells(study).ended)
    assert list(chosen) == [arm.name for arm in study.arms]
    for arm, (setting,) in chosen.items():
        factor = 0.25 if "-lag" in arm else 2 if "-num" in arm else 1
        assert dict(setting)[RATE] == pytest.approx(
            (2e-3 if arm.startswith("ppo") else 1e-3) * factor
        ), arm
    cells = protocol.report_cells(study, Cells(study).ended)
    assert len(cells) == 44 * 5
    assert not {cell.seed for cell in cells} & {
        cell.seed for step in (first, last) for cell in step
    }


def test_shared_stages_come_first_and_those_of_a_seed_in_one_process(tmp_path):
    """Two workers on the stages of one seed and size would write the same files."""
    study = replace(cell_runs.load(f"{CONFIG}:part=reward_size"), directory=tmp_path, cells=None)
    wanted = [
        Cell(arm.name, ((RATE, 1e-3),), seed, 64, "report") for seed in (0, 1) for arm in study.arms
    ]
    cells = Cells(study)
    end(cells, wanted[0], 1.0)
    bases, parts = cell_runs.phases(cells, wanted, 4)
    assert [{cell.seed for cell in part} for part in bases] == [{0}, {1}]
    for part in bases:
        assert [cells.base(cell)[1:] for cell in part] == [
            ("width 64", f"width {width}") for width in (128, 32, 64)
        ]
        assert not any(cell.num_updates for cell in part)
    assert sorted((cell for part in parts for cell in part), key=str) == sorted(wanted[1:], key=str)
    assert list(cell_runs.phases(cells, wanted[:1], 4)) == [[], []]


def updates(ages, length=5.0):
    return [{"age": float(age), "completion_length": length} for age in ages]


def test_ages_are_the_clocks_and_checked():
    """Two rounds of two minibatches at lag 1: ages 0, 1, then 2, 3."""
    config = rlhf.Config(total_prompts=12, prompts_per_update=3, num_minibatches=2, lag=1)
    assert result.ages(config, updates((0, 1, 2, 3))) == {"mean": 1.5, "max": 3}
    with pytest.raises(RuntimeError, match=r"not the clock's from update 2 on: \[1.0, 3.0\]"):
        result.ages(config, updates((0, 1, 1, 3)))
    with pytest.raises(RuntimeError, match="from update 3 on"):
        result.ages(config, updates((0, 1, 2)))
    assert result.ages(config, updates((0, 1)), whole=False) == {"mean": 1.5, "max": 3}


def test_ages_of_rows_of_several_versions_are_those_of_their_tokens():
    """At lag 1 with two updates a round ages are at most 3; rounds are fresher than the clock's."""
    config = rlhf.Config(total_prompts=12, prompts_per_update=3, num_minibatches=2, lag=1)
    lines = [
        {"age": float(age), "age_mean": age - share / 4, "age_max": age, "mixed_share": share}
        for age, share in ((0, 0.0), (1, 0.0), (2, 0.5), (3, 0.5))
    ]
    assert result.ages(config, lines) == {"mean": 1.5 - 0.25 / 4, "max": 3}
    with pytest.raises(RuntimeError, match="4 updates and tokens of age 4; its clock has 4"):
        result.ages(config, [*lines[:3], lines[3] | {"age_max": 4}])
    with pytest.raises(RuntimeError, match="3 updates and tokens of age 2"):
        result.ages(config, lines[:3])
    assert result.ages(config, lines[:3], whole=False)["max"] == 2


@pytest.mark.parametrize(("name", "rows"), [("online_dpo", 2), ("best_of_n", 1), ("rloo", 7)])
def test_what_a_run_was_trained_on(name, rows):
    """12 prompts of 7 samples, 3 an update, 2 epochs: 8 updates of 3 x `rows` rows of 5 tokens."""
    config = rlhf.Config(total_prompts=12, prompts_per_update=3, num_epochs=2, samples_per_prompt=7)
    algorithm = build.algorithm(build.component("algorithms", name).to_dict())
    found = result.trained(config, algorithm, updates([0] * 8))
    assert found == {
        "prompts": 12,
        "completions": 84,
        "rows": 24 * rows,
        "tokens": 120 * rows,
        "updates": 8,
        "prompts_per_update": 3,
    }


def test_slurm_without_submitit_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SystemExit) as left:
        sweep.main([f"--config={CONFIG}:tiny", "--slurm"])
    assert left.value.code == 2
    assert "--slurm needs submitit: pip install 'rlhf_jax[slurm]'" in capsys.readouterr().err


def test_options_of_slurm():
    assert slurm.parameters("timeout_min=60,slurm_partition=gpu") == {
        "timeout_min": 60,
        "slurm_partition": "gpu",
    }
    with pytest.raises(
        ValueError, match="--slurm has the option 'partition'; accepted: name=value"
    ):
        slurm.parameters("partition")


def test_a_slurm_array_has_a_job_a_part_and_names_the_log_of_one_that_failed(study, monkeypatch):
    """With submitit's executor that runs jobs in this process; work is recorded instead of done."""
    submitit = pytest.importorskip("submitit")
    done = []
    monkeypatch.setattr(cell_runs, "work", lambda study, cells: done.append(list(cells)))
    cells = [Cell("ppo", ((RATE, 1e-3),), seed, 64, "report") for seed in (0, 1, 2)]
    submitter = submitit.AutoExecutor(study.directory / "slurm", cluster="debug")
    slurm.launch(submitter, study, CONFIG, cells, 2)
    assert [[(cell.seed, bool(cell.num_updates)) for cell in part] for part in done] == [
        [(0, False)],
        [(1, False)],
        [(2, False)],
        [(0, True), (2, True)],
        [(1, True)],
    ]

    def fail(study, cells):
        raise FloatingPointError("the loss of update 3 is nan")

    monkeypatch.setattr(cell_runs, "work", fail)
    with pytest.raises(
        Failed, match=r"3 of 3 jobs failed: see .*slurm.* \(.*the loss of update 3 is nan"
    ):
        slurm.launch(submitter, study, CONFIG, cells, 2)


@pytest.fixture(scope="module")
def tiny_runs(tmp_path_factory):
    """Four cells in worker processes, and their file before a second call."""
    directory, patch = tmp_path_factory.mktemp("study"), pytest.MonkeyPatch()
    argument = f"{ROOT / CONFIG}:tiny"
    with patch.context() as patched:
        patched.chdir(directory)
        patched.setenv("PYTHONPATH", str(ROOT))
        study = cell_runs.load(argument)
        names = ("online_dpo", "rloo-lag1-truncate", "ppo", "best_of_n-num_minibatches2")
        wanted = [Cell(name, ((RATE, 1e-3),), 0, 2, "report") for name in names]
        sweep.launch(study, argument, wanted, 1)
        study = replace(study, directory=directory / study.directory)
        before = Cells(study).path.read_bytes()
        sweep.launch(study, argument, wanted, 1)
        return study, wanted, before


def test_four_cells_run_and_are_not_run_again(tiny_runs):
    study, wanted, before = tiny_runs
    cells = Cells(study)
    found = cells.results(wanted)
    assert [one["algorithm"] for one in found] == ["online_dpo", "rloo", "ppo", "best_of_n"]
    ages = [{"mean": 0.0, "max": 0}, {"mean": 0.5, "max": 1}] * 2
    assert [one["ages"] for one in found] == ages
    assert [[line["update"] for line in one["curve"]] for one in found] == [[0, 1, 2]] * 4
    assert len({one["curve"][0]["gold_mean"] for one in found}) == 1, (
        "cells of a seed begin as one policy"
    )
    assert len({one["curve"][-1]["kl"] for one in found}) == 4
    assert [one["trained"]["rows"] for one in found] == [16, 16, 16, 8]
    assert all(one["trained"]["completions"] == 16 for one in found)
    assert all(16 <= one["trained"]["tokens"] / one["trained"]["rows"] <= 27 for one in found)
    assert cells.path.read_bytes() == before
    assert not (cells.directory(wanted[0]) / "checkpoints").exists()


def test_a_worker_that_fails_is_named_with_its_last_line(tmp_path, monkeypatch):
    """A study whose arm cannot be built: the message has the worker's own words and the path of its
    log.
    """
    path = tmp_path / "broken.py"
    source = (
        (ROOT / CONFIG)
        .read_text()
        .replace(
            "Arm(name, algorithm, overrides, follows, policy",
            'Arm(name, "no_such", overrides, follows, policy',
        )
    )
    path.write_text(source)
    monkeypatch.chdir(ROOT)
    study = replace(cell_runs.load(CONFIG + ":tiny"), directory=tmp_path / "run")
    with pytest.raises(Failed, match=r"no_such.* \(see .*logs/"):
        sweep.launch(
            study, f"{path}:tiny", [Cell("online_dpo", ((RATE, 1e-3),), 0, 2, "report")], 1
        )
