"""The study of learning rates scaled by the effective share of rows."""
