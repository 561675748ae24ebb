"""UltraFeedback in GRPOVI (arXiv 2505.23247)."""
