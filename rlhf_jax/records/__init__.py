"""The files that a run writes while it goes on: metrics, samples, ledger, timeline, checkpoints,
saved rounds.
"""
