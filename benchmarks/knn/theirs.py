"""autofaiss, run by its own interpreter: ``build EMBEDDINGS INDEX MB`` or ``query INDEX QUERIES``.

Prints a JSON line. Seconds are CPU time of all threads together.
"""

import json
import sys
import time

import faiss
import numpy as np


def build(embeddings: str, index: str, megabytes: str) -> None:
    from autofaiss import build_index

    started = time.process_time()
    _, infos = build_index(
        embeddings=embeddings,
        index_path=index,
        index_infos_path=index + ".json",
        metric_type="ip",
        max_index_memory_usage=megabytes + "MB",
        current_memory_available="8GB",
        nb_cores=2,
        verbose=30,
    )
    seconds = time.process_time() - started
    print(json.dumps({"seconds": seconds, "infos": {k: str(v) for k, v in infos.items()}}))


def query(path: str, queries: str) -> None:
    """Run each query alone, on one thread, as a service gets them."""
    faiss.omp_set_num_threads(1)
    index = faiss.read_index(path)
    vectors = np.load(queries)
    space = faiss.ParameterSpace()
    found, rates = [], []
    for nprobe in (8, 16, 32, 64, 128, 256, 512):
        # autofaiss' own setting of the search for cells: twice the number of probed cells.
        space.set_index_parameters(index, f"nprobe={nprobe},quantizer_efSearch={2 * nprobe}")
        for vector in vectors[:50]:
            index.search(vector[None], 10)
        started = time.process_time()
        found.append(np.concatenate([index.search(vector[None], 10)[1] for vector in vectors]))
        rates.append([f"nprobe {nprobe}", len(vectors) / (time.process_time() - started)])
    np.save(path + ".found.npy", np.stack(found))
    print(json.dumps(rates))


if __name__ == "__main__":
    {"build": build, "query": query}[sys.argv[1]](*sys.argv[2:])
