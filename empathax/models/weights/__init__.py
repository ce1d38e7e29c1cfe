"""Parameters in files: found, checked, read, written."""
