"""Trackers: places beside `metrics.jsonl` that show the figures of a run as it goes on."""
