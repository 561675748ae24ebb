"""A task that has a prompt on both sides of the split, and one without a judge."""

from my_lab import tasks

Config = tasks.Config


class Leaking(tasks.Reversal):
    """Every held-out prompt is a train one, too."""

    def __init__(self, config: tasks.Config):
        super().__init__(config)
        self._prompts["train"] += self._prompts["heldout"]


class Silent:
    """A task without a judge."""

    def num_prompts(self, split: str) -> int:
        return 3


def leaking(config: tasks.Config) -> Leaking:
    return Leaking(config)


def silent(config: tasks.Config) -> Silent:
    return Silent()
