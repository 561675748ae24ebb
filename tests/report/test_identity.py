"""Facts of a run: the params that its config describes, and nothing where a config is partial or of
another version.
"""

import jax
import pytest

from rlhf_jax import build
from rlhf_jax.report import identity, units
from rlhf_jax.report.read import Run


def by_title(facts) -> dict[str, str]:
    return {fact.title: fact.value for fact in facts}


@pytest.mark.parametrize(("family", "preset"), [("gpt_neox", "quickstart"), ("llama", "tiny")])
def test_params_are_counted_from_the_config(family: str, preset: str):
    """The count is that of the arrays themselves."""
    config = build.model(family, preset)
    config.vocab_size = 23
    node = config.to_dict()
    module = __import__(f"rlhf_jax.models.{family}", fromlist=["make"])
    model = module.make(
        module.Config(**{key: value for key, value in node.items() if key != "family"})
    )
    sizes = [leaf.size for leaf in jax.tree.leaves(jax.jit(model.init)(jax.random.key(0)))]
    assert identity.num_params({"model": node}) == sum(sizes)


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"model": {}},
        {"model": {"family": "gone", "vocab_size": 3}},
        {"model": {"family": "gpt_neox", "vocab_size": 3}},
    ],
)
def test_what_is_not_recorded_is_left_out(config, tmp_path):
    assert identity.num_params(config) is None
    run = Run(tmp_path, config, [], [], ())
    facts = by_title(identity.facts(run, units.resolve(config, [])))
    assert "Command" not in facts
    assert "parameters" not in facts.get("Model", "")


def test_a_run_that_begins_elsewhere_says_where_its_policy_and_reward_model_were_made(tmp_path):
    start = {"origins": {"sft": "stages/sft-1", "reward_model": "stages/reward_model-<2>"}}
    run = Run(tmp_path, {"begin": "stages/reward_model-<2>"}, [], [], (), (), (start,))
    facts = by_title(identity.facts(run, units.resolve(run.config, [])))
    assert facts["Begins from"] == (
        "stages/reward_model-<2> (SFT policy of stages/sft-1, "
        "reward model of stages/reward_model-<2>)"
    )
    older = Run(tmp_path, {"begin": "runs/a"}, [], [], (), (), ({},))
    facts = by_title(identity.facts(older, units.resolve(older.config, [])))
    assert facts["Begins from"] == "runs/a"


START = {
    "date": "2026-11-29T08:00:00+00:00",
    "command": "rlhf-jax run quickstart",
    "version": "0.1.0",
    "commit": "0123456789abcdef",
    "environment": {
        "python": "3.11.7",
        "versions": {"jax": "0.10.1"},
        "device": "TPU v5e",
        "num_devices": 8,
    },
}


def test_the_head_of_a_report_has_all_that_repeats_the_run(tmp_path):
    model = build.model("gpt_neox", "quickstart")
    model.vocab_size = 23
    config = {"seed": 0, "algorithm": {"name": "grpo"}, "model": model.to_dict()}
    run = Run(tmp_path, config, [], [], (), (), (START,))
    head = by_title(identity.head(run))
    assert head.pop("Parameters") == f"{identity.num_params(config):,}"
    assert head == {
        "Algorithm": "grpo",
        "Seed": "0",
        "Started": "2026-11-29 08:00:00 UTC",
        "Hardware": "8 × TPU v5e",
        "Versions": "rlhf_jax 0.1.0, python 3.11.7, jax 0.10.1",
        "Commit": "0123456789ab",
        "Command": "rlhf-jax run quickstart",
    }


@pytest.mark.parametrize("lost", sorted(START))
def test_a_fact_that_an_older_start_lacks_has_no_entry(tmp_path, lost):
    start = {name: value for name, value in START.items() if name != lost}
    head = by_title(identity.head(Run(tmp_path, {"seed": 3}, [], [], (), (), (start,))))
    assert "Algorithm" not in head
    assert "not recorded" not in str(head)
    assert all(head.values())
    titles = {"date": {"Started"}, "command": {"Command"}, "commit": {"Commit"}, "version": set()}
    assert {"Started", "Hardware", "Versions", "Commit", "Command"} - head.keys() == titles.get(
        lost, {"Hardware"}
    )
    assert ("rlhf_jax" in head["Versions"]) == (lost != "version")
    assert identity.head(Run(tmp_path, None, [], [], ())) == []


def test_oversampling_is_told_among_the_words_of_the_clock():
    """A config of an older release lacks the key."""
    words = "3 prompts sampled for each that is kept"
    assert words in identity.clock_words({"rlhf": {"oversample": 3}})
    assert words not in identity.clock_words({"rlhf": {"oversample": 1}})
    assert not identity.clock_words({"rlhf": {}})
