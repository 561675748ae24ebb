"""The order in which tasks run, what a failure stops, and what is written of them."""

import csv
import io
import json
import subprocess

import pytest

from rlhf_jax.run_directory import lock
from rlhf_jax.sweeps import display, grid_sweep, results_table, tasks
from rlhf_jax.sweeps.checked_cells import Checked
from rlhf_jax.sweeps.grid_sweep import Sweep
from rlhf_jax.sweeps.tasks import Conductor, State, Task


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(tasks, "POLL_SECONDS", 0.001)


class Run:
    """A run that ends with a status at its second look."""

    def __init__(self, status: int) -> None:
        self.status, self.looks, self.told = status, 0, False

    def poll(self) -> int | None:
        self.looks += 1
        return self.status if self.looks > 1 else None

    def terminate(self) -> None:
        self.told = True

    def wait(self, timeout: float | None = None) -> int:
        return self.status


def cell(directory, name: str, needs=(), **setting) -> Task:
    made = Task(name, directory / name, [name], directory / f"{name}.log", list(needs))
    made.setting = {key: str(value) for key, value in setting.items()}
    made.directory.mkdir(parents=True, exist_ok=True)
    return made


def sweep_of(directory) -> Sweep:
    return Sweep("tiny", (), directory, directory / "stages")


def conduct(wanted, statuses, limit=2):
    """Runs tasks whose processes end with these statuses; the names in the order of their starts,
    and the most at once.
    """
    started, at_once = [], []

    def start(task):
        started.append(task.name)
        task.log.write_text(f"before\nerror: {task.name} is broken\n")
        return Run(statuses.get(task.name, 0))

    conductor = Conductor(wanted, start, limit, "code", lambda task: None)
    conductor.run(lambda: at_once.append(len(conductor.running)))
    return started, max(at_once, default=0)


def test_a_failed_cell_stops_no_other_one(tmp_path):
    cells = [cell(tmp_path, name) for name in ("a", "b", "c")]
    started, at_once = conduct(cells, {"b": 1}, limit=2)
    assert started == ["a", "b", "c"]
    assert at_once == 2
    assert [each.state for each in cells] == [State.DONE, State.FAILED, State.DONE]
    assert cells[1].reason == "error: b is broken"
    again = [cell(tmp_path, name) for name in ("a", "b", "c")]
    assert conduct(again, {})[0] == ["b"], "the same again runs what is left"
    assert all(each.state is State.DONE for each in again)


def test_cells_wait_for_their_stage_and_are_not_run_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr(
        tasks.stage_records, "unfinished", lambda directory, stage: "nothing is there"
    )
    stages = [Task(name, tmp_path / name, [], tmp_path / f"{name}.log") for name in ("s0", "s1")]
    for stage in stages:
        stage.stage = "sft"
    cells = [cell(tmp_path, f"c{index}", [stages[index]]) for index in (0, 1)]
    started, _ = conduct([*stages, *cells], {"s0": 2}, limit=1)
    assert started == ["s0", "s1", "c1"]
    assert [each.state for each in cells] == [State.NOT_RUN, State.DONE]
    assert cells[0].reason == "it needs s0"


def test_a_directory_that_another_process_holds_is_waited_for(tmp_path):
    first, second = cell(tmp_path, "first"), cell(tmp_path, "second")
    started, held = [], lock.hold(first.directory)
    held.__enter__()

    def start(task):
        if task is second:
            held.__exit__(None, None, None)
        started.append(task.name)
        return Run(0)

    Conductor([first, second], start, 1, "code", lambda task: None).run(lambda: None)
    assert started == ["second", "first"]


def test_an_interruption_tells_every_run_to_end_and_keeps_what_is_done(tmp_path):
    runs, cells = {}, [cell(tmp_path, name) for name in ("a", "b")]

    def start(task):
        runs[task.name] = Run(130)
        runs[task.name].poll = lambda: 0 if task.name == "a" else None
        return runs[task.name]

    def tick():
        if cells[0].state is State.DONE:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Conductor(cells, start, 2, "code", lambda task: None).run(tick)
    assert (runs["a"].told, runs["b"].told) == (False, True)
    assert cells[0].is_done()
    assert not cells[1].is_done()


def test_a_run_that_does_not_end_in_time_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "LEAVE_SECONDS", 0.0)

    class Hung(Run):
        def wait(self, timeout: float | None = None) -> int:
            raise subprocess.TimeoutExpired("run", timeout or 0.0)

    def tick():
        raise KeyboardInterrupt

    wanted = [cell(tmp_path, "a")]
    conductor = Conductor(wanted, lambda task: Hung(0), 1, "code", lambda task: None)
    with pytest.raises(KeyboardInterrupt):
        conductor.run(tick)


def checked(beta: str, seed: int, stages=("s", "r")) -> Checked:
    shared = {"sft": f"{stages[0]}{seed}", "reward_model": f"{stages[1]}{seed}"}
    return Checked({"algorithm.beta": beta}, seed, f"{beta}-{seed}" * 4, shared, {"rlhf": 8})


def test_cells_that_agree_share_their_stages(tmp_path):
    cells = [checked(beta, seed) for seed in (0, 1) for beta in ("0.1", "0.5")]
    made = grid_sweep.tasks_of(sweep_of(tmp_path), cells)
    stages = [task for task in made if not task.is_cell]
    assert [task.directory.name for task in stages] == [
        "sft-s0",
        "reward_model-r0",
        "sft-s1",
        "reward_model-r1",
    ]
    assert stages[1].needs == [stages[0]]
    assert f"--config.begin={tmp_path}/stages/sft-s0" in stages[1].arguments
    of_seed_1 = [task for task in made if task.is_cell and task.seed == 1]
    assert len(of_seed_1) == 2
    for task in of_seed_1:
        assert task.needs == stages[2:]
        assert f"--config.begin={tmp_path}/stages/reward_model-r1" in task.arguments
        assert "--config.seed=1" in task.arguments
    assert len({task.directory for task in made}) == len(made)


def test_a_cell_goes_on_from_the_stage_that_it_has_begun_from(tmp_path):
    """Other code makes other stages: cells that have begun keep theirs, if it is still there."""
    sweep, cells = sweep_of(tmp_path), [checked("0.1", 0), checked("0.5", 0)]
    begun = grid_sweep.tasks_of(sweep, cells)[-1]
    for directory, values in (
        (begun.directory, {"begin": f"{tmp_path}/stages/reward_model-r0"}),
        (tmp_path / "stages" / "reward_model-r0", {}),
    ):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(values))
    other = [checked(beta, 0, stages=("S", "R")) for beta in ("0.1", "0.5")]
    first, second = [task for task in grid_sweep.tasks_of(sweep, other) if task.is_cell]
    assert f"--config.begin={tmp_path}/stages/reward_model-R0" in first.arguments
    assert f"--config.begin={tmp_path}/stages/reward_model-r0" in second.arguments
    assert second.needs == []
    (tmp_path / "stages" / "reward_model-r0" / "config.json").unlink()
    second = grid_sweep.tasks_of(sweep, other)[-1]
    assert f"--config.begin={tmp_path}/stages/reward_model-R0" in second.arguments


def test_the_table_has_a_row_per_cell(tmp_path):
    done, failed = cell(tmp_path, "a", **{"rlhf.lag": 0}), cell(tmp_path, "b", **{"rlhf.lag": 1})
    lines = [
        {"stage": "evaluate", "of": "rlhf", "update": update, "kl": 0.5 * update, "win_rate": 0.25}
        for update in (0, 4)
    ]
    (done.directory / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    done.state, failed.state, failed.reason = State.DONE, State.FAILED, 'error: "x", y'
    done.figures = results_table.figures(done)
    path = results_table.write(tmp_path, [done, failed])
    rows = list(csv.DictReader(path.open()))
    assert [row["rlhf.lag"] for row in rows] == ["0", "1"]
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert rows[0]["kl_nats_per_completion"] == "2.0"
    assert rows[0]["win_rate_share"] == "0.25"
    assert rows[0]["updates"] == "4"
    assert rows[1]["kl_nats_per_completion"] == ""
    assert rows[1]["reason"] == 'error: "x", y'
    assert rows[0]["directory"] == str(done.directory)


def test_the_figures_of_offline_dpo_are_of_its_last_version(tmp_path):
    task = cell(tmp_path, "a", **{"dpo.beta": 0.1})
    lines = [
        {"stage": "evaluate", "of": "dpo", "update": update, "heldout_accuracy": accuracy}
        for update, accuracy in ((0, 0.5), (6, 0.75))
    ]
    (task.directory / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert results_table.figures(task) == {"updates": 6, "heldout_accuracy_share": 0.75}


def test_progress_is_of_the_last_update(tmp_path):
    task = cell(tmp_path, "a")
    assert task.progress() == ""
    task.updates = {"rlhf": 8}
    lines = [
        {"stage": "rlhf", "update": 2},
        {"stage": "evaluate", "of": "rlhf", "update": 0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (task.directory / "metrics.jsonl").write_text(text + '{"stage": "rl')
    assert task.progress() == "rlhf 3/8"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_table_and_a_log_has_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    cells = [cell(tmp_path, f"cell {index}") for index in range(3)]
    cells[0].state, cells[1].state, cells[1].reason = State.DONE, State.FAILED, "no memory"
    cells[0].figures = {"win_rate_share": 0.75}
    screen, log = Terminal(), io.StringIO()
    with display.Display(cells, screen) as shown:
        shown.changed(cells[1])
    assert "cell 2" in screen.getvalue()
    assert "win-rate 0.75" in screen.getvalue()
    assert "1 of 3 cells done, 1 failed" in screen.getvalue()
    with display.Display(cells, log) as shown:
        shown.changed(cells[1])
        cells[2].state = State.RUNNING
        shown.printed_at -= display.SILENCE_SECONDS
        shown.tick()
        shown.tick()
    lines = log.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("cell 1  failed")
    assert lines[0].endswith("no memory")
    assert lines[1].endswith("cell 2 (starting)")
