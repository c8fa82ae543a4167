"""Guarded fetching, and img2dataset's formats."""
