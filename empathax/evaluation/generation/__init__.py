"""Replies of a model: decoding in one compiled function, prompts laid out as trees."""
