"""The benchmark's small web: its hosts, how they behave, and how URLs spread over them.

A host's behaviour follows from its name alone, so the host process, the resolver and the list of
URLs need no file between them.

- Hosts: 500, every fifth of them bad, as are the URLs of the mixed list.
- Shares: of a kind's hosts, that of rank r has a share of URLs proportional to r^-0.8. The largest
  good host has 8 % of the good URLs, as Pinterest has 8.5 % in the sample of LAION-Aesthetics that
  Baio and Willison looked at (waxy.org, August 2022).
- Time to the first byte: a host's own, log-normal with a median of 100 ms, one in a hundred over
  500 ms; an assumption. Bandwidth and round trips are not modelled: this is loopback, without TLS.
- The bad kinds have equal parts, because what is known of dead links is not known by kind.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

GOOD_HOSTS: Final = 400
BAD_HOSTS: Final = 100
BAD_SHARE: Final = 0.2

_EXPONENT: Final = 0.8
_MEDIAN_LATENCY_S: Final = 0.1
_LATENCY_SIGMA: Final = 0.7
_WORDS: Final = [
    *("old", "red", "small", "blue", "wooden", "quiet", "summer", "market", "river", "bridge"),
    *("house", "garden", "table", "lamp", "dog", "cat", "street", "winter", "lake", "bread"),
]


class Kind(StrEnum):
    """How a host behaves; part of its name."""

    GOOD = "good"
    REFUSED = "refused"
    """Its port is closed."""
    BLACK_HOLE = "black-hole"
    """Nothing comes back from it, not even a refusal."""
    SILENT = "silent"
    """Takes the request and never answers."""
    DRIP = "drip"
    """Promises an image and sends a byte a second, half a minute long."""
    BUSY = "busy"
    """Answers 503."""
    NO_NAME = "no-name"
    """Is not in the DNS."""


BAD: Final = tuple(kind for kind in Kind if kind is not Kind.GOOD)

# One port, because it is part of the URL; what the kinds need is told apart by address.
ADDRESSES: Final = {
    "*.bench.test": "127.0.1.1",
    "*.black-hole.bench.test": "127.0.1.2",
    "*.refused.bench.test": "127.0.1.3",
    "*.bench.invalid": None,
}
"""Pattern of a host's name -> its address, None where there is no such name; the longest wins."""
WEB_ADDRESS: Final = "127.0.1.1"
BLACK_HOLE_ADDRESS: Final = "127.0.1.2"


def host_name(kind: Kind, rank: int) -> str:
    # `.invalid` is refused by ours without a look-up (RFC 6761), by the peer's resolver here at
    # once: neither waits for a name server.
    domain = "bench.invalid" if kind is Kind.NO_NAME else "bench.test"
    return f"h{rank:04d}.{kind}.{domain}"


def kind_of(host: str) -> Kind:
    """Raises ``ValueError`` for a name that is not of this web."""
    _, _, rest = host.partition(".")
    return Kind(rest.partition(".")[0])


def latency_s(host: str) -> float:
    """Seconds from a request to the first byte of its answer."""
    return _MEDIAN_LATENCY_S * random.Random(host).lognormvariate(0, _LATENCY_SIGMA)


def write_pairs(path: Path, n: int, *, port: int, bad: bool, seed: int) -> int:
    """``n`` rows of ``url`` and ``text``, a fifth on bad hosts if ``bad``.

    Returns how many of them are on good hosts.
    """
    rng = random.Random(f"{seed} {n} {bad}")
    n_bad = round(n * BAD_SHARE) if bad else 0
    kinds = [Kind.GOOD] * (n - n_bad) + [BAD[i % len(BAD)] for i in range(n_bad)]
    rng.shuffle(kinds)
    hosts = {kind: _hosts(kind, rng) for kind in Kind}
    urls = [f"http://{next(hosts[kind])}:{port}/images/{i}" for i, kind in enumerate(kinds)]
    texts = [" ".join(rng.choices(_WORDS, k=rng.randint(3, 12))) for _ in kinds]
    pq.write_table(pa.table({"url": urls, "text": texts}), path)
    return n - n_bad


def _hosts(kind: Kind, rng: random.Random) -> Iterator[str]:
    """Names of this kind without end, the first ranks more often."""
    n = GOOD_HOSTS if kind is Kind.GOOD else round(BAD_HOSTS / len(BAD))
    names = [host_name(kind, rank) for rank in range(1, n + 1)]
    shares = [rank**-_EXPONENT for rank in range(1, n + 1)]
    while True:
        yield from rng.choices(names, shares, k=1000)
