"""Sweeps: the arms of a study, its cells, and the lines that are kept of them."""
