"""The kinds of training stages, one file each."""
