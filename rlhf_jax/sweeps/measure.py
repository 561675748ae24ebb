"""The interface of a study's own measure: figures of a cell that its metrics do not have."""

from collections.abc import Mapping
from typing import Any, Protocol

from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.synchronous import Event


class Measure(Protocol):
    """Takes the events of one cell's loop, and ends with figures for the cell's line."""

    def take(self, program: Program, event: Event) -> None:
        """Reads one event. The next update donates its states.

        Args:
          program: the compiled calls of the cell.
          event: of the loop, before it is recorded.
        """
        ...

    def figures(self) -> Mapping[str, Any]:
        """Figures of the whole run, as JSON can say them."""
        ...
