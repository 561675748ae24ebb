"""Simulated annealing over plans, from several starts: for more devices than can be searched
exactly.

Kirkpatrick, Gelatt and Vecchi 1983 (Science 220): a worse plan is taken with probability exp(−Δ /
T), Δ as a share of the present seconds, T falling geometrically. Moves that ReaL's search lacks:
within a slice, to a neighbouring slice, to another call's slice, two calls changing places, and a
slice cut for two. Bounded by evaluations and seeded, so that it ends the same everywhere.
"""

import math
import random
from collections.abc import Callable, Sequence

from rlhf_jax.planner.search.space import Choice, Space

HOT, COLD = 0.1, 0.0005
"""Temperatures at the begin and the end, as shares of a round: of our own trials."""
TRIED = 12
"""Options of a slice that are asked whether they fit."""
UNFIT = 1e6
"""Energy of a plan that fills a device's memory once more than it may, in rounds of the start."""


def anneal(space: Space, seed: int, num_starts: int, num_evaluations: int) -> Choice | None:
    """The best plan of several chains of simulated annealing that fits in memory.

    The best one is improved until no change of one call makes it better.

    Args:
      space: candidates of every call.
      seed: of the random numbers; one seed always gives one plan.
      num_starts: chains.
      num_evaluations: plans that each chain evaluates.

    Returns None if no chain found a plan that fits.
    """
    rng = random.Random(seed)
    fitting: list[tuple[float, Choice]] = []
    for number in range(num_starts):
        energy, choice = _chain(space, _start(space, number, rng), rng, num_evaluations)
        if space.excess(choice) <= 0:
            fitting.append((energy, choice))
    return descend(space, min(fitting)[1]) if fitting else None


def _start(space: Space, number: int, rng: random.Random) -> Choice:
    """The default plan, every call at its fastest, all calls on one slice by turns, and random
    ones.
    """
    if number == 0 and (default := space.default()):
        return default
    if number == 1:
        return tuple(
            min(range(len(of)), key=lambda n, of=of: (of[n].seconds, n)) for of in space.options
        )
    common = set(space.slices(0)).intersection(
        *(space.slices(index) for index in range(len(space.calls)))
    )
    if number % 2 == 0 and common:
        begin_size = rng.choice(sorted(common))
        return tuple(
            rng.choice(space.slices(index)[begin_size]) for index in range(len(space.calls))
        )
    return tuple(rng.randrange(len(of)) for of in space.options)


def _chain(
    space: Space, choice: Choice, rng: random.Random, num_evaluations: int
) -> tuple[float, Choice]:
    scale = space.seconds(choice)

    def energy(tried: Choice) -> float:
        over = space.excess(tried)
        return (
            UNFIT * scale * (1 + over / space.costs.device_bytes)
            if over > 0
            else space.seconds(tried)
        )

    present = energy(choice)
    best, best_choice = present, choice
    for step in range(num_evaluations):
        temperature = HOT * (COLD / HOT) ** (step / num_evaluations)
        tried = _move(space, choice, rng)
        of_tried = energy(tried)
        worse = of_tried - present
        if worse <= 0 or rng.random() < math.exp(-worse / (temperature * present)):
            choice, present = tried, of_tried
            if present < best:
                best, best_choice = present, choice
    return best, best_choice


def _move(space: Space, choice: Choice, rng: random.Random) -> Choice:
    """A plan that differs in one call, or in two that have changed places."""
    index = rng.randrange(len(choice))
    move = rng.choices(MOVES, WEIGHTS)[0]
    return move(space, choice, index, rng)


def _with(choice: Choice, index: int, number: int) -> Choice:
    return (*choice[:index], number, *choice[index + 1 :])


def _slice(space: Space, choice: Choice, index: int) -> tuple[int, int]:
    devices = space.options[index][choice[index]].placement.devices
    return devices[0], len(devices)


def _put(
    space: Space, choice: Choice, index: int, numbers: Sequence[int], rng: random.Random
) -> Choice:
    """A call on one of the options of a slice: the fastest that fits as often as any other."""
    if rng.random() < 0.5:
        for number in numbers[:TRIED]:
            if space.excess(tried := _with(choice, index, number)) <= 0:
                return tried
    return _with(choice, index, rng.choice(numbers))


def _within(space: Space, choice: Choice, index: int, rng: random.Random) -> Choice:
    return _with(choice, index, rng.choice(space.slices(index)[_slice(space, choice, index)]))


def _beside(space: Space, choice: Choice, index: int, rng: random.Random) -> Choice:
    """To a slice that begins where this one or a neighbour of its size does, of the same size, half
    or double.
    """
    begin, size = _slice(space, choice, index)
    new_size = rng.choice((size // 2, size, 2 * size))
    begins = (begin, begin - new_size, begin + size, begin - begin % (2 * size))
    near = [
        (near_begin, new_size)
        for near_begin in begins
        if (near_begin, new_size) in space.slices(index)
    ]
    return (
        _put(space, choice, index, space.slices(index)[rng.choice(near)], rng) if near else choice
    )


def _anywhere(space: Space, choice: Choice, index: int, rng: random.Random) -> Choice:
    return _with(choice, index, rng.randrange(len(space.options[index])))


def _join(space: Space, choice: Choice, index: int, rng: random.Random) -> Choice:
    """To another call's slice, with its mesh where there is one: then nothing is moved between
    them.
    """
    other = rng.randrange(len(choice))
    numbers = space.slices(index).get(_slice(space, choice, other))
    if not numbers:
        return choice
    mesh = space.options[other][choice[other]].placement.mesh_shape
    same = [n for n in numbers if space.options[index][n].placement.mesh_shape == mesh]
    return _put(space, choice, index, same or numbers, rng)


def _swap(space: Space, choice: Choice, index: int, rng: random.Random) -> Choice:
    other = rng.randrange(len(choice))
    numbers = space.slices(index).get(_slice(space, choice, other))
    other_numbers = space.slices(other).get(_slice(space, choice, index))
    if not numbers or not other_numbers or other == index:
        return choice
    return _put(space, _put(space, choice, index, numbers, rng), other, other_numbers, rng)


def _split(space: Space, choice: Choice, index: int, rng: random.Random) -> Choice:
    """A slice that holds two calls is cut for them, so that they may run at once: either move alone
    would only be slower.
    """
    other = rng.randrange(len(choice))
    begin, size = _slice(space, choice, rng.choice((index, other)))
    half = size // 2
    numbers, other_numbers = (
        space.slices(index).get((begin, half)),
        space.slices(other).get((begin + half, half)),
    )
    if not numbers or not other_numbers or other == index:
        return choice
    return _put(space, _put(space, choice, index, numbers, rng), other, other_numbers, rng)


Move = Callable[[Space, Choice, int, random.Random], Choice]
MOVES: tuple[Move, ...] = (_within, _beside, _anywhere, _join, _swap, _split)
WEIGHTS = (0.25, 0.2, 0.15, 0.15, 0.1, 0.15)


def descend(space: Space, choice: Choice) -> Choice:
    """Changes one call at a time, while that makes the round shorter and the plan fits.

    A call that alone takes as long as the round is not tried.

    Args:
      space: candidates of every call.
      choice: a plan that fits.
    """
    seconds, changed = space.seconds(choice), True
    while changed:
        changed = False
        for index, candidates in enumerate(space.options):
            for number, option in enumerate(candidates):
                tried = _with(choice, index, number)
                if (
                    option.seconds < seconds
                    and space.excess(tried) <= 0
                    and space.seconds(tried) < seconds * (1 - 1e-12)
                ):
                    choice, seconds, changed = tried, space.seconds(tried), True
    return choice
