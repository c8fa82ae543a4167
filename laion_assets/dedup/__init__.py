"""Exact claims of (URL, TEXT) across segments."""
