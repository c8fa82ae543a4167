"""Composes the sample crawl's committed inputs: `python -m training.sample_images`.

Writes ``laion_assets/sample_crawl/data``: ``images.zip`` (pictures as the web would serve them),
``plan.json`` (what is said of them, and what becomes of each pair), ``ATTRIBUTION.md``. The art
is of two families that the shipped CLIP's training holds out. Every pair is scored with that CLIP
on the pipeline's own way, and where a score decides too narrowly, the pair is left out.

What does not belong here: which cases are planted (``laion_assets.sample_crawl.cases``).
"""

from __future__ import annotations

import io
import itertools
import re
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pycld2
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

from .captions import spoken_name
from .compose import compose, web_size
from .corpus import DEFAULT_CACHE, Glyph, load_corpus, names, rasterise, sources

SEED = 20000105
STYLES = ("fluent-emoji", "noto")
MIN_BYTES = 5_000
MATCHED, MISSES, MISMATCHED = 1_610, 45, 70
MARGIN = 0.03
RANK_MARGIN = 0.015
ALTS_EACH = 5
SCORING_BATCH = 256

NOT_PICTURED = re.compile(
    r"button|arrow|keycap|flag: |square|ideograph|Japanese “|component|hair$|bubble|mark$|input|"
    r"^(medium|large|small)|parenthes|numbers|symbol|zodiac|thirty|o’clock|sign$|letter|"
    r"^(Aries|Taurus|Gemini|Cancer|Leo|Virgo|Libra|Scorpio|Sagittarius|Capricorn|Aquarius|Pisces)$"
)
FLAGS = re.compile(r"flag: (Japan|Canada|Brazil|France|Germany|Italy|India|Greece|Kenya|Jamaica)$")

ALTS = (
    "Cartoon picture of {a}",
    "{Name} – free clip art",
    "Illustration of {a}",
    "Cute {name} sticker for your messages",
    "Colourful {name} graphic for school projects",
    "Drawing of {a} by our reader",
    "Download this free {name} picture",
    "{Name} icon in high quality",
    "This is {a}",
    "{Name}, drawn with soft shadows",
    "A small picture of {a}",
    "Funny {name} cartoon",
    "{Name} clipart for worksheets",
    "Image showing {a}",
    "A simple drawing of {a}",
    "Our new {name} design",
    "Glossy {name} emoji",
    "{Name} illustration ({keyword})",
    "{Name} picture, {keyword}",
    "{Name}: free stock image",
    "Beautiful {name} artwork",
    "The {name} emoji in another style",
    "Nice {name} image for your website",
    "Print this {name} picture at home",
)
MARKED = (
    "{Name} & friends: a free picture",
    "The “{name}” drawing in our collection",
    "{Name} – a “new” picture & more",
    "Picture of {a} <b>in bold</b>",
    "Our reader's {name} drawing",
    '{Name} picture "for free" <img>',
    "Drawing of {a}: rock & roll’s best",
    "Picture of {a} & nothing else – really",
)
ACCENTED = (
    "A drawing of {a} from the café",
    "Déjà vu: the picture of {a}",
    "A naïve picture of {a}, with a résumé",
)
# Stand-ins of laion_assets/safety/prompts/sample.json.
FLAGGED = {
    "guitar": "1f3b8",
    "banjo": "1fa95",
    "violin": "1f3bb",
    "penguin": "1f427",
    "telescope": "1f52d",
    "trophy": "1f3c6",
}
FLAGGED_ALTS = ("Picture of {a}", "This is {a}", "{Name} illustration", "Drawing of {a}")
MINORS_ALTS = ("Picture of {a} for KIDS", "Drawing of {a} by a child", "The baby’s {name}")
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
OTHER_TEXTS = ("Here is the same {name} picture again", "Another look at the {name} drawing")
FOREIGN = {
    "de": ("Bild: {} als Zeichnung kostenlos herunterladen", "Hier sehen Sie ein Bild: {}"),
    "fr": ("Image à télécharger gratuitement : {}", "Voici un joli dessin : {}"),
    "es": ("Descarga gratis este dibujo para niños: {}", "Aquí puedes ver una imagen: {}"),
    "ru": ("Рисунок: {}, скачать картинку бесплатно", "На этой картинке вы видите: {}"),
    "ja": ("{}のかわいいイラストを無料でダウンロード", "これは{}の絵です"),
    "zh": ("{}的卡通图片免费下载", "这是一张{}的图画"),
    "ar": ("صورة {} للتحميل مجانا على الموقع", "هنا يمكنك مشاهدة رسم {}"),
}
UNKNOWN_LANGUAGE = ("XK-2000 B7 ZZ-9", "DSC_0047.JPG 4711", "Zebra", "zzxq qqrt 0815 pblf")


@dataclass
class Candidate:
    """A picture and what is said of it, before it is known what becomes of the pair."""

    group: str
    file: str
    text: str
    concept: str
    reason: str = KEPT
    similarity: float | None = None
    nsfw: str | None = None
    close: bool = False
    """A decision on it hangs on rounding; it may not go into the crawl."""


@dataclass
class Studio:
    """The pictures made so far, by file name."""

    cache: Path
    content: dict[str, bytes] = field(default_factory=dict)

    def make(self, glyph: Glyph, purpose: str = "") -> str:
        """Compose, encode and keep one picture of ``glyph``; returns its file name."""
        rng = np.random.default_rng([SEED, zlib.crc32(f"{glyph.concept}{purpose}".encode()),
                                     zlib.crc32(glyph.style.encode())])  # fmt: skip
        kept = self.cache / f"{glyph.style}-{glyph.concept}{purpose}"
        if not kept.is_file():
            data, suffix = published(rasterise(glyph, DEFAULT_CACHE, 512), rng)
            with atomic_path(kept) as beside:
                beside.write_bytes(suffix.encode().ljust(8) + data)
        stored = kept.read_bytes()
        suffix, data = stored[:8].decode().strip(), stored[8:]
        slug = re.sub(r"[^a-z0-9]+", "-", glyph.name.lower()).strip("-")
        file = f"{glyph.style}/{slug}{purpose}{suffix}"
        if self.content.setdefault(file, data) != data:
            raise ValueError(f"two pictures are called {file}")
        return file


def published(drawing: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    """A picture as a site would publish it: bytes (5,000 or more) and the file name's suffix."""
    width, height = web_size(rng)
    kind = ("jpg", "webp", "png", "alpha", "palette")[
        int(rng.choice(5, p=[0.5, 0.38, 0.04, 0.05, 0.03]))
    ]
    if kind in ("alpha", "palette"):
        side = int(rng.integers(160, 260))
        picture = drawing.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        if kind == "palette":
            picture = picture.quantize(128)
        data = _png(picture)
        if MIN_BYTES + 200 <= len(data) <= 40_000:
            return data, ".png"
        kind = "jpg"
    scene = compose(drawing, rng, width, height)
    if kind == "png":
        data = _png(scene)
        if MIN_BYTES + 200 <= len(data) <= 40_000:
            return data, ".png"
        kind = "webp"
    for quality in (int(rng.integers(62, 80)), 88, 95, 98):
        data = _lossy(scene, kind, quality)
        if len(data) >= MIN_BYTES + 200:
            return data, f".{kind}"
    larger = scene.resize((scene.width * 2, scene.height * 2), Image.Resampling.LANCZOS)
    for quality in (85, 95, 98):
        data = _lossy(larger, "jpg", quality)
        if len(data) >= MIN_BYTES + 200:
            return data, ".jpg"
    return _png(scene), ".png"


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def _lossy(picture: Image.Image, kind: str, quality: int) -> bytes:
    out = io.BytesIO()
    if kind == "webp":
        picture.save(out, "WEBP", quality=quality, method=4)
    else:
        picture.save(out, "JPEG", quality=quality, progressive=quality % 3 == 0)
    return out.getvalue()


def pictured(glyph: Glyph) -> bool:
    """Whether a drawing is something that people would put into an alt text."""
    if glyph.style not in STYLES or glyph.concept in FLAGGED.values():
        return False
    return bool(FLAGS.search(glyph.name)) or not NOT_PICTURED.search(glyph.name)


def say(frame: str, glyph: Glyph, rng: np.random.Generator) -> str:
    name = spoken_name(glyph.name)
    others = [word for word in glyph.keywords if word.lower() not in name.lower() and len(word) > 3]
    keyword = others[int(rng.integers(len(others)))] if others else "clip art"
    plural = re.search(r"[^s]s$|^(people|person|woman|man)s? with", name.split(" with ")[0])
    article = "" if plural else "an " if name[0].lower() in "aeiou" else "a "
    return frame.format(
        name=name, Name=name[0].upper() + name[1:], a=article + name, keyword=keyword
    )


def is_language(text: str, language: str) -> bool:
    """Whether pycld2 is sure of the language, and would say the same if it were less careful."""
    reliable, _, guesses = pycld2.detect(text, isPlainText=True)
    careless = pycld2.detect(text, isPlainText=True, bestEffort=True)[2]
    return bool(reliable) and guesses[0][1] == language == careless[0][1]


def english_alts(glyph: Glyph, rng: np.random.Generator) -> list[str]:
    """Up to ``ALTS_EACH`` texts that are surely English, of frames in a random order."""
    texts = (say(ALTS[at], glyph, rng) for at in rng.permutation(len(ALTS)))
    return list(itertools.islice((text for text in texts if is_language(text, "en")), ALTS_EACH))


def matched_candidates(glyphs: list[Glyph], studio: Studio) -> list[Candidate]:
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
    """Other texts of pictures that matched pairs have: mismatched, marked, accented, again."""
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
    """Pictures that the safety rule may flag; their group is known once they are scored."""
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
    """Scores pairs on the pipeline's own way: as a shard stores them, then by the shipped CLIP.

    Embeddings are kept in ``cache`` by model and picture, so that a change of texts is quick.
    """

    def __init__(self, content: dict[str, bytes], cache: Path) -> None:
        from laion_assets.clip.model import load_clip
        from laion_assets.clip.options import ClipOptions
        from laion_assets.clip.thresholds import threshold_for
        from laion_assets.download.images import ImageMaker
        from laion_assets.download.options import DownloadOptions
        from laion_assets.removals.lists import Entries

        options = ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny")
        self.model = load_clip(options)
        self.threshold = threshold_for(self.model.key)
        self.categories = category_embeddings(load_prompts("sample"), self.model)
        self.maker = ImageMaker(DownloadOptions(), Entries(), Entries())
        self.content = content
        self.cache = cache / f"vectors-{self.model.version}.npz"
        self.images: dict[str, NDArray[np.float32]] = {}
        if self.cache.is_file():
            self.images = dict(np.load(self.cache))

    def image_vectors(self, files: list[str]) -> NDArray[np.float32]:
        """(n, dim), of the pictures as the pipeline stores them."""
        sums = {file: Checksums.of(self.content[file]) for file in set(files)}
        keys = {file: sums[file].sha256 for file in sums}
        missing = sorted(file for file, key in keys.items() if key not in self.images)
        for start in range(0, len(missing), SCORING_BATCH):
            batch = missing[start : start + SCORING_BATCH]
            made = [self.maker.make(self.content[file], sums[file]) for file in batch]
            stored = [Image.open(io.BytesIO(image.encoded)) for image in made]
            vectors = self.model.encode_images(stored)
            self.images |= dict(zip((keys[file] for file in batch), vectors, strict=True))
            with atomic_path(self.cache) as beside:
                np.savez(beside, **self.images)  # type: ignore[arg-type]
            print(f"embedded {start + len(batch)} of {len(missing)}", flush=True)
        return np.stack([self.images[keys[file]] for file in files])

    def score(self, candidates: list[Candidate]) -> None:
        """Sets similarity, tag and reason of each, and whether any of them is close."""
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
        """Whether rounding could change which categories are first or second: bool (n,)."""
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


def special_files(picture: Image.Image) -> dict[str, bytes]:
    """Bodies that are not what a picture should be; what each is, its name says."""
    made: dict[str, bytes] = {}
    made["icon.png"] = _png(picture.resize((32, 32)))
    base = _lossy(picture.resize((200, 200)), "jpg", 60)
    made["4999.jpg"] = _jpeg_of_length(base, 4_999)
    made["5000.jpg"] = _jpeg_of_length(base, 5_000)
    whole = _lossy(picture.resize((480, 480)), "jpg", 85)
    made["truncated.jpg"] = whole[: len(whole) * 6 // 10]
    png = bytearray(_png(picture.resize((240, 240))))
    middle = len(png) // 2
    png[middle : middle + 200] = bytes(200)
    made["corrupt.png"] = bytes(png)
    story = "".join(
        f"<p>Paragraph {number} of a page that is not a picture.</p>\n" for number in range(120)
    )
    made["page.html"] = f"<!doctype html>\n<title>Sign in</title>\n{story}".encode()
    dots = "".join(f'<circle cx="{x}" cy="{x * 7 % 200}" r="4"/>' for x in range(0, 400, 2))
    made["drawing.svg"] = f'<svg xmlns="http://www.w3.org/2000/svg">{dots}</svg>'.encode()
    small = picture.resize((160, 160))
    turned = [small.rotate(angle) for angle in (0, 30, 60)]
    made["plain.gif"] = _frames(turned[:1], "GIF")
    made["bitmap.bmp"] = _frames(turned[:1], "BMP")
    made["animated.gif"] = _frames(turned, "GIF")
    made["animated.webp"] = _frames(turned, "WEBP", quality=80)
    made["animated.png"] = _frames(turned, "PNG")
    made["bomb.png"] = _bomb_png(12_000, 12_000)
    made["bomb.jpg"] = _with_jpeg_size(whole, 65_000, 65_000)
    for name, data in made.items():
        if len(data) < MIN_BYTES and name not in ("icon.png", "4999.jpg"):
            raise ValueError(f"{name} has {len(data)} bytes, and would be refused as too small")
    return {f"special/{name}": data for name, data in made.items()}


def _frames(pictures: list[Image.Image], kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    if len(pictures) > 1:
        options |= {"save_all": True, "append_images": pictures[1:], "duration": 200, "loop": 0}
    pictures[0].save(out, kind, **options)
    return out.getvalue()


def _jpeg_of_length(data: bytes, length: int) -> bytes:
    """The same picture with a comment that fills it up to exactly ``length`` bytes."""
    missing = length - len(data) - 4
    if missing < 0:
        raise ValueError(f"the picture has {len(data)} bytes already")
    comment = b"\xff\xfe" + struct.pack(">H", missing + 2) + b" " * missing
    return data[:2] + comment + data[2:]


def _with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    """The same bytes whose frame header declares another size."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def _bomb_png(width: int, height: int) -> bytes:
    """A valid black PNG of one bit a pixel: some kilobytes that unpack to megabytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def chosen(candidates: list[Candidate]) -> list[Candidate]:
    """The pairs that go into the crawl, as many of each kind as planned."""
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
    """Whose art the pictures are made of, and under which terms."""
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
        raise SystemExit("Pillow without WebP cannot compose the pictures")

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
