"""Switches of JAX and of XLA: pinned, refused, or told at the next start."""

import jax
import pytest

from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import environment


def test_64_bits_are_refused():
    jax.config.update("jax_enable_x64", True)
    try:
        with pytest.raises(Refusal, match=r"jax_enable_x64 is on \(the variable JAX_ENABLE_X64"):
            environment.pin()
    finally:
        jax.config.update("jax_enable_x64", False)


def test_the_partitionable_generator_is_pinned():
    """Without it, `jax.random.bits` of one key gives other numbers."""
    expected = jax.random.bits(jax.random.key(0), (5,)).tolist()
    jax.config.update("jax_threefry_partitionable", False)
    try:
        assert jax.random.bits(jax.random.key(0), (5,)).tolist() != expected
        environment.pin()
        assert jax.random.bits(jax.random.key(0), (5,)).tolist() == expected
    finally:
        jax.config.update("jax_threefry_partitionable", True)


def test_two_starts_alike_have_no_differences():
    assert environment.differences(environment.snapshot(), environment.snapshot()) == []


def test_a_switch_is_told():
    before = environment.snapshot()
    jax.config.update("jax_default_matmul_precision", "bfloat16")
    try:
        found = environment.differences(before, environment.snapshot())
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    assert found == ["jax_default_matmul_precision was None and is bfloat16"]


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (
            "",
            "--xla_cpu_enable_fast_math=true",
            "XLA_FLAGS was not set and is --xla_cpu_enable_fast_math=true",
        ),
        ("--a=1 --b=2", "--b=2  --a=1", ""),
        ("--a=1", "--a=1 --xla_force_host_platform_device_count=8 --xla_dump_to=/tmp/x", ""),
        ("--a=1", "--a=2", "XLA_FLAGS was --a=1 and is --a=2"),
    ],
)
def test_flags_are_told_where_they_may_change_numbers(monkeypatch, before, now, told):
    taken = []
    for flags in (before, now):
        monkeypatch.setenv("XLA_FLAGS", flags)
        taken.append(environment.snapshot())
    assert environment.differences(*taken) == ([told] if told else [])


def test_machines_and_versions_are_told():
    before, now = environment.snapshot(), environment.snapshot()
    now["cores"], now["processor"] = before["cores"] + 2, "another"
    now["versions"] = before["versions"] | {"jaxlib": "0.1"}
    now["num_devices"] = 2
    told = environment.differences(before, now)
    assert [line.partition(" was ")[0] for line in told] == [
        "the number of cores",
        "the number of devices",
        "the processor",
        "the version of jaxlib",
    ]


def test_what_an_older_version_did_not_record_is_not_compared():
    before = environment.snapshot()
    del before["switches"]["jax_disable_jit"], before["cores"]
    assert environment.differences(before, environment.snapshot()) == []
