"""Rewards of a user's own in whole runs: a sum that sees its rows, and faults that end a run as its
user expects.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import jsonl
from experiments.bench import kill
from rlhf_jax import build
from rlhf_jax.cli import run
from rlhf_jax.stages import pipeline

ROOT = Path(__file__).parents[2]
SUM = "learned + 0.5 * {file}:level + 0 * gold"
FILE = """
import time
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    scale: float = 1.0

CALLS = []

def level(completions, records, config: Config):
    assert len(completions) == len(records)
    return [config.scale * row["level"] for row in records]

def raises_in_round_1(completions):
    CALLS.append(1)
    return [float("n/a") if len(CALLS) % 3 == 2 else len(text) for text in completions]

def none_of_some(completions):
    return [None if place == 3 else 1 for place, _ in enumerate(completions)]

def a_column(completions):
    import numpy as np
    return np.ones((len(completions), 1))

def lengths(completions):
    return [len(text) for text in completions]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("own")
    prompts = [
        {"prompt": f"p{n}", "references": ["ab", "b"], "answer": "a", "level": n % 3}
        for n in range(40)
    ]
    pairs = [
        {"prompt": row["prompt"], "chosen": "ab", "rejected": "b", "source": "me"}
        for row in prompts
    ]
    for name, rows in (("prompts", prompts), ("pairs", pairs)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "mine.py").write_text(FILE)
    return place


def tiny_config(folder: Path, directory: str, reward: str):
    config = jsonl.get_config()
    config.directory, config.reward = (
        str(folder / directory),
        reward.format(file=folder / "mine.py"),
    )
    config.task.prompts, config.task.comparisons = (
        str(folder / "prompts.jsonl"),
        str(folder / "pairs.jsonl"),
    )
    config.task.heldout_percent = 30
    config.model.update({"width": 16, "num_layers": 1, "num_heads": 2, "ffn_width": 32})
    config.lengths.max_prompt_tokens, config.lengths.max_completion_tokens = 8, 4
    config.sft.num_updates, config.sft.checkpoint_every, config.sft.rows_per_update = 2, 2, 8
    config.reward_model.num_updates, config.reward_model.pairs_per_update = 2, 8
    config.reward_model.standardize_prompts = 16
    config.rlhf.total_prompts, config.rlhf.prompts_per_update, config.rlhf.samples_per_prompt = (
        24,
        8,
        2,
    )
    config.rlhf.evaluate_every, config.rlhf.checkpoint_every = 0, 1
    config.evaluate.num_prompts = config.evaluate.num_prompts_between = (
        config.evaluate.prompts_per_batch
    ) = 4
    config.evaluate.references_per_prompt = 1
    config.best_of_n, config.best_of_n_prompts = (), 4
    return config


@pytest.fixture(scope="module")
def summed(folder) -> Path:
    """A run whose reward is a sum: a learned one, one that reads a column of the row, and one that
    is only recorded.
    """
    config = tiny_config(folder, "summed", SUM)
    with config.unlocked():
        config.reward_settings = {"level": {"scale": 3.0}}
    pipeline.job(*build.prepare(config))
    return Path(config.directory)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_sum_is_recorded_term_by_term(summed, folder):
    """In metrics, the ledger and samples; the sum is theirs, and the row's own column is what the
    term has read.
    """
    updates = [
        line
        for line in lines(summed / "metrics.jsonl")
        if line["stage"] == "rlhf" and "update" in line
    ]
    assert len(updates) == 3
    names = {
        f"term_{label}{kind}" for label in ("learned", "level", "gold") for kind in ("", "_std")
    }
    assert all(names <= line.keys() for line in updates)
    for line in updates:
        total = line["term_learned"] + 0.5 * line["term_level"]
        np.testing.assert_allclose(line["reward_standardized"], total, rtol=1e-4, atol=1e-5)
    rows = lines(summed / "ledger.jsonl")
    for row in rows:
        terms = row["terms"]
        np.testing.assert_allclose(
            row["standardized"], terms["learned"] + 0.5 * terms["level"], rtol=1e-4, atol=1e-5
        )
        assert terms["level"] in (0.0, 3.0, 6.0)
    of_prompt = {row["ordinal"]: row["terms"]["level"] for row in rows}
    assert all(of_prompt[row["ordinal"]] == row["terms"]["level"] for row in rows)
    assert len(set(of_prompt.values())) > 1
    during = [line for line in lines(summed / "samples.jsonl") if line["kind"] == "during"]
    levels = {row["prompt"]: 3.0 * row["level"] for row in lines(folder / "prompts.jsonl")}
    assert during
    assert all(line["terms"]["level"] == levels[line["prompt"]] for line in during)
    stored = json.loads((summed / "config.json").read_text())
    assert stored["reward_settings"] == {"level": {"scale": 3.0}}


def begun(folder: Path, summed: Path, name: str) -> Path:
    """A new directory with the SFT policy of the other run."""
    shutil.copytree(summed / "checkpoints" / "sft", folder / name / "checkpoints" / "sft")
    return folder / name


def main(config, capsys) -> tuple[object, str]:
    """The command's exit status and errors, on a config that its file would give."""
    parsed = run.parse
    try:
        run.parse = lambda argv: config
        with pytest.raises(SystemExit) as left:
            run.main(["run"])
    finally:
        run.parse = parsed
    return left.value.code, capsys.readouterr().err


def test_one_reward_of_a_file_is_recorded_as_ever(folder, summed):
    config = tiny_config(folder, "plain", "{file}:lengths")
    begun(folder, summed, "plain")
    pipeline.job(*build.prepare(config))
    directory = Path(config.directory)
    assert all(
        "terms" not in row
        for row in lines(directory / "ledger.jsonl") + lines(directory / "samples.jsonl")
    )
    assert not [
        name
        for line in lines(directory / "metrics.jsonl")
        for name in line
        if name.startswith("term_")
    ]
    assert all(row["raw"] == len(row["text"]) for row in lines(directory / "ledger.jsonl"))


def test_a_reward_that_raises_in_a_later_round(folder, summed, capsys):
    """Status 1, its own traceback, its name, the round, its file and line; what was trained before
    is saved.
    """
    config = tiny_config(folder, "raises", "{file}:raises_in_round_1")
    directory = begun(folder, summed, "raises")
    status, said = main(config, capsys)
    assert status == 1
    line = (
        FILE.splitlines().index(
            '    return [float("n/a") if len(CALLS) % 3 == 2 else len(text) for text in '
            "completions]"
        )
        + 1
    )
    assert f'File "{folder / "mine.py"}", line {line}' in said
    last = said.strip().splitlines()[-1]
    assert last.startswith(
        f"error: the reward {folder / 'mine.py'}:raises_in_round_1 raised in round 1: ValueError"
    )
    assert last.endswith(f"({folder / 'mine.py'}, line {line})")
    assert [
        path.name for path in (directory / "checkpoints" / "rlhf").iterdir() if path.name.isdigit()
    ] == ["1"]


@pytest.mark.parametrize(
    ("function", "words"), [("none_of_some", "gave None for completion 3"), ("a_column", "(16, 1)")]
)
@pytest.mark.parametrize("written", [True, False])
def test_a_reward_that_gives_no_numbers_trains_nothing(
    folder, summed, capsys, function, words, written
):
    """Also where neither ledger nor samples are written."""
    name = f"{function}_{written}"
    config = tiny_config(folder, name, f"{{file}}:{function}")
    config.rlhf.ledger, config.rlhf.log_samples = written, 4 * written
    directory = begun(folder, summed, name)
    status, said = main(config, capsys)
    assert status == 1
    assert said.count("\n") == 1
    assert f":{function} gave " in said
    assert words in said
    assert not (directory / "metrics.jsonl").exists(), (
        "SFT's are in the other directory, and no update was made here"
    )


HANGING = """
import threading
from configs import quickstart

def hang(*arguments, **named):
    threading.Event().wait()

def get_config():
    from rlhf_jax.stages.common.recorder import Recorder
    from rlhf_jax.runtime.program import Program
    whole = {owner}.{name}
    calls = []

    def once(*arguments, **named):
        calls.append(1)
        return hang() if len(calls) == 2 else whole(*arguments, **named)

    {owner}.{name} = once
    return quickstart.get_config()
"""


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        ("Program", "generate", "the sampler has been in generate of round 1 for "),
        ("Recorder", "write_samples", "the trainer has been in the recording of round 1 for "),
    ],
)
def test_a_command_that_hangs_ends_at_its_deadline(tmp_path, folder, owner, name, said):
    """A call that never returns, in the sampler or in the main thread: status 1 and the cause, not
    silence for ever.
    """
    file = tmp_path / "hangs.py"
    file.write_text(HANGING.format(owner=owner, name=name))
    settings = [
        *kill.SIZES,
        f"directory={tmp_path / 'run'}",
        "reward=gold",
        "rlhf.loop=asynchronous",
    ]
    command = [
        sys.executable,
        "-m",
        "experiments.run",
        f"--config={file}",
        "--config.rlhf.deadline_seconds=8",
    ]
    command += [f"--config.{setting}" for setting in settings if setting != "rlhf.loop=synchronous"]
    shared = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | shared
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
