"""Weights & Biases: one W&B run for a run directory, online or offline.

W&B's own variables choose what this module does not: WANDB_MODE (offline: nothing is sent),
WANDB_PROJECT (else "rlhf_jax"), WANDB_ENTITY, WANDB_NAME (else the directory's name),
WANDB_RUN_GROUP.

The x-axis of the figures `rlhf/loss`, ... is `rlhf/update`, and likewise for every series.

`wandb/run.json` of the run directory keeps the id of the W&B run and the last line of each series
that was sent, so that a later start goes on with the same run. W&B cannot take figures back. A line
that it was sent is therefore not sent again: an update that is trained again after a kill has the
same figures. If settings that enter the numbers have changed, a new W&B run begins.
"""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.config import with_leaves
from rlhf_jax.extras import needed
from rlhf_jax.records import notes
from rlhf_jax.records.trackers.api import Identity
from rlhf_jax.refusal import Refusal

FOLDER = "wandb"
STATE = "run.json"
PROJECT = "rlhf_jax"
NEEDS = "track='wandb'"
SETTINGS = {
    "console": "off",  # the run's own lines are not captured
    "silent": True,  # our notes say where the run is
    "disable_git": True,  # the commit is in the config, without a copy of the changes
    "save_code": False,
    "init_timeout": 60.0,
    "finish_timeout": 300.0,  # an upload that hangs must not keep the command from its end
    "x_transaction_log_flush_interval": 1.0,  # what a SIGKILL may lose; W&B's own: 15
}
"""Of `wandb.Settings`; a version that does not have one is used without it."""

Place = tuple[int, int]
"""A line of a series: its step, and its number among the lines of that step."""
NOWHERE: Place = (-1, 0)


class WandB:
    """Sends lines to W&B, each once, also over several starts of a run."""

    def __init__(self, directory: Path, identity: Identity) -> None:
        """Begins the W&B run of a directory, or goes on with it."""
        with needed("track", NEEDS):
            import wandb

        folder = directory.absolute() / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / STATE
        self._state: dict[str, Any] = _read(self._path)
        if self._state and self._state["digest"] != identity.digest:
            notes.say(
                "settings that enter the numbers have changed since W&B run "
                f"{self._state['id']} began: a new one begins"
            )
            self._state = {}
        if not self._state:
            begun: dict[str, Any] = {"id": secrets.token_hex(4), "digest": identity.digest}
            self._state = begun | {"step": 0, "sent": {}}
        known = getattr(wandb.Settings, "model_fields", {})
        self._run = wandb.init(
            id=self._state["id"],
            resume="allow",
            dir=str(directory.absolute()),
            mode=os.environ.get("WANDB_MODE"),  # type: ignore[arg-type]
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", identity.name),
            config=with_leaves({}, dict(identity.settings)) | {"start": dict(identity.start)},
            allow_val_change=True,
            settings=wandb.Settings(**{key: SETTINGS[key] for key in SETTINGS if key in known}),  # pyright: ignore[reportArgumentType]
        )
        self._state["step"] = max(self._state["step"], self._run.step)
        self._write_state()
        self._before = {series: tuple(place) for series, place in self._state["sent"].items()}
        self._current: dict[str, Place] = {}
        self._defined: set[str] = set()
        here = f"is kept in {folder}; to send it: wandb sync {folder}/offline-run-*"
        notes.say(
            f"W&B run {self._state['id']} {here}"
            if self._run.offline
            else f"W&B run {self._state['id']}: {self._run.url}"
        )

    def log(
        self, series: str, step: int, figures: Mapping[str, float], seconds: float | None
    ) -> None:
        """See `api.Tracker`. A line that was sent by an earlier start is left out."""
        last = self._current.get(series, NOWHERE)
        place = (step, last[1] + 1 if last[0] == step else 0)
        self._current[series] = place
        if place <= self._before.get(series, NOWHERE):
            return
        axis = f"{series}/update"
        if series not in self._defined:
            self._run.define_metric(axis)
            self._run.define_metric(f"{series}/*", step_metric=axis)
            self._defined.add(series)
        line = {axis: step} | {f"{series}/{name}": value for name, value in figures.items()}
        if seconds is not None:
            line[f"{series}/seconds"] = seconds
        # W&B's own step counts the lines of all series. It goes on from the last start's, since
        # W&B ignores lines below the last one.
        self._run.log(line, step=self._state["step"], commit=True)
        self._state["step"] += 1
        self._state["sent"][series] = place
        self._write_state()

    def restart(self, series: str) -> None:
        """See `api.Tracker`."""
        self._current.pop(series, None)
        if series in self._state["sent"]:
            self._before[series] = tuple(self._state["sent"][series])

    def close(self) -> None:
        """See `api.Tracker`. Online, waits until W&B has the lines."""
        self._run.finish()

    def _write_state(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self._state))
        temporary.replace(self._path)


def make(directory: Path, identity: Identity) -> WandB:
    """The W&B run of a run directory.

    Args:
      directory: of the run.
      identity: of the run.
    """
    return WandB(directory, identity)


def check() -> None:
    """Raises Refusal where `wandb` is not installed, or is to send and nobody is logged in."""
    with needed("track", NEEDS):
        import wandb  # noqa: F401
    if os.environ.get("WANDB_MODE", "online") == "online" and not is_logged_in():
        raise Refusal(
            f"{NEEDS} and nobody is logged in to W&B; accepted: `wandb login`, the variable "
            "WANDB_API_KEY, or WANDB_MODE=offline, which keeps the figures in the run's directory"
        )


def is_logged_in() -> bool:
    """True where W&B finds a key of its own; nobody is asked for one."""
    with needed("track", NEEDS):
        import wandb
    return wandb.login(prompt=False)


def _read(path: Path) -> dict[str, Any]:
    """The state that an earlier start has left; {} for none, and for a damaged one."""
    try:
        state = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        notes.say(f"{path} is damaged ({error}): a new W&B run begins")
        return {}
    return state
