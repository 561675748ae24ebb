"""The model card of an export: what the run directory records of the exported version, and nothing
else.
"""

import json
from pathlib import Path

import pytest

import rlhf_jax
from rlhf_jax.report import model_card

START = {
    "stage": "start",
    "date": "2026-11-29T08:00:00+00:00",
    "command": "rlhf-jax run quickstart --config.note='```a|b'",
    "version": "0.0.9",
    "commit": "0123456789abcdef",
    "environment": {"python": "3.11.7", "versions": {"jax": "0.10.1"}, "device": "cpu"},
}


@pytest.fixture
def directory(run_directory: Path) -> Path:
    """The invented run with a start, a folder that it begins with, and a lag."""
    config = json.loads((run_directory / "config.json").read_text())
    config["pretrained"] = {"base": "models/a|b", "sft": "", "reward_model": ""}
    config["task"] |= {"prompts": "data/prompts.jsonl", "cache_dir": "/somewhere"}
    config["rlhf"] |= {"lag": 3, "clock": "exact"}
    (run_directory / "config.json").write_text(json.dumps(config))
    (run_directory / "starts.jsonl").write_text(json.dumps(START) + "\n")
    return run_directory


def card(directory: Path, stage: str, version: int | None = None, has_tokenizer=True) -> str:
    return model_card.text(directory, stage, version, Path("out/mine"), has_tokenizer)


def test_a_policy_s_card_has_base_data_algorithm_lag_figures_and_command(directory: Path) -> None:
    text = card(directory, "rlhf", 60)
    for words in (
        "# online_dpo on reviews: version 60 of the policy",
        r"| Base | models/a\|b |",
        "| Data | reviews (prompts data/prompts.jsonl) |",
        "| Algorithm | online_dpo (beta 0.1) |",
        "| Lag | 3, synchronous loop, exact clock |",
        "| Seed | 7 |",
        "| Versions | rlhf_jax 0.0.9, python 3.11.7, jax 0.10.1 |",
        "| figure | version 0 | version 60 |",
        "| Win-rate | 0.500 ± 0.020 | 0.900 ± 0.020 |",
        "\n    rlhf-jax run quickstart --config.note='```a|b'\n",
        'AutoTokenizer.from_pretrained("mine")',
        f"Exported by rlhf_jax {rlhf_jax.__version__}.\n",
    ):
        assert words in text
    assert "/somewhere" not in text
    assert "Tokenizer" not in card(directory, "rlhf", 60, has_tokenizer=False)


def test_the_figures_are_those_of_the_exported_version(directory: Path) -> None:
    text = card(directory, "rlhf", 30)
    assert "| Win-rate | 0.500 ± 0.020 | 0.700 ± 0.020 |" in text
    assert "0.900" not in text
    assert "The run directory has no evaluation of this version." in card(directory, "rlhf", 31)


def test_a_card_says_how_the_sampler_is_renewed_and_what_the_buffer_holds(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    changes = {"sync_every": 4, "staged": "none", "buffer_rounds": 3, "buffer_draw": "permutation"}
    config["rlhf"] |= changes
    (directory / "config.json").write_text(json.dumps(config))
    words = "exact clock, sampler renewed every 4 rounds, buffer of 3 round(s), drawn permutation |"
    assert words in card(directory, "rlhf", 60)


def test_an_sft_policy_and_a_reward_model_have_no_lag(directory: Path) -> None:
    policy, scores = card(directory, "sft"), card(directory, "reward_model")
    assert "| Win-rate | 0.500 ± 0.020 |" in policy  # it is version 0 of the policy
    assert "| Held-out accuracy | 0.910 |" in scores
    assert "text-classification" in scores
    assert "AutoModelForCausalLM" not in scores
    for text in (policy, scores):
        assert "Lag" not in text
        assert "beta" not in text


def test_what_a_run_has_not_recorded_is_not_on_its_card(run_directory: Path) -> None:
    (run_directory / "config.json").unlink()
    text = card(run_directory, "rlhf", 60)
    assert "quickstart: version 60 of the policy" in text
    for title in ("Base", "Data", "Algorithm", "Lag", "Command", "Seed", "Versions"):
        assert title not in text
    assert "None" not in text
