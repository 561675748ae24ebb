"""A run directory and its identity: config under old and new keys, digests, environment, starts,
lock.
"""
