"""The study of samples per prompt at a lag of one update."""
