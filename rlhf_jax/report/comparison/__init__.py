"""The page that compares runs: groups of runs, their figures and curves, their completions."""
