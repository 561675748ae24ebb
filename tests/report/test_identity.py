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
