"""The typed resources of the asset graph."""
