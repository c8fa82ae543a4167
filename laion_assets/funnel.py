"""The funnel: how much went into a stage, how much it kept, and why it refused the rest.

Every stage between a crawl and the dataset reports one :class:`StageCounts`. The reasons are a
fixed vocabulary, so that counts can be summed over segments and compared between versions. The
exact rule behind a reason does not belong here, but in the package of its stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pydantic import TypeAdapter

EXAMPLES_KEPT: Final = 5
EXAMPLE_CHARS: Final = 300

REASONS: Final[Mapping[str, Mapping[str, str]]] = {
    "wat": {
        "not_html": "the record is not the metadata of an HTTP response that holds HTML",
        "bad_json": "the record's payload is not the JSON that a WAT record must be",
        "bad_record": "the gzip member or the WARC header could not be read",
        "truncated": "the file ended inside this record",
    },
    "pairs": {
        "bad_value": "a value of the link or row is not text, or holds bytes that no text has",
        "not_image": "an alt text on a link that is not IMG@/src",
        "no_alt": "an image without an alt text, or with an empty one",
        "alt_too_short": "the cleaned alt text is shorter than the minimum",
        "alt_too_long": "the cleaned alt text is longer than the maximum",
        "alt_few_words": "the cleaned alt text has fewer words than the minimum",
        "alt_file_name": "the alt text is a file's name",
        "bad_url": "the image's URL, resolved as a browser does, is not a valid URL",
        "url_scheme": "the URL is not http or https (data:, file:, ftp:, javascript: ...)",
        "url_too_long": "the URL is longer than the maximum",
        "url_suffix": "the URL's path ends like a drawing, an animation or an icon",
        "url_placeholder": "the URL is a tracker's, or its file is named like a placeholder",
        "url_many_texts": "the URL has more different texts in this segment than the maximum",
        "language": "the text is not in one of the wanted languages",
        "duplicate": "the same (URL, TEXT) came before in this segment",
        "removed": "the URL, its host, its image or its SAMPLE_ID is on a removal list",
        "blocked": "the URL, its host or its image is on a blocklist",
    },
    "unique_pairs": {
        "removed": "on a removal list that changed after the stage before was made",
        "blocked": "on a blocklist that changed after the stage before was made",
        "duplicate": "another segment holds the same (URL, TEXT)",
    },
    "images": {
        "url_scheme": "a redirect led to something that is not http or https",
        "dns": "the host's name has no address",
        "private_address": "the host's address is not a public one",
        "connect": "no connection, or it broke",
        "tls": "the certificate could not be verified, or TLS failed",
        "timeout": "the time for this image ran out",
        "host_down": "not requested, because its host had just failed several times in a row",
        "busy": "the host answered 429 or 503, or had just requested a long wait",
        "http_4xx": "the host answered another 4xx",
        "http_5xx": "the host answered another 5xx",
        "http_other": "the host answered with another status, or not with valid HTTP",
        "redirects": "too many redirects",
        "opt_out": "the host asks that the image is not used (X-Robots-Tag)",
        "robots": "robots.txt disallows the URL (asked for only if so configured)",
        "changed": "the bytes are not those of the recorded SHA-256",
        "too_large": "more bytes than the limit",
        "too_small": "fewer encoded bytes than the minimum (5,000)",
        "removed": "the image's hash is on a removal list, or a URL or host on the way to it",
        "blocked": "the image's hash is on a blocklist, or a URL or host on the way to it",
        "unsupported_type": "not JPEG, PNG or WebP",
        "too_many_pixels": "the header declares more pixels than the limit (decompression bomb)",
        "too_complex": "more scans, markers or chunks than any sound image has",
        "too_narrow": "one side is longer than the other by more than the limit",
        "animated": "the image has several frames",
        "undecodable": "the bytes do not decode as an image",
        "decode_timeout": "decoding it took more CPU time than the limit",
        "decoder_failed": "the decoder died over it, or got no core for it in time",
    },
    "embeddings": {
        "undecodable": "the stored image does not decode",
    },
    "subset": {
        "below_threshold": "the similarity is below the model's threshold",
        "unsafe_minor_text": "tagged NSFW or UNSURE, and the text names minors",
        "unsafe_underage": "tagged NSFW or UNSURE, and an under-age category ranks first or second",
        "unsafe_animal": "tagged NSFW or UNSURE, and an animal category ranks first",
        "scores": "a head's score is outside the recipe's bounds, or is no number",
        "predicate": "outside the recipe's own conditions",
        "duplicate_image": "a copy of an image that the subset has, here or in another segment",
    },
}
"""Stage, in the order of processing -> reason -> its meaning, for people."""

STAGES: Final = tuple(REASONS)

LISTED: Final = frozenset({"removed", "blocked"})
"""Reasons whose subjects must not be named anywhere: no examples are kept of them."""


@dataclass
class StageCounts:
    """The counts of one stage; once it is done, ``n_in == kept + sum(rejects.values())``.

    ``rejects`` maps a reason to the number refused. ``examples`` keeps a few subjects (URLs or
    texts) of each reason for people to look at. Raises ``ValueError`` for an unknown stage.
    """

    stage: str
    n_in: int = 0
    kept: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stage not in REASONS:
            raise ValueError(f"unknown stage {self.stage!r}, known: {', '.join(STAGES)}")

    def keep(self, n: int = 1) -> None:
        """Count ``n`` subjects as in and kept."""
        self.n_in += n
        self.kept += n

    def reject(self, reason: str, example: str | None = None, n: int = 1) -> None:
        """Count ``n`` subjects as in and refused for ``reason``.

        Raises ``KeyError`` for a reason outside the stage's vocabulary.
        """
        before = self.rejects.get(reason, 0)
        if not before and reason not in REASONS[self.stage]:
            raise KeyError(f"stage {self.stage!r} has no reason {reason!r}")
        if n == 0:
            return
        self.n_in += n
        self.rejects[reason] = before + n
        if example is not None:
            self._example(reason, example)

    def drop(self, reason: str, n: int = 1) -> None:
        """Refuse ``n`` subjects that were counted as kept. Raises the same."""
        self.reject(reason, n=n)
        self.n_in -= n
        self.kept -= n

    def _example(self, reason: str, example: str) -> None:
        if reason in LISTED:
            return
        kept = self.examples.setdefault(reason, [])
        if len(kept) < EXAMPLES_KEPT:
            kept.append(example[:EXAMPLE_CHARS])

    def add(self, other: StageCounts) -> None:
        """Add the counts of another part of the same stage. Raises ``ValueError`` for another."""
        if other.stage != self.stage:
            raise ValueError(f"cannot add stage {other.stage!r} to {self.stage!r}")
        self.n_in += other.n_in
        self.kept += other.kept
        for reason, n in other.rejects.items():
            self.rejects[reason] = self.rejects.get(reason, 0) + n
        for reason, examples in other.examples.items():
            for example in examples:
                self._example(reason, example)

    @property
    def adds_up(self) -> bool:
        """True if every subject that went in was either kept or refused."""
        return self.n_in == self.kept + sum(self.rejects.values())

    def rows(self) -> list[tuple[str, str, int]]:
        """Return ``(stage, reason, n)`` rows; the pseudo-reasons ``in`` and ``kept`` come first."""
        rejects = [(self.stage, reason, n) for reason, n in sorted(self.rejects.items())]
        return [(self.stage, "in", self.n_in), (self.stage, "kept", self.kept), *rejects]

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "in": self.n_in,
            "kept": self.kept,
            "rejects": dict(sorted(self.rejects.items())),
            "examples": dict(sorted(self.examples.items())),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StageCounts:
        """The counts of which :meth:`to_json` is ``value``. Raises ``ValueError``, ``KeyError``."""
        fields = dict(value)
        return _reader().validate_python({"n_in": fields.pop("in"), **fields})


@cache
def _reader() -> TypeAdapter[StageCounts]:
    # The command line's help is quick without it.
    from pydantic import TypeAdapter

    return TypeAdapter(StageCounts)


def total(stage: str, parts: Iterable[StageCounts]) -> StageCounts:
    """Return the sum of the parts' counts."""
    counts = StageCounts(stage)
    for part in parts:
        counts.add(part)
    return counts
