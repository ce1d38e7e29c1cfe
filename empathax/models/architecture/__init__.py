"""What a decoder looks like, and where that is read from."""
