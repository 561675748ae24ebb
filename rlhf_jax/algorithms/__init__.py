"""Algorithms, one paper a file, resolved by file name."""
