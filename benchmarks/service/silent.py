"""``python -m benchmarks.service.silent``: what others see while one client holds connections open.

The attacker opens connections from 127.0.0.1, says nothing on them, and opens another for each that
is closed. Healthy clients ask from 127.0.0.2, with a new connection for each query.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from typing import Final

import numpy as np

from benchmarks import table
from benchmarks.peer import WORK
from benchmarks.service.make import make, queries
from benchmarks.service.run import serving

_HEALTHY: Final = "127.0.0.2"
_PATIENCE_S: Final = 5.0
_COLUMNS: Final = ("silent connections", "asked", "answered", "p50 ms", "p99 ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=int, default=20, help="queries per second")
    parser.add_argument("--silent", type=int, default=1_000, help="connections of the attacker")
    args = parser.parse_args()
    folder = WORK / "service" / str(args.vectors)
    make(folder, args.vectors)
    rows = []
    with serving("ours", folder) as (port, _, _):
        asyncio.run(_attacked(port, 0, args.rate, args.seconds))  # warms caches
        for silent in (0, args.silent):
            rows += asyncio.run(_attacked(port, silent, args.rate, args.seconds))
    print(table.markdown(_COLUMNS, rows))


async def _attacked(port: int, silent: int, rate: int, seconds: float) -> list[list[str]]:
    attackers = [asyncio.create_task(_hold(port)) for _ in range(silent)]
    await asyncio.sleep(1.0)
    rows = []
    for path, body in (("/knn-service", _query()), ("/healthz", b"")):
        asked = []
        for _ in range(round(rate * seconds / 2)):
            asked.append(asyncio.create_task(_ask(port, path, body)))
            await asyncio.sleep(1 / rate)
        answers = await asyncio.gather(*asked)
        times = [took for status, took in answers if status == "200"]
        statuses = ", ".join(f"{n} x {s}" for s, n in Counter(s for s, _ in answers).items())
        p50, p99 = np.percentile(times, [50, 99]) * 1000 if times else (np.nan, np.nan)
        rows.append([f"{silent:,}", path, statuses, f"{p50:.1f}", f"{p99:.1f}"])
    for attacker in attackers:
        attacker.cancel()
    await asyncio.gather(*attackers, return_exceptions=True)
    return rows


def _query() -> bytes:
    vector = [round(float(x), 6) for x in queries(1)[0]]
    asked = {"embedding_input": vector, "num_images": 10, "num_result_ids": 10}
    return json.dumps(asked).encode()


async def _hold(port: int) -> None:
    """Keep a silent connection open; open another when it is closed."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await reader.read()
            writer.close()
        except OSError:
            await asyncio.sleep(0.1)


async def _ask(port: int, path: str, body: bytes) -> tuple[str, float]:
    """Return the status of an answer, or what came instead, and the seconds that it took."""
    began = time.perf_counter()
    method = "POST" if body else "GET"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=(_HEALTHY, 0)
            )
            writer.write(head.encode() + body)
            answer = await reader.read()
            writer.close()
    except (TimeoutError, OSError) as error:
        return type(error).__name__, 0.0
    return answer[9:12].decode() or "closed", time.perf_counter() - began


if __name__ == "__main__":
    main()
