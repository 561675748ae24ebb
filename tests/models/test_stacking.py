"""Stacked layers: both forms of every family compute the same, and one becomes the other exactly."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from rlhf_jax import sampling, scoring
from rlhf_jax.models import gemma3, gpt_neox, llama, qwen2
from rlhf_jax.models.common import adapters, blocks, stacking
from rlhf_jax.models.common.family import find
from rlhf_jax.ops.masked import positions_from_mask
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Prompts, Samples

from .families import SUBJECTS, V, config_of, quick_jit, random_params

Q, C = 4, 3
LORA = adapters.Config(rank=2)
NARROW = {"width": 16, "num_heads": 2, "ffn_width": 8, "init_scale": 2.0}
GROUPED = {"num_kv_heads": 1, "head_width": 8}
PERIODS = {"gemma2": 2, "gemma3": 2, "olmo3": 2, "smollm3": 2}
LAYERS = dict.fromkeys(PERIODS, 4) | {"gemma3": 5}  # two repeats, and in one family a rest


def models(name: str, **changes: object) -> tuple:
    """A narrow model of few layers, unrolled and stacked."""
    shape = NARROW | ({} if name == "gpt_neox" else GROUPED) | changes
    shape["num_layers"] = LAYERS.get(name, 2)
    return tuple(find(name).make(config_of(name, **shape, scan_layers=least)) for least in (0, 2))


def rows() -> tuple[jax.Array, ...]:
    """Two prompts with two completions each, as `scoring.completion_hidden` takes them."""
    random = np.random.default_rng(3)
    tokens_RQ = jnp.asarray(random.integers(0, V, (2, Q)).repeat(2, axis=0))
    mask_RQ = jnp.arange(Q)[None] >= jnp.array([0, 0, 2, 2])[:, None]
    return tokens_RQ, mask_RQ, jnp.asarray(random.integers(0, V, (4, C))), jnp.ones((4, C), bool)


def of_whole_rows(params: dict, model: object) -> tuple:
    """A loss, and the log-probabilities that it is of."""
    tokens_BL, mask_BL, *_ = rows()
    hidden, _ = model.apply(params, tokens_BL, positions_from_mask(mask_BL), mask_BL)
    logprobs = jax.nn.log_softmax(model.head(params, hidden))
    return jnp.sum(jnp.square(logprobs[:, -2:])), (hidden, logprobs)


def of_completions(params: dict, model: object) -> tuple:
    """A loss, and the hidden states that it is of: each prompt is run once, and cached."""
    hidden = scoring.completion_hidden(params, *rows(), model, rows_per_prompt=2)
    return jnp.sum(jnp.square(hidden[..., :3])), hidden


def close(actual: object, expected: object, atol: float = 1e-5) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol * max(1, np.abs(theirs).max()))


def compare(name: str, loss: Callable, **changes: object) -> None:
    """Both forms in one program: values and gradients. The changes are of the stacked one."""
    plain, stacked = models(name)
    stacked = stacked.with_config(**changes)
    params = random_params(plain, 0)

    @quick_jit
    def values(params: dict) -> tuple:
        of = jax.value_and_grad(loss, has_aux=True)
        return of(params, plain), of(stacked.stacked(params), stacked)

    (expected, gradient), (actual, stacked_gradient) = values(params)
    close(actual, expected)
    assert stacking.positions(stacked_gradient) == PERIODS.get(name, 1)
    close(stacking.unstack(stacked_gradient), gradient)


@pytest.mark.parametrize("name", SUBJECTS)
def test_training_and_scoring_do_not_depend_on_the_form(name):
    compare(name, of_whole_rows)


def test_a_prompt_run_once_does_not_depend_on_the_form():
    compare("llama", of_completions, remat=True, remat_policy="dots")


def test_adapters_are_stacked_with_their_layers():
    plain, stacked = models("gemma3")
    adapter = jax.tree.map(lambda x: x + 0.1, adapters.init(plain, LORA, jax.random.key(1)))
    params = adapters.Adapted(random_params(plain, 0), adapter, LORA.scale)
    own = jax.eval_shape(partial(adapters.init, stacked, LORA), jax.random.key(1))
    assert own["scanned_layers_1"]["q_proj"]["a"].shape == (2, 16, 2)

    def hidden(params: object, model: object) -> jax.Array:
        return scoring.completion_hidden(params, *rows(), model)

    def forms(params: adapters.Adapted) -> tuple:
        deep = stacked.stacked(params)
        mixed = adapters.Adapted(deep.base, params.adapter, params.scale)
        other = adapters.Adapted(params.base, deep.adapter, params.scale)
        return tuple(hidden(own, stacked) for own in (params, deep, mixed, other))

    expected, *others = quick_jit(forms)(params)
    for found in others:
        close(found, expected)
    assert np.abs(expected - hidden(params.base, plain)).max() > 0.01
    again = adapters.merged(stacked.stacked(params))
    close(stacking.unstack(again), adapters.merged(params))
    half = adapters.compact(jax.tree.map(jnp.copy, stacked.stacked(params.base)), "bfloat16")
    plain_half = adapters.compact(jax.tree.map(jnp.copy, params.base), "bfloat16")
    assert jax.tree.map(lambda x: x.dtype, stacking.unstack(half)) == jax.tree.map(
        lambda x: x.dtype, plain_half
    )


@pytest.mark.parametrize("large", [1 << 20, 64], ids=["one draw", "a draw a matrix"])
def test_initial_weights_are_the_unrolled_ones(monkeypatch, large):
    monkeypatch.setattr("rlhf_jax.models.common.decoder.SHARED_DRAW", large)
    plain, stacked = models("gpt_neox")
    expected, actual = (
        quick_jit(lambda key, model=model: model.init(key))(jax.random.key(5))
        for model in (plain, stacked)
    )
    assert stacking.is_stacked(actual)
    assert not stacking.is_stacked(expected)
    close(stacking.unstack(actual), expected, atol=0)
    kernel = actual["scanned_layers_0"]["dense"]["kernel"]
    assert kernel.shape == (2, 16, 16)
    assert not np.array_equal(kernel[0], kernel[1])


def test_stack_and_unstack_are_inverse_for_any_tree_of_layers():
    layers = {f"layer_{index}": {"k": np.full((2, 3), index)} for index in range(7)}
    tree = {"a": (layers | {"head": np.ones(3)}, 4), "b": {"other": np.zeros(2)}}
    stacked = stacking.stack(tree, 3)
    found = stacked["a"][0]
    assert sorted(found) == [
        "head",
        "layer_6",
        "scanned_layers_0",
        "scanned_layers_1",
        "scanned_layers_2",
    ]
    assert isinstance(found["scanned_layers_1"]["k"], np.ndarray)  # stays on the host
    np.testing.assert_array_equal(found["scanned_layers_1"]["k"][:, 0, 0], [1, 4])
    close(stacking.unstack(stacked), tree, atol=0)
    assert stacking.stack(tree, 0) is tree
    for path in flatten_dict(layers):
        place, index = stacking.where_of(path, found)
        array = flatten_dict(found)[place]
        np.testing.assert_array_equal(
            array if index is None else array[index], layers[path[0]]["k"]
        )
        if index is not None:
            assert stacking.members(place, found)[index] == path


def from_12(config):
    """A config whose layers are stacked from 12 layers on."""
    return dataclasses.replace(config, scan_layers=12)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (gpt_neox.PRESETS["pythia-410m"], 0),  # off unless it is asked for
        (from_12(gpt_neox.PRESETS["pythia-410m"]), 1),
        (from_12(gpt_neox.PRESETS["small"]), 0),  # six layers
        (from_12(gemma3.PRESETS["gemma-3-1b"]), 6),
        (dataclasses.replace(gemma3.PRESETS["gemma-3-1b"], scan_layers=27), 0),
        (from_12(dataclasses.replace(gemma3.PRESETS["gemma-3-1b"], num_layers=12)), 6),
        # Windows that begin at a layer do not repeat.
        (from_12(qwen2.Config(V, 16, 24, 2, 1, 24, sliding_window=4, first_window_layer=14)), 0),
    ],
)
def test_layers_are_stacked_where_they_repeat(config, length):
    assert stacking.period(config) == length


def test_logical_axes_have_a_dimension_of_layers():
    _, stacked = models("gemma3")
    params = jax.eval_shape(stacked.init, jax.random.key(0))
    axes = stacked.logical_axes(params)
    assert axes["scanned_layers_0"]["q_proj"]["kernel"] == (None, "embed", "heads")
    assert axes["scanned_layers_1"]["q_norm"]["weight"] == (None, None)
    assert axes["layer_4"]["q_proj"]["kernel"] == ("embed", "heads")
    adapter = jax.eval_shape(partial(adapters.init, stacked, LORA), jax.random.key(0))
    assert stacked.logical_axes(adapter)["scanned_layers_0"]["o_proj"] == {
        "a": (None, "heads", None),
        "b": (None, None, None),
    }


def test_decoding_from_stacked_params_is_decoding_from_unrolled_ones():
    plain, stacked = models("gemma3")
    params = random_params(plain, 0)
    tokens, mask, *_ = rows()
    positions = positions_from_mask(mask)

    @quick_jit
    def decoded(params: dict) -> tuple:
        found = []
        for model, own in ((plain, params), (stacked, stacked.stacked(params))):
            cache, hidden = model.init_cache(4, Q), []
            for columns in (slice(0, 3), slice(3, 4)):
                inputs = (x[:, columns] for x in (tokens, positions, mask))
                out, cache = model.apply(own, *inputs, cache)
                hidden.append(out)
            found.append((hidden, cache))
        return tuple(found)

    close(*decoded(params))


def sampled(
    params: dict, model: object, num_prompts: int, length: int, **changes: object
) -> Samples:
    """Four completions of each prompt."""
    config = sampling.Config(length, 4, **changes)
    tokens_PQ = jnp.arange(num_prompts * Q, dtype=jnp.int32).reshape(num_prompts, Q) % V
    mask_PQ = jnp.arange(Q)[None] >= jnp.arange(num_prompts)[:, None] % Q
    prompts = Prompts(tokens_PQ, mask_PQ, jnp.arange(num_prompts))
    key, version = jax.random.key(7), jnp.int32(0)
    return sampling.sample(
        params, prompts, key, version, model=model, config=config, eos_id=1, pad_id=0
    )


def test_samples_of_stacked_params_are_those_of_unrolled_ones():
    """With a period, a rest, and rows that are gathered once most have ended."""
    plain, stacked = models("gemma3")

    @quick_jit
    def both(params: dict) -> tuple:
        forms = (plain, params), (stacked, stacked.stacked(params))
        return tuple(sampled(own, model, 2, 9, num_compactions=1) for model, own in forms)

    expected, found = both(random_params(plain, 0))
    np.testing.assert_array_equal(found.tokens_BC, expected.tokens_BC)
    close(found.behavior_logprob_BC, expected.behavior_logprob_BC)
    num_ended = int(jnp.sum(expected.finished_B))
    assert 6 <= num_ended < 8, "compacted"


def test_sampling_copies_neither_stacked_params_nor_the_cache():
    """Temporary memory beside one cache: less than half of the params."""
    config = gpt_neox.Config(64, 64, 24, 4, 256, scan_layers=12)
    model, (num_prompts, length) = gpt_neox.make(config), (2, 12)
    params = jax.eval_shape(model.init, jax.random.key(0))

    def program(params: dict) -> Samples:
        return sampled(params, model, num_prompts, length)

    memory = quick_jit(program).lower(params).compile().memory_analysis()
    cache = jax.eval_shape(lambda: model.init_cache(4 * num_prompts, Q + length))
    cache_bytes, params_bytes = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in ((cache.keys, cache.values), params)
    )
    print(memory.temp_size_in_bytes, cache_bytes, params_bytes)
    assert cache_bytes <= memory.temp_size_in_bytes < cache_bytes + params_bytes / 2


def test_layers_that_differ_are_not_scanned():
    """In a network of the user's own; the scan would run the first one in the place of all."""

    class Other(llama.Layer):
        def activation(self, x_AF: jax.Array) -> jax.Array:
            return jax.nn.relu(x_AF)

    class Network(llama.Network):
        def setup(self) -> None:
            self.embed_tokens = nn.Embed(V, self.config.width)
            self.layer = [llama.Layer(self.config), Other(self.config)]
            self.norm = blocks.RMSNorm(1e-5)
            self.lm_head = blocks.Head(V, nn.initializers.ones)

    class Own(llama.Llama):
        network = Network

    _, stacked = models("llama")
    own = Own(stacked.config)
    tokens = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(own.init, jax.random.key(0))
    with pytest.raises(Refusal, match=r"a Layer and, 1 repeats later, a Other .*scan_layers=0"):
        jax.eval_shape(own.apply, shapes, tokens, tokens, tokens == 0)
