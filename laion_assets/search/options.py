"""Options of the search service: where it listens, and its limits for strangers."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Final

from pydantic import Field, field_validator

from laion_assets.options import Options

SMALL_BODY: Final = 200_000
"""Bytes of the largest request body without an image."""


class ServeOptions(Options):
    """Options of the search service, section ``[serve]``. Limits hold for one process."""

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on; the service has no authentication of its own",
    )
    port: int = Field(8800, ge=0, le=65_535, description="Port to listen on; 0 takes a free one")
    hosts: tuple[str, ...] = Field(
        (),
        description="Values allowed in the Host header, such as `*.example.org`. Empty: loopback's"
        " names if it listens on loopback, else any",
    )
    origins: tuple[str, ...] = Field(
        (),
        description="Origins whose pages may query it (CORS), such as clip-retrieval's front end",
    )
    proxies: tuple[str, ...] = Field(
        (),
        description="Addresses or networks of proxies whose X-Forwarded-For header is trusted; "
        "`*` trusts any",
    )

    query_rate: float = Field(5.0, gt=0, description="Sustained queries per second and client")
    query_burst: int = Field(40, ge=1, description="Queries that one client may send at once")
    thumbnail_rate: float = Field(
        100.0, gt=0, description="Sustained thumbnails per second and client"
    )
    thumbnail_burst: int = Field(
        1_000, ge=1, description="Thumbnails that one client may get at once"
    )
    removal_rate: float = Field(
        1 / 864,
        gt=0,
        description="Sustained removal requests per second and client; by default, 100 a day",
    )
    removal_burst: int = Field(
        50, ge=1, description="Removal requests that one client may send at once"
    )

    connections: int = Field(
        1_000, ge=2, description="Largest number of open connections of all clients"
    )
    client_connections: int = Field(
        100,
        ge=1,
        description="Connections above which a client is asked to close some; proxies are exempt",
    )
    idle_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Seconds in which a request's head must arrive, and after which an idle "
        "connection is closed",
    )

    max_text: int = Field(1_000, ge=1, description="Largest number of characters of a query")
    max_image_bytes: int = Field(10_000_000, ge=1, description="Largest query image file, in bytes")
    max_pixels: int = Field(
        50_000_000, ge=1, description="Largest query image, in pixels, according to its header"
    )
    decode_processes: int = Field(
        2, ge=1, description="Processes that decode query images, one of a client at a time"
    )
    decode_timeout_s: float = Field(
        5.0,
        gt=0,
        le=86_400,
        description="CPU seconds that decoding a query image may take; four times as many may pass",
    )
    images_waiting: int = Field(
        8, ge=1, description="Largest number of query images of one client that wait or are decoded"
    )
    image_url_timeout_s: float = Field(
        8.0, gt=0, description="Time limit for fetching a query image, in seconds"
    )
    body_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Time limit for receiving a request body, in seconds; also for a client that "
        "takes nothing of its answer",
    )

    max_candidates: int = Field(
        3_000, ge=1, description="Largest number of neighbours examined per query, before filters"
    )
    duplicate_threshold: float = Field(
        0.94,
        gt=0,
        le=1,
        description="Cosine above which two results are duplicates (clip-retrieval's)",
    )
    negative_weight: float = Field(
        0.5, ge=0, description="Weight of the words that a query excludes (-dog)"
    )

    search_threads: int = Field(2, ge=1, description="Number of queries searched at the same time")
    encoder_waiting: int = Field(
        64, ge=1, description="Largest number of queries waiting for the CLIP model"
    )
    cache_mb: int = Field(
        512, ge=16, description="Memory, in MiB, for cached ids and metadata of the subsets"
    )
    open_shards: int = Field(64, ge=1, description="Number of image shards kept open")
    watch_s: float = Field(2.0, gt=0, description="Seconds between two checks for a new index")

    removal_requests: bool = Field(
        True, description="Accept removal requests into the review queue"
    )
    removal_queue_bytes: int = Field(
        10_000_000,
        ge=0,
        description="Largest size of the review queue, in bytes; further requests are refused",
    )

    report: bool = Field(
        False,
        description="Serve the dataset report, too: it shows pairs near the threshold, also ones "
        "that were removed since it was built",
    )

    @field_validator("proxies")
    @classmethod
    def _are_addresses(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            if proxy != "*":
                ip_network(proxy)
        return proxies

    @property
    def largest_body(self) -> int:
        """Bytes of the largest request body: an image in base64, and what is beside it."""
        return self.max_image_bytes * 4 // 3 + SMALL_BODY

    @property
    def address(self) -> str:
        """Where people reach the page: by the first of ``hosts``, or on this machine."""
        named = [host for host in self.hosts if "*" not in host]
        return f"https://{named[0]}/" if named else f"http://{self.host}:{self.port}/"

    def listening_on(self, host: str | None, port: int | None) -> ServeOptions:
        """The same options with another address; None keeps what is set.

        Raises ``ValidationError``.
        """
        asked = {"host": host, "port": port}
        given = {name: value for name, value in asked.items() if value is not None}
        return ServeOptions.model_validate(self.model_dump() | given)
