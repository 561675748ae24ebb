"""`python -m experiments.compile`: the command of `rlhf_jax/cli/compile.py`."""

from rlhf_jax.cli.compile import start

if __name__ == "__main__":
    start()
