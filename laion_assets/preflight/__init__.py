"""What a run will take and what will fail in it, said before it starts.

No asset is made here, and nothing of it knows Dagster.
"""
