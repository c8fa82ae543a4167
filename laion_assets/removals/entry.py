"""One entry of a removal list or blocklist: parsing a line, and the key that it is looked up by.

A list is a folder of ``*.txt`` files, one entry a line; ``#`` starts a comment line:

- ``url:https://...`` or a bare URL, as people write it: it is brought to the form in which pairs
  hold URLs (WHATWG URL Standard);
- ``url-md5:<hex>``, ``url-sha256:<hex>``: the digest of a URL, in that form, in UTF-8;
- ``host:example.org``, which covers its sub-domains; a whole top-level domain, or one such as
  ``co.uk``, is written ``host:.co.uk``, since without the dot it may be a slip;
- ``md5:<hex>``, ``sha256:<hex>`` of an image's bytes as downloaded; a bare hash of 32 or 64
  digits is one of these, as published hash lists write them;
- ``sample-id:<int64>``, a ``SAMPLE_ID`` of the dataset.

What does not belong here: looking many keys up (:mod:`.entries`), and a list's files
(:mod:`.compiled`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import ada_url

from laion_assets.errors import PermanentError

WIDTHS: Final[Mapping[str, int]] = {
    "url-sha256": 32,
    "url-md5": 16,
    "host": 16,
    "sha256": 32,
    "md5": 16,
    "sample-id": 8,
}
"""Kind of key -> its bytes. The key of a ``url:`` entry is the SHA-256 of its URL; a host's key is
the first half of its SHA-256."""

KINDS: Final = ("url", *WIDTHS)
HASHES: Final = ("url-sha256", "url-md5", "sha256", "md5")
"""Kinds whose entries are hexadecimal digests."""

BARE_HASHES: Final = {2 * WIDTHS[kind]: kind for kind in ("sha256", "md5")}
"""Hexadecimal digits of a hash without a kind -> the kind that it is taken for."""

_HEX: Final = re.compile(r"[0-9a-f]+")
_WEB: Final = ("http://", "https://")
COMMENT: Final = re.compile(r"(^|\s+)#.*")
_SUFFIX: Final = re.compile(
    r"[^.:]+|(ac|co|com|edu|gen|go|gob|gov|ltd|mil|ne|net|nom|or|org|plc|sch)\.[a-z]{2}"
)
"""Hosts under which strangers register theirs: top-level domains, and what many countries have
below theirs."""
_SPACE: Final = re.compile(r"[\s\x00-\x1f\x7f]")


class ListError(PermanentError, ValueError):
    """An entry or a list file cannot be understood; the message names the file and the line."""


class Key(NamedTuple):
    """An entry as it is looked up, and as the removal ledger names it."""

    kind: str
    value: bytes

    def __str__(self) -> str:
        if self.kind == "sample-id":
            return f"sample-id:{int.from_bytes(self.value, 'big', signed=True)}"
        return f"{self.kind}:{self.value.hex()}"


def parse_entry(line: str) -> tuple[str, str]:
    """``(kind, value)`` of one entry. Raises :class:`ListError`."""
    text = line.strip()
    kind, _, value = text.partition(":")
    if kind not in KINDS:
        value = text
        kind = "url" if text.lower().startswith(_WEB) else BARE_HASHES.get(len(text), "")
    value = value.strip()
    if kind in HASHES:
        value, digits = value.lower(), 2 * WIDTHS[kind]
        if len(value) != digits or not _HEX.fullmatch(value):
            raise ListError(f"{text!r} is not a {kind} of {digits} hex digits")
    elif kind == "sample-id":
        value = _normal_id(value)
    elif kind == "host" and value:
        value = _normal_host(value)
    elif kind == "url" and value:
        value = _normal_url(value)
    if kind not in KINDS or not value:
        kinds = ", ".join(f"{kind}:" for kind in KINDS)
        raise ListError(f"{text!r} is not an entry: it begins with none of {kinds}")
    return kind, value


def key_of(kind: str, value: str) -> Key:
    """The key of an entry as :func:`parse_entry` returns it."""
    if kind == "url":
        return Key("url-sha256", hashlib.sha256(value.encode()).digest())
    if kind == "host":
        return Key("host", host_key(value.removeprefix(".")))
    if kind == "sample-id":
        return Key(kind, int(value).to_bytes(8, "big", signed=True))
    return Key(kind, bytes.fromhex(value))


def key_of_line(line: bytes, origin: str, number: int) -> Key | None:
    """The key of a file's line, or None for an empty line or a comment.

    Raises :class:`ListError` naming ``origin``:``number``.
    """
    try:
        # A file saved on Windows may begin with a byte order mark, which nobody sees.
        text = COMMENT.sub("", line.decode("utf-8-sig" if number == 1 else "utf-8")).strip()
        return key_of(*parse_entry(text)) if text else None
    except UnicodeDecodeError as error:
        raise ListError(f"{origin}:{number}: not UTF-8") from error
    except ListError as error:
        raise ListError(f"{origin}:{number}: {error}") from error


def host_key(host: str) -> bytes:
    """The key value of a host name in the form of :func:`parse_entry`."""
    return hashlib.sha256(host.encode()).digest()[: WIDTHS["host"]]


def _normal_id(value: str) -> str:
    try:
        number = int(value)
        number.to_bytes(8, "big", signed=True)
    except (ValueError, OverflowError) as error:
        raise ListError(f"{value!r} is not a SAMPLE_ID, a signed 64-bit number") from error
    return str(number)


def _normal_url(url: str) -> str:
    """The URL in ASCII (IDNA, %-encoded), without fragment, user name and password."""
    if _SPACE.search(url):
        # A browser would encode or drop the white space, and another URL would be listed.
        raise ListError(f"{url!r} has white space inside: write one URL a line, and a space as %20")
    try:
        parsed = ada_url.URL(url)
    except ValueError as error:
        raise ListError(f"{url!r} is not a valid URL") from error
    if parsed.protocol not in ("http:", "https:"):
        raise ListError(f"{url!r} is not an http or https URL")
    parsed.username = parsed.password = parsed.hash = ""
    return str(parsed.href)


def _normal_host(host: str) -> str:
    """The host in lower-case ASCII (IDNA), without the last dot or an IPv6 address's brackets.

    A suffix under which strangers register their hosts has a dot before it, as it must be written.
    """
    if host.startswith("."):
        suffix = _plain_host(host[1:])
        if not _SUFFIX.fullmatch(suffix):
            raise ListError(f"{host!r} is not a host name (its sub-domains are covered anyway)")
        return f".{suffix}"
    normal = _plain_host(host)
    if _SUFFIX.fullmatch(normal):
        raise ListError(
            f"{host!r} names every host that ends with .{normal}: write host:.{normal} if all of "
            "them are meant"
        )
    return normal


def _plain_host(host: str) -> str:
    try:
        parsed = ada_url.URL(f"http://{host}")
    except ValueError as error:
        raise ListError(f"{host!r} is not a valid host") from error
    if parsed.href != f"http://{parsed.hostname}/":
        raise ListError(f"{host!r} is more than a host: leave out scheme, port and path")
    normal = str(parsed.hostname).removesuffix(".").strip("[]")
    if "*" in normal or not all(normal.split(".")):
        raise ListError(f"{host!r} is not a host name (its sub-domains are covered without a *)")
    return normal
