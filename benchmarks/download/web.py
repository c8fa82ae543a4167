"""The benchmark's small web: its hosts, how they behave, and how URLs are spread over them.

A host's behaviour follows from its name alone, so the host process, the resolver and the list of
URLs need not share a file.

- Hosts: 500, one in five of them bad, like the URLs of the mixed list.
- Shares: among the hosts of a kind, the one of rank r has a share of URLs proportional to r^-0.8.
  The largest good host has 8 % of the good URLs; Pinterest has 8.5 % in the sample of
  LAION-Aesthetics that Baio and Willison looked at (waxy.org, August 2022).
- Time to the first byte: each host has its own, log-normal with a median of 100 ms, one in a
  hundred over 500 ms; this is an assumption. Bandwidth and round trips are not modelled: this is
  loopback, without TLS.
- The bad kinds have equal shares, because figures on dead links do not distinguish kinds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.schemas import PAIRS, uid_of

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
    """Behaviour of a host, which is part of its name."""

    GOOD = "good"
    REFUSED = "refused"
    """The host's port is closed."""
    BLACK_HOLE = "black-hole"
    """Nothing comes back from the host, not even a refusal."""
    SILENT = "silent"
    """The host takes the request and never answers."""
    DRIP = "drip"
    """The host promises an image and sends one byte per second for half a minute."""
    BUSY = "busy"
    """The host answers 503."""
    NO_NAME = "no-name"
    """The host is not in the DNS."""


BAD: Final = tuple(kind for kind in Kind if kind is not Kind.GOOD)

# There is one port, because it is part of the URL; kinds that need another socket have another
# address.
ADDRESSES: Final = {
    "*.bench.test": "127.0.1.1",
    "*.black-hole.bench.test": "127.0.1.2",
    "*.refused.bench.test": "127.0.1.3",
    "*.bench.invalid": None,
}
"""Addresses by pattern of host name, None if the name does not exist; the longest pattern wins."""
WEB_ADDRESS: Final = "127.0.1.1"
BLACK_HOLE_ADDRESS: Final = "127.0.1.2"


def host_name(kind: Kind, rank: int) -> str:
    # Ours refuses `.invalid` without a look-up (RFC 6761), and the peer's resolver here at once:
    # neither waits for a name server.
    domain = "bench.invalid" if kind is Kind.NO_NAME else "bench.test"
    return f"h{rank:04d}.{kind}.{domain}"


def kind_of(host: str) -> Kind:
    """Kind of a host by its name. Raises ``ValueError`` for a name outside this web."""
    _, _, rest = host.partition(".")
    return Kind(rest.partition(".")[0])


def latency_s(host: str) -> float:
    """Seconds from a request to the first byte of its answer."""
    return _MEDIAN_LATENCY_S * random.Random(host).lognormvariate(0, _LATENCY_SIGMA)


def write_pairs(path: Path, n: int, *, port: int, bad: bool, seed: int) -> int:
    """Write ``n`` rows of ``uid``, ``url`` and ``text``, a fifth of them on bad hosts if ``bad``.

    By ``uid`` ours takes them for pairs; of a list of URLs it would drop those whose text it takes
    for another language.

    Returns the number of rows on good hosts.
    """
    rng = random.Random(f"{seed} {n} {bad}")
    n_bad = round(n * BAD_SHARE) if bad else 0
    kinds = [Kind.GOOD] * (n - n_bad) + [BAD[i % len(BAD)] for i in range(n_bad)]
    rng.shuffle(kinds)
    hosts = {kind: _hosts(kind, rng) for kind in Kind}
    urls = [f"http://{next(hosts[kind])}:{port}/images/{i}" for i, kind in enumerate(kinds)]
    texts = [" ".join(rng.choices(_WORDS, k=rng.randint(3, 12))) for _ in kinds]
    uids = pa.array(map(uid_of, urls, texts), PAIRS.field("uid").type)
    pq.write_table(pa.table({"uid": uids, "url": urls, "text": texts}), path)
    return n - n_bad


def host_shares(n: int) -> list[float]:
    """What ``n`` hosts of a kind have of its URLs, by rank; not normalised."""
    return [rank**-_EXPONENT for rank in range(1, n + 1)]


def _hosts(kind: Kind, rng: random.Random) -> Iterator[str]:
    """Yield host names of a kind without end, the first ranks more often."""
    n = GOOD_HOSTS if kind is Kind.GOOD else round(BAD_HOSTS / len(BAD))
    names = [host_name(kind, rank) for rank in range(1, n + 1)]
    while True:
        yield from rng.choices(names, host_shares(n), k=1000)
