"""TL;DR in async RLHF (arXiv 2410.18252), one file a stage or algorithm."""
