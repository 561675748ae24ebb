"""Rounds of a program whose params have stacked layers, on a mesh, beside the unrolled one."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from rlhf_jax.clock import Clock
from rlhf_jax.devices.mesh import sampler_slices
from rlhf_jax.models.common import stacking
from rlhf_jax.runtime import synchronous
from rlhf_jax.runtime.program import Program

from . import rounds


def run(scan_layers: int, mesh_shape: tuple[int, int, int], **changes: object) -> tuple:
    """Samples of two rounds, and the params after them, with an entry per layer."""
    mesh = tiny.make_mesh(mesh_shape)
    model = tiny.make_model(num_layers=2, scan_layers=scan_layers)
    spec = dataclasses.replace(rounds.make_spec(mesh), model=model, clock=Clock(2), **changes)
    params = tiny.make_params(tiny.make_model(num_layers=2, scan_layers=0))
    program = Program(spec, model.stacked(params))
    state = program.init(program.reference_params)
    assert stacking.is_stacked(state["policy"].params) == bool(scan_layers)
    assert not stacking.is_stacked(program.publish(state))
    samples = []
    for event in synchronous.run(program, state, 0, {}):
        if isinstance(event, synchronous.Sampled):
            samples.append(rounds.host(event.samples))
        elif isinstance(event, synchronous.RoundEnd):
            found = rounds.host(event.states["policy"].params)
    return samples, stacking.unstack(found)


@pytest.mark.parametrize("slices", [False, True], ids=["the trainer's mesh", "slices"])
def test_rounds_with_stacked_layers_are_those_without(slices):
    expected = run(0, (1, 1, 1))
    own = sampler_slices(tiny.make_mesh((1, 2, 2)), 2, 1) if slices else ()
    actual = run(2, (1, 2, 2), sampler_slices=own)
    for ours, theirs in zip(actual[0], expected[0], strict=True):
        np.testing.assert_array_equal(ours.tokens_BC, theirs.tokens_BC)
    for ours, theirs in zip(*map(jax.tree.leaves, (actual[1], expected[1])), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
