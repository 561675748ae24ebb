"""Processes of one run: the coordination service, and messages between them beside any collective."""
