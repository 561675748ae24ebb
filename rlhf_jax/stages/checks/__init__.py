"""Checks of settings, task and vocabulary against each other, before anything is compiled."""
