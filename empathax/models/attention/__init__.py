"""Attention over prefix trees."""
