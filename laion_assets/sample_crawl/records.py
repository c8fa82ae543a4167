"""WAT records as Common Crawl's extractor writes them, with the same bytes on every build.

Field names, nesting and value types (numbers are strings) are those of real WAT files; see
``tests/sample_crawl/test_build.py``. What does not belong here: which pages there are
(``cases``), and what must become of them (``build``).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from laion_assets.wat.pages import DECODES_SINCE
from laion_assets.wat.references import decode_attribute

_NAMESPACE: Final = uuid.UUID("6f1d8a52-0b5c-5c1e-9b57-2f6f1d0f7c11")
_WARC: Final = "WARC/1.0"
_USER_AGENT: Final = "SampleCrawl/1.0 (a made crawl; nothing was fetched)"

Damage = Literal["bad_json", "truncated"]


@dataclass(frozen=True)
class Link:
    """One entry of ``HTML-Metadata.Links``, with the keys in the extractor's order."""

    path: str
    url: str
    alt: str | None = None
    title: str | None = None
    text: str | None = None
    rel: str | None = None

    def to_json(self) -> dict[str, str]:
        """The entry as the extractor writes it."""
        if self.path == "STYLE/#text":  # the extractor's own name for a style sheet's address
            return {"path": self.path, "href": self.url}
        values = {"path": self.path, "url": self.url, "alt": self.alt, "title": self.title}
        values |= {"rel": self.rel, "text": self.text}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Page:
    """One capture; ``html`` is False if something other than HTML was served under the URL."""

    url: str
    title: str
    links: Sequence[Link]
    base: str | None = None
    head_links: Sequence[Mapping[str, str]] = ()
    html: bool = True
    damage: Damage | None = None


@dataclass
class WatFile:
    """A WAT file in the making, with one gzip member per record, as in Common Crawl."""

    crawl: str
    warc_name: str
    date: str
    extracted: str = ""
    """When the file was written, if not on ``date``; since July 2019 its writer decodes the
    character references in attributes."""
    hosts_address: str = "192.0.2.80"  # TEST-NET-1: nobody's address
    _out: io.BytesIO = field(default_factory=io.BytesIO)
    _offset: int = 0
    _last_member: int = 0
    records: int = 0

    @property
    def written(self) -> str:
        """The date of the file's own records."""
        return self.extracted or self.date

    @property
    def name(self) -> str:
        return self.warc_name.replace(".warc.gz", ".warc.wat.gz")

    def write_warcinfo(self) -> None:
        """Write the file's own warcinfo record, then the metadata of the WARC's warcinfo record."""
        lines = (
            "Software-Info: ia-web-commons, as written by the sample crawl's builder",
            f"Extracted-Date: {self.written}",
            "ip: 192.0.2.1",
            "hostname: builder.sample.test",
            "format: WARC File Format 1.0",
            "conformsTo: http://bibnum.bnf.fr/WARC/WARC_ISO_28500_version1_latestdraft.pdf",
        )
        body = "".join(f"{line}\r\n" for line in lines).encode()
        self._write(
            [
                ("WARC-Type", "warcinfo"),
                ("WARC-Date", self.written),
                ("WARC-Filename", self.name),
                ("WARC-Record-ID", _record_id(self.name, "warcinfo")),
                ("Content-Type", "application/warc-fields"),
                ("Content-Length", str(len(body))),
                ("WARC-Block-Digest", _sha1(body)),
            ],
            body,
        )
        info = {"WARC-Info-Metadata": {"isPartOf": self.crawl, "format": "WARC File 1.0"}}
        self._describe(self.warc_name, "warcinfo", "application/warc-fields", info, [])

    def write_page(self, page: Page) -> None:
        """Write the metadata of a capture's request, response and metadata records."""
        self._describe(page.url, "request", "application/http; msgtype=request", _request(page), [])
        concurrent = [("WARC-Concurrent-To", _record_id(self.warc_name, page.url, "request"))]
        response = "application/http; msgtype=response"
        payload = _response(page if self.written < DECODES_SINCE else _decoded(page))
        self._describe(page.url, "response", response, payload, concurrent, page.damage)
        if page.damage != "truncated":
            notes = [
                {"Name": "fetchTimeMs", "Value": str(_number(page.url, "ms", 900))},
                {"Name": "charset-detected", "Value": "UTF-8"},
            ]
            metadata = {"WARC-Metadata-Metadata": {"Metadata-Records": notes}}
            fields = "application/warc-fields"
            self._describe(page.url, "metadata", fields, metadata, concurrent)

    def to_bytes(self) -> bytes:
        """Return the whole file."""
        return self._out.getvalue()

    def take(self) -> bytes:
        """Return what was written since the last call, for files too large for memory."""
        data = self._out.getvalue()
        self._out.seek(0)
        self._out.truncate()
        return data

    def _describe(
        self,
        uri: str,
        kind: str,
        content_type: str,
        payload: dict[str, Any],
        concurrent: list[tuple[str, str]],
        damage: Damage | None = None,
    ) -> None:
        """Write the WAT record, of type metadata, about the WARC's record of type ``kind``."""
        length = _number(uri, kind, 60_000)
        about = _record_id(self.warc_name, uri, kind)
        header = self._warc_header(uri, kind, content_type, payload, concurrent)
        actual_type = {"metadata": "application/metadata-fields"}.get(kind, content_type)
        document = {
            "Container": {
                "Filename": self.warc_name,
                "Compressed": True,
                "Offset": str(self._offset),
                "Gzip-Metadata": {
                    "Deflate-Length": str(length // 4 + 30),
                    "Header-Length": "10",
                    "Footer-Length": "8",
                    "Inflated-CRC": str(_signed32(zlib.crc32(about.encode()))),
                    "Inflated-Length": str(length + 400),
                },
            },
            "Envelope": {
                "Payload-Metadata": {
                    "Actual-Content-Type": actual_type,
                    **payload,
                    "Actual-Content-Length": str(length),
                    "Trailing-Slop-Length": "4",
                    "Block-Digest": _sha1(f"{uri} {kind}".encode()),
                },
                "Format": _WARC,
                "WARC-Header-Length": str(300 + len(uri)),
                "WARC-Header-Metadata": header,
            },
        }
        self._offset += length // 4 + 30
        body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        if damage == "bad_json":
            body = body[: body.rindex(b'"IMG@/src"') + 20]
        self._write(
            [
                ("WARC-Type", "metadata"),
                ("WARC-Target-URI", uri),
                ("WARC-Date", self.written),
                ("WARC-Record-ID", _record_id(self.name, uri, kind)),
                ("WARC-Refers-To", about),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("WARC-Payload-Digest", _sha1(body)),
                ("WARC-Block-Digest", _sha1(body)),
            ],
            body,
        )
        if damage == "truncated":
            end = self._out.tell()
            self._out.truncate(self._last_member + (end - self._last_member) * 6 // 10)
            self._out.seek(0, io.SEEK_END)

    def _warc_header(
        self,
        uri: str,
        kind: str,
        content_type: str,
        payload: dict[str, Any],
        concurrent: list[tuple[str, str]],
    ) -> dict[str, str]:
        """Header of the WARC's record of type ``kind``; takes ``identified`` out of ``payload``."""
        header = {
            "WARC-Type": kind,
            "WARC-Date": self.date,
            "WARC-Record-ID": _record_id(self.warc_name, uri, kind),
            "Content-Length": str(_number(uri, kind, 60_000)),
            "Content-Type": content_type,
        }
        if kind == "warcinfo":
            header["WARC-Filename"] = self.warc_name
        else:
            header["WARC-Warcinfo-ID"] = _record_id(self.warc_name, "warcinfo")
            header |= dict(concurrent)
            if kind != "metadata":
                header["WARC-IP-Address"] = self.hosts_address
            header["WARC-Target-URI"] = uri
        if kind == "response":
            digest = payload["HTTP-Response-Metadata"]["Entity-Digest"]
            header["WARC-Payload-Digest"] = digest
            header["WARC-Block-Digest"] = _sha1(f"{uri} block".encode())
            header["WARC-Identified-Payload-Type"] = payload.pop("identified")
        return header

    def _write(self, headers: list[tuple[str, str]], body: bytes) -> None:
        """Append a record as a gzip member of its own."""
        self._last_member = self._out.tell()
        writer = WARCWriter(self._out, gzip=True)
        record = writer.create_warc_record(
            dict(headers).get("WARC-Target-URI", ""),
            dict(headers)["WARC-Type"],
            payload=io.BytesIO(body),
            length=len(body),
            warc_headers=StatusAndHeaders("", headers, _WARC),
            warc_content_type=dict(headers)["Content-Type"],
        )
        writer.write_record(record)
        self.records += 1


def _request(page: Page) -> dict[str, Any]:
    """Payload metadata of a capture's request."""
    address = urlsplit(page.url)
    path = address.path + (f"?{address.query}" if address.query else "")
    return {
        "HTTP-Request-Metadata": {
            "Request-Message": {"Method": "GET", "Path": path or "/", "Version": "HTTP/1.1"},
            "Headers-Length": str(200 + len(page.url)),
            "Headers": {
                "User-Agent": _USER_AGENT,
                "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                "Accept-Language": "en-US,en;q=0.5",
                "Accept-Encoding": "br,gzip",
                "Host": address.netloc,
                "Connection": "Keep-Alive",
            },
            "Entity-Length": "0",
            "Entity-Digest": _sha1(b""),
            "Entity-Trailing-Slop-Length": "0",
        }
    }


def _decoded(page: Page) -> Page:
    """The page as a writer sees it that decodes the references in attributes."""
    links = []
    for link in page.links:
        names = ("url", "alt", "title", "rel")
        values = {name: getattr(link, name) for name in names}
        links.append(replace(link, **{n: v and decode_attribute(v) for n, v in values.items()}))
    return replace(page, links=links, base=page.base and decode_attribute(page.base))


def _response(page: Page) -> dict[str, Any]:
    """Payload metadata of a capture's response, and its type as ``identified``."""
    length = str(_number(page.url, "response", 60_000))
    metadata: dict[str, Any] = {
        "Response-Message": {"Status": "200", "Version": "HTTP/1.1", "Reason": "OK"},
        "Headers-Length": "230",
        "Headers": {
            "Date": "Mon, 03 Jan 2000 00:00:00 GMT",
            "Content-Type": "text/html; charset=UTF-8" if page.html else "application/pdf",
            "Server": "sample",
            "X-Crawler-Content-Encoding": "gzip",
            "Content-Length": length,
        },
    }
    if page.html:
        head: dict[str, Any] = {}
        if page.base is not None:
            head["Base"] = page.base
        head["Metas"] = [
            {"content": "text/html; charset=UTF-8", "http-equiv": "Content-Type"},
            {"name": "description", "content": page.title},
        ]
        head["Title"] = page.title
        style = {"path": "LINK@/href", "url": "/style.css", "rel": "stylesheet", "type": "text/css"}
        head["Link"] = [style, *(dict(link) for link in page.head_links)]
        head["Scripts"] = [
            {"path": "SCRIPT@/src", "url": "/script.js", "type": "text/javascript"},
        ]
        html: dict[str, Any] = {"Head": head}
        if page.links:
            html["Links"] = [link.to_json() for link in page.links]
        metadata["HTML-Metadata"] = html
    metadata |= {
        "Entity-Length": length,
        "Entity-Digest": _sha1(f"{page.url} entity".encode()),
        "Entity-Trailing-Slop-Length": "0",
    }
    identified = "text/html" if page.html else "application/pdf"
    return {"HTTP-Response-Metadata": metadata, "identified": identified}


def _record_id(*parts: str) -> str:
    return f"<urn:uuid:{uuid.uuid5(_NAMESPACE, ' '.join(parts))}>"


def _sha1(data: bytes) -> str:
    digest = hashlib.sha1(data, usedforsecurity=False).digest()
    return f"sha1:{base64.b32encode(digest).decode()}"


def _number(text: str, what: str, below: int) -> int:
    """Plausible number from 100 on, below 100 + ``below``, that depends on the texts alone."""
    return 100 + zlib.crc32(f"{what} {text}".encode()) % below


def _signed32(value: int) -> int:
    """Convert to Java's int, as which real WAT files print a CRC."""
    return value - (1 << 32) if value >= 1 << 31 else value
