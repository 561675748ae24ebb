"""Measures of a study's cells that the metrics of a run do not have."""
