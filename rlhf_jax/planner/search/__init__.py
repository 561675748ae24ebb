"""The search for a plan: annealing, branch and bound, explanations."""
