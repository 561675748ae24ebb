"""The study of staleness on a language model."""
