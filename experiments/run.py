"""Runs an experiment: `python -m experiments.run --config=configs/quickstart.py [--config.<key>=<value> ...]`."""

import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A file of configs/, with overrides --config.<key>=<value>."
)


def parse(argv: Sequence[str]) -> None:
    """Reads the flags; what is wrong with them is one line and exit status 2."""
    try:
        rest = flags.FLAGS(list(argv))
        if len(rest) > 1:
            raise ValueError(f"unknown argument {rest[1]!r}; accepted: --config=FILE and --config.<key>=<value>")
        if CONFIG.value is None:
            raise ValueError("no config is given; pass --config=configs/quickstart.py or another file of configs/")
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError, OSError) as error:
        stop(error)


def stop(error: BaseException) -> None:
    """Prints what went wrong in one line and leaves with status 2."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> None:
    parse(sys.argv if argv is None else argv)
    from rlhf_jax import build  # JAX is loaded only once the flags are known to be right

    try:
        build.run(CONFIG.value)
    except (ValueError, FileNotFoundError) as error:
        stop(error)


if __name__ == "__main__":
    main()
