"""The checked door to a task's methods."""
