"""Compose the sample crawl's committed inputs: `python -m training.sample_images`.

Writes ``laion_assets/sample_crawl/data``: ``images.zip`` (pictures as the web would serve them),
``plan.json`` (their texts, and what becomes of each pair), and ``ATTRIBUTION.md``. The art comes
from two families that the shipped CLIP's training holds out. That CLIP scores every pair by the
pipeline's own code, and pairs whose score decides too narrowly are left out.

What does not belong here: which cases are planted (``laion_assets.sample_crawl.cases``).
"""

from __future__ import annotations

import io
import itertools
import re
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from laion_assets.download.images import Checksums
from laion_assets.files import atomic_path, write_json, write_text
from laion_assets.safety.minors import names_minors
from laion_assets.safety.prompts import category_embeddings, load_prompts
from laion_assets.safety.tags import tag
from laion_assets.sample_crawl.drafts import padded, picture_url
from laion_assets.sample_crawl.link_cases import MAX_TEXT
from laion_assets.sample_crawl.plan import DATA, KEPT

from .compose import compose
from .corpus import DEFAULT_CACHE, Glyph, load_corpus, names, rasterise, sources
from .sample_pictures import SEED, Studio, special_files
from .sample_texts import (
    ACCENTED,
    ALTS_EACH,
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

STYLES = ("fluent-emoji", "noto")
MATCHED, MISSES, MISMATCHED = 1_610, 45, 70
MARGIN = 0.03
RANK_MARGIN = 0.015
SCORING_BATCH = 256
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
SAFETY = {
    ("NSFW", KEPT): "safety_nsfw_kept",
    ("UNSURE", KEPT): "safety_unsure_kept",
    ("NSFW", "unsafe_minor_text"): "safety_minor_text",
    ("UNSURE", "unsafe_minor_text"): "safety_minor_text",
    ("NSFW", "unsafe_underage"): "safety_underage",
    ("UNSURE", "unsafe_underage"): "safety_underage",
    ("NSFW", "unsafe_animal"): "safety_animal",
    ("UNSURE", "unsafe_animal"): "safety_animal",
}
INNOCENT = "safety_innocent_minor_text"


@dataclass
class Candidate:
    """A picture and a text; scoring decides what becomes of the pair."""

    group: str
    file: str
    text: str
    concept: str
    reason: str = KEPT
    similarity: float | None = None
    nsfw: str | None = None
    close: bool = False
    """Whether rounding could change a decision on it; such a pair must not go into the crawl."""


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


class Judge:
    """Scoring of pairs by the pipeline's own code: stored as in a shard, then embedded by the CLIP.

    Embeddings are cached by model and picture, so that a change of texts is quick.
    """

    def __init__(self, content: dict[str, bytes], cache: Path) -> None:
        from laion_assets.clip.model import load_clip
        from laion_assets.clip.options import ClipOptions
        from laion_assets.clip.thresholds import threshold_for
        from laion_assets.download.images import ImageMaker
        from laion_assets.download.options import DownloadOptions

        options = ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny")
        self.model = load_clip(options)
        self.threshold = threshold_for(self.model.key)
        self.categories = category_embeddings(load_prompts("sample"), self.model)
        self.maker = ImageMaker(DownloadOptions())
        self.content = content
        self.cache = cache / f"vectors-{self.model.version}.npz"
        self.images: dict[str, NDArray[np.float32]] = {}
        if self.cache.is_file():
            self.images = dict(np.load(self.cache))

    def image_vectors(self, files: list[str]) -> NDArray[np.float32]:
        """Embed the pictures as the pipeline stores them: (n, dim)."""
        keys = {file: Checksums.of(self.content[file]).sha256 for file in set(files)}
        missing = sorted(file for file, key in keys.items() if key not in self.images)
        for start in range(0, len(missing), SCORING_BATCH):
            batch = missing[start : start + SCORING_BATCH]
            made = [self.maker.make(self.content[file]) for file in batch]
            stored = [Image.open(io.BytesIO(image.encoded)) for image in made]
            vectors = self.model.encode_images(stored)
            self.images |= dict(zip((keys[file] for file in batch), vectors, strict=True))
            with atomic_path(self.cache) as beside:
                np.savez(beside, **self.images)  # type: ignore[arg-type]
            print(f"embedded {start + len(batch)} of {len(missing)}", flush=True)
        return np.stack([self.images[keys[file]] for file in files])

    def score(self, candidates: list[Candidate]) -> None:
        """Set each candidate's similarity, tag and reason, and whether a decision is close."""
        images = self.image_vectors([one.file for one in candidates])
        texts = self.model.encode_texts([one.text for one in candidates])
        similarities = (images * texts).sum(axis=1)
        tags = tag(images, self.categories)
        minors = names_minors([one.text for one in candidates], self.categories.words)
        close = self._close_ranks(images)
        for at, one in enumerate(candidates):
            similarity = float(similarities[at])
            one.similarity = round(similarity, 4)
            one.nsfw = str(tags.nsfw[at])
            one.close = abs(similarity - self.threshold) < MARGIN or bool(close[at])
            one.reason = KEPT
            if similarity < self.threshold:
                one.reason = "below_threshold"
            elif one.nsfw != "UNLIKELY":
                if minors[at]:
                    one.reason = "unsafe_minor_text"
                elif tags.underage_ranked[at]:
                    one.reason = "unsafe_underage"
                elif tags.animal_ranked[at]:
                    one.reason = "unsafe_animal"
            if one.group == "flagged":
                one.group = SAFETY.get((one.nsfw, one.reason), "flagged")
            elif one.nsfw != "UNLIKELY":
                one.close = True
            elif one.group == "matched" and one.reason == KEPT and minors[at]:
                one.group = INNOCENT

    def _close_ranks(self, images: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return whether rounding could change which categories are first or second: bool (n,)."""
        close = np.zeros(len(images), dtype=np.bool_)
        for ranked, pairs in (
            (self.categories.nsfw, ((0, 1), (1, 0))),
            (self.categories.underage, ((0, 1),)),
            (self.categories.animals, ((0, 0),)),
        ):
            scores = images @ ranked.vectors.T
            flagged = -np.sort(-scores[:, ranked.flags], axis=1)
            others = -np.sort(-scores[:, ~ranked.flags], axis=1)
            for flagged_place, other_place in pairs:
                if flagged_place < flagged.shape[1]:
                    gap = flagged[:, flagged_place] - others[:, other_place]
                    if ranked is self.categories.nsfw:
                        close |= np.abs(gap) < RANK_MARGIN
                    else:
                        close |= (np.abs(gap) < RANK_MARGIN) & self._flagged(images)
        return close

    def _flagged(self, images: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.asarray(tag(images, self.categories).nsfw != "UNLIKELY")


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


def publish(
    taken: list[Candidate], foreign: list[dict[str, str]], studio: Studio, judge: Judge
) -> None:
    """Write ``images.zip``, ``plan.json`` and ``ATTRIBUTION.md``."""
    used = {one.file for one in taken} | {row["file"] for row in foreign}
    used |= {file for file in studio.content if file.startswith("special/")}
    content = {file: studio.content[file] for file in sorted(used)}
    with atomic_path(DATA / "images.zip") as beside, zipfile.ZipFile(beside, "w") as archive:
        for file, data in content.items():
            archive.writestr(zipfile.ZipInfo(file), data)
    about = (
        "What the sample crawl's pages say of its pictures, and what the subset stage makes of"
        f" each pair, scored by {judge.model.key} on the pipeline's own way. Pairs whose similarity"
        f" is within {MARGIN} of the threshold are left out, because rounding would decide on"
        f" them. Of up to {ALTS_EACH} texts for a matched picture the first that is clearly kept"
        " is taken; pictures with none are the model's misses, of which some stay, as"
        " below_threshold. Mismatched pairs carry another picture's text. Written by"
        " training/sample_images.py."
    )
    sizes = {}
    for file, data in content.items():
        if not file.startswith("special/") or file == "special/5000.jpg":
            width, height = Image.open(io.BytesIO(data)).size
            sizes[file] = {"width": width, "height": height}
    pairs = [
        {
            "group": one.group,
            "file": one.file,
            "text": one.text,
            "reason": one.reason,
            "similarity": one.similarity,
            "nsfw": one.nsfw,
        }
        for one in taken
    ]
    plan = {"about": about, "model": judge.model.key, "threshold": judge.threshold,
            "pictures": sizes, "pairs": pairs, "foreign": foreign}  # fmt: skip
    write_json(DATA / "plan.json", plan)
    write_text(DATA / "ATTRIBUTION.md", attribution())
    size = (DATA / "images.zip").stat().st_size
    print(f"{len(content)} files, {size / 1e6:.1f} MB, {len(pairs)} pairs")


def attribution() -> str:
    """Text of ``ATTRIBUTION.md``: whose art the pictures are made of, and under which terms."""
    art = "\n".join(
        f"- `{source.style}/`: {source.attribution}. Licence: {source.licence}."
        f" From `{source.package}` {source.version}."
        for source in sources()
        if source.style in STYLES
    )
    return f"""# Whose pictures these are

The pictures in `images.zip` are composed (scaled, turned, set on a background, encoded anew) from
these drawings; the folder is the style.

{art}
- `special/`: made of one of the `noto` drawings, or of nothing.

The texts are made of the names and keywords of the Unicode CLDR annotations, © Unicode, Inc.,
under the Unicode License v3 (Unicode-3.0).

The Apache License 2.0 is in `LICENSE-Apache-2.0.txt`. The MIT License:

{MIT}
"""


MIT = """> Copyright (c) Microsoft Corporation.
>
> Permission is hereby granted, free of charge, to any person obtaining a copy of this software
> and associated documentation files (the "Software"), to deal in the Software without
> restriction, including without limitation the rights to use, copy, modify, merge, publish,
> distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
> Software is furnished to do so, subject to the following conditions:
>
> The above copyright notice and this permission notice shall be included in all copies or
> substantial portions of the Software.
>
> THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING
> BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
> NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
> DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
> OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


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
    publish(taken, foreign_texts(kept, rng), studio, judge)


if __name__ == "__main__":
    main()
