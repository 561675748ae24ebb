"""The study of collapse by staleness with truncated importance weights."""
