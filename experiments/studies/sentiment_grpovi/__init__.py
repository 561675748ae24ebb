"""The study of GRPOVI on a language model."""
