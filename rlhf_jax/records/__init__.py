"""What a run directory knows about its run: config, digests, starts, stages, and who holds it."""
