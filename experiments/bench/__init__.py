"""Benchmarks: each measures itself beside a peer or a limit in one run, and prints one JSON line."""
