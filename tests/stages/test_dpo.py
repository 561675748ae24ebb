"""Offline DPO: its loss and the wiring of pairs by hand, runs that are stopped, and its policy
wherever that of RLHF is taken.
"""

import json
import re
import shutil
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import offline_dpo
from rlhf_jax import build, updating
from rlhf_jax.cli import compare as compare_command
from rlhf_jax.cli import evaluate as evaluate_command
from rlhf_jax.cli import export as export_command
from rlhf_jax.cli import report as report_command
from rlhf_jax.devices import distributed
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime import supervised
from rlhf_jax.stages import comparisons, dpo, rlhf, sft
from rlhf_jax.types import Outputs
from tests.stages import runs

SIZES = runs.SIZES | {
    "dpo.num_updates": 6,
    "dpo.pairs_per_update": 4,
    "dpo.evaluate_every": 4,
    "dpo.checkpoint_every": 2,
}
TRUE, FALSE = True, False


def config(directory, argument="", **changed):
    found = offline_dpo.get_config(argument)
    dotted = {key.replace("__", "."): value for key, value in changed.items()}
    found.update_from_flattened_dict(SIZES | dotted | {"directory": str(directory)})
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 6 updates that was never stopped."""
    directory = tmp_path_factory.mktemp("dpo") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        # The report has the command of the run, here that of pytest with the files that it names.
        patch.setattr(sys, "orig_argv", ["python", "-m", "experiments.run"])
        build.run(config(directory))
    return directory


def pairs_by_hand():
    """Two pairs of up to 2 tokens; a masked log-probability is NaN."""
    mask_RC = jnp.array([[TRUE, TRUE], [TRUE, FALSE], [TRUE, FALSE], [TRUE, TRUE]])
    logprob_RC = jnp.array([[-1.0, -2.0], [-3.0, jnp.nan], [-2.0, jnp.nan], [-1.0, -0.5]])
    nothing = jnp.zeros((4, 1), jnp.int32)
    pairs = dpo.Pairs(
        nothing, nothing == 0, jnp.zeros((4, 2), jnp.int32), mask_RC, jnp.array([-5.0, -2.0, -1.0, -2.0])
    )  # fmt: skip
    return Outputs(logprob_RC=logprob_RC, entropy_RC=jnp.ones((4, 2))), pairs


def test_the_loss_by_hand():
    # S = (−3, −3) and (−2, −1.5); less the reference (2, −1) and (−1, 0.5): margins 3 and −1.5.
    outputs, pairs = pairs_by_hand()
    beta = 0.5
    total, metrics = dpo.loss(outputs, pairs, dpo.Config(beta=beta))
    np.testing.assert_allclose(total, np.log1p(np.exp(-1.5)) + np.log1p(np.exp(0.75)), rtol=1e-6)
    values = {name: metric.value() for name, metric in metrics.items()}
    expected = {
        "accuracy": 0.5,
        "margin": 0.75,
        "chosen_reward": 0.25,
        "rejected_reward": -0.125,
        "chosen_logprob": -2.5,
        "rejected_logprob": -2.25,
        "reference_kl_k1": -0.125,
        "entropy": 1.0,
    }
    assert values == pytest.approx(expected)


def test_smoothing_and_ipo_by_hand():
    outputs, pairs = pairs_by_hand()
    smoothed = dpo.Config(beta=0.5, label_smoothing=0.25)
    # −¾ log σ(x) − ¼ log σ(−x) with x = 1.5 and −0.75; −log σ(−x) = x − log σ(x).
    plain = np.log1p(np.exp(-np.array([1.5, -0.75])))
    expected = (plain + 0.25 * np.array([1.5, -0.75])).sum()
    np.testing.assert_allclose(dpo.loss(outputs, pairs, smoothed)[0], expected, rtol=1e-6)
    # β = 0.25 asks for a margin of 2: (3 − 2)² + (−1.5 − 2)² = 1 + 12.25.
    ipo = dpo.Config(loss_type="ipo", beta=0.25)
    np.testing.assert_allclose(dpo.loss(outputs, pairs, ipo)[0], 13.25, rtol=1e-6)


def test_ipo_with_smoothing_is_refused():
    with pytest.raises(Refusal, match=r"dpo.label_smoothing is 0.1.+accepted"):
        dpo.Config(loss_type="ipo", label_smoothing=0.1)


def test_every_epoch_has_an_order_of_its_own_and_no_pair_twice():
    settings = dpo.Config(num_updates=5, pairs_per_update=3)
    index_NU = dpo.order(0, 7, settings)  # 2 updates an epoch, one pair is left out
    assert index_NU.shape == (5, 3)
    for epoch in (index_NU[:2], index_NU[2:4]):
        assert len(np.unique(epoch)) == 6
    assert (index_NU[:2] != index_NU[2:4]).any()
    assert (dpo.order(0, 7, replace(settings, num_updates=3)) == index_NU[:3]).all()


def test_the_versions_that_are_evaluated():
    every = dpo.Config(num_updates=6, evaluate_every=4)
    assert dpo.evaluated_versions(every) == (4, 6)
    assert dpo.evaluated_versions(replace(every, evaluate_every=3)) == (3, 6)
    assert dpo.evaluated_versions(replace(every, evaluate_every=0)) == (6,)


def test_rows_are_chosen_then_rejected(whole):
    """The text of each row, and the reference's log-probability against that of the text alone."""
    workspace, *_ = build.of_directory(whole)
    lines = comparisons.read(workspace, "train")[:3]
    pairs = dpo.encode(workspace, lines)
    tokenizer, width = workspace.tokenizer, workspace.lengths.max_completion_tokens
    for row in range(6):
        line, side = lines[row // 2], ("chosen", "rejected")[row % 2]
        tokens = pairs.tokens_RC[row][np.asarray(pairs.mask_RC[row])].tolist()
        assert tokens == line[f"{side}_tokens"][:width]
        prompt = pairs.prompt_tokens_RQ[row][np.asarray(pairs.prompt_mask_RQ[row])].tolist()
        assert tokenizer.decode(prompt) == line["prompt"]
    taken = dpo.take(pairs, np.array([2, 0]))
    assert (taken.tokens_RC == pairs.tokens_RC[np.array([4, 5, 0, 1])]).all()
    params = sft.load(workspace)
    logprob_R = dpo.Logprobs(workspace, 2)(params, pairs)
    for row in range(6):
        mask = np.asarray(pairs.prompt_mask_RQ[row])
        tokens = np.concatenate([
            np.asarray(pairs.prompt_tokens_RQ[row])[mask],
            np.asarray(pairs.tokens_RC[row])[np.asarray(pairs.mask_RC[row])],
        ])[None]  # fmt: skip
        positions = np.arange(tokens.shape[1])[None]
        hidden, _ = workspace.model.apply(params, tokens, positions, np.ones_like(tokens, bool))
        table = jax.nn.log_softmax(workspace.model.head(params, hidden))[0]
        first = int(mask.sum())
        alone = sum(table[at - 1, tokens[0, at]] for at in range(first, tokens.shape[1]))
        np.testing.assert_allclose(logprob_R[row], alone, rtol=1e-4)


def test_the_first_update_begins_at_the_reference(whole):
    first = runs.lines(whole, "metrics.jsonl", "dpo")[1]
    assert first["update"] == 0
    assert first["loss"] == pytest.approx(np.log(2), rel=1e-4)
    assert first["margin"] == pytest.approx(0, abs=1e-3)


def test_every_evaluation_is_written_once(whole):
    evaluated = [line for line in runs.lines(whole, "metrics.jsonl", "dpo") if "of" in line]
    assert [line["update"] for line in evaluated] == [0, 4, 6]
    names = {"win_rate", "gold_mean", "kl", "heldout_accuracy", "heldout_chosen_reward"}
    assert names <= evaluated[-1].keys()
    assert "reward_mean" not in evaluated[-1], "there is no reward model"
    assert not (whole / "reward_model.json").exists()


@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_stopped_run_ends_as_one_that_never_was(whole, tmp_path, monkeypatch, stop_at):
    """Killed while an update is under way; after 2 with its checkpoint, after 5 with that of 4."""
    again = tmp_path / "again"
    build.run(config(again, job="sft"))
    train = supervised.train

    def killed(**given):
        done = iter(range(stop_at))

        def step(state, rows):
            if next(done, None) is None:
                raise ZeroDivisionError
            return given["step"](state, rows)

        return train(**(given | {"step": step}))

    with monkeypatch.context() as patch:
        patch.setattr(supervised, "train", killed)
        with pytest.raises(ZeroDivisionError):
            build.run(config(again))
    assert runs.steps(again, "dpo")[-1] == stop_at // 2 * 2
    build.run(config(again))
    assert runs.same(runs.state(whole, "dpo"), runs.state(again, "dpo"))
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert runs.lines(whole, name, "dpo") == runs.lines(again, name, "dpo")


def test_numbers_that_scale_are_arguments_of_the_update(whole, tmp_path, monkeypatch):
    """Two runs with other numbers have one program and other metrics."""
    texts, compiled = [], distributed.compiled

    def recorded(function, **options):
        run = compiled(function, **options)
        if getattr(function, "func", None) is not updating.train_step:
            return run

        def step(*arguments):
            texts.append(run.lower(*arguments).as_text())
            return run(*arguments)

        return step

    monkeypatch.setattr(distributed, "compiled", recorded)
    metrics = []
    for value in (0.1, 0.2):
        changed = {"beta": value, "label_smoothing": value, "optimizer__learning_rate": value / 100}
        directory = tmp_path / str(value)
        build.run(
            config(
                directory,
                begin=str(whole),
                dpo__num_updates=1,
                **{f"dpo__{key}": number for key, number in changed.items()},
            )
        )
        metrics.append(runs.lines(directory, "metrics.jsonl", "dpo")[1])
    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert metrics[0]["grad_norm"] != metrics[1]["grad_norm"]
    assert metrics[0]["update_norm"] != metrics[1]["update_norm"]


def test_a_finished_run_is_not_run_again(whole):
    before = runs.tree(whole)
    build.run(config(whole))
    after = runs.tree(whole)
    changed = {name for name in after if before.get(name) != after[name]}
    assert {name for name in changed if "checkpoints" in name or name.endswith(".jsonl")} == set()


def test_micro_batches_and_shards_change_rounding_only(whole, tmp_path):
    for name, changed in (
        ("micro", {"dpo__num_micro_batches": 2}),
        ("sharded", {"mesh__data": 2, "mesh__fsdp": 2}),
    ):
        directory = tmp_path / name
        build.run(config(directory, begin=str(whole), **changed))
        for array, expected in zip(
            runs.policy(directory, "dpo"), runs.policy(whole, "dpo"), strict=True
        ):
            np.testing.assert_allclose(array, expected, atol=2e-4)


def test_every_stage_writes_how_long_it_compiled(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    timings = {line["stage"]: line for line in lines if line.get("kind") == "timing"}
    assert {"sft", "comparisons", "dpo"} <= timings.keys()
    for timing in timings.values():
        parts = timing["compile_seconds"] + timing.get("evaluate_seconds", 0.0)
        assert 0 < timing["compile_seconds"] <= parts <= timing["wall_seconds"]


@pytest.mark.pictures
def test_its_policy_is_evaluated_exported_and_reported(whole, tmp_path, capsys):
    workspace, *_ = build.of_directory(whole)
    assert rlhf.versions(workspace) == [4, 6]
    assert evaluate_command.main([f"--directory={whole}"]) == 0
    last = json.loads((whole / evaluate_command.FILE).read_text().splitlines()[-1])
    told = [line for line in runs.lines(whole, "metrics.jsonl", "dpo") if "of" in line][-1]
    assert last["version"] == 6
    assert last["gold_mean"] == pytest.approx(told["gold_mean"], rel=1e-5)
    assert last["kl"] == pytest.approx(told["kl"], rel=1e-3, abs=1e-6)
    capsys.readouterr()
    assert export_command.main([f"--directory={whole}", f"--to={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert report_command.main([f"--directory={whole}"]) == 0
    page = (whole / "report.html").read_text()
    for words in (
        "offline DPO on reviews",
        "Implicit rewards",
        "to train the policy",
        "Gold win-rate",
    ):
        assert words in page
    assert "Not there yet" not in page
    assert "reward_model" not in page.partition("Resolved config")[0]


def test_another_run_begins_from_its_version(whole, tmp_path):
    """With a learning rate of 0 it stays there, in DPO and in RLHF."""
    still = {"begin": f"{whole}@4", "dpo__optimizer__learning_rate": 0.0}
    build.run(config(tmp_path / "dpo", **still))
    assert runs.same(runs.policy(tmp_path / "dpo", "dpo"), runs.policy(whole, "dpo", 4))
    runs.run(
        tmp_path / "rlhf",
        begin=f"{whole}@4",
        rlhf__optimizer__learning_rate=0.0,
        rlhf__total_prompts=4,
    )
    assert runs.same(runs.policy(tmp_path / "rlhf"), runs.policy(whole, "dpo", 4))


def test_a_run_has_one_policy(whole):
    with pytest.raises(Refusal, match=r"has a policy of the stage 'dpo'.+--config\.begin="):
        build.prepare(config(whole, job="pipeline"))


def test_a_run_that_was_stopped_before_its_first_checkpoint_is_no_pipeline(whole, tmp_path):
    """Its lines would be told as those of the pipeline's policy."""
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    shutil.rmtree(directory / "checkpoints" / "dpo")
    for job in ("pipeline", "rlhf"):
        with pytest.raises(Refusal, match=r"has lines of the stage 'dpo'.+--config\.begin="):
            build.checked(config(directory, job=job, reward="gold"))
    build.checked(config(directory))


def test_runs_are_compared(whole, tmp_path, capsys):
    """The verdict is of the evaluations of DPO, and the key that differs is one of its node."""
    worse = tmp_path / "worse"
    shutil.copytree(whole, worse)
    path = worse / "config.json"
    values = json.loads(path.read_text())
    values["dpo"]["beta"], values["directory"] = 0.3, str(worse)
    path.write_text(json.dumps(values))
    lines = [json.loads(line) for line in (worse / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line.get("of") == "dpo" and line["update"]:
            line["win_rate"], line["gold_mean"] = -1.0, line["gold_mean"] - 100
    (worse / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = tmp_path / "page.html"
    assert compare_command.main([str(worse), str(whole), f"--to={page}"]) == 0
    text = page.read_text()
    assert '<div class="verdict"><b>B: beta 0.1 is ' in text, "the second one is the better one"
    assert re.search(r"dpo\.beta</code> is 0\.1 in B and 0\.3 in A", text)
    assert "RLHF took" not in text


def test_a_changed_key_is_refused_once_it_has_begun(whole):
    with pytest.raises(Refusal, match=r"dpo\.beta.+--config\.begin="):
        build.prepare(config(whole, dpo__beta=0.3))
    build.prepare(config(whole, dpo__checkpoint_every=3))


def test_adapters_are_trained_on_one_base_and_go_on_to_the_same_bits(tmp_path):
    """The reference is the base with the adapter of SFT; a checkpoint holds adapters alone."""
    directory, again = tmp_path / "run", tmp_path / "again"
    adapted = {"lora__rank": 3}
    build.run(config(directory, **adapted))
    workspace, _, _ = build.of_directory(directory)
    trained, reference = rlhf.load(workspace)[0], sft.load(workspace)
    for x, y in zip(jax.tree.leaves(trained.base), jax.tree.leaves(reference.base), strict=True):
        np.testing.assert_array_equal(x, y)
    assert any(
        (np.asarray(x) != np.asarray(y)).any()
        for x, y in zip(
            jax.tree.leaves(trained.adapter), jax.tree.leaves(reference.adapter), strict=True
        )
    )
    shutil.copytree(directory, again)
    for step in runs.steps(again, "dpo")[1:]:
        shutil.rmtree(again / "checkpoints" / "dpo" / str(step))
    build.run(config(again, **adapted))
    for x, y in zip(runs.state(directory, "dpo"), runs.state(again, "dpo"), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_job_needs_its_node(tmp_path):
    with pytest.raises(Refusal, match=r"no node 'dpo'.+accepted"):
        build.checked(runs.config(tmp_path / "run", job="dpo"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Prompts without answers, and comparisons of which "yes" is always chosen."""
    folder = tmp_path_factory.mktemp("files")
    asked = [f"question {number} ?" for number in range(60)]
    prompts = [{"prompt": text, "references": ["yes", "no"]} for text in asked]
    pairs = [{"prompt": text, "chosen": "yes", "rejected": "no"} for text in asked]
    for name, rows in (("prompts", prompts), ("comparisons", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_given_comparisons_are_learned_without_reward_or_judge(files, tmp_path, loss_type):
    """A wrong sign would order no held-out pair as labelled, and never say yes."""
    directory = tmp_path / "run"
    found = config(
        directory,
        f"loss_type={loss_type}",
        dpo__num_updates=30,
        dpo__evaluate_every=0,
        dpo__optimizer__learning_rate=1e-2,
        sft__num_updates=30,
        sft__optimizer__learning_rate=2e-2,
        tokenizer__kind="bytes",
        lengths__max_prompt_tokens=16,
        reward="learned",
        evaluate__num_prompts=4,
    )
    found.task = build.component("tasks", "jsonl")
    for name in ("prompts", "comparisons"):
        found.task[name] = str(files / f"{name}.jsonl")
    found.task.heldout_percent = 30
    build.run(found)
    lines = runs.lines(directory, "metrics.jsonl", "dpo")
    last = [line for line in lines if "of" in line][-1]
    assert last["heldout_accuracy"] == 1.0
    assert last["heldout_chosen_reward"] > 0 > last["heldout_rejected_reward"]
    assert "gold_mean" not in last
    after = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    said = [line["completion"] for line in after if line["kind"] == "after"]
    assert said.count("yes") > len(said) / 2 > said.count("no")
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == ["dpo", "sft"]


def test_files_without_enough_comparisons_are_refused(files, tmp_path):
    found = config(tmp_path / "run", dpo__pairs_per_update=64, tokenizer__kind="bytes")
    found.task = build.component("tasks", "jsonl")
    found.task.prompts = str(files / "prompts.jsonl")
    with pytest.raises(Refusal, match=r"gives neither comparisons nor a gold judge.+DPO"):
        build.checked(found)
    found.task.comparisons = str(files / "comparisons.jsonl")
    with pytest.raises(Refusal, match=r"train comparisons; accepted: at least dpo.pairs_per_up"):
        build.checked(found)
