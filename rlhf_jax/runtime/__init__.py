"""Everything that compiles, places, publishes, saves, and the loops."""
