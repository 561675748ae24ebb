"""Eight CPU devices, strict ranks, warnings from our own modules as errors, no network.

A program is compiled once a session: all processes of the tests share one compile cache, that of
`pytest -n` and those that tests start. It is compiled without most optimisations, in a quarter of the
time, because most tests are of what a program computes; `JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest`
compiles as a run does.
"""

import atexit
import contextlib
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rlhf_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    os.environ["XLA_FLAGS"] = (
        "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters "
        + os.environ.get("XLA_FLAGS", "")
    )

import jax
import pytest

from rlhf_jax.ops import once
from rlhf_jax.report import html
from rlhf_jax.runtime import activity
from tests import components, slow

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


MAX_MAPPINGS = 20_000
"""Mappings of memory above which compiled programs are dropped. Linux allows a process 65,530."""
MAPPINGS = Path("/proc/self/maps")
MAX_PROGRAMS = 4_000
"""Programs above which they are dropped. JAX keeps at most 8,192 calls of compiled functions a process,
and when it is full, it drops a new call and not the oldest (jaxlib 0.10): then the function has no
call in its cache that a test could count.
"""
_programs: list[str] = []  # compiled or read from a cache since programs were dropped


@pytest.fixture(scope="module", autouse=True)
def _dropped_programs():
    """Drops compiled programs between modules where there are many, and in any case their functions:
    no module finds a program that another one traced or compiled in its own way.

    Each program takes some mappings. Those of the whole suite are more than a process may have, and
    XLA aborts where it cannot map another one.
    """
    yield
    once.forget()
    many = MAPPINGS.exists() and MAPPINGS.read_text().count("\n") > MAX_MAPPINGS
    if many or len(_programs) > MAX_PROGRAMS:
        jax.clear_caches()
        gc.collect()
        _programs.clear()


def _noting(names: list[str]) -> Callable[..., None]:
    """Listener of JAX's events that adds the names of functions compiled or read from a cache."""

    def note(event: str, duration_secs: float, **labels: str | int) -> None:
        del duration_secs
        if event == activity.COMPILED:
            names.append(str(labels.get("fun_name")))

    return note


jax.monitoring.register_event_duration_secs_listener(_noting(_programs))


@pytest.fixture
def compiled():
    """Names of the functions that were compiled since the test began, or read from a cache."""
    names: list[str] = []
    note = _noting(names)
    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture(scope="session")
def compiled_as_a_run() -> bool:
    """True where programs have the optimisations of a run: with JAX_DISABLE_MOST_OPTIMIZATIONS=0."""
    return not jax.config.read("jax_disable_most_optimizations")


Pictures = Callable[[], AbstractContextManager[None]]


@contextlib.contextmanager
def _drawing(draw: Callable[[Any], dict[str, list[Any]]]) -> Iterator[None]:
    """Context manager in which reports that this process writes have the pictures of `draw`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "draw", draw)
        yield


@pytest.fixture(scope="session")
def with_pictures() -> Pictures:
    """A context manager in which reports have their pictures, for a fixture that several tests share."""
    return partial(_drawing, html.draw)


def _pictures(request: pytest.FixtureRequest, with_pictures: Pictures) -> Iterator[None]:
    """Leaves the pictures out of reports that runs of this process write, but for modules and tests
    marked `pictures`: forty pictures take longer than a run of the smallest sizes.
    """
    marked = request.node.get_closest_marker("pictures") is not None
    with with_pictures() if marked else _drawing(lambda run: {}):
        yield


_of_a_module = pytest.fixture(scope="module", autouse=True)(_pictures)  # of its own fixtures too
_of_a_test = pytest.fixture(autouse=True)(_pictures)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--component=NAME`: see `components.py`. For a part of the long tests: see `slow.py`."""
    slow.add_options(parser)
    parser.addoption(
        "--component",
        action="append",
        default=[],
        metavar="[KIND=]NAME",
        help="run the battery of a component that is not of the package: a dotted path or a file, "
        "such as my_lab.my_algorithm, "
        "after one of algorithm=, task=, reward= or model= where its kind cannot be told",
    )


def pytest_configure(config: pytest.Config) -> None:
    """`filterwarnings` knows modules by the place that warns: ours, and the tests."""
    if hasattr(config.option, "loadscopereorder"):
        # xdist would begin with the files of most tests, and end with the longest ones.
        config.option.loadscopereorder = False
    config.addinivalue_line("markers", "pictures: reports of its runs have their pictures")
    config.addinivalue_line("markers", "slow: left out unless asked for; see tests/slow.py")
    for text in config.getoption("--component") or ():
        components.add(text)
    if components.every_own() and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(config.rootpath / path) for path in components.batteries()]
    config.addinivalue_line("filterwarnings", r"error:::rlhf_jax\.")
    config.addinivalue_line("filterwarnings", "error:Some donated buffers were not usable")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out long tests, and with `--component` those of no component of the command line."""
    names = components.every_own()
    whole = not names and config.args_source is not pytest.Config.ArgsSource.ARGS
    slow.mark(config, items, whole, leaves_out=not names)
    if whole:
        slow.order(items, config.getoption("--first-file"))
    if not names:
        return
    wanted = [item for item in items if names & _params(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = wanted


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test before its fixtures are made where it would begin too late."""
    slow.skip_when_late(item.config)


def _params(item: pytest.Item) -> set[str]:
    """The params of a test, as texts."""
    found = getattr(item, "callspec", None)
    return set() if found is None else set(map(str, found.params.values()))
