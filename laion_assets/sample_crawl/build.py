"""The sample crawl's builder: WAT files, their lists, the hosts' answers, and the manifest.

The manifest's funnel is counted from what was planted, never by running the pipeline, so that it
can test the pipeline. The same inputs give the same bytes.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from laion_assets.files import atomic_path, write_json
from laion_assets.funnel import STAGES, StageCounts
from laion_assets.sample_crawl.cases import planted
from laion_assets.sample_crawl.drafts import NO_LICENCE, Answer, Draft, Ends, Entry, picture_url
from laion_assets.sample_crawl.gallery import FILE, HOST, gallery_answers, gallery_csv
from laion_assets.sample_crawl.plan import COPY, KEPT, Plan, PlannedPair, Supply
from laion_assets.sample_crawl.records import Link, Page, WatFile
from laion_assets.sample_crawl.server import IMAGE_HOSTS, ROUTES

SEED: Final = 20000103
MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class _Crawl:
    name: str
    title: str
    date: str
    start: str
    end: str
    segment_ids: tuple[str, str]
    extracted: str = ""
    """When its WAT files were written, if not on the crawl's date."""


_CRAWLS: Final = (
    _Crawl(
        "CC-MAIN-2000-05",
        "Sample crawl, January 2000",
        "2000-01-31T06:00:00Z",
        "20000131000000",
        "20000131030000",
        ("949276800000.12", "949276800371.45"),
    ),
    _Crawl(
        "CC-MAIN-2000-10",
        "Sample crawl, March 2000",
        "2000-03-06T06:00:00Z",
        "20000306000000",
        "20000306030000",
        ("952300800000.7", "952300800964.31"),
        # Of the era in which the writer decodes attributes; the other crawl is of the one before.
        extracted="2020-02-09T20:06:10Z",
    ),
)
_WAT_FILES: Final = 2


@dataclass(frozen=True)
class Case:
    """One link that a stage counts, or one planted record, and where it ends.

    ``stage`` and ``reason`` are those of ``laion_assets.funnel``; a pair that every stage keeps has
    ("subset", "kept"). ``url`` and ``text`` are resolved and cleaned if the pair rules accept them,
    else as the page has them. ``file`` names the committed picture, and ``width`` and ``height``
    are its size in pixels; these and ``nsfw`` are None for links that do not reach the subset
    stage.
    """

    name: str
    crawl: str
    segment: str
    segment_id: str
    wat_file: str
    page_url: str
    url: str
    text: str
    stage: str
    reason: str
    license: str = NO_LICENCE
    file: str | None = None
    width: int | None = None
    height: int | None = None
    nsfw: str | None = None

    @property
    def kept(self) -> bool:
        return (self.stage, self.reason) == ("subset", KEPT)


@dataclass(frozen=True)
class Manifest:
    """The sample crawl's content, and what the pipeline must make of it."""

    cases: list[Case]
    funnel: list[tuple[str, str, int]]
    """(stage, reason, n), as ``StageCounts.rows()`` gives it, summed over all segments."""

    def named(self, name: str) -> list[Case]:
        """Cases of one name. Raises ``KeyError`` if there are none."""
        found = [case for case in self.cases if case.name == name]
        if not found:
            raise KeyError(name)
        return found

    def to_json(self) -> dict[str, Any]:
        return {"cases": [asdict(case) for case in self.cases], "funnel": self.funnel}

    @classmethod
    def read(cls, out: Path) -> Manifest:
        """Read the manifest of a built crawl. Raises ``FileNotFoundError`` if it is not built."""
        content = json.loads((out / MANIFEST).read_text("utf-8"))
        rows = [(stage, reason, n) for stage, reason, n in content["funnel"]]
        return cls([Case(**case) for case in content["cases"]], rows)


def build_sample_crawl(out: Path, ordinary: float = 1.0) -> Manifest:
    """Write the crawl below ``out`` in Common Crawl's layout, the manifest last.

    ``ordinary``: share of the pages that no case is about, to leave some out; those with a picture
    that another page has a copy of stay, and hosts have all pictures. WAT files and lists of an
    earlier version that are no longer part of the crawl are deleted.
    """
    plan = Plan()
    drafts, left_out = _laid_out(plan, ordinary)
    cases: list[Case] = []
    records: list[Ends] = []
    routes: dict[str, dict[str, Answer]] = {}
    written: set[Path] = set()
    slots = iter(drafts)
    for crawl in _CRAWLS:
        paths: list[str] = []
        for segment, segment_id in enumerate(crawl.segment_ids):
            for number in range(_WAT_FILES):
                pages = next(slots)
                wat, ends = _written(crawl, segment * _WAT_FILES + number, pages)
                path = f"crawl-data/{crawl.name}/segments/{segment_id}/wat/{wat.name}"
                _publish(out / path, wat.to_bytes(), written)
                paths.append(path)
                records.extend(ends)
                where = (crawl.name, f"{segment:02d}", segment_id, path)
                for page in pages:
                    cases.extend(_cases(plan, page, where))
                    _add_routes(routes, page)
        listing = gzip.compress("".join(f"{path}\n" for path in paths).encode(), mtime=0)
        _publish(out / "crawl-data" / crawl.name / "wat.paths.gz", listing, written)
    for page in left_out:
        _add_routes(routes, page)
    _remove_strays(out / "crawl-data", written)
    routes[HOST] = gallery_answers(plan)
    _publish(out / FILE, gallery_csv(plan), written)
    write_json(out / ROUTES, routes)
    write_json(out / "collinfo.json", _crawl_list())
    manifest = Manifest(cases, expected_funnel(cases, records))
    write_json(out / MANIFEST, manifest.to_json())
    return manifest


def expected_funnel(cases: list[Case], records: list[Ends]) -> list[tuple[str, str, int]]:
    """Count per stage and reason, from where each record and each link ends."""
    counts = {stage: StageCounts(stage) for stage in STAGES}
    links = [(case.stage, case.reason) for case in cases if case.stage != "wat"]
    for stages, ends in ((STAGES[:1], records), (STAGES[1:], links)):
        for (stage, reason), n in sorted(Counter(ends).items()):
            for passed in stages[: stages.index(stage)]:
                counts[passed].keep(n)
            if reason == KEPT:
                counts[stage].keep(n)
            else:
                counts[stage].reject(reason, n=n)
    return [row for stage in STAGES for row in counts[stage].rows()]


def _laid_out(plan: Plan, share: float) -> tuple[list[list[Draft]], list[Draft]]:
    """Lay out pages by WAT file: planted among a share of the ordinary ones, the truncated one
    last. The others come second."""
    rng = random.Random(SEED)
    supply = Supply([pair for pair in plan.group("matched") if pair.reason == KEPT])
    slots = planted(plan, supply)
    ordinary = supply.rest()
    ordinary += [pair for pair in plan.group("matched") if pair.reason != KEPT]
    ordinary += plan.group("mismatched")
    rng.shuffle(ordinary)
    pages, left_out = list(_ordinary_pages(ordinary, rng)), []
    copied = {plan.original(pair.file) for pair in plan.group(COPY)}
    for number, page in enumerate(pages):
        has_copied = any(entry.scored and entry.scored.file in copied for entry in page.entries)
        if number < share * len(pages) or has_copied:
            slots[number % len(slots)].append(page)
        else:
            left_out.append(page)
    for slot in slots:
        planned = slot.copy()
        rng.shuffle(planned)
        slot[:] = sorted(planned, key=_order_in_file)
    return slots, left_out


def _order_in_file(page: Draft) -> int:
    """Sort key of a page: damage precedes pages that show that reading went on, and the first
    occurrence of a pair its repetitions."""
    if page.damage == "truncated":
        return 3
    if page.url.endswith("/once-more.html"):
        return 2
    return 0 if page.damage else 1


def _ordinary_pages(pairs: list[PlannedPair], rng: random.Random) -> Iterator[Draft]:
    """Yield gallery pages of 6 to 14 pairs each; empties ``pairs``."""
    number = 0
    while pairs:
        taken = [pairs.pop() for _ in range(min(len(pairs), rng.randint(6, 14)))]
        number += 1
        topic = rng.choice(("clipart", "stickers", "icons", "pictures", "drawings", "kitchen"))
        relative = number % 5 == 0
        site = f"{'http' if relative else 'https'}://www.{topic}.sample.test"
        page = Draft(f"{site}/gallery/{number}/index.html", f"{topic.capitalize()} {number}")
        page.link("A@/href", "/", text="Home")
        logo = Link("IMG@/src", "/logo.png", alt="" if number % 2 else None)
        page.entries.append(Entry(logo, "layout_image", ("pairs", "no_alt"), "/logo.png"))
        for pair in taken:
            case = {"matched": "ordinary", "mismatched": "mismatched_caption"}[pair.group]
            if pair.group == "matched" and pair.reason != KEPT:
                case = "model_miss"
            if relative:
                page.image(case, pair, f"{site}/gallery/{pair.file}", src=f"../{pair.file}")
            else:
                page.image(case, pair, picture_url(pair.file))
            page.link("A@/href", f"/gallery/{number}/{len(page.entries)}.html", text=pair.text)
        page.link("A@/href", "/imprint.html", text="Imprint", rel="nofollow")
        yield page


def _written(crawl: _Crawl, number: int, pages: list[Draft]) -> tuple[WatFile, list[Ends]]:
    """Write the WAT file of ``pages``; return it, and where each of its records ends."""
    name = f"CC-MAIN-{crawl.start}-{crawl.end}-{number:05d}.warc.gz"
    wat = WatFile(crawl.name, name, crawl.date, crawl.extracted or crawl.date)
    wat.write_warcinfo()
    for page in pages:
        links = [entry.link for entry in page.entries]
        wat.write_page(
            Page(page.url, page.title, links, page.base, page.head_links, page.is_html, page.damage)
        )
    ends = [_record_ends(page) for page in pages]
    return wat, ends + [("wat", "not_html")] * (wat.records - len(pages))


def _record_ends(page: Draft) -> Ends:
    """Stage and reason at which the record of the page's response ends."""
    return "wat", page.damage or (KEPT if page.is_html else "not_html")


def _cases(plan: Plan, page: Draft, where: tuple[str, str, str, str]) -> Iterator[Case]:
    """Yield the cases of a page; ``where``: its crawl, segment, segment id and WAT file."""
    if page.case:
        yield Case(page.case, *where, page.url, page.url, "", *_record_ends(page))
    for entry in page.entries:
        if entry.ends is None:
            continue
        about: dict[str, Any] = {}
        if entry.scored:
            file = entry.scored.file
            size = plan.size(file)
            about = {"file": file, "nsfw": entry.scored.nsfw}
            about |= dict(zip(("width", "height"), size or (), strict=False))
        found = (page.url, entry.url, entry.text)
        yield Case(entry.case, *where, *found, *entry.ends, license=page.licence, **about)


def _add_routes(routes: dict[str, dict[str, Answer]], page: Draft) -> None:
    """Add what image hosts answer to a page's links.

    Raises ``ValueError`` if two pages plan different answers for one URL.
    """
    answers = dict(page.answers)
    answers |= {entry.url: entry.answer for entry in page.entries if entry.answer is not None}
    for url, answer in answers.items():
        parts = urlsplit(url)
        host = parts.hostname or ""
        if host.endswith(IMAGE_HOSTS):
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            before = routes.setdefault(host, {}).setdefault(path, answer)
            if before != answer:
                raise ValueError(f"two answers are planned for {url}: {before} and {answer}")


def _crawl_list() -> list[dict[str, str]]:
    """Content of Common Crawl's ``collinfo.json``, the newest crawl first."""
    return [
        {
            "id": crawl.name,
            "name": f"{crawl.title} Index",
            "timegate": f"https://index.sample.test/{crawl.name}/",
            "cdx-api": f"https://index.sample.test/{crawl.name}-index",
            "from": crawl.date[:19],
            "to": f"{crawl.date[:10]}T23:59:59",
        }
        for crawl in reversed(_CRAWLS)
    ]


def _publish(path: Path, content: bytes, written: set[Path]) -> None:
    written.add(path)
    if path.is_file() and path.read_bytes() == content:
        return  # keep the modification time: clients send conditional requests
    with atomic_path(path) as beside:
        beside.write_bytes(content)


def _remove_strays(folder: Path, written: set[Path]) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path not in written:
            path.unlink()
