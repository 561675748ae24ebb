"""The stages of a run, one file each, resolved by file name: SFT, comparisons, reward model, RLHF,
evaluation, export.
"""
