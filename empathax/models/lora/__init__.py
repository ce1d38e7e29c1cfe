"""Low-rank adapters on frozen weights."""
