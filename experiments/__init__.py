"""Commands: `python -m experiments.<command>`."""
