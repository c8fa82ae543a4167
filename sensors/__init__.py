"""The sensors of the asset graph: what Dagster's daemon notices and requests by itself.

Rules of the dataset do not belong here, nor anything that a run needs.
"""
