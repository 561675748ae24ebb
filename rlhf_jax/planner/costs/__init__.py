"""Cost models of one call: formulas from a hardware table, or measured times."""
