"""The recipes of configs/smollm2/ on a small random Llama in a folder: threads, simulation and a
resumed run end alike bit for bit.
"""

import pytest

from configs.smollm2 import sentiment, sums
from rlhf_jax import build
from rlhf_jax.models import llama
from rlhf_jax.pretrained import export
from rlhf_jax.refusal import Refusal
from rlhf_jax.stages.common.recorder import Recorder
from tests.models.families import random_params
from tests.stages import runs

BYTES = 258
SIZES = {
    "tokenizer.kind": "bytes",
    "tokenizer.eos": "",
    "lengths.max_prompt_tokens": 96,
    "lengths.max_completion_tokens": 6,
    "comparisons.num_train": 64,
    "comparisons.num_heldout": 64,
    "comparisons.prompts_per_batch": 32,
    "reward_model.num_updates": 2,
    "reward_model.pairs_per_update": 2,
    "reward_model.standardize_prompts": 16,
    "rlhf.total_prompts": 24,
    "rlhf.prompts_per_update": 4,
    "rlhf.samples_per_prompt": 4,
    "rlhf.lag": 1,
    "rlhf.evaluate_every": 3,
    "rlhf.checkpoint_every": 2,
    "rlhf.signal.num_prompts": 0,
    "rlhf.optimizer.warmup_updates": 0,
    "evaluate.num_prompts": 8,
    "evaluate.num_prompts_between": 8,
    "evaluate.prompts_per_batch": 8,
    "evaluate.samples_per_prompt": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published folder of the family of SmolLM2, tied, of bytes."""
    place = tmp_path_factory.mktemp("published") / "llama"
    model = llama.make(llama.Config(BYTES, 24, 2, 3, 1, 48, tie_embeddings=True))
    export.save(place, model, random_params(model, 0), token_ids={"max_position_embeddings": 128})
    return place


def configured(config, folder, directory, **changed):
    dotted = {key.replace("__", "."): value for key, value in changed.items()}
    own = {"pretrained.sft": str(folder), "directory": str(directory)}
    config.update_from_flattened_dict(SIZES | own | dotted)
    return config


class Killed(Exception):
    """In the place of a SIGKILL: nothing is saved at it."""


@pytest.mark.parametrize("algorithm", ["online_dpo", "rloo"])
def test_a_cell_of_sentiment_is_one_run_in_threads_simulated_and_resumed(
    folder, tmp_path, monkeypatch, algorithm
):
    def run(name, **changed):
        config = sentiment.get_config(f"algorithm={algorithm}")
        # Random bytes have no sentiment: the comparisons would all be ties.
        monkeypatch.setattr(
            "rlhf_jax.tasks.sentiment.Sentiment.judge",
            lambda self, prompt, completion, finished: (sum(completion.encode()) % 97) / 97,
        )
        build.run(configured(config, folder, tmp_path / name, **changed))

    run("simulated")
    run("threads", rlhf__loop="asynchronous")
    assert not runs.differences(tmp_path / "simulated", tmp_path / "threads")
    rounds, write = [], Recorder.write_ledger

    def killed(self, scored, update):
        rounds.append(scored.round_index)
        if rounds.count(3) == 1 and scored.round_index == 3:
            raise Killed
        write(self, scored, update)

    monkeypatch.setattr(Recorder, "write_ledger", killed)
    with pytest.raises(Killed):
        run("killed", rlhf__loop="asynchronous")
    assert runs.steps(tmp_path / "killed") == [2]
    run("killed", rlhf__loop="asynchronous")
    assert rounds == [0, 1, 2, 3, 2, 3, 4, 5]
    assert not runs.differences(tmp_path / "simulated", tmp_path / "killed")
    # No SFT: the folder is version 0 and the reference, and wins half of the comparisons with
    # its own completions.
    assert not (tmp_path / "killed" / "checkpoints" / "sft").exists()
    evaluations = [
        line for line in runs.lines(tmp_path / "killed", "metrics.jsonl") if line.get("of")
    ]
    first, last = evaluations[0], evaluations[-1]
    assert (first["update"], last["update"]) == (0, 6)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert abs(first["win_rate"] - 0.5) < 5 * first["win_rate_stderr"]
    assert last["kl"] > 0
    assert {"gold_mean", "reward_mean"} <= last.keys()


def test_sums_end_where_the_model_solves_none(folder, tmp_path):
    """A random model is never right: every group is flat, and the recipe says so and stops."""
    config = configured(
        sums.get_config(), folder, tmp_path / "run", rlhf__signal__num_prompts=8, rlhf__lag=0
    )
    with pytest.raises(Refusal) as refused:
        build.run(config)
    (message,) = refused.value.messages
    assert message.startswith(
        "the first policy passes 0.0 % of 4 samples on each of 8 training prompts, and 100.0 % of "
    )
    assert "accepted: a pass rate of rlhf.signal.min_pass_rate=0.2" in message


def test_sums_run_where_they_are_let(folder, tmp_path):
    build.run(configured(sums.get_config(), folder, tmp_path / "run"))
    assert runs.steps(tmp_path / "run")[-1] == 6
