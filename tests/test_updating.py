"""One update: its gradient against finite differences, micro-batches, denominators, meshes,
donation, memory, schedules.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import MESHES, C, V

from rlhf_jax import micro_batches, scoring, updating
from rlhf_jax.devices import sharding
from rlhf_jax.ops.losses import cross_entropy_sum
from rlhf_jax.ops.masked import masked_count, masked_sum
from rlhf_jax.ops.policy_gradient.learning_rate_scale import (
    LearningRateScale,
    scale_of,
    with_row_share,
)
from rlhf_jax.types import Max, Mean, Outputs

ROWS = 8
SGD = optax.sgd(1.0)


def token_loss(outputs, batch):
    """Log-likelihood and a little entropy, summed, and one metric of each kind."""
    entropy = masked_sum(outputs.entropy_RC, batch.mask_RC)
    metrics = {
        "entropy": Mean(entropy, masked_count(batch.mask_RC)),
        "largest": Max(-outputs.logprob_RC.min()),
    }
    return cross_entropy_sum(outputs.logprob_RC, batch.mask_RC) - 0.1 * entropy, metrics


def make_step(
    model=None, optimizer=SGD, aggregation="token", num_micro_batches=1, unit_rows=2, **jit
):
    step = partial(
        updating.train_step,
        objective=updating.policy_objective(token_loss, model or tiny.make_model(num_layers=1)),
        optimizer=optimizer,
        aggregation=aggregation,
        unit_rows=unit_rows,
        num_micro_batches=num_micro_batches,
    )
    return jax.jit(step, **jit)


def fresh(optimizer=SGD, model=None):
    return updating.init_state(tiny.make_params(model or tiny.make_model(num_layers=1)), optimizer)


def gradient_of(state, stepped):
    """What SGD at rate 1 subtracted."""
    return jax.tree.map(
        lambda before, after: np.asarray(before) - np.asarray(after), state.params, stepped.params
    )


def assert_trees_close(one, other, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), one, other)


@pytest.fixture(scope="module")
def whole():
    """State, batch, and the update in one piece."""
    state, batch = fresh(), tiny.make_batch(ROWS)
    return state, batch, *make_step()(state, batch)


def test_gradient_is_that_of_finite_differences(whole):
    """Along random directions, of the loss per token computed apart from `update`, in float64 on
    the host.
    """
    state, batch, stepped, metrics = whole
    apply = jax.jit(partial(scoring.completion_hidden, model=tiny.make_model(num_layers=1)))
    mask_RC = np.asarray(batch.mask_RC)

    def loss(params) -> float:
        rows = (batch.prompt_tokens_RQ, batch.prompt_mask_RQ, batch.tokens_RC, batch.mask_RC)
        hidden_RCD = np.asarray(apply(params, *rows), np.float64)
        scaled_RCV = (
            hidden_RCD
            @ np.asarray(params["embed_out"]["kernel"], np.float64)
            / np.float64(batch.temperature)
        )
        logprob_RCV = scaled_RCV - np.log(np.exp(scaled_RCV).sum(-1, keepdims=True))
        chosen_RC = np.take_along_axis(logprob_RCV, np.asarray(batch.tokens_RC)[..., None], -1)[
            ..., 0
        ]
        entropy_RC = -(np.exp(logprob_RCV) * logprob_RCV).sum(-1)
        return float((-chosen_RC - 0.1 * entropy_RC)[mask_RC].sum() / mask_RC.sum())

    np.testing.assert_allclose(metrics["loss"].value(), loss(state.params), rtol=1e-5)
    grads, random = gradient_of(state, stepped), np.random.default_rng(0)
    for _ in range(5):
        direction = jax.tree.map(
            lambda x: random.standard_normal(x.shape).astype(np.float32), state.params
        )
        moved = [
            jax.tree.map(lambda x, d, step=step: x + step * d, state.params, direction)
            for step in (2e-3, -2e-3)
        ]
        expected = (loss(moved[0]) - loss(moved[1])) / 4e-3
        found = sum(
            np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, direction)), strict=True)
        )
        np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("num_micro_batches", [2, 4])
def test_micro_batches_give_one_gradient(whole, num_micro_batches):
    state, batch, stepped, metrics = whole
    split, split_metrics = make_step(num_micro_batches=num_micro_batches)(state, batch)
    assert_trees_close(gradient_of(state, split), gradient_of(state, stepped), rtol=1e-4, atol=2e-6)
    assert (
        set(split_metrics)
        == set(metrics)
        >= {"entropy", "largest", "loss", "grad_norm", "update_norm"}
    )
    for name, metric in metrics.items():
        np.testing.assert_allclose(split_metrics[name].value(), metric.value(), rtol=1e-5)


def linear_objective(params, batch):
    """Σ w[token]: its gradient counts tokens."""
    return masked_sum(params[batch.tokens_RC], batch.mask_RC), {}


@pytest.mark.parametrize("num_micro_batches", [1, 2, 4])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "pair", "constant_length"])
def test_the_sum_is_divided_once(aggregation, num_micro_batches):
    """A loss averaged by micro-batch would give other numbers: the micro-batches' token counts are
    far apart.
    """
    batch = tiny.make_batch(ROWS)
    mask_RC, tokens_RC = np.asarray(batch.mask_RC), np.asarray(batch.tokens_RC)
    tokens_of_part_N = np.asarray(micro_batches.split_rows(batch, 4, 2).mask_RC).sum((1, 2))
    assert tokens_of_part_N.max() >= 1.5 * tokens_of_part_N.min()
    count = {
        "token": mask_RC.sum(),
        "sequence": ROWS,
        "pair": ROWS / 2,
        "constant_length": ROWS * C,
    }[aggregation]
    state = updating.init_state(jnp.zeros(V), SGD)
    options = {"optimizer": SGD, "unit_rows": 2, "num_micro_batches": num_micro_batches}
    step = jax.jit(
        partial(updating.train_step, objective=linear_objective, aggregation=aggregation, **options)
    )
    stepped, metrics = step(state, batch)
    expected_V = np.bincount(tokens_RC[mask_RC], minlength=V) / count
    np.testing.assert_allclose(-stepped.params, expected_V, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"].value(), np.linalg.norm(expected_V), rtol=1e-6)
    assert float(metrics["loss"].count) == count


def test_units_stay_whole_in_micro_batches():
    """Six pairs over three micro-batches: every third pair, both rows of it."""
    parts_N = micro_batches.split_rows({"row": jnp.arange(12), "scalar": jnp.float32(7)}, 3, 2)
    np.testing.assert_array_equal(parts_N["row"], [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]])
    np.testing.assert_array_equal(parts_N["scalar"], [7, 7, 7])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("token", 5), ("sequence", 4), ("pair", 2), ("constant_length", 12)],
)
def test_denominators(aggregation, expected):
    """Lengths 3, 0, 1, 1 of C = 3 positions: 5 tokens, 4 rows, 2 pairs, 4 * 3 positions."""
    mask_RC = jnp.arange(3)[None] < jnp.array([3, 0, 1, 1])[:, None]
    count = updating.denominator(mask_RC, aggregation)
    assert (float(count), count.dtype) == (expected, jnp.float32)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("token", 4), ("sequence", 3), ("pair", 1.5), ("constant_length", 9)],
)
def test_rows_that_do_not_count_leave_the_denominator(aggregation, expected):
    """The last row is left out; of nothing at all, one is counted."""
    mask_RC = jnp.arange(3)[None] < jnp.array([3, 0, 1, 1])[:, None]
    count = updating.denominator(mask_RC, aggregation, jnp.array([1.0, 1.0, 1.0, 0.0]))
    assert float(count) == expected
    assert float(updating.denominator(mask_RC, aggregation, jnp.zeros(4))) > 0


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_an_update_divides_by_the_rows_that_count(num_micro_batches):
    batch = tiny.make_batch(ROWS)
    counted = batch.replace(counted_R=(jnp.arange(ROWS) % 2).astype(jnp.float32))
    count = updating.denominator(batch.mask_RC, "token")
    fewer = updating.denominator(batch.mask_RC, "token", counted.counted_R)
    assert 0 < float(fewer) < float(count)
    options = {"optimizer": SGD, "unit_rows": 2, "num_micro_batches": num_micro_batches}
    step = jax.jit(
        partial(updating.train_step, objective=linear_objective, aggregation="token", **options)
    )
    state = updating.init_state(jnp.zeros(V), SGD)
    whole_V, counted_V = (step(state, rows)[0].params for rows in (batch, counted))
    np.testing.assert_allclose(counted_V, whole_V * (count / fewer), rtol=1e-5)


def test_a_batch_without_tokens_gives_zero_and_not_nan():
    batch = tiny.make_batch(ROWS)
    empty = batch.replace(mask_RC=jnp.zeros_like(batch.mask_RC))
    state = fresh()
    stepped, metrics = make_step()(state, empty)
    assert metrics["loss"].value() == 0.0
    assert_trees_close(stepped.params, state.params, rtol=0, atol=0)


@pytest.mark.parametrize("shape", MESHES)
def test_a_step_on_a_mesh_is_the_step_on_one_device(whole, shape):
    state, batch, stepped, metrics = whole
    mesh, model = tiny.make_mesh(shape), tiny.make_model(num_layers=1)
    shardings = sharding.state_shardings(model, state, SGD, mesh)
    copied = jax.device_put(jax.tree.map(np.asarray, state), shardings)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(copied.params)), (
        "nothing is sharded"
    )
    rows = jax.device_put(batch, sharding.row_shardings(batch, mesh))
    step = make_step(
        num_micro_batches=1, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh))
    )
    spread, spread_metrics = step(copied, rows)
    assert_trees_close(
        gradient_of(state, spread), gradient_of(state, stepped), rtol=1e-4, atol=1e-5
    )
    for name, metric in metrics.items():
        np.testing.assert_allclose(spread_metrics[name].value(), metric.value(), rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_the_state_is_donated_and_its_layout_a_fixed_point(shape):
    optimizer, model, mesh = optax.adam(1e-3), tiny.make_model(num_layers=1), tiny.make_mesh(shape)
    state = jax.tree.map(np.asarray, fresh(optimizer))
    shardings = sharding.state_shardings(model, state, optimizer, mesh)
    batch = tiny.make_batch(ROWS)
    batch = jax.device_put(batch, sharding.row_shardings(batch, mesh))
    out = (shardings, sharding.replicated(mesh))
    step = make_step(optimizer=optimizer, num_micro_batches=2, donate_argnums=0, out_shardings=out)
    first = jax.device_put(state, shardings)
    with jax.transfer_guard("disallow"):
        second, _ = step(first, batch)
        assert all(array.is_deleted() for array in jax.tree.leaves(first))
        layout = jax.tree.map(lambda x: x.sharding, second)
        third, _ = step(second, batch)
    assert layout == jax.tree.map(lambda x: x.sharding, third) == shardings
    assert step._cache_size() == 1
    assert int(third.step) == 2


def test_logits_never_exist_whole():
    """With a vocabulary far wider than the model, the whole logits would be the largest array; no
    array is half of it.
    """
    rows, vocab_size = 16, 4099
    model = tiny.make_model(num_layers=1, vocab_size=vocab_size)
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = jax.eval_shape(lambda: tiny.make_batch(rows))
    columns = (
        batch.prompt_tokens_RQ,
        batch.prompt_mask_RQ,
        batch.tokens_RC,
        batch.mask_RC,
        batch.temperature,
    )

    def temporary_bytes(max_logits: int) -> int:
        def loss(params, *columns):
            outputs = scoring.policy_outputs(params, *columns, model=model, max_logits=max_logits)
            return outputs.logprob_RC.sum()

        return (
            jax.jit(jax.grad(loss))
            .lower(params, *columns)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    whole = rows * C * vocab_size * 4
    assert temporary_bytes(1 << 22) > whole, "the measure should see whole logits"
    assert temporary_bytes(7 * vocab_size) < whole / 2


def test_master_params_stay_float32_and_take_small_steps():
    """100 Adam steps at 1e-6 on a bfloat16 model: each moves a param by about 1e-6, under half a
    bfloat16 ulp of it.
    """
    model, optimizer = tiny.make_model(num_layers=1, dtype="bfloat16"), optax.adam(1e-6)
    state, batch = fresh(optimizer, model), tiny.make_batch(ROWS)
    before = jax.tree.map(np.asarray, state.params)
    step = make_step(model, optimizer)
    for _ in range(100):
        state, _ = step(state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    kernel = "embed_out"
    moved = np.abs(np.asarray(state.params[kernel]["kernel"]) - before[kernel]["kernel"])
    assert 5e-5 < np.median(moved) < 1.1e-4


@pytest.mark.parametrize(("schedule", "end"), [("linear", 0.0), ("cosine", 0.0), ("constant", 3.0)])
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_count_updates(schedule, end, warmup):
    config = updating.OptimizerConfig(learning_rate=3.0, schedule=schedule, warmup_updates=warmup)
    rate = updating.learning_rate_schedule(config, 13)
    np.testing.assert_allclose(rate(13), end, atol=1e-6)
    np.testing.assert_allclose(rate(0), 0.0 if warmup else 3.0, atol=1e-6)
    np.testing.assert_allclose(rate(warmup), 3.0, atol=1e-6)
    assert float(rate(12)) > 0


@pytest.mark.parametrize("updates_per_round", [1, 3, 6])
def test_a_schedule_stepped_by_rounds_ends_before_the_last_round(updates_per_round):
    """Round r of n = 12 / u trains at 3 · (1 − (r + 1) / n): 0 in the last, (n − 1) / 2n of 3 in
    the mean.
    """
    config = updating.OptimizerConfig(learning_rate=3.0, schedule="linear_by_round")
    rate = updating.learning_rate_schedule(config, 12, updates_per_round)
    num_rounds = 12 // updates_per_round
    expected = [3.0 * (1 - (step // updates_per_round + 1) / num_rounds) for step in range(12)]
    rates = [float(rate(jnp.int32(step))) for step in range(12)]
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    np.testing.assert_allclose(np.mean(rates), 3.0 * (num_rounds - 1) / (2 * num_rounds), atol=1e-6)


def test_unknown_schedule_names_those_there_are():
    with pytest.raises(
        ValueError, match=r"optimizer\.schedule is 'step'; accepted: constant, cosine, linear"
    ):
        updating.learning_rate_schedule(updating.OptimizerConfig(schedule="step"), 13)


def test_clipping_bounds_the_gradient():
    """Adam hides a gradient's scale, so the clipped gradient is read from its first moment: (1 -
    beta1) g.
    """
    grads = {"w": jnp.array([3.0, 4.0])}
    for max_norm, expected in ((1.0, 1.0), (0.0, 5.0), (7.0, 5.0)):
        optimizer = updating.make_optimizer(updating.OptimizerConfig(max_grad_norm=max_norm), 13)
        _, state = optimizer.update(grads, optimizer.init(grads), grads)
        moment = optax.tree_utils.tree_get(state, "mu")["w"]
        np.testing.assert_allclose(np.linalg.norm(moment) / 0.1, expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "linear_by_round"])
def test_numbers_of_the_optimizer_are_arguments_of_an_update(schedule):
    """Another value of each number, or of the run's updates, is the same program and another
    update; as arguments they are what they are as constants.
    """

    def objective(params, batch):
        return masked_sum(params[batch.tokens_RC] ** 2, batch.mask_RC), {}

    def updated(num_updates=7, **changed):
        config = updating.OptimizerConfig(**(values | changed), schedule=schedule)
        optimizer = updating.make_optimizer(config, num_updates, 2)
        state = updating.init_state(jnp.arange(1.0, V + 1), optimizer)
        step = partial(
            updating.train_step, objective=objective, optimizer=optimizer, aggregation="sequence"
        )
        scalars = updating.step_scalars(objective, optimizer)
        compiled = jax.jit(step)
        for _ in range(4):
            before = state
            state, _ = compiled(state, batch, scalars)
        if not changed and num_updates == 7:
            constant, _ = compiled(before, batch)
            np.testing.assert_allclose(state.params, constant.params, rtol=1e-6)
        return compiled.lower(state, batch, scalars).as_text(), np.asarray(state.params)

    batch = tiny.make_batch(ROWS)
    values = {
        "learning_rate": 0.3,
        "epsilon": 0.01,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "warmup_updates": 2,
        "beta1": 0.4,
        "beta2": 0.45,
    }
    text, params = updated()
    others = [{name: 2 * value} for name, value in values.items() if name != "warmup_updates"]
    for changed in (*others, {"warmup_updates": 1}, {"num_updates": 9}):
        other_text, other_params = updated(**changed)
        assert other_text == text, changed
        is_used = schedule != "constant" or "num_updates" not in changed
        assert np.array_equal(other_params, params) != is_used, changed


def test_decay_on_matrices_leaves_norms_biases_and_embeddings_alone():
    """One step at gradient 0 moves what decays by rate x decay, and nothing else."""
    model = tiny.make_model(num_layers=1)
    params = tiny.make_params(model)
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved = {}
    for decay_on in ("all", "matrices"):
        config = updating.OptimizerConfig(
            learning_rate=0.1, schedule="constant", weight_decay=0.5, decay_on=decay_on
        )
        optimizer = updating.make_optimizer(config, 4)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        moved[decay_on] = {
            jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(updates)
        }
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    for name, leaf in moved["all"].items():
        np.testing.assert_allclose(leaf, -0.05 * flat[name], rtol=1e-6)
        if name.endswith("['kernel']"):
            np.testing.assert_array_equal(moved["matrices"][name], leaf)
        else:
            assert not np.asarray(moved["matrices"][name]).any(), name
    with pytest.raises(ValueError, match="decay_on is 'norms'; accepted: all, matrices"):
        updating.make_optimizer(updating.OptimizerConfig(decay_on="norms"), 4)


def table_loss(outputs, batch):
    """Log-likelihood; its outputs are entries of a table, see `scaled_step`."""
    return cross_entropy_sum(outputs.logprob_RC, batch.mask_RC), {}


def scaled_step(
    rule: str, factor: float = 1.0, mesh_shape=None, num_micro_batches: int = 1, factors=()
):
    """The update of version 1 of a table of log-probabilities, with decay of weights and clipped
    gradients, at a learning rate times `factor`: the params after it, and the metrics.
    """
    loss = with_row_share(table_loss) if rule != "none" else table_loss

    def objective(params, batch):
        return loss(Outputs(params[batch.tokens_RC]), batch)

    config = updating.OptimizerConfig(
        learning_rate=0.3 * factor, schedule="constant", weight_decay=0.1, max_grad_norm=0.5
    )
    optimizer = updating.make_optimizer(config, 1)
    scale = scale_of(LearningRateScale(rule, 0.9, factors))
    step = jax.jit(
        partial(
            updating.train_step,
            objective=objective,
            optimizer=optimizer,
            aggregation="sequence",
            unit_rows=2,
            num_micro_batches=num_micro_batches,
            scale=scale,
        )
    )
    state = updating.init_state(-jnp.arange(1.0, V + 1) / V, optimizer)
    state = state.replace(step=jnp.int32(1))
    batch = tiny.make_batch(ROWS)
    if mesh_shape is not None:
        mesh = tiny.make_mesh(mesh_shape)
        batch = jax.device_put(batch, sharding.row_shardings(batch, mesh))
        state = jax.device_put(state, sharding.replicated(mesh))
    scalars = updating.step_scalars(objective, optimizer, scale)
    first, metrics = step(state, batch, scalars)
    return np.asarray(first.params), {name: m.value() for name, m in metrics.items()}


@pytest.mark.parametrize("rule", ["sqrt_ess", "linear_ess"])
def test_an_update_is_scaled_as_a_smaller_learning_rate_would(rule):
    """The factor is that of the rows' ratios; the update, decay of weights included, is that of the
    learning rate times it. Parts of a minibatch and devices give the factor of the whole.
    """
    batch, table_V = tiny.make_batch(ROWS), -np.arange(1.0, V + 1) / V
    change_RC = table_V[np.asarray(batch.tokens_RC)] - np.asarray(batch.behavior_logprob_RC)
    weight_R = np.exp(np.where(batch.mask_RC, change_RC, 0).sum(1))
    share = weight_R.sum() ** 2 / (ROWS * (weight_R**2).sum())
    factor = share / 0.9 if rule == "linear_ess" else np.sqrt(share / 0.9)
    assert 0.1 < factor < 0.9
    expected, plain = scaled_step("none", factor)
    assert not {"row_ess_share", "learning_rate_scale"} & plain.keys()
    for options in ({}, {"num_micro_batches": 4}, {"mesh_shape": (2, 4, 1)}):
        params, metrics = scaled_step(rule, **options)
        np.testing.assert_allclose(params, expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["row_ess_share"], share, rtol=1e-5)
        np.testing.assert_allclose(metrics["learning_rate_scale"], factor, rtol=1e-5)
        np.testing.assert_allclose(metrics["update_norm"], plain["update_norm"], rtol=1e-5)
    params, metrics = scaled_step("given", factors=(0.125, factor, 0.125))  # of version 1
    np.testing.assert_allclose(params, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["row_ess_share"], share, rtol=1e-5)


def test_a_share_that_is_only_reported_scales_nothing():
    """Bitwise the params of an update without it."""
    params, metrics = scaled_step("report")
    np.testing.assert_array_equal(params, scaled_step("none")[0])
    assert metrics["learning_rate_scale"] == 1.0
    assert 0.0 < metrics["row_ess_share"] < 0.9
