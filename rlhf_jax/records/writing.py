"""Whether this process writes a run's files and says what it does: of several processes, the first alone."""

_writes = True


def only_read() -> None:
    """From now on, nothing of `observe` writes or prints in this process."""
    global _writes
    _writes = False


def writes() -> bool:
    return _writes
