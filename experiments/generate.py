"""`python -m experiments.generate`: the command of `rlhf_jax/cli/generate.py`."""

from rlhf_jax.cli.generate import start

if __name__ == "__main__":
    start()
