"""The adjusted rewards against every vertex of the polytope in float64; invariances; modes of
running against each other.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.ops.variance_increase import increase_variance

LOW, HIGH = -1.5, 2.25
NUM_GROUPS, NUM_RESPONSES = 6000, 8
WAYS = [(ties, route) for ties in ("together", "by_index") for route in ("sort", "select")]


@cache  # the compiled programs of one file are shared
def adjuster(ties, route):
    return jax.jit(
        lambda reward, weight, mask: increase_variance(
            reward, LOW, HIGH, weight_PG=weight, mask_PG=mask, ties=ties, route=route
        )
    )


@pytest.fixture(scope="module")
def cases():
    """Groups of 1 to 8: graded rewards, few values (ties), many on a bound; weights with zeros; NaN
    where masked.
    """
    rng = np.random.default_rng(0)
    shape = (NUM_GROUPS, NUM_RESPONSES)
    kind = rng.integers(0, 4, (NUM_GROUPS, 1))
    graded = rng.random(shape) ** rng.choice([0.3, 1.0, 4.0], (NUM_GROUPS, 1))
    few = np.minimum(
        rng.integers(0, 8, shape) / rng.choice([4, 7], (NUM_GROUPS, 1)), 1.0
    )  # budgets on an edge, too
    place = np.select(
        [kind == 0, kind == 1, kind == 2],
        [graded, few, rng.choice([0.0, 1.0, 0.37], shape)],
        graded * 1e-3,
    )
    reward = np.clip((LOW + (HIGH - LOW) * place).astype(np.float32), LOW, HIGH)
    count = rng.integers(1, NUM_RESPONSES + 1, (NUM_GROUPS, 1))
    mask = rng.permuted(np.arange(NUM_RESPONSES) < count, axis=1)
    weight = np.exp(rng.normal(size=shape) * rng.choice([0.3, 2.0], (NUM_GROUPS, 1)))
    weight = np.where(rng.random(shape) < 0.2, 0.0, weight).astype(np.float32)
    return np.where(mask, reward, np.nan).astype(np.float32), weight, mask


def sorted_groups(reward, weight, mask):
    """float64 places, weights and whether the next one is a tie, best first, equal rewards by
    index; masked ones last.
    """
    order = np.argsort(np.where(mask, -reward, np.inf), axis=1, kind="stable")
    reward, mask = np.take_along_axis(reward, order, 1), np.take_along_axis(mask, order, 1)
    weight = np.where(mask, np.take_along_axis(weight.astype(np.float64), order, 1), 0.0)
    place = np.where(mask, (reward.astype(np.float64) - LOW) / (HIGH - LOW), 0.0)
    return order, place, weight, np.pad(reward[:, 1:] == reward[:, :-1], ((0, 0), (0, 1)))


def best_vertex(reward, weight, mask, ties):
    """Largest Σ p x² / Σ p over all vertices (ones, then one value v, then zeros); with ties kept,
    no tie is cut in two.
    """
    _, place, weight, tied = sorted_groups(reward, weight, mask)
    total, budget = weight.sum(1), (weight * place).sum(1)
    ends = np.concatenate([np.zeros((len(place), 1)), np.cumsum(weight, 1)], 1)
    allowed = np.pad(
        ~tied if ties == "together" else np.ones_like(tied), ((0, 0), (1, 0)), constant_values=True
    )
    best = np.full(len(place), -np.inf)
    for first in range(NUM_RESPONSES + 1):
        for last in range(first + 1, NUM_RESPONSES + 1):
            ones, width = ends[:, first], ends[:, last] - ends[:, first]
            value = (budget - ones) / np.where(width > 0, width, 1.0)
            feasible = (
                (width > 0)
                & (value >= -1e-13)
                & (value <= 1 + 1e-13)
                & allowed[:, first]
                & allowed[:, last]
            )
            best = np.where(feasible, np.maximum(best, ones + width * value**2), best)
    return best / np.where(total > 0, total, 1.0), total > 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("ties", "route"), WAYS)
def test_no_vertex_is_better_in_6000_groups(cases, ties, route, weighted):
    reward, weight, mask = cases
    found = adjuster(ties, route)(reward, weight if weighted else None, mask)
    adjusted = np.asarray(found.adjusted_PG)
    weight = weight if weighted else np.ones_like(weight)
    best, has_weight = best_vertex(reward, weight, mask, ties)
    share = np.where(mask, weight, 0.0).astype(np.float64)
    share /= np.maximum(share.sum(1, keepdims=True), 1e-300)
    place = np.where(mask, adjusted.astype(np.float64) - LOW, 0.0) / (HIGH - LOW)
    objective = (share * place**2).sum(1)
    assert np.isfinite(best[has_weight]).all()
    np.testing.assert_allclose(objective[has_weight], best[has_weight], rtol=0, atol=1e-6)
    raw_place = np.where(mask, reward.astype(np.float64) - LOW, 0.0) / (HIGH - LOW)
    np.testing.assert_allclose(
        (share * place).sum(1), (share * raw_place).sum(1), rtol=0, atol=3e-7
    )
    np.testing.assert_allclose(np.where(mask, found.fraction_PG, 0), place, rtol=0, atol=3e-7)
    # Bounds and order: not by an ulp.
    assert (adjusted[mask] >= LOW).all()
    assert (adjusted[mask] <= HIGH).all()
    assert ((found.fraction_PG >= 0) & (found.fraction_PG <= 1)).all()
    above = (reward[:, :, None] > reward[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    assert not (above & (adjusted[:, :, None] < adjusted[:, None, :])).any()
    equal = (reward[:, :, None] == reward[:, None, :]) & np.triu(
        np.ones((NUM_RESPONSES, NUM_RESPONSES), bool)
    )
    if ties == "together":
        assert not (equal & (adjusted[:, :, None] != adjusted[:, None, :])).any()
    else:
        assert not (equal & (adjusted[:, :, None] < adjusted[:, None, :])).any()
    assert (adjusted[~mask] == 0).all()
    np.testing.assert_array_equal(
        adjusted[~has_weight][mask[~has_weight]], reward[~has_weight][mask[~has_weight]]
    )


@pytest.mark.parametrize("ties", ["together", "by_index"])
def test_both_routes_give_one_answer(cases, ties):
    reward, weight, mask = cases
    by_sort, by_selection = (
        adjuster(ties, route)(reward, None, mask) for route in ("sort", "select")
    )
    jax.tree.map(np.testing.assert_array_equal, by_sort, by_selection)
    # With weights the two add them in different orders, so a budget met on the edge may pick the
    # neighbour: equal up to that.
    by_sort, by_selection = (
        adjuster(ties, route)(reward, weight, mask) for route in ("sort", "select")
    )
    share = np.where(mask, weight, 0) / np.maximum(
        np.where(mask, weight, 0).sum(1, keepdims=True), 1e-30
    )
    assert np.max(np.sum(share * np.abs(by_sort.adjusted_PG - by_selection.adjusted_PG), 1)) < 1e-6


@pytest.mark.parametrize("route", ["sort", "select"])
def test_scale_of_the_weights_is_irrelevant(cases, route):
    reward, weight, mask = cases
    adjust = adjuster("together", route)
    plain = adjust(reward, weight, mask)
    for scale in (
        2.0**-100,
        2.0**115,
    ):  # exact in float32, so bit for bit, and the plain sum overflows
        jax.tree.map(
            np.testing.assert_array_equal, plain, adjust(reward, weight * np.float32(scale), mask)
        )
    uniform = adjust(reward, None, mask)
    other = adjust(reward, np.full_like(weight, 0.3), mask)
    np.testing.assert_allclose(uniform.adjusted_PG, other.adjusted_PG, atol=2e-6)
    np.testing.assert_allclose(uniform.budget_P, other.budget_P, rtol=1e-6)


def test_it_majorises_every_feasible_reward(cases):
    """Σ p φ(z) is largest for |·|, the 4th power and exp alike, and so is every sum over the best
    k.
    """
    reward, _, _ = cases
    reward = np.nan_to_num(reward, nan=LOW)[:500]
    order, place, weight, _ = sorted_groups(
        reward, np.ones_like(reward), np.ones_like(reward, bool)
    )
    found = adjuster("by_index", "select")(reward, None, np.ones_like(reward, bool))
    ours = np.take_along_axis(np.asarray(found.adjusted_PG, np.float64), order, 1)
    mean = place.mean(1, keepdims=True)
    rng = np.random.default_rng(1)
    for _ in range(50):
        drawn = -np.sort(-(rng.random(place.shape) ** rng.choice([0.2, 1, 5])), axis=1)
        centre = drawn.mean(1, keepdims=True)
        lower, upper = drawn * mean / centre, 1 - (1 - drawn) * (1 - mean) / (1 - centre)
        feasible = LOW + (HIGH - LOW) * np.where(centre > mean, lower, upper)
        np.testing.assert_allclose(feasible.mean(1), LOW + (HIGH - LOW) * mean[:, 0], atol=1e-9)
        for convex in (np.abs, lambda z: z**4, np.exp):
            assert (
                (weight * convex(ours)).sum(1) >= (weight * convex(feasible)).sum(1) - 1e-4
            ).all()
        assert (np.cumsum(ours, 1) >= np.cumsum(feasible, 1) - 1e-5).all()


@pytest.mark.parametrize("route", ["sort", "select"])
def test_sharded_over_groups_is_single_and_groups_never_talk(cases, route):
    reward, weight, mask = (np.asarray(x[:16, :7]) for x in cases)
    adjust = adjuster("together", route)
    single = adjust(reward, weight, mask)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    arrays = [jax.device_put(x, sharding) for x in (reward, weight, mask)]
    sharded = adjust(*arrays)
    jax.tree.map(np.testing.assert_array_equal, single, sharded)
    assert all(x.sharding.is_equivalent_to(sharding, x.ndim) for x in jax.tree.leaves(sharded))
    program = adjust.lower(*arrays).compile().as_text()
    assert not [
        word for word in ("all-gather", "all-reduce", "all-to-all", "collective") if word in program
    ]


@pytest.mark.parametrize(("ties", "route"), [("together", "select"), ("by_index", "sort")])
def test_vmapped_is_looped(cases, ties, route):
    reward, weight, mask = (np.asarray(x[:30].reshape(3, 10, 8)) for x in cases)
    adjust = adjuster(ties, route)
    looped = [adjust(*arrays) for arrays in zip(reward, weight, mask, strict=True)]
    vmapped = jax.vmap(adjust)(reward, weight, mask)
    jax.tree.map(
        lambda many, *each: np.testing.assert_array_equal(many, np.stack(each)), vmapped, *looped
    )


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)  # of a loop or a call
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_is_larger_than_the_rewards_and_selection_does_not_sort(weighted):
    shape = jax.ShapeDtypeStruct((2, 11), jnp.float32)
    arguments = (shape, shape if weighted else None, None)
    names = {}
    for route in ("sort", "select", "auto"):
        found = list(equations(jax.make_jaxpr(adjuster("together", route))(*arguments).jaxpr))
        names[route] = {equation.primitive.name for equation in found}
        assert max(out.aval.size for equation in found for out in equation.outvars) == 22
        assert not {name for name in names[route] if "scatter" in name or "gather" in name}
    assert "sort" in names["sort"]
    assert "sort" not in names["select"] | names["auto"]


def test_no_gradient_passes():
    def total(reward, weight, low):
        found = increase_variance(reward, low, 1.0, weight_PG=weight)
        return jnp.sum(found.adjusted_PG * found.fraction_PG) + jnp.sum(
            found.budget_P + found.mean_place_P
        )

    inputs = (jnp.array([[0.2, 0.5, 0.4]]), jnp.array([[1.0, 2.0, 3.0]]), jnp.float32(0.0))
    for gradient in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*inputs):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
