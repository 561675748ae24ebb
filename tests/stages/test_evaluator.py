"""Evaluations of a split that is smaller than what was asked for, and best-of-n beside them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax import registry, sampling
from rlhf_jax.stages import comparisons, evaluate
from rlhf_jax.stages.api import Lengths, Workspace
from rlhf_jax.stages.common.evaluator import Config, Evaluator
from rlhf_jax.stages.common.reward_unit import LearnedScores
from rlhf_jax.text import tokenizers

NUM_PROMPTS = 40


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A task of a user's file: few held-out prompts, the first of them with one reference, the
    others with two.
    """
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    rows = [
        {"prompt": f"p{n}", "references": ["r"] if n % 3 else ["r", "s"]}
        for n in range(NUM_PROMPTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = registry.find("tasks", "jsonl")
    task = module.make(module.Config(prompts=str(path), heldout_percent=30))
    tokenizer = tokenizers.make(tokenizers.Config(kind="bytes"), None)
    model = tiny.make_model(num_layers=1, vocab_size=tokenizer.vocab_size)
    return Workspace(
        path.parent / "run", 0, task, tokenizer, model, tiny.make_mesh((1, 2, 1)), Lengths(8, 3)
    )


@pytest.fixture
def judged_by_prompt(monkeypatch):
    """Gold is a number of the prompt alone, so that every sample ties with its own prompt's
    references.
    """

    def gold(self, prompts, completions, finished_B):
        return np.array([float(prompt[1:]) for prompt in prompts])

    monkeypatch.setattr(Workspace, "gold", gold)
    monkeypatch.setattr(Workspace, "has_gold", True)


def test_no_prompt_is_evaluated_twice(workspace, judged_by_prompt):
    there = workspace.task.num_prompts("heldout")
    assert 4 < there < 32
    assert there % 2  # the last batch is not full on two devices
    evaluator = Evaluator(
        workspace,
        Config(samples_per_prompt=2, prompts_per_batch=4),
        tiny.make_params(workspace.model),
    )
    figures, judged = evaluator.evaluate(evaluator.reference_params, 1024)
    assert len(judged.prompts) == 2 * there
    assert len(set(judged.prompts)) == there
    assert (
        figures["win_rate"] == 0.5
    )  # every sample ties with the references of its own prompt, one or two
    values = np.array([float(prompt[1:]) for prompt in judged.prompts[::2]])
    np.testing.assert_allclose(figures["gold_mean_stderr"], values.std(ddof=1) / np.sqrt(there))


def test_buckets_of_prompts_change_no_figure(workspace, judged_by_prompt):
    """Batches of similar lengths in narrow widths: rows return in the order of the prompts, with the
    same tokens.
    """
    config = Config(samples_per_prompt=2, prompts_per_batch=2)
    params = tiny.make_params(workspace.model)
    other = jax.tree.map(lambda x: 1.1 * x, params)  # so that there is a divergence
    found = []
    for buckets in (1, 4):
        lengths = dataclasses.replace(workspace.lengths, prompt_buckets=buckets)
        evaluator = Evaluator(dataclasses.replace(workspace, lengths=lengths), config, params)
        drawn = evaluator.draw(other, evaluator._sample, 13)
        found.append((evaluator.judge(drawn), evaluator.evaluate(other, 1024), drawn))
    (judged, (figures, _), whole), (bucketed, (figures_again, _), narrow) = found
    assert {batch.samples.prompt_tokens_BQ.shape[1] for batch in whole} == {8}
    assert {batch.samples.prompt_tokens_BQ.shape[1] for batch in narrow} == {2, 4}  # "p7", "p12"
    assert bucketed.prompts == judged.prompts
    assert len({len(prompt) for prompt in judged.prompts}) > 1
    assert bucketed.completions == judged.completions
    np.testing.assert_array_equal(bucketed.gold_B, judged.gold_B)
    np.testing.assert_allclose(bucketed.kl_B, judged.kl_B, atol=1e-5)
    assert judged.kl_B.min() > 1e-3
    assert figures_again == pytest.approx(figures, abs=1e-5)


@pytest.mark.parametrize("samples_per_prompt", [1, 4])
@pytest.mark.parametrize("length", [0, 2])
def test_best_of_n_is_compared_with_references_of_its_own_prompts(
    workspace, judged_by_prompt, samples_per_prompt, length, monkeypatch
):
    """Samples of an evaluation may be more than the largest n, and their prompts no multiple of a
    batch.
    """
    config = Config(
        samples_per_prompt=samples_per_prompt, prompts_per_batch=3, max_completion_tokens=length
    )
    lengths = []

    def reward(params, samples):
        lengths.append(samples.tokens_BC.shape[1])
        return jnp.arange(samples.tokens_BC.shape[0], dtype=jnp.float32)

    params = tiny.make_params(workspace.model)
    scores = LearnedScores(reward, params, 0.0, 1.0)
    evaluator = Evaluator(workspace, config, params, scores)
    for line in evaluate.best_of_n_line(evaluator, evaluator.reference_params, (1, 2), 9):
        assert line["win_rate"] == 0.5
        assert line["win_rate_strict"] == 0.0
    assert set(lengths) == {length or 3}  # completions as long as the policy's beside them


def test_no_figure_reads_the_reward_of_greedy_samples(workspace, judged_by_prompt):
    """They are the last of each prompt's samples, and are drawn and scored by the same programs."""
    num_rows = []

    def reward(params, samples):
        num_rows.append(samples.tokens_BC.shape[0])
        return jnp.arange(samples.tokens_BC.shape[0], dtype=jnp.float32)

    params = tiny.make_params(workspace.model)
    config = Config(samples_per_prompt=2, prompts_per_batch=4)
    evaluator = Evaluator(workspace, config, params, LearnedScores(reward, params, 0.0, 1.0))
    figures, judged = evaluator.evaluate(params, 4)
    assert set(num_rows) == {12}
    assert judged.reward_B is not None
    assert figures["reward_mean"] == np.delete(np.arange(12), [2, 5, 8, 11]).mean()
    assert "gold_mean_greedy" in figures


def test_purposes_with_one_config_share_a_program(workspace, monkeypatch):
    """They draw what programs of their own would draw."""
    traced, sample = [], sampling.sample

    def counted(*args, **kwargs):
        traced.append(kwargs["config"])
        return sample(*args, **kwargs)

    monkeypatch.setattr(sampling, "sample", counted)
    params, config = tiny.make_params(workspace.model), sampling.Config(3, 2, 0.75)
    prompts = workspace.stream("heldout", "evaluate").prompts(0, 4)

    def tokens(place, purpose):
        return np.asarray(comparisons.sampler(place, config, purpose)(params, prompts).tokens_BC)

    shared = {purpose: tokens(workspace, purpose) for purpose in ("one", "other")}
    assert traced == [config]
    for purpose, drawn in shared.items():
        np.testing.assert_array_equal(drawn, tokens(dataclasses.replace(workspace), purpose))
    assert (shared["one"] != shared["other"]).any()


def test_win_rates_may_compare_with_completions_of_the_sft_policy(workspace, monkeypatch):
    """Gold is a completion's text as a number: the reference policy's own completions are judged,
    drawn apart from those that are evaluated, and not the task's references.
    """
    asked = []

    def gold(self, prompts, completions, finished_B):
        asked.extend(completions)
        return np.array([float(int.from_bytes(text.encode(), "big")) for text in completions])

    monkeypatch.setattr(Workspace, "gold", gold)
    monkeypatch.setattr(Workspace, "has_gold", True)
    monkeypatch.setattr(workspace.task, "references", lambda *_: pytest.fail("they are not read"))
    config = Config(
        samples_per_prompt=2,
        references_per_prompt=3,
        prompts_per_batch=4,
        compare_with="sft_policy",
    )
    params = tiny.make_params(workspace.model)
    figures, judged = Evaluator(workspace, config, params).evaluate(params, 1024)
    there = workspace.task.num_prompts("heldout")
    evaluator = Evaluator(workspace, config, params)
    gold_PR = evaluator.reference_gold
    assert gold_PR.shape == (there, 3)
    assert len(np.unique(gold_PR)) > there  # sampled texts, each judged for its own prompt
    assert judged.gold_B is not None
    assert not np.array_equal(gold_PR[:, :2], judged.gold_B.reshape(there, 2))
    better = (judged.gold_B.reshape(there, 2, 1) > gold_PR[:, None]).mean()
    assert figures["win_rate_strict"] == pytest.approx(better)
    # One policy against itself: 0.5 but for the noise of that many pairs.
    assert abs(figures["win_rate"] - 0.5) < 5 * figures["win_rate_stderr"]
    # A reference that is another policy gives another row of opponents.
    other = Evaluator(workspace, config, tiny.make_params(workspace.model, seed=1))
    assert not np.array_equal(other.reference_gold, gold_PR)
