"""The study of GRPOVI."""
