"""`python -m experiments.report`: the command of `rlhf_jax/cli/report.py`."""

from rlhf_jax.cli.report import start

if __name__ == "__main__":
    start()
