"""The sensors of the asset graph."""
