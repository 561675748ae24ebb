"""SFT, comparisons labelled by gold, a learned reward model, and Online DPO on templated reviews,
asynchronous at lag 1.

Command:   python -m experiments.run --config=configs/quickstart.py
Hardware:  two CPU cores
Time:      64 s at first and 55 s after that on two idle cores, compile included (least of three runs each)
Result:    seed 0: gold win-rate 0.487 -> 0.771 at 1.65 nats, 100 % distinct completions; reward model 86.5 %
           (the processor is an AMD EPYC; on another kind the same seed gives other numbers)
"""

from ml_collections import ConfigDict

from rlhf_jax import build

from .common import reviews


def get_config(argument: str = "") -> ConfigDict:
    """`:algorithm=rloo` takes another file of `rlhf_jax/algorithms/`."""
    name = build.choices(argument, algorithm="online_dpo")["algorithm"]
    config = reviews.base(name)
    config.directory = "runs/quickstart" if name == "online_dpo" else f"runs/quickstart_{name}"
    return config
