"""The study of groups whose samples all have one score."""
