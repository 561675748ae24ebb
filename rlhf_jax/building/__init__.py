"""Pieces of `rlhf_jax.build`: nodes, validation, components, directory, running."""
