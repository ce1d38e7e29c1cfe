"""Evaluations as records, their intervals, and the comparison made of them."""
