"""Facts of a run: the params that its config describes, and nothing where a config is partial or of
another version.
"""

import jax
import pytest

from rlhf_jax import build
from rlhf_jax.report import identity, units
from rlhf_jax.report.read import Run


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
    facts = dict(identity.facts(run, units.resolve(config, [])))
    assert "Command" not in facts
    assert "parameters" not in facts.get("Model", "")


def test_a_run_that_begins_elsewhere_says_where_its_policy_and_reward_model_were_made(tmp_path):
    start = {"origins": {"sft": "stages/sft-1", "reward_model": "stages/reward_model-<2>"}}
    run = Run(tmp_path, {"begin": "stages/reward_model-<2>"}, [], [], (), (), (start,))
    facts = dict(identity.facts(run, units.resolve(run.config, [])))
    assert facts["Begins from"] == (
        "<code>stages/reward_model-&lt;2&gt;</code> (SFT policy of <code>stages/sft-1</code>, "
        "reward model of <code>stages/reward_model-&lt;2&gt;</code>)"
    )
    older = Run(tmp_path, {"begin": "runs/a"}, [], [], (), (), ({},))
    facts = dict(identity.facts(older, units.resolve(older.config, [])))
    assert facts["Begins from"] == "<code>runs/a</code>"
