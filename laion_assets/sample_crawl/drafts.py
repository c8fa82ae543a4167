"""Pages in the making: links, what hosts answer, and where each link must end up.

What does not belong here: which pages and cases there are (``cases``), and how records are written
(``records``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from laion_assets.sample_crawl.plan import PlannedPair
from laion_assets.sample_crawl.records import Damage, Link

NO_LICENCE: Final = "?"
IMAGE_HOSTS: Final = (
    "img", "cdn", "static", "photos", "media", "pics",
    "assets", "gallery", "images", "files", "art", "shop",
)  # fmt: skip

Answer = Mapping[str, Any]
"""A host's answer: an entry of ``routes.json``, as ``server`` reads it."""
Ends = tuple[str, str]
"""(stage, reason) of ``laion_assets.funnel``; ("subset", "kept") means kept by every stage."""


@dataclass(frozen=True)
class Entry:
    """A link, and what becomes of it if a stage counts it; ``ends`` is None if none does."""

    link: Link
    case: str = ""
    ends: Ends | None = None
    url: str = ""
    text: str = ""
    answer: Answer | None = None
    scored: PlannedPair | None = None


@dataclass
class Draft:
    """A page in the making."""

    url: str
    title: str
    case: str = ""
    base: str | None = None
    licence: str = NO_LICENCE
    head_links: Sequence[Mapping[str, str]] = ()
    is_html: bool = True
    damage: Damage | None = None
    entries: list[Entry] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    """Hosts' answers under URLs that no link of the page names."""

    def link(self, path: str, url: str, **more: str) -> None:
        """Add a link that no stage counts."""
        self.entries.append(Entry(Link(path, url, **more)))

    def image(
        self,
        case: str,
        pair: PlannedPair,
        url: str,
        *,
        src: str | None = None,
        alt: str | None = None,
        answer: Answer | None = None,
        ends: Ends | None = None,
        path: str = "IMG@/src",
    ) -> None:
        """Add a pair found under ``url``; the page has ``src`` and ``alt`` instead, if given.

        Without ``ends`` the pair reaches the subset stage, where the plan decides.
        """
        link = Link(path, url if src is None else src, pair.text if alt is None else alt)
        answer = answer or {"file": pair.file}
        if ends is None:
            scored = Entry(link, case, ("subset", pair.reason), url, pair.text, answer, pair)
            self.entries.append(scored)
        else:
            self.entries.append(Entry(link, case, ends, url, pair.text, answer))

    def refused_text(self, case: str, file: str, alt: str | None, reason: str) -> None:
        """Add a good picture whose alt text the pair rules refuse."""
        url = picture_url(file)
        link = Link("IMG@/src", url, alt)
        answer = {"file": file}
        self.entries.append(Entry(link, case, ("pairs", reason), url, alt or "", answer))

    def refused_url(self, case: str, pair: PlannedPair, src: str, reason: str) -> None:
        """Add a good text whose URL the pair rules refuse."""
        link = Link("IMG@/src", src, pair.text)
        self.entries.append(Entry(link, case, ("pairs", reason), src, pair.text))


def picture_url(file: str) -> str:
    """URL of a picture on the sample web."""
    host = IMAGE_HOSTS[sum(file.encode()) % len(IMAGE_HOSTS)]
    return f"http://{host}.sample.test/{file}"


def padded(text: str, length: int) -> str:
    """Repeat a text until it has ``length`` characters."""
    return (f"{text}. " * (length // len(text) + 1))[: length - 1] + "x"
