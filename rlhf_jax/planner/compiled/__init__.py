"""Reads programs that XLA has compiled: their collectives, loops and memory."""
