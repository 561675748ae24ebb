"""The groups that a round is trained on, where they are not all that it sampled."""
