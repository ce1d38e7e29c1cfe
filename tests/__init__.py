"""A package of its own name: some installed package brings a top-level `tests` too (textstat does)."""
