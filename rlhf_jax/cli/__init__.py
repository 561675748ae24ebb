"""The commands: run, sweep, plan, evaluate, export, report."""
