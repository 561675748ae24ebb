"""Components by name: the same as a config makes, and one clear sentence for what is not accepted."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import rlhf_jax as rl
from rlhf_jax.algorithms import grpo as grpo_module
from rlhf_jax.algorithms import ppo as ppo_module
from rlhf_jax.models import gpt_neox
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.refusal import ComponentError, Refusal
from rlhf_jax.tasks import addition as addition_module

OWN = """
from dataclasses import dataclass
from rlhf_jax.algorithms import grpo

@dataclass(frozen=True)
class Config(grpo.Config):
    kl_weight: float = 0.0

def make(config: Config):
    return grpo.grpo(config)

def shortness(completions):
    return [-len(text) for text in completions]
"""


@pytest.fixture(scope="module")
def task():
    return rl.task("addition", limit=10)


@pytest.fixture(scope="module")
def tokenizer(task):
    return rl.tokenizer("characters", task)


@pytest.fixture(scope="module")
def model(tokenizer):
    return rl.model(
        "gpt_neox",
        "quickstart",
        vocab_size=tokenizer.vocab_size,
        width=8,
        ffn_width=16,
        num_heads=2,
    )


def test_a_config_instance_is_the_same_as_keywords(task):
    assert rl.task(addition_module.Config(limit=10)).num_prompts("train") == task.num_prompts(
        "train"
    )
    assert rl.task("addition", addition_module.Config(limit=99), limit=10).num_prompts(
        "train"
    ) == task.num_prompts("train")
    assert rl.task(task).task is task.task
    assert rl.algorithm(ppo_module.Config(clip=0.1)).config == rl.algorithm("ppo", clip=0.1).config
    assert rl.algorithm("dr_grpo").name == "dr_grpo"
    preset = dataclasses.replace(gpt_neox.PRESETS["quickstart"], vocab_size=9)
    assert (
        rl.model(preset)
        == rl.model("gpt_neox", preset)
        == rl.model("gpt_neox", "quickstart", vocab_size=9)
    )


def test_nested_settings_change_their_own_keys():
    given = rl.algorithm(
        "grpo",
        grpo_module.Config(correction=Correction(cap=3.0)),
        correction={"ratio_to": "proximal"},
    )
    assert (given.config.correction.cap, given.config.correction.ratio_to) == (3.0, "proximal")
    assert "proximal" in given.needs


def test_a_file_of_ones_own(tmp_path, task):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    assert not rl.algorithm(str(path)).needs
    assert rl.algorithm(str(path), kl_weight=0.5).needs == {"reference"}
    assert rl.reward(f"{path}:shortness", task).judges["shortness"].takes == ("completions",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rl.task("adition"), r"no 'adition' in rlhf_jax/tasks/; there are: addition"),
        (lambda: rl.task("addition", limmit=3), r"task addition has no key 'limmit'; did you mean "
                                                r"'limit'\?"),
        (lambda: rl.task("addition", limit=1), r"task addition.limit is 1; accepted: 2 to 2000"),
        (lambda: rl.task("addition", grpo_module.Config()), r"given a Config; accepted: "
                                                            r"rlhf_jax.tasks.addition.Config"),
        (lambda: rl.task(3), r"3 names nothing in rlhf_jax/tasks/; accepted: addition"),
        (lambda: rl.algorithm("gpro"), r"no 'gpro' in rlhf_jax/algorithms/; there are: .*grpo"),
        (lambda: rl.algorithm("grpo", kl_wight=0.0), r"algorithm grpo has no key 'kl_wight'; did "
                                                     r"you mean 'kl_weight'\?"),
        (lambda: rl.algorithm("grpo", aggregation="mean"), r"aggregation is 'mean'; accepted: "
                                                           r"token, sequence"),
        (lambda: rl.model("gpt_neo", "quickstart"), r"no 'gpt_neo' in rlhf_jax/models/; there are: "
                                                    r".*gpt_neox"),
        (lambda: rl.model("gpt_neox", "qickstart"), r"no preset 'qickstart' .*; accepted: "
                                                    r"quickstart, tiny"),
        (lambda: rl.model("gpt_neox", "quickstart"), r"vocab_size 0; accepted: "
                                                     r"vocab_size=tokenizer.vocab_size"),
        (lambda: rl.model("gpt_neox", "tiny", widht=8), r"has no key 'widht'; did you mean "
                                                        r"'width'\?"),
        (lambda: rl.tokenizer("letters"), r"tokenizer.kind is 'letters'; accepted: words, "
                                          r"characters"),
        (lambda: rl.tokenizer("words"), r"needs a task with a closed vocabulary"),
        (lambda: rl.reward("exact_mach"), r"no 'exact_mach' in rlhf_jax/rewards/; there are: "
                                          r"exact_match"),
        (lambda: rl.reward("exact_match", rl.task("reviews")), r"needs a verifiable task; Reviews "
                                                               r"is not"),
        (lambda: rl.reward("learned"), r"has a model; accepted: rl.reward\('learned', task, "
                                       r"model=\.\.\., params"),
        (lambda: rl.reward(lambda prompts, completions: [], weight=1), r"is a function, which has "
                                                                       r"no weight"),
        (lambda: rl.reward("exact_match + 0.5 * gold", rl.task("addition"), golden={}), r"no term "
                                                                                        r"'golden'; accepted"),
    ],
)  # fmt: skip
def test_what_is_not_accepted_is_told_in_one_sentence(make, message):
    with pytest.raises(Refusal, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_an_object_that_is_no_task():
    class Half:
        def prompt(self, split, index):
            return ""

    with pytest.raises(ComponentError, match=r"the task Half is a Half without .*num_prompts"):
        rl.task(Half())


def test_prompts_know_their_places(task, tokenizer):
    ten = task.prompts("train", 0, 10)
    again = task.prompts("train", 4, 3)
    assert list(ten)[4:7] == list(again) == list(ten[4:7])
    assert len(set(ten)) == 10
    assert list(task.prompts("train", 0, 10, seed=1)) != list(ten)
    assert rl.encode(again, tokenizer).ordinal_P.tolist() == [4, 5, 6]
    assert rl.encode(list(again), tokenizer, first_ordinal=9, max_tokens=7).tokens_PQ.shape == (
        3,
        7,
    )
    with pytest.raises(Refusal, match="accepted: a sequence of one text or more"):
        rl.encode([], tokenizer)
    with pytest.raises(Refusal, match="accepted: 1 to max_prompt_tokens = 2"):
        rl.encode(again, tokenizer, max_tokens=2)


def test_vocabularies_have_to_agree(task, tokenizer, model):
    larger = rl.model("gpt_neox", "quickstart", vocab_size=99, width=8, ffn_width=16, num_heads=2)
    state = rl.init(larger, optax.sgd(0.1), jax.random.key(0))
    prompts = rl.encode(task.prompts("train", 0, 2), tokenizer)
    with pytest.raises(
        Refusal, match=r"vocab_size is 99, and the tokenizer has 14 tokens; accepted: rl.model"
    ):
        rl.sample(state, prompts, jax.random.key(1), larger, tokenizer)
    with pytest.raises(Refusal, match="vocab_size is 99"):
        rl.run(larger, task, rl.algorithm("grpo"), rl.reward("exact_match", task), num_rounds=1)


def test_other_arguments_that_are_not_accepted(task, tokenizer, model):
    state = rl.init(model, optax.sgd(0.1), jax.random.key(0))
    prompts = rl.encode(task.prompts("heldout", 0, 2), tokenizer)
    samples = rl.sample(state, prompts, jax.random.key(1), model, tokenizer, samples_per_prompt=2)
    reward, grpo, ppo = rl.reward("exact_match", task), rl.algorithm("grpo"), rl.algorithm("ppo")
    scores = rl.score(
        samples, reward, tokenizer
    )  # of the other split, which is found by its tokens
    assert np.isin(scores.raw_B, (0, 1)).all()
    with pytest.raises(
        Refusal, match=r"grpo needs reference beside the score; accepted: .*'reference': \.\.\."
    ):
        grpo.credit(samples, scores)
    a2po, stored_PS = rl.algorithm("a2po"), np.ones((samples.tokens_BC.shape[0], 3))
    with_reference = rl.score(
        samples, reward, tokenizer, model=model, params={"reference": state.params}
    )
    with pytest.raises(Refusal, match=r"a2po needs stored scores .* reference_score_PS=\.\.\.\)"):
        a2po.credit(samples, with_reference)
    with pytest.raises(Refusal, match=r"reference_score_PS has the shape \(.*, 3\); accepted: \("):
        rl.score(samples, reward, tokenizer, reference_score_PS=stored_PS)
    with pytest.raises(Refusal, match=r"a2po needs stored scores .*, which rl\.run does not make"):
        rl.run(model, task, a2po, reward, num_rounds=1)
    with pytest.raises(
        Refusal,
        match="params has 'refrence'; accepted: reference, proximal, value, gradient_energy",
    ):
        rl.score(samples, reward, tokenizer, model=model, params={"refrence": state.params})
    with pytest.raises(Refusal, match="were given without their model"):
        rl.score(samples, reward, tokenizer, params={"reference": state.params})
    with pytest.raises(Refusal, match="has no key 'missing_eos'; did you mean 'missing_eos_score'"):
        rl.score(samples, reward, tokenizer, missing_eos=0.0)
    with pytest.raises(Refusal, match="ppo trains policy, critic, and the state has policy"):
        rl.update(state, None, ppo, model, optax.sgd(0.1))  # type: ignore[arg-type]
    with pytest.raises(Refusal, match="optimizer has policy; accepted: one for critic too"):
        rl.init(model, {"policy": optax.sgd(0.1)}, jax.random.key(0), ppo)
    with pytest.raises(Refusal, match="not its task's at their ordinals; accepted: prompts=texts"):
        rl.score(dataclasses.replace(samples, ordinal_B=samples.ordinal_B + 1), reward, tokenizer)
    with pytest.raises(Refusal, match="made for no task; accepted: max_tokens=24"):
        rl.sample(state, prompts, jax.random.key(1), model, dataclasses_free(tokenizer))
    with pytest.raises(Refusal, match="samples_per_prompt is 0; accepted: 1 or more"):
        rl.sample(state, prompts, jax.random.key(1), model, tokenizer, samples_per_prompt=0)
    for settings, message in (
        ({"total_prompts": 8}, "has no key 'total_prompts'"),
        ({"lagg": 1}, "has no key 'lagg'; did you mean 'lag'"),
        ({"samples_per_prompt": 1}, "grpo needs at least 2"),
        ({"num_rounds": 0}, "num_rounds is 0"),
    ):
        with pytest.raises(Refusal, match=message):
            rl.run(model, task, grpo, reward, **{"num_rounds": 1} | settings)


def dataclasses_free(tokenizer):
    """The same tokenizer without a task."""
    return type(tokenizer)(tokenizer.symbols, tokenizer.separator, tokenizer.noun)


def test_keys_of_a_nested_dataclass_are_changed_over_the_components_own_defaults():
    cispo = rl.algorithm("cispo", surrogate={"cap": 4.0})
    assert cispo.name == "cispo"
    assert (cispo.config.surrogate.cap, cispo.config.surrogate.flow) == (4.0, "logprob")
    assert rl.algorithm("rloo", correction={"cap": 3.0}).config.correction.level == "sequence"
