"""Rewards, one file each, resolved by file name."""
