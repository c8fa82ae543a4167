"""Rows a second from a URL list to pairs, on one core."""
