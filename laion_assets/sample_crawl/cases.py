"""Every case that the rules mention, as pages: what is planted, and where each case must end up.

The rules are those of docs/pairs.md and docs/downloading.md, the reasons those of
``laion_assets.funnel``. An entry states its resolved URL and cleaned text itself, so that a wrong
rule cannot agree with a wrong expectation. What does not belong here: how records are written
(``records``).
"""

from __future__ import annotations

from collections.abc import Callable

from laion_assets.sample_crawl import answer_cases, link_cases
from laion_assets.sample_crawl.drafts import Draft, picture_url
from laion_assets.sample_crawl.plan import COPY, Plan, Supply, kind_of_copy


def planted(plan: Plan, supply: Supply) -> list[list[Draft]]:
    """Make the planted pages by slot: eight WAT files, in order of crawls and segments."""
    slots: list[list[Draft]] = [[] for _ in range(8)]
    makers: list[Callable[[Plan, Supply], list[Draft]]] = [
        link_cases.texts,
        link_cases.languages,
        link_cases.urls,
        link_cases.refused_urls,
        link_cases.other_tags,
        link_cases.licences,
        answer_cases.answers,
        answer_cases.redirects,
        answer_cases.private_addresses,
        answer_cases.opt_outs,
        answer_cases.files,
        _safety,
        _records,
    ]
    for number, make in enumerate(makers):
        slots[number % len(slots)].extend(make(plan, supply))
    for slot, drafts in _duplicates(plan, supply).items():
        slots[slot].extend(drafts)
    for slot, draft in _copies(plan).items():
        slots[slot].append(draft)
    slots[5].append(_truncated(supply))
    return slots


def _safety(plan: Plan, _: Supply) -> list[Draft]:
    """Every branch of the safety rule, with the harmless stand-ins of prompts/sample.json."""
    page = Draft("https://www.attic.sample.test/shelf.html", "Things in an attic")
    for pair in plan.pairs:
        if pair.group.startswith("safety_"):
            page.image(pair.group, pair, picture_url(pair.file))
    return [page]


def _records(_: Plan, supply: Supply) -> list[Draft]:
    """Records that are damaged, or hold no page with links."""
    site = "https://www.records.sample.test"
    damaged = Draft(f"{site}/damaged.html", "Damaged", case="record_bad_json", damage="bad_json")
    for _number in range(3):
        pair = supply.take()
        damaged.link("IMG@/src", picture_url(pair.file), alt=pair.text)
    empty = Draft(f"{site}/empty.html", "Empty", case="record_without_links")
    other = Draft(f"{site}/paper.pdf", "", case="record_not_html", is_html=False)
    after = Draft(f"{site}/after.html", "After the damage")
    after.image("page_after_damage", pair := supply.take(), picture_url(pair.file))
    return [damaged, empty, other, after]


def _truncated(supply: Supply) -> Draft:
    """The last record of a file that ends too early; its page's links are lost."""
    url = "https://www.records.sample.test/truncated.html"
    page = Draft(url, "Cut off", case="record_truncated", damage="truncated")
    for _ in range(20):
        pair = supply.take()
        page.link("IMG@/src", picture_url(pair.file), alt=pair.text)
    return page


def _duplicates(plan: Plan, supply: Supply) -> dict[int, list[Draft]]:
    """Repetitions of the same (URL, TEXT): the first one counts, wherever the others are.

    Slots 0 and 1 are one segment, 2 and 3 the same crawl's other one, 4 to 7 the other crawl.
    The segment that is materialized first keeps its copy; the counts do not depend on the order.
    """
    pages = {
        slot: Draft(f"https://www.mirror{slot}.sample.test/again.html", "Seen before")
        for slot in (0, 1, 2, 4, 7)
    }
    again = Draft("https://www.mirror0.sample.test/once-more.html", "Seen before, too")
    within, across = ("pairs", "duplicate"), ("unique_pairs", "duplicate")

    pair = supply.take()
    url = picture_url(pair.file)
    pages[0].image("duplicate_first", pair, url)
    pages[0].image("duplicate_same_page", pair, url, ends=within)
    again.image("duplicate_other_page", pair, url, ends=within)
    pages[1].image("duplicate_other_wat", pair, url, ends=within)
    pages[1].image("duplicate_by_fragment", pair, url, src=f"{url}#x", ends=within)
    pages[1].image("duplicate_by_space", pair, url, alt=f" {pair.text}  ", ends=within)
    pages[2].image("duplicate_other_segment", pair, url, ends=across)
    pages[4].image("duplicate_other_crawl", pair, url, ends=across)
    for _ in range(12):
        pair = supply.take()
        pages[0].image("shared_first", pair, picture_url(pair.file))
        pages[2].image("shared_other_segment", pair, picture_url(pair.file), ends=across)
        pages[7].image("shared_other_crawl", pair, picture_url(pair.file), ends=across)
    # The first crawl's WAT files have attributes as in the page, the second's have them decoded.
    pair, url = supply.take(), "http://img.sample.test/era.php?id=21&size=l"
    answer = {"file": pair.file}
    for slot, case, ends in ((0, "era_of_raw_attributes", None), (4, "era_of_decoded", across)):
        src = url.replace("&", "&amp;")
        pages[slot].image(case, pair, url, src=src, answer=answer, ends=ends)
    for pair in plan.group("other_text"):
        pages[4].image("same_url_other_text", pair, picture_url(pair.file))
    return {0: [pages[0], again], **{slot: [pages[slot]] for slot in (1, 2, 4, 7)}}


def _copies(plan: Plan) -> dict[int, Draft]:
    """Altered copies of pictures that other pages have: of each kind one in each segment.

    The originals are wherever ordinary pages have them.
    """
    pages: dict[int, Draft] = {}
    found: dict[str, int] = {}
    for pair in plan.group(COPY):
        kind = str(kind_of_copy(pair.file))
        number = found[kind] = found.get(kind, -1) + 1
        slot = (2 * number + list(found).index(kind) % 2) % 8
        site = f"https://www.reposts{slot}.sample.test"
        page = pages.setdefault(slot, Draft(f"{site}/found.html", "Found elsewhere"))
        page.image(f"copy_{kind}", pair, picture_url(pair.file))
    return pages
