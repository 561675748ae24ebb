"""The page of compiled figures: written from the committed files, and within the budgets of links."""

import pytest

from experiments.bench import compiled


def test_the_page_is_written_from_the_committed_files():
    again = "run python -m experiments.bench.compiled"
    assert compiled.PAGE.read_text() == compiled.page(), again


@pytest.mark.parametrize("layers", [1, 2, compiled.NUM_LAYERS])
def test_an_update_sends_no_more_than_its_params_and_gradients_ask_for(layers):
    """At most 1.3 times the formula; the head alone sent a hundred times as much before."""
    now = compiled.figures(compiled.AFTER, "train_policy", "link_bytes")
    before = compiled.figures(compiled.BEFORE, "train_policy", "link_bytes")
    budget = 1.3 * compiled.least_link_bytes(layers)
    assert now[layers] <= budget < before[layers]


def test_a_round_of_sampling_sends_the_params_once():
    now = compiled.figures(compiled.AFTER, "generate", "link_bytes")
    params = 2 * compiled.num_params(compiled.NUM_LAYERS)
    assert now[compiled.NUM_LAYERS] <= 1.05 * params * 7 / 8 <= 0.8e9


def test_params_are_counted_as_the_model_has_them():
    from rlhf_jax.models import gpt_neox
    from rlhf_jax.planner.costs.shapes import model_shape

    model = gpt_neox.make(gpt_neox.PRESETS["pythia-410m"])
    assert model_shape(model).num_params == compiled.num_params(compiled.NUM_LAYERS)
