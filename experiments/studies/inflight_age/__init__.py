"""The study of in-flight updates beside rounds of one version that are as old."""
