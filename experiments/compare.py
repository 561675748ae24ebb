"""`python -m experiments.compare`: the command of `rlhf_jax/cli/compare.py`."""

from rlhf_jax.cli.compare import start

if __name__ == "__main__":
    start()
