"""What an experiment can do, one job a file, resolved by file name."""
