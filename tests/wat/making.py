"""Small WAT files in Common Crawl's shape."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def image(src: str | None, alt: str | None = None, **more: str) -> dict[str, str]:
    link = {"path": "IMG@/src", **more}
    if src is not None:
        link["url"] = src
    if alt is not None:
        link["alt"] = alt
    return link


def anchor(href: str, text: str = "", **more: str) -> dict[str, str]:
    return {"path": "A@/href", "url": href, "text": text, **more}


def payload(
    links: Sequence[dict[str, Any]], *, base: str | None = None, head: Sequence[Any] = ()
) -> bytes:
    """The JSON of one page, with the fields of a real record around those that we read."""
    head_json: dict[str, Any] = {
        "Metas": [{"content": "text/html;charset=utf-8", "http-equiv": "content-type"}],
        "Title": "Página | Страница",
        "Scripts": [{"path": "SCRIPT@/src", "url": "../urchin.js", "type": "text/javascript"}],
    }
    if base is not None:
        head_json["Base"] = base
    if head:
        head_json["Link"] = list(head)
    value = {
        "Container": {
            "Filename": "CC-MAIN-20230127001911-20230127031911-00743.warc.gz",
            "Compressed": True,
            "Offset": "92892",
            "Gzip-Metadata": {"Deflate-Length": "15066", "Header-Length": "10"},
        },
        "Envelope": {
            "Payload-Metadata": {
                "Actual-Content-Type": "application/http; msgtype=response",
                "HTTP-Response-Metadata": {
                    "Response-Message": {"Status": "200", "Version": "HTTP/1.1", "Reason": "OK"},
                    "Headers": {"Content-Type": "text/html; charset=utf-8", "ETag": 'W/"1597e"'},
                    "HTML-Metadata": {"Head": head_json, "Links": list(links)},
                    "Entity-Length": "88446",
                },
            },
            "Format": "WARC/1.0",
        },
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


REQUEST = json.dumps(
    {
        "Envelope": {
            "Payload-Metadata": {
                "HTTP-Request-Metadata": {"Request-Message": {"Method": "GET", "Path": "/"}}
            }
        }
    }
).encode()


def warc(
    block: bytes, url: str = "http://page.example/dir/page.html", kind: str = "metadata"
) -> bytes:
    """One WARC record, not compressed."""
    header = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\n"
        "WARC-Date: 2023-02-09T20:06:10Z\r\n"
        "WARC-Record-ID: <urn:uuid:cdcc0910-be89-483c-8767-31cd15a7631f>\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return header.encode() + block + b"\r\n\r\n"


def member(
    block: bytes, url: str = "http://page.example/dir/page.html", kind: str = "metadata"
) -> bytes:
    """One WARC record as its own gzip member."""
    return gzip.compress(warc(block, url, kind), mtime=0)


def page(
    links: Sequence[dict[str, Any]], url: str = "http://page.example/dir/page.html", **more: Any
) -> bytes:
    """One HTML page's record as its own gzip member."""
    return member(payload(links, **more), url)


INFO = member(b"Software-Info: ia-web-commons\r\n", kind="warcinfo")


def write(path: Path, *members: bytes) -> Path:
    path.write_bytes(b"".join(members))
    return path
