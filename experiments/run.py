"""`python -m experiments.run`: the command of `rlhf_jax/cli/run.py`."""

from rlhf_jax.cli.run import start

if __name__ == "__main__":
    start()
