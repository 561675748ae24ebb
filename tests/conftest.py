"""Eight CPU devices, strict ranks, warnings from our own modules as errors, no network."""

import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


MAX_MAPPINGS = 20_000
"""Mappings of memory above which compiled programs are dropped. Linux allows a process 65,530."""
MAPPINGS = Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def _dropped_programs():
    """Drops compiled programs between modules where there are many.

    Each takes about ten mappings. Those of the whole suite are more than a process may have, and XLA aborts where it cannot
    map another one.
    """
    yield
    if MAPPINGS.exists() and MAPPINGS.read_text().count("\n") > MAX_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def quick_compiles():
    """Programs of a module whose tests are of what they compute, not of how fast, are compiled without most optimisations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory):
    """Programs that whole runs have in common are compiled once a session, unless a cache of the user's own does that."""
    if jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_configure(config: pytest.Config) -> None:
    """`filterwarnings` knows modules by the place that warns: ours, and the tests."""
    config.addinivalue_line("filterwarnings", r"error:::rlhf_jax\.")
    config.addinivalue_line("filterwarnings", "error:Some donated buffers were not usable")
