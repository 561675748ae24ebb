"""Records of a run with in-flight updates: snapshots of its sampling side, and its schedule."""
