"""Options of the download: limits, politeness and image format."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from laion_assets import __version__
from laion_assets.download.addresses import parse_endpoint
from laion_assets.options import ADDED, OPERATIONAL, Options

_PNG_COMPRESSION: Final = 9
_SHARED: Final = ("concurrency", "resize_processes")
"""What the processes that fetch share."""


def share_of(total: int, number: int, processes: int) -> int:
    """The part of a total that a process gets; the parts of all add up to it."""
    return total // processes + (number < total % processes)


class DownloadOptions(Options):
    """Limits, politeness and image format of the download.

    Image size, mode, format and quality are img2dataset's options of the same names; their
    defaults are those of the released LAION-400M shards (256, border, jpg).
    """

    concurrency: Annotated[int, OPERATIONAL] = Field(
        64, ge=1, le=2048, description="Images fetched at the same time"
    )
    fetch_processes: Annotated[int, OPERATIONAL] = Field(
        1,
        ge=1,
        le=16,
        description="Processes that fetch, each from hosts of its own. Several share concurrency"
        " and resize_processes, and as many more write shards",
    )
    per_host_concurrency: Annotated[int, OPERATIONAL] = Field(
        4, ge=1, description="Requests to one host at the same time; other hosts are not delayed"
    )
    per_host_rate: Annotated[float, OPERATIONAL] = Field(
        20.0, ge=0, description="Requests per second to one host; 0 means no limit"
    )
    host_failures: Annotated[int, OPERATIONAL] = Field(
        5, ge=0, description="Consecutive failures after which a host is left alone; 0 means never"
    )
    host_pause_s: Annotated[float, OPERATIONAL] = Field(
        300.0, ge=0, description="Seconds for which such a host is left alone"
    )
    resize_processes: Annotated[int, OPERATIONAL] = Field(
        2, ge=1, description="Processes that check, resize and encode images"
    )

    decode_timeout_s: Annotated[float, OPERATIONAL] = Field(
        60.0,
        gt=0,
        le=86_400,
        description="CPU seconds that decoding one image may take; ten times as many may pass",
    )

    total_timeout_s: Annotated[float, OPERATIONAL] = Field(
        10.0,
        gt=0,
        description="Time limit in seconds for one image: names, connections, bodies, all hops",
    )
    connect_timeout_s: Annotated[float, OPERATIONAL] = Field(
        5.0, gt=0, description="Time limit in seconds for one connection, TLS included"
    )
    max_bytes: int = Field(
        20_000_000, ge=1, description="Maximum bytes of a body, after content decoding"
    )
    max_redirects: int = Field(5, ge=0, description="Maximum redirects followed for one image")
    retries: Annotated[int, OPERATIONAL] = Field(
        0, ge=0, le=10, description="Retries after a broken connection, a time-out or HTTP 5xx"
    )
    busy_retries: Annotated[int, OPERATIONAL] = Field(
        2,
        ge=0,
        le=10,
        description="Retries after HTTP 429 or 503, each after the wait that the host asks for",
    )
    longest_wait_s: Annotated[float, OPERATIONAL] = Field(
        60.0,
        ge=0,
        description="Longest Retry-After in seconds that is waited for; a host that asks for more"
        " is left alone",
    )
    retry_wait_s: Annotated[float, OPERATIONAL] = Field(
        1.0,
        ge=0,
        description="Wait in seconds before the first retry; doubled for each further one",
    )
    network_retries: Annotated[int, OPERATIONAL] = Field(
        2, ge=0, description="Retries of a shard if all its downloads failed for network reasons"
    )
    network_wait_s: Annotated[float, OPERATIONAL] = Field(
        30.0,
        ge=0,
        description="Wait in seconds before the first of those; doubled for each further one",
    )
    refetch: Annotated[Literal["transient", "none", "all"], OPERATIONAL] = Field(
        "transient",
        description="What is refetched when a segment is downloaded again: images that failed for a"
        " transient reason (transient), none, or all",
    )
    give_up_after: Annotated[int, OPERATIONAL] = Field(
        5,
        ge=1,
        description="Failed runs after which a transient reason is taken for a permanent one",
    )
    take_changed: Annotated[bool, OPERATIONAL] = Field(
        False,
        description="Accept bytes whose SHA-256 is not the recorded one (flagged either way)",
    )
    user_agent: Annotated[str, OPERATIONAL] = Field(
        "laion-assets",
        pattern=r"^[A-Za-z0-9_-]+$",
        description="Our name in requests, by which X-Robots-Tag and robots.txt may address us",
    )
    contact: Annotated[str, OPERATIONAL] = Field(
        "",
        pattern=r"^[\x21-\x7e]*$",
        description="URL or e-mail address, sent to every host: its operators can reach you there",
    )
    respect_opt_out: bool = Field(True, description="Honour X-Robots-Tag, before the body is read")
    respect_robots_txt: bool = Field(
        False, description="Fetch and obey each host's robots.txt (RFC 9309)"
    )
    ca_file: Annotated[str, OPERATIONAL] = Field(
        "", description="PEM file of the trusted CAs; empty means the system's"
    )
    connect_to: Annotated[dict[str, str], OPERATIONAL] = Field(
        default_factory=dict,
        description="Host pattern (`*.sample.test`) -> IP:PORT to connect to instead of looking the"
        " name up; the most specific pattern wins. An entry permits this address even if it is not"
        " public, for hosts of its pattern only",
    )

    min_bytes: int = Field(5000, ge=0, description="Minimum bytes of a body (LAION-400M: 5 KB)")
    max_pixels: int = Field(
        89_478_485,
        ge=1,
        le=2 * 89_478_485,
        description="Maximum pixels that a header may declare; Pillow allows twice the default",
    )
    image_size: int = Field(256, ge=1, description="Side of the stored image, in pixels")
    max_aspect_ratio: float = Field(
        20.0,
        ge=1,
        description="Images of which one side is over this many times the other are"
        " refused: resized, they are lines",
    )
    apply_orientation: bool = Field(
        False,
        description="Turn JPEGs by their EXIF orientation, as browsers do; img2dataset stores them"
        " as they lie, and the tag in the JSON",
    )
    resize_mode: str = Field(
        "border",
        pattern="^(no|border|keep_ratio|keep_ratio_largest|center_crop)$",
        description="no, border, keep_ratio, keep_ratio_largest or center_crop",
    )
    resize_only_if_bigger: bool = Field(False, description="Do not enlarge smaller images")
    encode_format: str = Field("jpg", pattern="^(jpg|png|webp)$", description="jpg, png or webp")
    encode_quality: int = Field(
        95, ge=0, le=100, description="0-100 for jpg and webp; compression 0-9 for png"
    )
    scaled_decoding: Annotated[bool, ADDED] = Field(
        False,
        description="Decode JPEGs of over six times the image size to a half, a quarter or an"
        " eighth of their sides, so that at least three times the image size is left: less time"
        " and memory for large photos, whose stored pixels then differ a little",
    )
    samples_per_shard: int = Field(10_000, ge=1, description="Rows per shard")

    @model_validator(mode="after")
    def _png_has_its_own_quality(self) -> Self:
        if self.encode_format == "png" and self.encode_quality > _PNG_COMPRESSION:
            raise ValueError(
                f"encode_quality of a png is its compression, 0 to {_PNG_COMPRESSION}, not "
                f"{self.encode_quality}"
            )
        return self

    @model_validator(mode="after")
    def _each_process_has_a_share(self) -> Self:
        for name in _SHARED:
            number = getattr(self, name)
            if number < self.fetch_processes:
                raise ValueError(
                    f"{self.fetch_processes} fetch_processes share {name}, which is only {number}:"
                    f" raise {name}, or lower fetch_processes"
                )
        return self

    @field_validator("connect_to")
    @classmethod
    def _endpoints(cls, value: dict[str, str]) -> dict[str, str]:
        for endpoint in value.values():
            parse_endpoint(endpoint)
        return value

    def share(self, number: int) -> Self:
        """The options of the fetching process of this number: with its part of what is shared."""
        parts = {
            name: share_of(getattr(self, name), number, self.fetch_processes) for name in _SHARED
        }
        return self.model_copy(update=parts)

    @property
    def user_agent_header(self) -> str:
        """The User-Agent header: `laion-assets/0.1.0 (+https://example.org/contact)`."""
        contact = f" (+{self.contact})" if self.contact else ""
        return f"{self.user_agent}/{__version__}{contact}"
