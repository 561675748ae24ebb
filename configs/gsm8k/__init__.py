"""GSM8K in async RLHF (arXiv 2410.18252), one file an algorithm."""
