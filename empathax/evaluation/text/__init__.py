"""Metrics of texts against references, counted in the graph from integer ids."""
