"""The grammar, words and gold judge of the synthetic reviews."""
