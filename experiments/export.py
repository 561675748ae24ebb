"""`python -m experiments.export`: the command of `rlhf_jax/cli/export.py`."""

from rlhf_jax.cli.export import start

if __name__ == "__main__":
    start()
