"""The exceptions that mean "this cannot run as it was asked for", told apart from faults of the code."""


class Refusal(ValueError):
    """A config, a file or an argument that cannot be used. The message names the value, its source and what is accepted.

    Commands print the message in one line and exit with status 2. Every other exception keeps its traceback.
    Of several problems that were found at once each is an argument, and a line.
    """

    @property
    def messages(self) -> tuple[str, ...]:
        """One sentence per problem."""
        return tuple(map(str, self.args))

    def __str__(self) -> str:
        return "\n".join(self.messages)


class NotFinite(FloatingPointError):
    """A figure of training that is not finite: nothing that was made of it is published or saved. The message names it.

    Commands print the message in one line and exit with status 1.
    """


class MissingInput(Refusal, FileNotFoundError):
    """A file or a directory that has to exist first. The message names it and the step that makes it."""
