"""A run directory as the pipeline writes it, with invented figures."""

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import pytest

from rlhf_jax.records.metrics import MetricsWriter
from rlhf_jax.records.samples import Sample, SamplesWriter
from rlhf_jax.report.html import write_report

NASTY = "</td><script>alert(1)</script> & \x1b[2J"


def wave(update: int) -> float:
    return math.sin(update * 12.9898) * 0.5


def write_rlhf(writer: MetricsWriter, num_updates: int) -> None:
    write_evaluation(writer, "rlhf", 0, 0.0)
    for j in range(num_updates):
        share = j / 60
        figures = {
            "loss": 0.69 - 0.3 * share + wave(j) / 9,
            "reward_standardized": 2 * share + wave(j) / 3,
        }
        figures |= {"reward": 4 * share, "behavior_kl_k1": 2 * share**1.5 + wave(j) / 8}
        figures |= {
            "entropy": 1.4 - 0.6 * share,
            "sampled_length": 11 + 2 * share + wave(j),
            "finished": 0.97,
        }
        figures |= {
            "accuracy": 0.5 + 0.3 * share,
            "margin": share,
            "grad_norm": 1 + wave(j),
            "age": j % 2,
        }
        writer.write("rlhf", j, figures, seconds=0.2 * j)
        if (j + 1) % 10 == 0:
            write_evaluation(writer, "rlhf", j + 1, (j + 1) / 60)


def write_evaluation(writer: MetricsWriter, of: str, update: int, share: float) -> None:
    figures = {
        "gold_mean": 0.4 + 0.9 * share,
        "gold_std": 0.8,
        "gold_mean_stderr": 0.03,
        "reward_mean": 2 * share,
    }
    figures |= {
        "win_rate": 0.5 + 0.4 * share,
        "win_rate_stderr": 0.01,
        "win_rate_strict": 0.42 + 0.45 * share,
    }
    figures |= {
        "win_rate_greedy": 0.6 + 0.33 * share,
        "kl": 2 * share**1.5,
        "kl_per_token": 0.2 * share,
    }
    figures |= {
        "entropy": 1.4 - 0.6 * share,
        "completion_length": 11 + 2 * share,
        "finished": 0.97 + 0.02 * share,
    }
    figures |= {"distinct_completions": 0.97 - 0.22 * share, "kl_perplexity": 4.2}
    writer.write("evaluate", update, figures, seconds=0.2 * update, of=of)


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    return make_run(tmp_path / "quickstart")


@pytest.fixture(scope="session")
def reported(
    tmp_path_factory: pytest.TempPathFactory,
    with_pictures: Callable[[], AbstractContextManager[None]],
) -> Path:
    """A run directory with its report; drawing takes a second, so the tests that only look share
    it.
    """
    directory = make_run(tmp_path_factory.mktemp("runs") / "quickstart")
    with with_pictures():
        assert write_report(directory) == directory / "report.html"
    return directory


def make_run(directory: Path, num_updates: int = 60) -> Path:
    with MetricsWriter(directory) as writer:
        for j in range(40):
            writer.write(
                "sft",
                j,
                {"loss": 3 * math.exp(-j / 9) + 1, "grad_norm": 1 + wave(j)},
                seconds=0.1 * j,
            )
        writer.write_timing(
            "sft", {"wall_seconds": 14.2, "compile_seconds": 3.1, "evaluate_seconds": 2.0}
        )
        writer.write_timing("comparisons", {"wall_seconds": 4.2})
        for j in range(40):
            figures = {"loss": 0.69 * math.exp(-j / 30), "accuracy": 0.5 + j / 90 + wave(j) / 20}
            writer.write("reward_model", j, figures, seconds=0.3 * j)
        writer.write("evaluate", 40, {"heldout_accuracy": 0.91}, of="reward_model")
        writer.write_timing("reward_model", {"wall_seconds": 21.0, "compile_seconds": 4.0})
        write_rlhf(writer, num_updates)
        writer.write_timing(
            "rlhf", {"wall_seconds": 48.0, "compile_seconds": 6.0, "generate_seconds": 18.5}
        )
        for n in (1, 2, 4, 8):
            figures = {
                "n": float(n),
                "kl": math.log(n) - 1 + 1 / n,
                "win_rate": n / (n + 1) - 0.01 * n,
            }
            writer.write("evaluate", 0, figures, of="best_of_n")
        writer.write_timing("best_of_n", {"wall_seconds": 3.0})
    texts = SamplesWriter(directory)
    kinds: tuple[tuple[Literal["before", "after"], str, float], ...] = (
        ("before", "was rather dull and i slept", 0.125),
        ("after", "was a quiet, moving joy", 1.75),
    )
    for kind, words, gold in kinds:
        samples = [
            Sample(5, "the film", words, True, gold, gold * 2),
            Sample(7, NASTY, words, False, None, 1 - gold),
        ]
        texts.write("rlhf", 0 if kind == "before" else num_updates, kind, samples)
    texts.write("rlhf", 30, "during", [Sample(11, "the plot", "went on", False, 0.5, 0.25)])
    config = {
        "seed": 7,
        "task": {"name": "reviews"},
        "algorithm": {"name": "online_dpo", "beta": 0.1},
        "reward": "learned",
        "reward_model": {"standardize": True},
        "evaluate": {"num_prompts": 1024},
        "rlhf": {"temperature": 1.0, "loop": "synchronous", "note": "<b>"},
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory
