"""Altered copies of the sample crawl's pictures: `python -m training.sample_copies`.

Puts them into the committed ``images.zip`` and ``plan.json`` in place of earlier ones. All else
there stays as it is, and neither npm nor the art is needed. Originals are matched pictures of which
the other family of art has a drawing of the same thing, so that look-alikes are present that are no
copies.

What does not belong here: how a copy is altered (``laion_assets.sample_crawl.copies``), and which
pages have it (``laion_assets.sample_crawl.cases``).
"""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from laion_assets.sample_crawl.copies import COPIES, opened
from laion_assets.sample_crawl.plan import COPIED, COPY, DATA, KEPT, kind_of_copy

from .corpus import DEFAULT_CACHE, Glyph
from .sample_inputs import Inputs, read_inputs, write_inputs
from .sample_judge import Candidate, Judge
from .sample_pictures import MIN_BYTES, SEED
from .sample_texts import COPY_ALTS, is_language, say

EACH = 4
"""Copies of a kind."""
TRIED = 12
"""Originals that are tried for a kind."""
MAX_BYTES = 60_000
FIRST = 1_000
"""Kept pairs that come before the originals': planted cases take the first ones of the plan, and
many of these never reach the lake."""


def with_copies(inputs: Inputs, judge: Judge) -> Inputs:
    """The inputs with new copies, and without earlier ones.

    ``judge``: its pictures have the originals; the copies are added. Raises ``ValueError`` if a
    kind has too few copies that score clearly.
    """
    content = {file: body for file, body in inputs.content.items() if kind_of_copy(file) is None}
    pairs = [one for one in inputs.pairs if one.group != COPY]
    candidates = []
    for number, file in enumerate(originals(pairs)[: TRIED * len(COPIES)]):
        kind = list(COPIES)[number % len(COPIES)]
        body = COPIES[kind](opened(content[file]), random.Random(f"{SEED} {kind} {file}"))
        if MIN_BYTES + 200 <= len(body) <= MAX_BYTES:
            name = copy_name(kind, file, body)
            judge.content[name] = body
            candidates += [Candidate(COPY, name, text) for text in texts(file)]
    judge.score(candidates)
    taken = clear(candidates)
    content |= {one.file: judge.content[one.file] for one in taken}
    return Inputs(content, pairs + taken, inputs.foreign)


def originals(pairs: list[Candidate]) -> list[str]:
    """Files of matched pairs whose thing both families show, in a random order."""
    kept = [one.file for one in pairs if one.group == "matched" and one.reason == KEPT]
    drawings = Counter(PurePosixPath(file).stem for file in kept)
    files = [file for file in kept[FIRST:] if drawings[PurePosixPath(file).stem] > 1]
    rng = np.random.default_rng([SEED, len(files)])
    return [files[at] for at in rng.permutation(len(files))]


def copy_name(kind: str, original: str, body: bytes) -> str:
    """File name of a copy: its original's below the kind, with the suffix of its own format."""
    suffix = {"JPEG": ".jpg", "WEBP": ".webp"}[Image.open(io.BytesIO(body)).format or ""]
    return str(PurePosixPath(COPIED, kind, original).with_suffix(suffix))


def texts(original: str) -> list[str]:
    """Texts for a copy that are surely English, in a random order; they name what it shows."""
    rng = np.random.default_rng([SEED, *original.encode()])
    glyph = Glyph("", "", PurePosixPath(original).stem.replace("-", " "), (), "", "")
    said = (say(COPY_ALTS[at], glyph, rng) for at in rng.permutation(len(COPY_ALTS)))
    return [text for text in said if is_language(text, "en")]


def clear(candidates: list[Candidate]) -> list[Candidate]:
    """The first copies of each kind with a text that is clearly kept.

    Raises ``ValueError`` if there are too few.
    """
    taken: dict[str | None, dict[str, Candidate]] = {kind: {} for kind in COPIES}
    for one in candidates:
        of_kind = taken[kind_of_copy(one.file)]
        if one.reason == KEPT and not one.close and len(of_kind) < EACH:
            of_kind.setdefault(one.file, one)
    if short := {kind: len(found) for kind, found in taken.items() if len(found) < EACH}:
        raise ValueError(f"too few copies score clearly: {short}")
    return [one for of_kind in taken.values() for one in of_kind.values()]


def main(data: Path = DATA, cache: Path = DEFAULT_CACHE / "sample") -> None:
    inputs = read_inputs(data)
    judge = Judge(dict(inputs.content), cache)
    write_inputs(with_copies(inputs, judge), judge, data)


if __name__ == "__main__":
    main()
