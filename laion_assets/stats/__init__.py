"""Statistics, the catalog and the report, by DuckDB."""
