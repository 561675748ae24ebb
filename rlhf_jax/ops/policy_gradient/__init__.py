"""Losses of policy gradients as data: surrogates, filters of rows, and penalties."""
