"""`python -m experiments.plan`: the command of `rlhf_jax/cli/plan.py`."""

from rlhf_jax.cli.plan import start

if __name__ == "__main__":
    start()
