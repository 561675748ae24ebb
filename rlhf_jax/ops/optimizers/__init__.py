"""Optimizers whose numbers may be traced: Adam's step, and schedules of the learning rate."""
