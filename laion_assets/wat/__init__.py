"""Streaming HTML pages out of WAT files."""
