"""Short messages between the processes of a run that any thread may write and read, because they are
no collective: they go through the key-value store of jax's coordinator, and no device takes part.
"""

import itertools
from typing import Protocol

import jax

from rlhf_jax.devices.dispatch import several

NOT_FOUND = "NOT_FOUND"
NOT_JOINED = "jax.distributed.initialize has not been called"

_boards = itertools.count()


class Store(Protocol):
    """The calls of jax's coordination client that a board needs."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def key_value_try_get(self, key: str) -> str: ...


class Board:
    """Notices by name, of which each process writes its own and reads all.

    Every process makes its boards in the same order: the n-th of one is the n-th of another.
    """

    def __init__(self) -> None:
        """Makes a board without notices."""
        self._prefix = f"rlhf_jax/board/{next(_boards)}"

    def write(self, name: str, text: str) -> None:
        """Puts a notice up, in place of the one of this name.

        Args:
          name: of the notice, which one process alone writes.
          text: of the notice.
        """
        if several():
            _store().key_value_set(f"{self._prefix}/{name}", text, allow_overwrite=True)

    def read(self, name: str) -> str | None:
        """The notice of a name; None: there is none yet.

        Args:
          name: of the notice.

        Raises jax.errors.JaxRuntimeError where the coordinator has ended.
        """
        try:
            return _store().key_value_try_get(f"{self._prefix}/{name}")
        except jax.errors.JaxRuntimeError as error:
            if NOT_FOUND in str(error):
                return None
            raise


def place() -> tuple[int, int]:
    """This process's number, and the number of processes, as `jax.distributed` has them: no device
    backend is initialised.
    """
    from jax._src.distributed import global_state

    process, count = global_state.process_id, global_state.num_processes
    assert process is not None, NOT_JOINED
    assert count is not None, NOT_JOINED
    return process, count


def _store() -> Store:
    # jax has no public door to the store. Imported here, so that one process needs it nowhere.
    from jax._src.distributed import global_state

    client: Store | None = global_state.client
    assert client is not None, NOT_JOINED
    return client
