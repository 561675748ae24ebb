"""Adapters of a run's stages: `base`."""
