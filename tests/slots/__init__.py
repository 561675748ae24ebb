"""Tests of the slots, and of the pool that compiles them."""
