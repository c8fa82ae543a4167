"""Where the search service listens, and what it grants a stranger."""

from __future__ import annotations

from pydantic import Field

from laion_assets.options import Options


class ServeOptions(Options):
    """Section ``[serve]``. The limits are those of one process."""

    host: str = Field(
        "127.0.0.1", description="Address to listen on; the service has no log-in of its own"
    )
    port: int = Field(8800, ge=0, le=65_535, description="Port; 0 takes a free one")
    hosts: tuple[str, ...] = Field(
        (),
        description="Names by which the service may be asked for (`Host`), `*.example.org` too."
        " Empty: loopback's names where it listens on loopback, else any",
    )
    origins: tuple[str, ...] = Field(
        (), description="Other sites whose pages may ask (CORS), such as clip-retrieval's front end"
    )
    proxies: tuple[str, ...] = Field(
        (), description="Addresses of proxies whose X-Forwarded-For names the client"
    )

    query_rate: float = Field(5.0, gt=0, description="Queries a second of one client, in the long")
    query_burst: int = Field(40, ge=1, description="Queries of one client at once")
    thumbnail_rate: float = Field(100.0, gt=0, description="Thumbnails a second of one client")
    thumbnail_burst: int = Field(1_000, ge=1, description="Thumbnails of one client at once")
    removal_rate: float = Field(1 / 60, gt=0, description="Removal requests a second of one client")
    removal_burst: int = Field(10, ge=1, description="Removal requests of one client at once")

    max_text: int = Field(1_000, ge=1, description="Characters of a query")
    max_image_bytes: int = Field(10_000_000, ge=1, description="Bytes of a query image, encoded")
    max_pixels: int = Field(50_000_000, ge=1, description="Pixels of a query image, by its header")
    image_url_timeout_s: float = Field(8.0, gt=0, description="Seconds for fetching a query image")
    body_timeout_s: float = Field(30.0, gt=0, description="Seconds for a request's body to come")

    max_candidates: int = Field(
        3_000, ge=1, description="Nearest neighbours looked at for one query, before its filters"
    )
    duplicate_threshold: float = Field(
        0.94, gt=0, le=1, description="Cosine above which two results are one (clip-retrieval's)"
    )
    negative_weight: float = Field(0.5, ge=0, description="Weight of what a query excludes (-dog)")

    search_threads: int = Field(2, ge=1, description="Queries searched at the same time")
    encoder_waiting: int = Field(64, ge=1, description="Queries that may wait for the CLIP model")
    cache_mb: int = Field(
        512, ge=16, description="Memory for ids and metadata read of parquet; the rest is re-read"
    )
    open_shards: int = Field(64, ge=1, description="Shards whose members' places are remembered")
    watch_s: float = Field(2.0, gt=0, description="Seconds between two looks for a new index")

    removal_requests: bool = Field(True, description="Take requests for removal into the queue")
    removal_queue_bytes: int = Field(
        10_000_000, ge=0, description="Size at which the queue takes no more until it is reviewed"
    )

    def listening_on(self, host: str | None, port: int | None) -> ServeOptions:
        """The same, elsewhere; None keeps what is set. Raises ``ValidationError``."""
        asked = {"host": host, "port": port}
        given = {name: value for name, value in asked.items() if value is not None}
        return ServeOptions.model_validate(self.model_dump() | given)
