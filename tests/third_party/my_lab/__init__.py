"""Components of a laboratory that uses rlhf_jax and changes nothing of it: one of each kind, named
by dotted paths.
"""
