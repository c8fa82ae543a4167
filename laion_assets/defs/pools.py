"""Dagster's pools: how many of the heavy assets run at once, on all machines together."""

from typing import Final

LEDGER: Final = "dedup_ledger"
CLUSTERS: Final = "cluster_ledger"
DOWNLOAD: Final = "download"
EMBED: Final = "embed"
INDEX: Final = "index_merge"
GENERATION: Final = "generation"
