"""What a person sees when a run cannot begin or is stopped: one line that names the value, and an
exit status.
"""

import ast
import errno
import fcntl
import os
import subprocess
import sys
from math import prod
from pathlib import Path

import jax
import pytest

from rlhf_jax import registry
from rlhf_jax.cli import run
from rlhf_jax.records import jsonl
from rlhf_jax.refusal import NotFinite
from rlhf_jax.run_directory import lock
from rlhf_jax.stages import pipeline

ROOT = Path(__file__).parents[2]
CONFIG = "--config=configs/quickstart.py"


@pytest.fixture(autouse=True)
def begun(monkeypatch, tmp_path) -> list[int]:
    """Seeds of the pipelines that got as far as their first stage; nothing is compiled."""
    seeds: list[int] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(pipeline, "job", lambda shared, *_: seeds.append(shared.seed))
    return seeds


def call(directory: Path, *overrides: str) -> None:
    run.main(["run", CONFIG, f"--config.directory={directory}", *overrides])


def refused(capsys, argv: list[str], status: int = 2, lines: int = 1) -> str:
    """What a run prints that leaves with `status`: a line per problem."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        run.main(["run", *argv])
    assert left.value.code == status
    out, err = capsys.readouterr()
    assert not out or status != 2
    assert err.count("\n") == lines
    assert all(line.startswith("error: ") for line in err.splitlines())
    return err


ARGUMENTS = [
    ("algorithm=foo", ["no 'foo' in rlhf_jax/algorithms/", "grpovi", "rloo"]),
    ("algo=rloo", ["'algo=rloo' chooses nothing", "accepted: algorithm=..."]),
    ("rloo", ["'rloo' chooses nothing"]),
]


@pytest.mark.parametrize(("argument", "words"), ARGUMENTS)
def test_an_argument_that_the_config_file_refuses_is_one_line(capsys, argument, words):
    error = refused(capsys, [f"{CONFIG}:{argument}"])
    assert all(word in error for word in words), error
    assert "Traceback" not in error


OF_ALGORITHMS = [
    (
        "grpovi",
        "rlhf.scoring.missing_eos_score=-9.0",
        ["missing_eos_score is -9.0", "grpovi", "[-6.0, 6.0]"],
    ),
    (
        "rloo",
        "algorithm.correction.ratio_to=foo",
        ["ratio_to is 'foo'", "auto, behavior, proximal"],
    ),
    ("rloo", "algorithm.correction.level=token", ["one ratio a completion", "level 'token'"]),
    (
        "grpo",
        "rlhf.samples_per_prompt=1",
        ["rlhf.samples_per_prompt is 1", "grpo needs at least 2"],
    ),
    (
        "grpo",
        "algorithm.aggregation=pair",
        ["algorithm.aggregation is 'pair'", "token, sequence, constant_length"],
    ),
    ("ppo", "algorithm.correction.cap=0.1", ["cap 0.1", "0 <= floor < cap"]),
    (
        "online_dpo",
        "algorithm.correction.ratio_to=behavior",
        ["config.algorithm has no key 'correction'"],
    ),
]


@pytest.mark.parametrize(("algorithm", "override", "words"), OF_ALGORITHMS)
def test_what_an_algorithm_does_not_have_is_one_line(capsys, tmp_path, algorithm, override, words):
    argv = [
        f"{CONFIG}:algorithm={algorithm}",
        f"--config.directory={tmp_path / 'run'}",
        f"--config.{override}",
    ]
    error = refused(capsys, argv)
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


WRONG = [
    ("rlhf.bogus=1", ["config.rlhf has no key 'bogus'", "total_prompts"]),
    (
        "rlhf.total_promts=1",
        ["config.rlhf has no key 'total_promts'", "did you mean 'total_prompts'"],
    ),
    ("rlhf.lag.deep=1", ["config.rlhf.lag has no key 'deep'"]),
    ("seed=abc", ["seed is 'abc'", "int"]),
    ("rlhf.total_prompts=many", ["rlhf.total_prompts is 'many'", "int"]),
    ("rlhf.optimizer.learning_rate=fast", ["learning_rate is 'fast'", "float"]),
    (
        "rlhf.optimizer.schedule=steps",
        ["rlhf.optimizer.schedule is 'steps'", "linear, cosine, constant"],
    ),
    (
        "rlhf.critic_optimizer.schedule=steps",
        ["rlhf.critic_optimizer.schedule is 'steps'", "linear, cosine, constant"],
    ),
    (
        "sft.optimizer.schedule=steps",
        ["sft.optimizer.schedule is 'steps'", "linear, cosine, constant"],
    ),
    ("algorithm.name=foo", ["'foo'", "algorithms", "online_dpo"]),
    ("task.name=foo", ["'foo'", "tasks", "reviews"]),
    ("model.family=foo", ["'foo'", "models", "gpt_neox"]),
    ("reward=foo", ["'foo'", "exact_match, gold, learned"]),
    ("job=foo", ["'foo'", "stages", "pipeline"]),
    ("tokenizer.kind=foo", ["'foo'", "words"]),
    ("model.num_heads=5", ["num_heads 5"]),
    ("mesh.data=16", ["mesh is data=16", "16 devices", "there are 8"]),
    ("mesh.data=0", ["mesh.data is 0", "accepted: 1 or more, or -1"]),
    ("rlhf.total_prompts=65", ["rlhf.total_prompts is 65", "= 64"]),
    ("rlhf.lag=-1", ["rlhf.lag is -1", "0 or more"]),
    ("rlhf.version_schedule=(0, 5)", ["version schedule has 2 versions", "64 rounds"]),
    ("rlhf.loop=threads", ["rlhf.loop is 'threads'", "synchronous, asynchronous"]),
    ("rlhf.clock=loose", ["rlhf.clock is 'loose'", "exact, bounded"]),
    (
        "rlhf.replay_schedule_of=runs/nowhere",
        ["runs/nowhere/ledger.jsonl", "rlhf.replay_schedule_of names the directory of a run"],
    ),
    ("rlhf.sampler_slices=8", ["rlhf.sampler_slices=8", "7 are left of 8"]),
    ("rlhf.sampler_slices=3", ["a round has 64 prompts", "multiples of 3"]),
    ("rlhf.deadline_seconds=0.0", ["rlhf.deadline_seconds is 0.0", "above 0"]),
    ("rlhf.temperature=0.0", ["rlhf.temperature is 0.0", "above 0"]),
    ("rlhf.samples_per_prompt=1", ["rlhf.samples_per_prompt is 1", "at least 2"]),
    ("rlhf.num_micro_batches=5", ["rlhf.prompts_per_update", "is 64", "multiples of 5"]),
    ("rlhf.num_micro_batches=0", ["num_micro_batches is 0", "1 or more"]),
    ("sft.rows_per_update=0", ["sft.rows_per_update is 0"]),
    ("sft.num_micro_batches=5", ["sft.rows_per_update is 64", "multiples of 5"]),
    ("reward_model.num_micro_batches=7", ["reward_model.pairs_per_update is 48", "multiples of 7"]),
    ("evaluate.num_prompts=0", ["evaluate.num_prompts is 0", "1 or more"]),
    ("rlhf.evaluate_at=(1, 65)", ["rlhf.evaluate_at has 65", "the run's last, 64"]),
    ("rlhf.profile_updates=(65,)", ["rlhf.profile_updates has 65", "the run's last, 64"]),
    ("best_of_n=(1, 3, 4)", ["best_of_n is (1, 3, 4)", "divide the largest"]),
    ("best_of_n_prompts=4096", ["best_of_n_prompts is 4096", "1024"]),
]


@pytest.mark.parametrize(("override", "named"), WRONG, ids=[override for override, _ in WRONG])
def test_a_wrong_value_is_named_with_what_is_accepted(capsys, tmp_path, begun, override, named):
    directory = tmp_path / "run"
    line = refused(capsys, [CONFIG, f"--config.directory={directory}", f"--config.{override}"])
    assert all(part in line for part in named), line
    assert not directory.exists(), "nothing is written"
    assert not begun


@pytest.mark.parametrize("shape", ["(5, 1, 1)", "(2, 3, 1)"])
def test_a_mesh_that_does_not_fit_the_batch_is_named(capsys, tmp_path, shape):
    """Eight devices hold the mesh, but 32 prompts do not divide into 5 or 6 shards."""
    sizes = zip(("data", "fsdp", "tensor"), shape.strip("()").split(", "), strict=True)
    overrides = [f"--config.mesh.{axis}={size}" for axis, size in sizes]
    keys = ["sft.rows_per_update is 64", "standardize_prompts is 256"]
    keys += ["rlhf.prompts_per_update"] + ["reward_model.pairs_per_update is 48"] * (
        48 % prod(ast.literal_eval(shape)) > 0
    )
    said = refused(
        capsys, [CONFIG, f"--config.directory={tmp_path / 'run'}", *overrides], lines=len(keys)
    )
    assert all(key in said for key in keys), said
    assert not (tmp_path / "run").exists()


def test_no_config_names_those_there_are(capsys):
    assert "configs/quickstart.py" in refused(capsys, [])
    line = refused(capsys, ["--config=configs/none.py"])
    assert "'configs/none.py'" in line
    assert "configs/quickstart.py" in line


@pytest.mark.parametrize("argument", ["extra", "--confg.seed=1", "--verbos"])
def test_an_unknown_argument_is_named(capsys, tmp_path, argument):
    assert argument.strip("-").split("=")[0] in refused(capsys, [CONFIG, argument])


def test_a_right_config_begins_and_may_begin_again(tmp_path, begun):
    call(tmp_path / "run", "--config.seed=3", "--config.rlhf.version_schedule=()")
    call(tmp_path / "run", "--config.seed", "3")
    assert begun == [3, 3]


def test_a_directory_of_another_config_names_the_keys(capsys, tmp_path, begun):
    call(tmp_path)
    (tmp_path / "checkpoints" / "rlhf" / "16").mkdir(parents=True)
    before = (tmp_path / "config.json").read_bytes()
    line = refused(
        capsys, [CONFIG, f"--config.directory={tmp_path}", "--config.seed=3", "--config.rlhf.lag=2"]
    )
    assert "rlhf.lag (1 there, 2 now)" in line
    assert "seed (0 there, 3 now)" in line
    assert begun == [0]
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_directory_in_use_is_refused_in_one_line(capsys, tmp_path, begun, monkeypatch):
    """Before anything of it is read or written."""
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.1)
    call(tmp_path)
    other = os.open(tmp_path / lock.FILE, os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)  # held by its own open file, as by another process
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    line = refused(
        capsys, [CONFIG, f"--config.directory={tmp_path}", "--config.rlhf.loop=synchronous"]
    )
    assert f"is in use by process {os.getpid()} on" in line
    assert begun == [0]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    os.close(other)
    call(tmp_path)


def test_64_bits_are_refused_before_anything_is_written(capsys, tmp_path):
    jax.config.update("jax_enable_x64", True)
    try:
        line = refused(capsys, [CONFIG, f"--config.directory={tmp_path / 'run'}"])
    finally:
        jax.config.update("jax_enable_x64", False)
    assert "jax_enable_x64 is on" in line
    assert not (tmp_path / "run").exists()


def test_a_bounded_clock_needs_threads(capsys, tmp_path):
    overrides = ["--config.rlhf.loop=synchronous", "--config.rlhf.clock=bounded"]
    line = refused(capsys, [CONFIG, f"--config.directory={tmp_path / 'run'}", *overrides])
    assert "rlhf.clock is 'bounded', which needs rlhf.loop=asynchronous" in line


def test_a_training_that_broke_is_one_line(capsys, tmp_path, monkeypatch):
    def broke(*_):
        raise NotFinite("the loss of update 3 is nan: nothing from it on is published or saved")

    monkeypatch.setattr(pipeline, "job", broke)
    assert "the loss of update 3 is nan" in refused(
        capsys, [CONFIG, f"--config.directory={tmp_path}"], status=1
    )


def test_a_full_disk_is_one_line(capsys, tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def job(*_):
        monkeypatch.setattr(os, "write", full)
        jsonl.append(tmp_path / "metrics.jsonl", {"stage": "sft"})

    monkeypatch.setattr(pipeline, "job", job)
    line = refused(capsys, [CONFIG, f"--config.directory={tmp_path}"], status=1)
    assert "metrics.jsonl" in line
    assert "No space left on device" in line


def test_an_interrupt_is_one_line(capsys, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "job", interrupted)
    with pytest.raises(SystemExit) as left:
        call(tmp_path)
    assert left.value.code == 130
    assert (
        capsys.readouterr().err.strip()
        == "interrupted; the same command goes on from the last checkpoint"
    )


def test_an_error_of_the_program_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("here")

    monkeypatch.setattr(pipeline, "job", broken)
    with pytest.raises(ZeroDivisionError, match="here"):
        call(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--config.rlhf.bogus=1"], "'bogus'"), (["--config.mesh.data=3"], "there are 1 here")],
)
def test_the_command_itself(tmp_path, arguments, named):
    command = [
        sys.executable,
        "-m",
        "experiments.run",
        CONFIG,
        f"--config.directory={tmp_path / 'run'}",
        *arguments,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert named in done.stderr


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit) as left:
        run.main(["run", "--help"])
    assert not left.value.code
    assert "configs/quickstart.py" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        run.main(["run", CONFIG, "--help", "--config.rlhf.lag=3"])
    assert not left.value.code
    printed = capsys.readouterr().out.splitlines()
    assert "--config.rlhf.lag=3" in printed
    assert "--config.rlhf.optimizer.learning_rate=0.0005" in printed


def test_the_job_is_found_by_its_file():
    assert callable(registry.find("stages", "pipeline").job)
