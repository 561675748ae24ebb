"""Tasks, one file each, resolved by file name."""
