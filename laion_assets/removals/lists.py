"""Reading removal lists and blocklists.

A list is a folder of ``*.txt`` files, one entry a line: ``url:https://...``, ``host:example.org``,
``sha256:<hex>`` or ``md5:<hex>``; a bare URL or a bare hash of 32 (MD5) or 64 (SHA-256) hex
digits is taken for what it is, as published hash lists write them. ``#`` starts a comment line.
A host entry covers its sub-domains. URLs and hosts may be written as people write them: they are
brought to the form in which pairs hold them (WHATWG URL Standard).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import ada_url

_HEX: Final = re.compile(r"[0-9a-f]+")
_HASH_LENGTH: Final = {"md5": 32, "sha256": 64}
_WEB: Final = ("http://", "https://")
KINDS: Final = ("url", "host", "sha256", "md5")


class ListError(ValueError):
    """An entry that cannot be understood; the message names the file and the line."""


def parse_entry(line: str) -> tuple[str, str]:
    """``(kind, value)`` of one entry. Raises :class:`ListError`."""
    text = line.strip()
    kind, _, value = text.partition(":")
    if kind not in KINDS:
        value = text
        if text.lower().startswith(_WEB):
            kind = "url"
        else:
            lengths = {length: name for name, length in _HASH_LENGTH.items()}
            kind = lengths.get(len(text), "")
    value = value.strip()
    if kind in _HASH_LENGTH:
        value = value.lower()
        if len(value) != _HASH_LENGTH[kind] or not _HEX.fullmatch(value):
            raise ListError(f"{text!r} is not a {kind} of {_HASH_LENGTH[kind]} hex digits")
    elif kind == "host" and value:
        value = _normal_host(value)
    elif kind == "url" and value:
        value = _normal_url(value)
    if kind not in KINDS or not value:
        raise ListError(f"{text!r} is none of url:, host:, sha256: or md5:")
    return kind, value


def _normal_url(url: str) -> str:
    """In ASCII (IDNA, %-encoded), without fragment, user name and password."""
    try:
        parsed = ada_url.URL(url)
    except ValueError as error:
        raise ListError(f"{url!r} is not a valid URL") from error
    if parsed.protocol not in ("http:", "https:"):
        raise ListError(f"{url!r} is not an http or https URL")
    parsed.username = parsed.password = parsed.hash = ""
    return str(parsed.href)


def _normal_host(host: str) -> str:
    """In lower-case ASCII (IDNA), without the last dot; an IPv6 address without brackets."""
    try:
        parsed = ada_url.URL(f"http://{host}")
    except ValueError as error:
        raise ListError(f"{host!r} is not a valid host") from error
    if parsed.href != f"http://{parsed.hostname}/":
        raise ListError(f"{host!r} is more than a host")
    normal = str(parsed.hostname).removesuffix(".").strip("[]")
    if "*" in normal or not all(normal.split(".")):
        raise ListError(f"{host!r} names no host (sub-domains are covered without a sign)")
    return normal


@dataclass(frozen=True)
class Entries:
    """The entries of a list, by kind."""

    urls: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    sha256: frozenset[str] = frozenset()
    md5: frozenset[str] = frozenset()
    digest: str = field(default=hashlib.sha256(b"").hexdigest())

    def __len__(self) -> int:
        return len(self.urls) + len(self.hosts) + len(self.sha256) + len(self.md5)

    @property
    def names_urls(self) -> bool:
        return bool(self.urls or self.hosts)

    def matches_url(self, url: str) -> bool:
        """Whether the URL, its host, or a parent domain of its host is listed.

        ``url`` is in the form in which pairs hold URLs.
        """
        if url in self.urls:
            return True
        if not self.hosts:
            return False
        host = (urlsplit(url).hostname or "").rstrip(".")
        labels = host.split(".")
        return any(".".join(labels[i:]) in self.hosts for i in range(len(labels)))

    def matches_image(self, sha256: str, md5: str) -> bool:
        return sha256 in self.sha256 or md5 in self.md5


def parse(lines: Iterable[str], origin: str) -> Entries:
    """The entries of an iterable of lines. Raises :class:`ListError` naming ``origin``:line."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            kind, value = parse_entry(line)
        except ListError as error:
            raise ListError(f"{origin}:{number}: {error}") from error
        found[kind].add(value)
    canonical = "\n".join(f"{kind}:{value}" for kind in KINDS for value in sorted(found[kind]))
    return Entries(
        urls=frozenset(found["url"]),
        hosts=frozenset(found["host"]),
        sha256=frozenset(found["sha256"]),
        md5=frozenset(found["md5"]),
        digest=hashlib.sha256(canonical.encode()).hexdigest(),
    )


def load(folder: Path) -> Entries:
    """All entries of the folder's ``*.txt`` files; an absent folder is an empty list.

    The digest depends on the entries alone, not on their files, order or comments.
    """
    lines: list[str] = []
    for path in sorted(folder.glob("*.txt")) if folder.exists() else []:
        text = path.read_text(encoding="utf-8").splitlines()
        parse(text, str(path))
        lines.extend(text)
    return parse(lines, str(folder))
