"""Objectives: log-probabilities of replies, supervised fine-tuning, preference optimization."""
