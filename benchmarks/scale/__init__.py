"""Ten thousand partitions: what Dagster takes for them."""
