"""One function an equation: the formulas that the algorithms share."""
