"""Controls of studies: algorithms that share one property of another and leave out the rest."""
