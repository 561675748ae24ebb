"""The study of off-policyness."""
