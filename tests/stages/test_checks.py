"""What cannot run is told before anything is compiled or written: settings against each other, the
devices and the task.
"""

import dataclasses
import json
import os
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from rlhf_jax import build
from rlhf_jax.planner.costs import hardware
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.runtime import supervised
from rlhf_jax.stages import comparisons, reward_model, sft
from rlhf_jax.stages.checks import earlier, settings, task
from rlhf_jax.stages.common import planning
from rlhf_jax.tasks.api import is_heldout

FITS = [f"add {a} and {b}:" for a in range(6) for b in range(10)]


def heldout(text: str) -> str:
    """The text with the first number after it that makes a held-out prompt of it."""
    return next(f"{text}{n}:" for n in range(999) if is_heldout(f"{text}{n}:", 10))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def config(tmp_path):
    """A pipeline on prompts with short references and comparisons of them, that can run."""
    config = build.default()
    config.directory = str(tmp_path / "run")
    config.task = build.component("tasks", "jsonl")
    config.task.prompts = write(
        tmp_path / "prompts.jsonl", [{"prompt": p, "references": ["7"]} for p in FITS]
    )
    pairs = [{"prompt": p, "chosen": "7", "rejected": "no"} for p in FITS]
    config.task.comparisons = write(tmp_path / "comparisons.jsonl", pairs)
    config.tokenizer.kind = "bytes"
    config.lengths.max_prompt_tokens, config.lengths.max_completion_tokens = 20, 8
    config.model.width, config.model.num_layers, config.model.num_heads, config.model.ffn_width = (
        16,
        1,
        2,
        32,
    )
    config.evaluate.num_prompts = config.evaluate.num_prompts_between = config.best_of_n_prompts = (
        5  # all there are
    )
    return config


def refusal(config) -> tuple[str, ...]:
    """What `prepare` refuses, having written nothing."""
    with pytest.raises(Refusal) as refused:
        build.prepare(config)
    assert not Path(config.directory).exists()
    return refused.value.messages


def said(config) -> list[str]:
    """What a run that begins tells a person."""
    lines: list[str] = []
    build.prepare(config, lines.append)
    return lines


def test_what_was_read_is_told_in_a_line(config):
    (line,) = said(config)
    params = sum(
        leaf.size
        for leaf in jax.tree.leaves(
            jax.eval_shape(build.parts(config)[0].model.init, jax.random.key(0))
        )
    )
    assert "60 rows" in line
    assert "55 train and 5 held-out prompts, 55 and 5 comparisons" in line
    assert f"model of {params:,} parameters on 1 cpu device" in line


def test_an_evaluation_of_more_prompts_than_there_are_is_told(config):
    config.evaluate.num_prompts = 64
    assert said(config)[1].startswith(
        "evaluations take all 5 held-out prompts: evaluate.num_prompts is 64"
    )
    config.job, config.directory = "sft", config.directory + "_sft"
    assert len(said(config)) == 1


def test_keys_that_the_run_does_not_read_are_told(config):
    config.rlhf.num_slots, config.rlhf.segment_steps, config.lora.alpha = 4, 2, 8.0
    alpha, slots, steps = (line for line in said(config) if line.startswith("note: "))
    assert alpha == "note: lora.alpha=8.0 is not read without lora.rank of 1 or more"
    assert slots == "note: rlhf.num_slots=4 is not read without rlhf.engine=slots"
    assert steps.startswith("note: rlhf.segment_steps=2 ")
    config.lora.rank, config.rlhf.engine = 2, "slots"
    config.directory += "_with"
    assert not [line for line in said(config) if "is not read" in line]


def test_nothing_is_said_where_nobody_asked(config, capsys):
    build.prepare(config)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_a_prompt_that_is_too_long_is_named_in_either_split(config, tmp_path, split):
    long = "a question from somebody who explains at length "
    prompt = heldout(long) if split == "held-out" else long
    rows = [{"prompt": p, "references": ["7"]} for p in [*FITS, prompt]]
    config.task.prompts = write(tmp_path / "prompts.jsonl", rows)
    (message,) = refusal(config)
    assert (
        f"1 of {6 if split == 'held-out' else 56} {split} prompts are longer than "
        "lengths.max_prompt_tokens = 20" in message
    )
    assert f"has {len(prompt)} tokens; accepted: at least {len(prompt)}" in message


def test_a_prompt_of_a_comparison_that_is_too_long_is_named(config, tmp_path):
    pairs = [
        {"prompt": p, "chosen": "7", "rejected": "no"}
        for p in [*FITS, "a prompt of 29 bytes in a pair"]
    ]
    config.task.comparisons = write(tmp_path / "comparisons.jsonl", pairs)
    (message,) = refusal(config)
    assert "1 of 56 prompts of train comparisons are longer" in message
    config.job = "sft"
    said(config)


def test_references_that_lose_their_eos(config, tmp_path):
    """All: refused, unless that share is asked for; some: a line."""
    rows = [{"prompt": p, "references": ["seven it is"]} for p in FITS]
    config.task.prompts = write(tmp_path / "prompts.jsonl", rows)
    (message,) = refusal(config)
    assert "55 of 55 references are longer than lengths.max_completion_tokens = 8" in message
    assert "sft.min_whole_references = 0.05" in message
    config.lengths.max_completion_tokens = len("seven it is") + 1
    assert len(said(config)) == 1
    config.lengths.max_completion_tokens = len("seven it is")
    config.directory += "_cut"
    assert refusal(config)
    config.sft.min_whole_references = 0.0
    assert "55 of 55 references" in said(config)[1]


def test_some_references_that_lose_their_eos_are_counted(config, tmp_path):
    rows = [{"prompt": p, "references": ["7", "seven it is"]} for p in FITS]
    config.task.prompts = write(tmp_path / "prompts.jsonl", rows)
    assert said(config)[1].startswith(
        "55 of 110 references are longer than lengths.max_completion_tokens = 8 and lose their end"
    )
    config.pretrained.sft = (
        "models/none"  # then no SFT is run, and what its references would lose is of no interest
    )
    assert "references" not in str(refusal_of_task(config))


def refusal_of_task(config):
    """The notices of a task whose policy is said to be there."""
    made = build.parts(config_without_hub(config))
    workspace = dataclasses.replace(
        made[0], pretrained=dataclasses.replace(made[0].pretrained, sft=config.pretrained.sft)
    )
    return task.Check("pipeline", workspace, made[1]).run()


def config_without_hub(config):
    config = config.copy_and_resolve_references()
    config.pretrained.sft = ""
    return config


def test_comparisons_that_lose_their_end_are_counted(config, tmp_path):
    pairs = [{"prompt": p, "chosen": "7", "rejected": "eight or nine"} for p in FITS]
    config.task.comparisons = write(tmp_path / "comparisons.jsonl", pairs)
    assert said(config)[1].startswith(
        "60 of 60 comparisons have a completion longer than lengths.max_completion_tokens = 8"
    )


def test_a_learned_reward_needs_comparisons_or_a_judge(config):
    config.task.comparisons = ""
    (message,) = refusal(config)
    assert "neither comparisons nor a gold judge" in message
    config.job = "sft"
    said(config)


def test_comparisons_of_one_side_alone_and_too_few(config, tmp_path):
    train = [p for p in FITS if not is_heldout(p, 10)]
    pairs = [{"prompt": p, "chosen": "7", "rejected": "no"} for p in train]
    config.task.comparisons = write(tmp_path / "comparisons.jsonl", pairs)
    assert "all 55 comparisons of the task are train ones" in refusal(config)[0]
    config.reward_model.pairs_per_update = 64
    wanted = "55 train comparisons; accepted: at least reward_model.pairs_per_update = 64"
    assert wanted in refusal(config)[0]


def test_a_reward_that_cannot_read_the_task(config):
    config.reward = "exact_match"
    assert "needs a verifiable task" in refusal(config)[0]
    config.reward = "gold"
    assert "reward names 'gold', but the task has no judge" in refusal(config)[0]
    config.reward, config.rlhf.ledger_gold = "learned", True
    assert "rlhf.ledger_gold is True, but the task has no judge" in refusal(config)[0]


def test_answers_are_enough_for_the_defaults(config, tmp_path):
    """The form of a row that the docstring of the task gives, with the defaults of
    configs/jsonl.py.
    """
    config.task.prompts = write(
        tmp_path / "prompts.jsonl", [{"prompt": p, "answer": "7"} for p in FITS]
    )
    config.reward = "exact_match"
    assert len(said(config)) == 1


def test_a_split_without_prompts(config):
    config.task.heldout_percent = 0
    assert any(
        "the task has no held-out prompts, which best_of_n, rlhf needs" in line
        for line in refusal(config)
    )
    config.job = "sft"
    said(config)


def test_symbols_that_the_tokenizer_lacks_are_told_with_what_reads_them(config):
    config.task = build.component("tasks", "addition")
    config.tokenizer.kind, config.reward = "words", "exact_match"
    messages = refusal(config)
    assert all(
        "--config.tokenizer.kind=characters reads this task" in message for message in messages
    )
    config.tokenizer.kind = "characters"
    said(config)


def test_every_problem_is_told_at_once(config):
    config.lengths.max_prompt_tokens, config.rlhf.ledger_gold, config.task.comparisons = 5, True, ""
    said_of = "\n".join(refusal(config))
    for words in ("no judge", "neither comparisons nor", "55 train prompts", "5 held-out prompts"):
        assert words in said_of


MISSING = [
    ("comparisons", "stage 'sft' first"),
    ("reward_model", "stage 'sft' first"),
    ("rlhf", "stage 'sft' first"),
    ("evaluate", "stage 'sft' first"),
    ("export", "stage 'rlhf' first"),
]


@pytest.mark.parametrize(("job", "words"), MISSING)
def test_a_stage_whose_input_is_not_there(config, job, words):
    config.job = job
    with pytest.raises(MissingInput, match=words):
        build.prepare(config)
    assert not Path(config.directory).exists()


def test_rlhf_needs_the_reward_model_s_file(config, tmp_path, monkeypatch):
    monkeypatch.setattr(earlier, "complete_steps", lambda directory: [1])
    monkeypatch.setattr(earlier.stage_records, "check_finished", lambda directory, stage: None)
    config.job = "rlhf"
    assert (
        f"{tmp_path}/run/reward_model.json is missing: run the stage 'reward_model' first"
        in refusal(config)[0]
    )
    config.pretrained.reward_model = ""
    config.reward = "gold"
    assert "reward_model.json" not in str(refusal(config))


SETTINGS = [
    (
        {"rlhf.optimizer.warmup_updates": 64},
        "rlhf.optimizer.warmup_updates is 64, but there are 64 updates",
    ),
    (
        {"sft.optimizer.warmup_updates": 301},
        "sft.optimizer.warmup_updates is 301, but there are 300 updates",
    ),
    (
        {"reward_model.optimizer.warmup_updates": 300},
        "reward_model.optimizer.warmup_updates is 300",
    ),
    (
        {"sft.num_updates": 1, "sft.optimizer.schedule": "linear_by_round"},
        "sft.optimizer.schedule is 'linear_by_round'",
    ),
    (
        {"rlhf.total_prompts": 32, "rlhf.optimizer.schedule": "linear_by_round"},
        "but there is one round",
    ),
    ({"best_of_n": (3, 4)}, "best_of_n is (3, 4); accepted: sizes that divide the largest"),
    ({"best_of_n": (1, 0)}, "best_of_n is 0; accepted: 1 or more"),
    (
        {"best_of_n_prompts": 2000},
        "best_of_n_prompts is 2000; accepted: at most evaluate.num_prompts = 5",
    ),
    ({"directory": " "}, "directory is empty"),
    ({"directory": "/proc/version/run"}, "but /proc/version is a file"),
    (
        {"directory": "~/runs/first"},
        f"which is read as it is written; accepted: {os.path.expanduser('~/runs/first')!r}",
    ),
    (
        {"directory": "/proc/missing/../run"},
        "which is read as it is written; accepted: '/proc/run'",
    ),
    ({"model.width": 18}, "which rotary positions turn in pairs"),
    ({"model.width": 15}, "width 15 is not a multiple of num_heads 2"),
    ({"model.family": "llama"}, 'config.model = build.model("llama", "quickstart")'),
    ({"model.family": "json"}, "which is no family of decoders"),
    ({"job": "none"}, "no 'none' in rlhf_jax/stages/"),
    ({"seed": 2**31}, "seed is 2147483648; accepted: 0 to 2**31 - 1"),
]


@pytest.mark.parametrize(("changes", "words"), SETTINGS, ids=[words for _, words in SETTINGS])
def test_settings_that_contradict_each_other(config, changes, words):
    directory = config.directory
    config.update_from_flattened_dict(changes)
    with pytest.raises(Refusal) as refused:
        build.prepare(config)
    assert words in str(refused.value)
    assert not Path(directory).exists()


def test_a_config_lacks_a_node(config):
    values = config.to_dict()
    del values["rlhf"], values["seed"]
    with pytest.raises(Refusal, match="the config lacks 'rlhf', 'seed'"):
        build.prepare(ConfigDict(values))


@pytest.mark.parametrize("num_devices", [3, 7])
def test_every_batch_that_the_mesh_does_not_divide_is_named(config, num_devices):
    config.mesh.data = num_devices
    keys = {line.split(" is ")[0] for line in refusal(config)}
    assert keys >= {
        "sft.rows_per_update",
        "reward_model.pairs_per_update",
        "reward_model.standardize_prompts",
    }
    config.job = "sft"
    assert [line.split(" is ")[0] for line in refusal(config)] == ["sft.rows_per_update"]
    config.sft.rows_per_update = 4 * num_devices
    said(config)


def test_a_batch_of_sampled_comparisons_and_of_a_judge(config, tmp_path):
    """The batch of comparisons matters only where they are sampled, that of pretrained.gold only
    where it judges.
    """
    config.mesh.data, config.job = 3, "comparisons"
    config.pretrained.gold_rows_per_batch = config.comparisons.prompts_per_batch = 4
    made = build.parts(config)
    pretrained = dataclasses.replace(made[0].pretrained, gold="a model")
    with pytest.raises(
        Refusal, match=r"pretrained\.gold_rows_per_batch is 4, which does not divide"
    ):
        settings.check_settings("comparisons", made[1], pretrained, made[2], made[0].mesh)
    check = task.Check("comparisons", dataclasses.replace(made[0], pretrained=pretrained), made[1])
    check.comparisons()
    check.sampled_pairs = True
    with pytest.raises(
        Refusal, match=r"comparisons\.prompts_per_batch is 4, which does not divide"
    ):
        check.comparisons()


def test_the_stages_of_a_job(config):
    _, stages, _ = build.parts(config)
    pretrained = build.parts(config)[0].pretrained

    def of(job, reward="learned", **changes):
        return settings.stages_of(
            job,
            dataclasses.replace(stages, reward=reward),
            dataclasses.replace(pretrained, **changes),
        )

    whole = {"sft", "comparisons", "reward_model", "rlhf", "best_of_n"}
    assert of("pipeline") == of("a job of one's own") == whole
    assert of("pipeline", "exact_match") == {"sft", "rlhf"}
    assert of("pipeline", sft="policy", reward_model="reward") == {
        "reward_model",
        "rlhf",
        "best_of_n",
    }
    assert of("comparisons", "gold", sft="policy") == {"comparisons"}
    assert of("export") == set()


def test_texts_are_encoded_once(config, monkeypatch):
    """Reading stays linear: no prompt is encoded twice, though comparisons have the same, and of
    references a sample is.
    """
    workspace, stages, _ = build.parts(config)
    seen: list[str] = []
    kind, encode = type(workspace.tokenizer), type(workspace.tokenizer).encode
    monkeypatch.setattr(kind, "encode", lambda self, text: seen.append(text) or encode(self, text))
    task.Check("pipeline", workspace, stages).run()
    assert sorted(text for text in seen if text.startswith("add")) == sorted(FITS)
    assert len(task.evenly(range(100_000))) <= task.SAMPLED
    assert task.evenly(range(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("stage", [sft, reward_model])
@pytest.mark.parametrize(("every", "expected"), [(0, 300), (7, 7)])
def test_a_cadence_of_0_is_only_at_the_end(config, monkeypatch, stage, every, expected):
    workspace, stages, _ = build.parts(config)
    comparisons.run(workspace, stages.comparisons, {})
    monkeypatch.setattr(
        supervised, "train", lambda **given: pytest.fail(str(given["checkpoint_every"]))
    )
    of_stage = dataclasses.replace(getattr(stages, stage.STAGE), checkpoint_every=every)
    with pytest.raises(pytest.fail.Exception, match=f"^{expected}$"):
        stage.run(workspace, of_stage, *([{}] if stage is reward_model else []))


def test_memory_that_may_not_do_is_a_notice_and_what_cannot_do_is_refused(config, monkeypatch):
    workspace, stages, algorithm = build.parts(config)
    assert planning.check_memory(workspace, stages, algorithm) == []  # cores share a host's memory

    def with_bytes(memory_bytes: float) -> list[str]:
        device = dataclasses.replace(hardware.TABLE["h100"], memory_bytes=memory_bytes)
        monkeypatch.setattr(hardware, "lookup", lambda _: device)
        return planning.check_memory(workspace, stages, algorithm)

    assert with_bytes(80e9) == []
    (notice,) = with_bytes(1.5e6)
    assert notice.startswith("may not fit in memory: ")
    with pytest.raises(Refusal, match="does not fit on device 0 by"):
        with_bytes(1e5)
