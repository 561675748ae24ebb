"""Simulated rounds: the graph of calls over time, steady state, memory of a plan."""
