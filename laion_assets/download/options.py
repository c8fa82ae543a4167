"""Limits, politeness and image format of the download."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from laion_assets import __version__
from laion_assets.download.addresses import parse_endpoint
from laion_assets.options import OPERATIONAL, Options


class DownloadOptions(Options):
    """How images are fetched, checked, resized and stored.

    Image size, mode, format and quality are img2dataset's options of the same names; their
    defaults are those of the released LAION-400M shards (256, border, jpg).
    """

    concurrency: Annotated[int, OPERATIONAL] = Field(
        64, ge=1, le=2048, description="Images fetched at the same time"
    )
    per_host_concurrency: Annotated[int, OPERATIONAL] = Field(
        4, ge=1, description="Requests to one host at the same time; others do not wait for it"
    )
    per_host_rate: Annotated[float, OPERATIONAL] = Field(
        20.0, ge=0, description="Requests a second to one host; 0 sets no limit"
    )
    host_failures: Annotated[int, OPERATIONAL] = Field(
        5, ge=0, description="Failures in a row after which a host is left alone; 0 never does"
    )
    host_pause_s: Annotated[float, OPERATIONAL] = Field(
        300.0, ge=0, description="For how many seconds it is left alone"
    )
    resize_processes: Annotated[int, OPERATIONAL] = Field(
        2, ge=1, description="Processes that check, resize and encode"
    )

    decode_timeout_s: Annotated[float, OPERATIONAL] = Field(
        60.0, gt=0, description="Seconds for decoding one image"
    )

    total_timeout_s: Annotated[float, OPERATIONAL] = Field(
        10.0, gt=0, description="Seconds for one image: names, connections, headers, body, all hops"
    )
    connect_timeout_s: Annotated[float, OPERATIONAL] = Field(
        5.0, gt=0, description="Seconds for one connection with TLS"
    )
    max_bytes: int = Field(20_000_000, ge=1, description="Largest body, after content decoding")
    max_redirects: int = Field(5, ge=0, description="Redirects followed for one image")
    retries: Annotated[int, OPERATIONAL] = Field(
        0, ge=0, le=10, description="More tries after a broken connection, a time-out or HTTP 5xx"
    )
    busy_retries: Annotated[int, OPERATIONAL] = Field(
        2,
        ge=0,
        le=10,
        description="More tries after HTTP 429 or 503, when the host is left waiting",
    )
    longest_wait_s: Annotated[float, OPERATIONAL] = Field(
        60.0, ge=0, description="Longest Retry-After waited for; a host that asks for more is left"
    )
    retry_wait_s: Annotated[float, OPERATIONAL] = Field(
        1.0, ge=0, description="Seconds before the first retry, doubled for each more"
    )
    network_retries: Annotated[int, OPERATIONAL] = Field(
        2, ge=0, description="More tries of a shard of which every download failed for the network"
    )
    network_wait_s: Annotated[float, OPERATIONAL] = Field(
        30.0, ge=0, description="Seconds before the first of those, doubled for each more"
    )
    refetch: Annotated[Literal["passing", "none", "all"], OPERATIONAL] = Field(
        "passing",
        description="What is asked for again of a segment that was downloaded before: what failed"
        " for a passing reason, nothing, or all",
    )
    give_up_after: Annotated[int, OPERATIONAL] = Field(
        5, ge=1, description="Runs after which a passing reason is taken for a lasting one"
    )
    take_changed: Annotated[bool, OPERATIONAL] = Field(
        False, description="Take bytes that are not those of the recorded SHA-256 (flagged anyway)"
    )
    user_agent: Annotated[str, OPERATIONAL] = Field(
        "laion-assets",
        pattern=r"^[A-Za-z0-9_-]+$",
        description="The name we go by, also the one that X-Robots-Tag may address",
    )
    contact: Annotated[str, OPERATIONAL] = Field(
        "",
        pattern=r"^[\x21-\x7e]*$",
        description="URL or e-mail address told to every host, for people whom we disturb",
    )
    respect_opt_out: bool = Field(True, description="Honour X-Robots-Tag before reading the body")
    respect_robots_txt: bool = Field(
        False, description="Ask each host for its robots.txt first, and keep to it (RFC 9309)"
    )
    ca_file: Annotated[str, OPERATIONAL] = Field(
        "", description="PEM file of the trusted CAs; empty takes the system's"
    )
    connect_to: Annotated[dict[str, str], OPERATIONAL] = Field(
        default_factory=dict,
        description="Host pattern (`*.sample.test`) -> IP:PORT to connect to instead of looking"
        " the name up; the more specific pattern wins. An entry is the permission to connect to"
        " that address although it is not public, for hosts of that pattern only",
    )

    min_bytes: int = Field(5000, ge=0, description="Smallest body (LAION-400M: 5 KB)")
    max_pixels: int = Field(
        89_478_485,
        ge=1,
        le=2 * 89_478_485,
        description="Most pixels that a header may declare; Pillow refuses twice its default, too",
    )
    image_size: int = Field(256, ge=1, description="Side of the stored image, in pixels")
    resize_mode: str = Field(
        "border",
        pattern="^(no|border|keep_ratio|keep_ratio_largest|center_crop)$",
        description="no, border, keep_ratio, keep_ratio_largest or center_crop",
    )
    resize_only_if_bigger: bool = Field(False, description="Leave smaller images as they are")
    encode_format: str = Field("jpg", pattern="^(jpg|png|webp)$", description="jpg, png or webp")
    encode_quality: int = Field(
        95, ge=0, le=100, description="0-100 for jpg and webp; compression 0-9 for png"
    )
    samples_per_shard: int = Field(10_000, ge=1, description="Rows of one shard")

    @field_validator("connect_to")
    @classmethod
    def _endpoints(cls, value: dict[str, str]) -> dict[str, str]:
        for endpoint in value.values():
            parse_endpoint(endpoint)
        return value

    @property
    def user_agent_header(self) -> str:
        """`laion-assets/0.1.0 (+https://example.org/contact)`: never a browser's."""
        contact = f" (+{self.contact})" if self.contact else ""
        return f"{self.user_agent}/{__version__}{contact}"
