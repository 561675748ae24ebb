"""`config.json` of a run directory: the resolved config, and digests of what the run is made of."""

import json
from pathlib import Path
from typing import Any

from rlhf_jax.records.jsonl import replace
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.run_directory import history

FILE = "config.json"
DIGESTS = "digests"
DAMAGED = "config.json.damaged"


def read(directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The config of a run, nested, and its digests (none in a run of an older version).

    Raises MissingInput where there is no run, Refusal that names the file where it is damaged.
    """
    path = directory / FILE
    if not path.exists():
        raise MissingInput(f"{path} is missing: {str(directory)!r} is no directory of a run")
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise Refusal(f"{path} is damaged: it is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise Refusal(f"{path} is damaged: found {str(values)[:40]!r}; accepted: an object")
    return values, history.renamed(values.pop(DIGESTS, {}))


def write(directory: Path, values: dict[str, Any], digests: dict[str, str]) -> None:
    """Replaces the file where it would change; a damaged one is kept beside it."""
    path = directory / FILE
    text = json.dumps(values | {DIGESTS: digests}, indent=1, sort_keys=True)
    try:
        before = read(directory)
    except MissingInput:
        before = None
    except Refusal:
        before = None
        replace(directory / DAMAGED, path.read_bytes())
    if (
        before is None
        or json.dumps(before[0] | {DIGESTS: before[1]}, indent=1, sort_keys=True) != text
    ):
        replace(path, text.encode())
