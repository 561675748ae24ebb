"""Parts that several configs share."""
