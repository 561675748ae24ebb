"""Optional parts of the installation: packages that only some settings need."""

import contextlib
from collections.abc import Iterator

from rlhf_jax.refusal import Refusal


@contextlib.contextmanager
def needed(extra: str, what: str) -> Iterator[None]:
    """Refuses a package that the block imports and that is not installed, with the command that
    installs it.

    Args:
      extra: the name of the extra in `pyproject.toml` that has the package.
      what: the setting or file that needs it, as the message begins.

    Raises Refusal in place of a ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise Refusal(f"{what} needs {error.name}: pip install 'rlhf_jax[{extra}]'") from error
