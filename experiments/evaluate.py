"""`python -m experiments.evaluate`: the command of `rlhf_jax/cli/evaluate.py`."""

from rlhf_jax.cli.evaluate import start

if __name__ == "__main__":
    start()
