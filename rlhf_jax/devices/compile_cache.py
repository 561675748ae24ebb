"""JAX's persistent compile cache: the folder in which commands keep compiled programs.

A program that was compiled once is read from the folder, by every later run of the same user on the
same kind of processor with the same packages. The programs are the same bytes, so that a run with
the cache is bitwise a run without it.
"""

import contextlib
import importlib.metadata
import os
from pathlib import Path

import jax

from rlhf_jax.devices import processor
from rlhf_jax.refusal import Refusal

AUTO, OFF = "auto", "off"
MAX_BYTES = 4 * 2**30  # of all folders; above it the oldest programs are deleted, down to a half
MIN_COMPILE_SECONDS = 0.1
"""Programs that compile faster are not kept: reading a file costs about as much."""


def use(setting: str) -> Path | None:
    """Has JAX keep compiled programs in a folder. Returns the folder, or None without a cache.

    A cache that the process already has (`JAX_COMPILATION_CACHE_DIR`, `jax.config`) is left as it
    is. With "auto" a folder that cannot be written is no error: nothing is kept then.

    Args:
      setting: the config's key `compile_cache`: "auto", the folder of this user; "off"; or a
        folder, in which the same subfolders are made.

    Raises Refusal for a given folder that cannot be written.
    """
    present = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if present:
        return Path(present)
    if setting == OFF:
        return None
    above = user_folder() if setting == AUTO else Path(setting).expanduser()
    folder = above / name()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write to {folder}")
        prune(above, MAX_BYTES)
    except OSError as error:
        if setting == AUTO:
            return None
        raise Refusal(
            f"compile_cache is {setting!r}, which cannot be written ({error}); accepted: a folder, "
            f"{AUTO!r} or {OFF!r}"
        ) from error
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return folder


def user_folder() -> Path:
    """The folder of this user: `rlhf_jax` in `$XDG_CACHE_HOME`, by default in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "rlhf_jax" / "compiled"


def name() -> str:
    """The name of the folder of this kind of processor and these versions.

    JAX's own key of a program has the versions too. It lacks the kind of a CPU, whose programs may
    use instructions that another CPU of the same disk does not have.
    """
    words = [
        processor.kind(),
        f"jax{jax.__version__}",
        f"jaxlib{importlib.metadata.version('jaxlib')}",
    ]
    text = "-".join(words).lower()
    return "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in text)


def prune(folder: Path, max_bytes: int) -> None:
    """Deletes the files that were written first, until half of `max_bytes` is left, where a folder
    and those below it have more than `max_bytes`.

    Another process may delete the same files, or read one of them: it then compiles again.
    """
    files = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
    left = sum(size for _, size, _ in files)
    if left <= max_bytes:
        return
    for _, size, path in sorted(files):
        if left <= max_bytes // 2:
            return
        path.unlink(missing_ok=True)
        left -= size
