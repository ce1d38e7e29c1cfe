"""Encoders with heads: levels of validation, epitome-style empathy."""
