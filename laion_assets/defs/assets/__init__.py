"""One file per artifact: thin Dagster assets over the domain packages."""
