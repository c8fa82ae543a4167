"""autofaiss's stage, run by its own interpreter: ``index.py EMBEDDINGS INDEX``."""

import sys

from autofaiss import build_index  # type: ignore[import-not-found]

if __name__ == "__main__":
    embeddings, index = sys.argv[1:]
    build_index(
        embeddings=embeddings,
        index_path=index,
        index_infos_path=index + ".json",
        metric_type="ip",
        max_index_memory_usage="1GB",
        current_memory_available="8GB",
        verbose=30,
    )
