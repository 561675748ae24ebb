"""Meshes, shardings, placements on device slices, and several hosts."""
