"""Transfers of arrays between shardings: reshard strategies, copies between devices, per-host
arrays.
"""
