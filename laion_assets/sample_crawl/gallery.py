"""A list of pictures beside the sample crawls: a CSV with captions, as people have them.

It names pictures of the crawls by other URLs, so that none of its pairs is one of theirs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Final

from laion_assets.sample_crawl.drafts import Answer
from laion_assets.sample_crawl.plan import KEPT, Plan

FILE: Final = "lists/gallery.csv"
"""Its place below the data host's root."""
HOST: Final = "listed.sample.test"
_PICTURES: Final = 100
_COLUMNS: Final = ("image_url", "caption", "artist")


def gallery_csv(plan: Plan) -> bytes:
    """The list. Its last rows are such as lists have: repeated, without a caption, with markup, a
    picture that is gone, a URL that is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    rows = list(_pictures(plan))
    for number, (file, caption) in enumerate(rows):
        writer.writerow([_url(file), caption, f'Artist {number % 7}, "the {number % 3}rd"'])
    (first, caption), (second, other), (third, _) = rows[:3]
    writer.writerow([_url(first), caption, "said twice"])
    writer.writerow([_url(second), f"<b>{other}</b><br>on a page", ""])
    writer.writerow([_url(third), "", ""])
    writer.writerow([_url("gone.jpg"), "A picture that is no longer where it was", ""])
    writer.writerow(["gallery/4711.jpg", "A picture of which only the path is known", ""])
    return text.getvalue().encode()


def gallery_answers(plan: Plan) -> dict[str, Answer]:
    """Path on :data:`HOST` -> what it answers."""
    return {f"/{file}": {"file": file} for file, _ in _pictures(plan)}


def _url(file: str) -> str:
    return f"http://{HOST}/{file}"


def _pictures(plan: Plan) -> Iterator[tuple[str, str]]:
    """The pictures with their captions, each once."""
    seen: dict[str, str] = {}
    for pair in plan.group("matched"):
        if pair.reason == KEPT and len(seen) < _PICTURES:
            seen.setdefault(pair.file, pair.text)
    yield from seen.items()
