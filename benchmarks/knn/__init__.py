"""Nearest neighbours: autofaiss and ours with the same memory, and the cost of growing."""
