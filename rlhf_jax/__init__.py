"""Reinforcement learning from human feedback in JAX, with asynchrony as an exact experimental variable."""
