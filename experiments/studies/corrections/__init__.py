"""The study of corrections under three clocks."""
