"""Dagster with ten thousand partitions per asset: times and memory."""
