"""`python -m experiments.sweep`: the command of `rlhf_jax/cli/sweep.py`."""

from rlhf_jax.cli.sweep import start

if __name__ == "__main__":
    start()
