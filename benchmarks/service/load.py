"""Clients of the service on loopback.

Each client sends the next query when it has its answer. Or all clients together send a number of
queries per second at random moments (a Poisson process), however long answers take; a query's time
then counts from when it was due.

Bare sockets and prepared requests keep the load's share of the cores small.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import numpy as np

RESULTS = 40


def main(port: int, vectors: Path, clients: int, rate: float, seconds: float, kind: str) -> None:
    bodies = [
        json.dumps(
            {
                "embedding_input": [round(float(x), 6) for x in vector],
                "indice_name": "search_index",
                "modality": "image",
                "num_images": RESULTS,
                "num_result_ids": RESULTS,
                "deduplicate": kind == "folded",
            }
        ).encode()
        for vector in np.load(vectors)
    ]
    requests = [
        b"POST /knn-service HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
        for body in bodies
    ]
    print(json.dumps(asyncio.run(_load(port, requests, clients, rate, seconds))))


async def _load(
    port: int, requests: list[bytes], clients: int, rate: float, seconds: float
) -> dict[str, float]:
    """Send requests for some seconds, ``rate`` per second; 0: as fast as answers come."""
    times: list[float] = []
    results: list[int] = []
    end = time.perf_counter() + seconds
    started = time.perf_counter()
    turn = iter(range(10**9))
    # Independent moments, as in a Poisson process.
    moments = np.sort(np.random.default_rng(3).uniform(0, seconds, round(rate * seconds)))

    async def client() -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while time.perf_counter() < end:
            number = next(turn)
            if rate and number >= len(moments):
                break
            request = requests[number % len(requests)]
            began = time.perf_counter()
            if rate:
                due = started + float(moments[number])
                await asyncio.sleep(due - began)
                began = due
            if streams is None:
                streams = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = streams
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.partition("content-length:")[2].partition("\r")[0])
            body = await reader.readexactly(length)
            times.append(time.perf_counter() - began)
            if " 200 " not in head.partition("\r")[0]:
                raise SystemExit(f"{head}{body[:500]!r}")
            results.append(body.count(b'"caption"'))
            # Flask's own server closes after each answer; ours keeps the connection.
            if "connection: close" in head or head.startswith("http/1.0"):
                writer.close()
                streams = None
        if streams is not None:
            streams[1].close()

    await asyncio.gather(*(client() for _ in range(clients)))
    took = time.perf_counter() - started
    p50, p99 = np.percentile(times, [50, 99])
    return {
        "queries": len(times),
        "qps": len(times) / took,
        "p50_ms": p50 * 1000,
        "p99_ms": p99 * 1000,
        "results": float(np.mean(results)),
    }


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        Path(sys.argv[2]),
        int(sys.argv[3]),
        float(sys.argv[4]),
        float(sys.argv[5]),
        sys.argv[6],
    )
