"""In-flight updates: a pool of slots whose running rows get new weights, on the clock `Stream`."""
