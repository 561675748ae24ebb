"""The study of collapse by staleness and learning rate."""
