"""Execution plans: what each call costs where, simulated rounds, and a search over placements."""
