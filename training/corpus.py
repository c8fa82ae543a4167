"""Captioned pictures with open licences: emoji art in several styles, named by Unicode CLDR.

What does not belong here: backgrounds and web-like pictures (``compose``), training (``train``).

The art comes from npm packages, pinned by version and SHA-512 in ``sources.json``; names and
keywords come from the Unicode CLDR annotations. A *concept* is an emoji's code points, so
drawings of one concept in several styles can be matched. Whole art families are held out of
training (``Source.held_out``), so a model is judged on styles that it never saw.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import re
import subprocess
import tarfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).resolve().parent
DEFAULT_CACHE = HERE.parent / ".cache" / "training"
LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "uk", "ja", "ko", "zh", "ar")

_VARIATION = "fe0f"
_SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_JOINER = "200d"
_MAN, _WOMAN = "1f468", "1f469"
_GENDER_SIGNS = {"2640", "2642"}


@dataclass(frozen=True)
class Source:
    """One art package, with the terms of its drawings."""

    style: str
    package: str
    version: str
    sha512: str
    licence: str
    attribution: str
    held_out: bool


@dataclass(frozen=True)
class Glyph:
    """One drawing of one concept.

    ``concept`` is the emoji's code points in lower-case hex joined by "-", without the variation
    selector; ``name`` and ``keywords`` are the English CLDR short name and annotations.
    """

    concept: str
    style: str
    name: str
    keywords: tuple[str, ...]
    licence: str
    attribution: str


def sources() -> list[Source]:
    """List the art packages, in the order of ``sources.json``."""
    return [Source(**entry) for entry in _pins()["art"]]


def held_out_styles() -> frozenset[str]:
    """Styles that training never sees."""
    return frozenset(source.style for source in sources() if source.held_out)


def load_corpus(cache: Path = DEFAULT_CACHE) -> list[Glyph]:
    """List every drawing of every style by (concept, style); fetch packages into ``cache``.

    Skin tones, and the man/woman variants of an emoji that exists without gender, are left out:
    they are nearly the same picture.

    Raises:
        RuntimeError: if npm fails, or a package's bytes are not the pinned ones.
    """
    english = _annotations(cache, "en")
    glyphs = []
    for source in sources():
        for concept in _drawings(cache, source):
            name, keywords = english[concept]
            glyphs.append(
                Glyph(concept, source.style, name, keywords, source.licence, source.attribution)
            )
    return sorted(glyphs, key=lambda glyph: (glyph.concept, glyph.style))


def rasterise(glyph: Glyph, cache: Path = DEFAULT_CACHE, size: int = 256) -> Image.Image:
    """Render a drawing as RGBA with resvg, ``size`` pixels on its longer side."""
    import resvg_py

    source = next(source for source in sources() if source.style == glyph.style)
    svg = _svg(cache, source, glyph.concept)
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    return picture


def svg(glyph: Glyph, cache: Path = DEFAULT_CACHE) -> str:
    """Return the drawing's SVG text."""
    source = next(source for source in sources() if source.style == glyph.style)
    return _svg(cache, source, glyph.concept)


def names(concept: str, language: str, cache: Path = DEFAULT_CACHE) -> str | None:
    """CLDR short name of a concept in ``language``, one of ``LANGUAGES``; None if it has none."""
    entry = _annotations(cache, language).get(concept)
    return entry[0] if entry else None


@functools.cache
def _pins() -> dict[str, Any]:
    pins: dict[str, Any] = json.loads((HERE / "sources.json").read_text("utf-8"))
    return pins


def _package(cache: Path, name: str, version: str, sha512: str) -> Path:
    """Folder of an unpacked package, fetched by ``npm pack`` on first use.

    Raises ``RuntimeError`` if npm fails or the SHA-512 is not the pinned one.
    """
    slug = name.removeprefix("@").replace("/", "-")
    archive = cache / "npm" / f"{slug}-{version}.tgz"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", f"{name}@{version}", "--silent"]
        done = subprocess.run(command, cwd=archive.parent, capture_output=True, text=True)
        if done.returncode or not archive.exists():
            raise RuntimeError(f"npm pack {name}@{version} failed: {done.stderr.strip()[-300:]}")
    unpacked = cache / "unpacked" / f"{slug}-{version}"
    if not unpacked.exists():
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != sha512:
            raise RuntimeError(f"{archive.name}: SHA-512 {digest} is not the pinned {sha512}")
        partial = unpacked.with_name(unpacked.name + ".partial")
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        partial.rename(unpacked)
    return unpacked / "package"


def _source_json(cache: Path, source: Source, file: str) -> dict[str, Any]:
    folder = _package(cache, source.package, source.version, source.sha512)
    content: dict[str, Any] = json.loads((folder / file).read_text("utf-8"))
    return content


def _code_points(text: str) -> str:
    return _without_variation("-".join(f"{ord(char):x}" for char in text))


def _without_variation(code_points: str) -> str:
    return "-".join(part for part in code_points.lower().split("-") if part != _VARIATION)


def _slug(name: str) -> str:
    """Reduce a name to letters and digits, since each package hyphenates names in its own way."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]", "", plain.replace("&", "and"))


@functools.cache
def _annotations(cache: Path, language: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Short name and keywords of each concept in ``language``."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for pin in _pins()["names"]:
        folder = _package(cache, pin["package"], pin["version"], pin["sha512"]) / pin["folder"]
        content = json.loads((folder / language / "annotations.json").read_text("utf-8"))
        for char, entry in content[pin["folder"]]["annotations"].items():
            if "tts" in entry:
                keywords = tuple(entry.get("default", ()))
                found.setdefault(_code_points(char), (entry["tts"][0], keywords))
    return found


@functools.cache
def _concept_by_slug(cache: Path) -> dict[str, str]:
    """Concepts by all their English names: CLDR's, the packages' own, and emojibase's."""
    english = _annotations(cache, "en")
    known = {_slug(name): concept for concept, (name, _) in reversed(english.items())}
    for source in sources():
        for code_points, name in _source_json(cache, source, "chars.json").items():
            if (concept := _without_variation(code_points)) in english:
                known.setdefault(_slug(name), concept)
    pin = _pins()["shortcodes"]
    folder = _package(cache, pin["package"], pin["version"], pin["sha512"]) / "en" / "shortcodes"
    for dialect in ("cldr", "emojibase", "github", "iamcal", "joypixels"):
        for code_points, codes in json.loads((folder / f"{dialect}.json").read_text()).items():
            if (concept := _without_variation(code_points)) in english:
                for code in [codes] if isinstance(codes, str) else codes:
                    known.setdefault(_slug(code), concept)
    return known


def _near_duplicate(concept: str, english: dict[str, tuple[str, tuple[str, ...]]]) -> bool:
    """Return whether a concept is a skin tone, a gender or a family of another one."""
    parts = concept.split("-")
    if _SKIN_TONES & set(parts):
        return True
    if _JOINER not in parts:
        return False
    if _GENDER_SIGNS & set(parts):
        return True
    people = sum(part in (_MAN, _WOMAN, "1f466", "1f467", "1f9d1", "1f9d2") for part in parts)
    if people > 1:
        return True
    return parts[0] in (_MAN, _WOMAN) and "-".join(["1f9d1", *parts[1:]]) in english


@functools.cache
def _drawings(cache: Path, source: Source) -> dict[str, str]:
    """Icon names of a package by concept; packages without code points are matched by name."""
    english = _annotations(cache, "en")
    known = _concept_by_slug(cache)
    icons = _source_json(cache, source, "icons.json")
    chars = _source_json(cache, source, "chars.json")
    found: dict[str, str] = {}
    for code_points, name in sorted(chars.items()):
        if name in icons["icons"]:
            found.setdefault(_without_variation(code_points), name)
    if not chars:
        aliases = icons.get("aliases", {}).items()
        other_names = {alias: entry["parent"] for alias, entry in aliases}
        for name, icon in [(name, name) for name in icons["icons"]] + sorted(other_names.items()):
            plain = re.sub(r"^flag-for-(the-)?", "flag-", re.sub(r"-\d$", "", name))
            concept = known.get(_slug(name)) or known.get(_slug(plain))
            if concept and icon in icons["icons"]:
                found.setdefault(concept, icon)
    return {
        concept: icon
        for concept, icon in found.items()
        if concept in english and not _near_duplicate(concept, english)
    }


def _svg(cache: Path, source: Source, concept: str) -> str:
    icons = _loaded_icons(cache, source)
    icon = icons["icons"][_drawings(cache, source)[concept]]
    default = icons.get("width", 16), icons.get("height", 16)
    width, height = icon.get("width", default[0]), icon.get("height", default[1])
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{box}">{icon["body"]}</svg>'
    )


@functools.cache
def _loaded_icons(cache: Path, source: Source) -> dict[str, Any]:
    return _source_json(cache, source, "icons.json")
