"""Published datasets: files, rows, conversations, records on disk."""
