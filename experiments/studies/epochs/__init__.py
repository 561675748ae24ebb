"""The study of updates per minibatch at a lag of one update."""
