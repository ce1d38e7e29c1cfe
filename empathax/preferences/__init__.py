"""Preference data: made by rules or with an LLM, ranked, filtered, known."""
