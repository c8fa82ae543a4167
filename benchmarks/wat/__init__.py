"""Extraction of pairs from a WAT file: cc2dataset's, ours, and the floors below both."""
