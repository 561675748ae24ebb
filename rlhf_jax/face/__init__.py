"""The public functions of `import rlhf_jax as rl`: components by name, the calls of a round, and
the loop over rounds.
"""
