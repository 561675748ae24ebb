"""In-flight updates in the RLHF stage."""
