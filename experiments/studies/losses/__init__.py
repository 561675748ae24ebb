"""The study of younger losses at the largest ages of off-policyness."""
