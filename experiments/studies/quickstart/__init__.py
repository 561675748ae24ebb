"""Every algorithm on the quickstart."""
