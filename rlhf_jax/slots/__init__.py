"""Slots: rows that decode together and are replaced one by one as they end.

A row has its prompt in fixed columns, and its completion in a ring of columns that all slots write
together. Every function here is pure, and is compiled by `runtime/inflight/pool.py`.
"""
