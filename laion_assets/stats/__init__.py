"""Statistics, the catalog, the report and the story of a pair, all by DuckDB."""
