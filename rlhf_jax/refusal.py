"""The exceptions that mean "this cannot run as it was asked for", told apart from faults of the code."""


class Refusal(ValueError):
    """A config, a file or an argument that cannot be used. The message names the value, its source and what is accepted.

    Commands print the message in one line and exit with status 2. Every other exception keeps its traceback.
    """


class MissingInput(Refusal, FileNotFoundError):
    """A file or a directory that has to exist first. The message names it and the step that makes it."""
