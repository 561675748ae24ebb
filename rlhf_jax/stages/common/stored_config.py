"""Configs that runs have stored, read under today's keys; and the facts that a run is known by."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_jax.config import flatten, with_leaves
from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import digests, history, keys, run_config
from rlhf_jax.run_directory.stage_records import CODE, COMPARED, CONFIG, DATA, Facts
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.common import beginning, own_code
from rlhf_jax.stages.settings import rlhf
from rlhf_jax.stages.settings.stages import Stages

Values = dict[str, Any]
Defaults = Callable[[Values], Values]
"""Every key with its default, of the components that a config names."""


def completed(stored: Values, where: str, defaults: Defaults) -> Values:
    """A config that a run has written, under today's keys, with the values of newer keys that do
    what was done before them.

    Raises Refusal, naming `where`, for a key that is gone.
    """
    translated = history.translated(flatten(stored), where)
    tree = defaults(with_leaves({}, translated))
    known = flatten(as_json(tree))
    history.check_known(translated, known, where)
    older = {
        key: history.older_value(key, known[key]) for key in known.keys() & history.ADDED.keys()
    }
    return with_leaves(tree, older | translated)


def as_before(values: Values, defaults: Defaults) -> None:
    """Takes keys that are newer than the run of the directory as the code was before them, where
    they are at their defaults.
    """
    try:
        stored, _ = run_config.read(Path(values["directory"]))
    except Refusal:
        return  # none, or a damaged one, which is told when it is compared
    there, now = history.translated(flatten(stored), run_config.FILE), flatten(values)
    known = flatten(defaults(values))
    newer = {key: value for key, value in history.ADDED.items() if key in now and key not in there}
    with_leaves(values, {key: value for key, value in newer.items() if now[key] == known.get(key)})


def begun_from(
    values: Values, defaults: Defaults, ahead: tuple[Path, ...] = ()
) -> beginning.Begin | None:
    """The run that a config begins from.

    Raises Refusal where there is no such run, or runs begin from each other.
    """
    if not values["begin"]:
        return None
    run, version = beginning.parse(values["begin"])
    ahead = (*ahead, Path(values["directory"]).resolve())
    if run.resolve() in ahead:
        raise Refusal(
            f"begin is {values['begin']!r}, the run itself; accepted: the directory of another run"
        )
    try:
        stored, found = run_config.read(run)
        theirs = completed(stored, str(run / run_config.FILE), defaults) | {"directory": str(run)}
    except Refusal as error:
        raise type(error)(f"begin is {values['begin']!r}: {error}") from None
    return beginning.Begin(
        values["begin"], run, version, theirs, found, begun_from(theirs, defaults, ahead)
    )


def facts_of(values: Values, shared: Workspace, settings: Stages, defaults: Defaults) -> Facts:
    """The facts of a run: its config, and digests of data, folders and code."""
    flattened = flatten(as_json(values))
    entering = {key: value for key, value in flattened.items() if keys.class_of(key) in COMPARED}
    found = {
        CONFIG: digests.digest_values(entering),
        CODE: digests.digest_code(),
        DATA: digests.digest_task(shared.task),
    }
    found |= own_code.of_sources(values)
    found["tokenizer.path"] = digests.digest_path(values["tokenizer"]["path"], weights=False)
    for name in ("base", "sft", "adapter", "reward_model", "gold"):
        found[f"pretrained.{name}"] = digests.digest_path(values["pretrained"][name])
    found["rlhf.replay_schedule_of"] = (
        digests.digest_text(str(rlhf.replayed(settings.rlhf)))
        if settings.rlhf.replay_schedule_of
        else ""
    )
    found |= {"begin": ""} if shared.begin is None else beginning.of_content(shared.begin)
    return Facts(flattened, found, flatten(as_json(defaults(values))))


def as_json(values: Values) -> Values:
    """Values as JSON has them: tuples are lists."""
    return json.loads(json.dumps(values))
