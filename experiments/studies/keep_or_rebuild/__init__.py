"""The study of keys and values that are kept or rebuilt when weights change."""
