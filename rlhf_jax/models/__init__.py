"""Decoder families, one file each, resolved by file name."""
