"""``python -m benchmarks.attack.run``: healthy clients of the search service under decode attacks.

Healthy clients ask by text, image and embedding, a few times a second, while others send pictures
that take a decoder long. Rate limits are off, so the attackers send as fast as they are answered.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from PIL import Image

from benchmarks import table
from benchmarks.peer import WORK
from benchmarks.service.make import make
from benchmarks.service.run import serving

_VECTORS: Final = 20_000
_D: Final = 256
"""Numbers of a vector of the shipped CLIP."""
_RATE: Final = 5.0
_CONNECTIONS: Final = 4
_COLUMNS: Final = (
    "attack", "attackers", "text: p50 ms", "p99 ms", "image: p50 ms", "p99 ms",
    "embedding: p50 ms", "p99 ms", "refused",
)  # fmt: skip

Body = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="seconds per attack")
    parser.add_argument("--show", action="store_true", help="write nothing")
    args = parser.parse_args()
    folder = WORK / "attack"
    make(folder, _VECTORS, _D)
    attacks: list[tuple[str, Body | None, int]] = [
        ("none", None, 0),
        ("0.3 MB JPEG of 20,000 empty scans", _image(_with_scans(1_500, 20_000)), 1),
        ("49 megapixels in 90 scans", _image(_with_scans(7_000, 80)), 1),
        ("49 megapixels in 90 scans", _image(_with_scans(7_000, 80)), 8),
    ]
    rows = []
    with serving("ours", folder) as (port, _, _):
        _until_ready(port)
        _healthy(port, 5)  # warm up
        for name, body, attackers in attacks:
            with _attacking(port, body, attackers):
                times, refused = _healthy(port, args.seconds)
            cells = [f"{value:.0f}" for kind in times for value in kind]
            rows.append([name, attackers, *cells, refused])
            print(rows[-1], file=sys.stderr, flush=True)
    text = table.markdown(_COLUMNS, rows)
    text += (
        f"\n\n{_RATE:g} queries of each kind a second for {args.seconds:g} s, at random moments; "
        f"each attacker has an address of its own and {_CONNECTIONS} connections, on the same "
        "cores."
    )
    if args.show:
        print(text)
    else:
        table.publish("attack", text)


def _healthy(port: int, seconds: float) -> tuple[list[tuple[float, float]], int]:
    """p50 and p99 in milliseconds of queries by text, image and embedding; how many were refused.

    A query's time counts from when it was due, and one that is refused is not timed.
    """

    # None comes twice, in this run or another: the service remembers vectors.
    def text(number: int) -> Body:
        return {"text": f"a photo of {number} {secrets.token_hex(8)}"}

    def picture(_: int) -> Body:
        noise = np.frombuffer(secrets.token_bytes(40 * 40 * 3), np.uint8).reshape(40, 40, 3)
        return _image(_jpeg(Image.fromarray(noise).resize((400, 300))))

    def embedding(_: int) -> Body:
        return {"embedding_input": np.random.default_rng().normal(size=_D).tolist()}

    def client(make_body: Callable[[int], Body]) -> tuple[list[float], int]:
        moments = np.sort(np.random.default_rng(7).uniform(0, seconds, round(_RATE * seconds)))
        due = [(started + float(moment), make_body(i)) for i, moment in enumerate(moments)]

        def one(at: float, body: Body) -> float | None:
            time.sleep(max(0.0, at - time.monotonic()))
            status = _post(port, "127.0.0.1", body)
            return time.monotonic() - at if status == 200 else None

        # As many connections as may wait, so that a slow answer delays no other query.
        with ThreadPoolExecutor(32) as pool:
            took = list(pool.map(lambda query: one(*query), due))
        return [value for value in took if value is not None], took.count(None)

    started = time.monotonic() + 3
    with ThreadPoolExecutor(3) as kinds:
        results = list(kinds.map(client, (text, picture, embedding)))
    percentiles = [np.percentile(times or [np.inf], [50, 99]) * 1000 for times, _ in results]
    return [(p50, p99) for p50, p99 in percentiles], sum(refused for _, refused in results)


@contextmanager
def _attacking(port: int, body: Body | None, attackers: int) -> Iterator[None]:
    """Have each attacker send the body on its connections, again and again."""
    over = threading.Event()

    def attack(address: str) -> None:
        assert body
        while not over.is_set():
            # Each is another file, or the service would remember its vector.
            _post(port, address, {"image": body["image"] + secrets.token_hex(8)})

    threads = [
        threading.Thread(target=attack, args=(f"127.0.1.{number + 1}",), daemon=True)
        for number in range(attackers if body else 0)
        for _ in range(_CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(120)


def _post(port: int, address: str, body: Body) -> int:
    """Status of a query from an address of loopback, 0 without an answer in a minute."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=60, source_address=(address, 0)
    )
    path = "/knn-service"
    try:
        connection.request(
            "POST",
            path,
            json.dumps({"num_images": 10, **body}),
            {"Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        answer.read()
    except OSError:
        return 0
    else:
        return answer.status
    finally:
        connection.close()


def _until_ready(port: int) -> None:
    while _post(port, "127.0.0.1", {"text": "a first text"}) != 200:
        time.sleep(0.2)


def _image(body: bytes) -> Body:
    return {"image": base64.b64encode(body).decode()}


def _jpeg(image: Image.Image, **options: Any) -> bytes:
    body = io.BytesIO()
    image.save(body, "JPEG", **options)
    return body.getvalue()


def _with_scans(side: int, more: int) -> bytes:
    """A progressive JPEG of one colour whose last scan is repeated, without its data if often.

    Its size is a multiple of three: more can be put behind it in base64.
    """
    image = Image.new("RGB", (side, side), (200, 30, 90))
    body = _jpeg(image, progressive=True, subsampling=0)
    at = body.rindex(b"\xff\xda")
    scan = body[at:-2]
    if more > 1_000:
        scan = scan[: 2 + int.from_bytes(scan[2:4], "big")] + b"\0"
    body = body[:-2] + scan * more + body[-2:]
    return body + bytes(-len(body) % 3)


if __name__ == "__main__":
    main()
