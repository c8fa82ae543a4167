"""Nearest neighbours: autofaiss and ours at the same memory, and what it costs to grow."""
