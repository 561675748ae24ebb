"""Seconds from starting a process to its first RLHF update, with no compile cache and the earlier stages done before.

A first run makes a small SFT policy and reward model; its RLHF stage is then removed and the same command started again.
The time ends when the first update's line stands in `metrics.jsonl` (it is written one update late); beside it stands what
JAX compiled.

    python -m experiments.bench.start
"""
