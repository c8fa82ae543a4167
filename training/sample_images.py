"""Compose the sample crawl's committed inputs: `python -m training.sample_images`.

Writes ``laion_assets/sample_crawl/data``: ``images.zip`` (pictures as the web would serve them),
``plan.json`` (their texts, and what becomes of each pair), and ``ATTRIBUTION.md``. The art comes
from two families that the shipped CLIP's training holds out. That CLIP scores every pair by the
pipeline's own code, and pairs whose score decides too narrowly are left out.

What does not belong here: which cases are planted (``laion_assets.sample_crawl.cases``).
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter

import numpy as np
from PIL import features

from laion_assets.sample_crawl.drafts import padded, picture_url
from laion_assets.sample_crawl.link_cases import MAX_TEXT
from laion_assets.sample_crawl.plan import KEPT

from .compose import compose
from .corpus import DEFAULT_CACHE, Glyph, load_corpus, names, rasterise
from .sample_copies import with_copies
from .sample_inputs import STYLES, Inputs, write_inputs
from .sample_judge import INNOCENT, SAFETY, Candidate, Judge
from .sample_pictures import SEED, Studio, special_files
from .sample_texts import (
    ACCENTED,
    FLAGGED_ALTS,
    FOREIGN,
    MARKED,
    MINORS_ALTS,
    OTHER_TEXTS,
    UNKNOWN_LANGUAGE,
    english_alts,
    is_language,
    say,
)

MATCHED, MISSES, MISMATCHED = 1_610, 45, 70
NOT_PICTURED = re.compile(
    r"button|arrow|keycap|flag: |square|ideograph|Japanese “|component|hair$|bubble|mark$|input|"
    r"^(medium|large|small)|parenthes|numbers|symbol|zodiac|thirty|o’clock|sign$|letter|"
    r"^(Aries|Taurus|Gemini|Cancer|Leo|Virgo|Libra|Scorpio|Sagittarius|Capricorn|Aquarius|Pisces)$"
)
FLAGS = re.compile(r"flag: (Japan|Canada|Brazil|France|Germany|Italy|India|Greece|Kenya|Jamaica)$")
# The stand-ins of laion_assets/safety/prompts/sample.json.
FLAGGED = {
    "guitar": "1f3b8",
    "banjo": "1fa95",
    "violin": "1f3bb",
    "penguin": "1f427",
    "telescope": "1f52d",
    "trophy": "1f3c6",
}


def pictured(glyph: Glyph) -> bool:
    """Return whether a drawing shows something that people would name in an alt text."""
    if glyph.style not in STYLES or glyph.concept in FLAGGED.values():
        return False
    return bool(FLAGS.search(glyph.name)) or not NOT_PICTURED.search(glyph.name)


def matched_candidates(glyphs: list[Glyph], studio: Studio) -> list[Candidate]:
    """Pictures of all glyphs with several English texts each."""
    made = []
    for number, glyph in enumerate(glyphs):
        rng = np.random.default_rng([SEED, number])
        for text in english_alts(glyph, rng):
            made.append(Candidate("matched", studio.make(glyph), text, glyph.concept))
        if number % 250 == 0:
            print(f"composed {number} of {len(glyphs)}", flush=True)
    return made


def derived_candidates(
    matched: list[Candidate], glyphs: dict[str, Glyph], rng: np.random.Generator
) -> list[Candidate]:
    """Other texts for pictures of matched pairs: mismatched, marked, accented, second, long."""
    firsts = list({one.file: one for one in reversed(matched)}.values())
    picked = [firsts[at] for at in rng.permutation(len(firsts))]
    made: list[Candidate] = []
    for one, other in itertools.pairwise(picked[: 3 * MISMATCHED]):
        made.append(Candidate("mismatched", one.file, other.text, one.concept, "below_threshold"))
    for group, frames, each in (
        ("marked", MARKED, 12),
        ("accented", ACCENTED, 12),
        ("other_text", OTHER_TEXTS, 20),
        ("long", ("Picture of {a}",), 30),
    ):
        for frame in frames:
            for one in (picked.pop() for _ in range(each)):
                text = say(frame, glyphs[one.concept], rng)
                if group == "long":
                    text = padded(text, MAX_TEXT)
                if is_language(text, "en"):
                    made.append(Candidate(group, one.file, text, one.concept))
    return made


def flagged_candidates(corpus: list[Glyph], studio: Studio) -> list[Candidate]:
    """Pictures that the safety rule may flag; scoring decides their group."""
    made = []
    for glyph in corpus:
        if glyph.style not in STYLES or glyph.concept not in FLAGGED.values():
            continue
        rng = np.random.default_rng([SEED, zlib.crc32(glyph.concept.encode())])
        for number, frame in enumerate((*FLAGGED_ALTS, *MINORS_ALTS)):
            text = say(frame, glyph, rng)
            if is_language(text, "en"):
                file = studio.make(glyph, f"-{number}")
                made.append(Candidate("flagged", file, text, glyph.concept))
    return made


def foreign_texts(matched: list[Candidate], rng: np.random.Generator) -> list[dict[str, str]]:
    """Texts in other languages, and in none, for pictures of matched pairs."""
    rows = []
    for language, frames in FOREIGN.items():
        found = 0
        for at in rng.permutation(len(matched)):
            one = matched[at]
            name = names(one.concept, language)
            text = frames[found % len(frames)].format(name)
            if name and is_language(text, language):
                rows.append({"file": one.file, "text": text, "language": language})
                found += 1
            if found == 8:
                break
    for text in UNKNOWN_LANGUAGE:
        if is_language(text, "en"):
            raise ValueError(f"{text!r} is English after all")
        rows.append({"file": matched[0].file, "text": text, "language": "un"})
    return rows


def chosen(candidates: list[Candidate]) -> list[Candidate]:
    """Choose the pairs that go into the crawl, as many of each kind as planned."""
    taken: list[Candidate] = []
    n: Counter[tuple[str, str]] = Counter()
    seen: set[tuple[str, str]] = set()
    pictured_by: set[str] = set()
    kept_files = {
        one.file
        for one in candidates
        if one.group == "matched" and one.reason == KEPT and not one.close
    }
    limits = {
        ("matched", KEPT): MATCHED,
        ("matched", "below_threshold"): MISSES,
        ("mismatched", "below_threshold"): MISMATCHED,
        ("marked", KEPT): 12,
        ("accented", KEPT): 4,
        ("other_text", KEPT): 6,
        ("long", KEPT): 1,
        ("boundary", KEPT): 1,
        (INNOCENT, KEPT): 3,
    }
    limits |= {(group, reason): 4 for (_, reason), group in SAFETY.items()}
    for one in candidates:
        kind = (one.group, one.reason)
        pair = (picture_url(one.file), one.text)
        if one.close or pair in seen or n[kind] >= limits.get(kind, 0):
            continue
        if one.group in ("matched", INNOCENT):
            if one.file in pictured_by or (one.reason != KEPT and one.file in kept_files):
                continue
            pictured_by.add(one.file)
        n[kind] += 1
        seen.add(pair)
        taken.append(one)
    print(f"chosen: {dict(n)}")
    return taken


def main() -> None:
    if not features.check("webp"):
        raise SystemExit("Pillow was built without WebP, which the pictures need")

    corpus = load_corpus()
    glyphs = [glyph for glyph in corpus if pictured(glyph)]
    rng = np.random.default_rng(SEED)
    glyphs = [glyphs[at] for at in rng.permutation(len(glyphs))]
    studio = Studio(DEFAULT_CACHE / "sample")
    matched = matched_candidates(glyphs, studio)
    apple = next(glyph for glyph in glyphs if glyph.concept == "1f34e" and glyph.style == "noto")
    studio.content |= special_files(compose(rasterise(apple), rng, 480, 480))
    candidates = [*matched, *derived_candidates(matched, {g.concept: g for g in glyphs}, rng)]
    candidates.append(
        Candidate("boundary", "special/5000.jpg", "Cartoon picture of a red apple", "1f34e")
    )
    candidates += flagged_candidates(corpus, studio)
    judge = Judge(studio.content, studio.cache)
    judge.score(candidates)
    taken = chosen(candidates)
    kept = [one for one in taken if one.group == "matched" and one.reason == KEPT]
    foreign = foreign_texts(kept, rng)
    used = {one.file for one in taken} | {row["file"] for row in foreign}
    used |= {file for file in studio.content if file.startswith("special/")}
    inputs = Inputs({file: studio.content[file] for file in used}, taken, foreign)
    write_inputs(with_copies(inputs, judge), judge)


if __name__ == "__main__":
    main()
