"""The compile cache of commands: its folder, its key in the config, and folders that cannot be written."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_jax.devices import compile_cache, processor
from rlhf_jax.refusal import Refusal

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from rlhf_jax.devices import compile_cache
folder = compile_cache.use(sys.argv[1])
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
value = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)(jnp.arange(12.0).reshape(3, 4))
print(json.dumps([str(folder), len(hits), value.tolist()]))
"""


def run(setting, home, **variables):
    """Folder of the cache, its hits and the numbers of a program, from a process of its own."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_", "XDG_", "XLA_"))
    }
    environment = kept | {"HOME": str(home), "JAX_PLATFORMS": "cpu"} | variables
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, setting],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return *json.loads(process.stdout), process.stderr


def test_the_second_process_reads_what_the_first_has_compiled(tmp_path):
    folder, hits, numbers, _ = run("auto", tmp_path)
    assert Path(folder).parent == tmp_path / ".cache" / "rlhf_jax" / "compiled"
    assert hits == 0
    assert list(Path(folder).iterdir())
    again, hits, same, _ = run("auto", tmp_path)
    assert again == folder
    assert hits > 0
    assert same == numbers


def test_a_torn_entry_is_compiled_again(tmp_path):
    """A process that was killed while it wrote leaves half of a file."""
    folder, _, numbers, _ = run("auto", tmp_path)
    for path in Path(folder).iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _, hits, same, _ = run("auto", tmp_path)
    assert hits == 0
    assert same == numbers


def test_the_users_own_cache_is_left_as_it_is(tmp_path):
    folder, *_ = run("auto", tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))
    assert folder == str(tmp_path / "mine")
    assert not (tmp_path / ".cache").exists()


def test_off_keeps_nothing(tmp_path):
    folder, *_ = run("off", tmp_path)
    assert folder == "None"
    assert not (tmp_path / ".cache").exists()


def test_a_folder_is_taken_and_xdg_is_followed(tmp_path):
    folder, *_ = run(str(tmp_path / "here"), tmp_path)
    assert Path(folder).parent == tmp_path / "here"
    folder, *_ = run("auto", tmp_path, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert Path(folder).parent == tmp_path / "xdg" / "rlhf_jax" / "compiled"


@pytest.fixture
def without_a_cache(monkeypatch):
    """`use` as in a process whose JAX has no cache yet, and no change of JAX's settings."""
    import jax

    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_home_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, without_a_cache):
    """A file in the place of a folder: not even the system's administrator can write below it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compile_cache.use("auto") is None


def test_a_given_folder_that_cannot_be_written_is_refused(tmp_path, without_a_cache):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match=r"compile_cache is '.*file/below'.*accepted: a folder"):
        compile_cache.use(str(tmp_path / "file" / "below"))


def test_the_folders_name_has_processor_and_versions():
    versions = [f"-{name}{importlib.metadata.version(name)}" for name in ("jax", "jaxlib")]
    name = compile_cache.name()
    assert name.endswith("".join(versions))
    assert processor.kind().split()[0].lower() in name
    assert "/" not in name
    assert " " not in name


def test_the_oldest_programs_go_first(tmp_path):
    for age in range(5):
        path = tmp_path / "folder" / str(age)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10))
        then = time.time() - 100 * age
        os.utime(path, (then, then))
    compile_cache.prune(tmp_path, 50)
    assert len(list(tmp_path.rglob("?"))) == 5
    compile_cache.prune(tmp_path, 49)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["0", "1"]
