"""Maker of WAT files in Common Crawl's shape, of any size, the same for the same seed.

The proportions and their sources:

- A page is three records: the metadata of its request, its response and its metadata record, as
  in every WAT since 2013; one gzip member each.
- Nine responses of ten are HTML (Common Crawl's statistics by MIME type say 90 to 95 %).
- A page's three records take 6 to 7 KB compressed: a crawl of 2024 has some 20 TB of WAT for
  some 3 billion pages.
- A page has a log-normal number of links, median 74, mean about 120. Three in twenty are images,
  of which seven in ten have an alt text: about 1.7 pairs per KB.
- Of image addresses, 50 % are absolute, 30 % relative to the root, 15 % relative to the page, and
  5 % without a scheme. One page in fifty has a base, one in a hundred names a licence.
- Half of the alt texts are English, like Common Crawl's pages. One in eight is shorter than five
  characters, and a few have entities or white space to fold.

That is the dense WAT: 2,035 pairs a MB, none of them twice, as if every page were a shop's. The
realistic one differs in what :class:`Site` has:

- cc2dataset's README counts 300 billion pairs in 5 million WATs, duplicates dropped. A WAT of a
  newer crawl has 230 MB, so that is 260 pairs a MB.
- Pages belong to sites, the largest of which has a few per cent of them. A site has one language.
  Its pages share the pictures and links of its frame (logo, badges, menu), which make up about half
  of the pictures with an alt text; pages of news and shops show each other's.
- One page in five has no picture (terms, forum threads, directories). Less than half of the
  pictures have an alt text that says something. Both are assumptions that meet the figure above.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from laion_assets.files import atomic_path
from laion_assets.sample_crawl.records import Link, Page, WatFile

_WORDS: Final[Mapping[str, str]] = {
    "en": "the a of in with and red blue old new small large house garden river mountain street "
    "woman man child dog cat horse bird car train boat bridge kitchen table chair window light "
    "summer winter morning evening city village market shop music concert football team player "
    "wedding family portrait landscape sunset beach forest flower rose tree apple bread coffee",
    "de": "der die das und mit im am alte neue kleine große Haus Garten Fluss Berg Straße Frau "
    "Mann Kind Hund Katze Pferd Vogel Auto Zug Schiff Brücke Küche Tisch Stuhl Fenster Licht",
    "fr": "le la les et avec dans sur vieille nouvelle petite grande maison jardin rivière "
    "montagne rue femme homme enfant chien chat cheval oiseau voiture train bateau pont cuisine",
    "es": "el la los y con en de vieja nueva pequeña grande casa jardín río montaña calle mujer "
    "hombre niño perro gato caballo pájaro coche tren barco puente cocina mesa silla ventana",
    "ru": "и в на с старый новый маленький большой дом сад река гора улица женщина мужчина "
    "ребёнок собака кошка лошадь птица машина поезд лодка мост кухня стол стул окно свет",
}
_LANGUAGES: Final = ("en", "en", "en", "en", "de", "fr", "es", "ru")
_SITES_PER_MB: Final = 15
_SITES: Final = ("shop", "news", "blog", "wiki", "travel", "photo", "forum", "school", "museum")
_SECTIONS: Final = ("products", "articles", "gallery", "2023/11", "category/home", "images", "tag")


def make_wat(path: Path, megabytes: int, seed: int = 0, *, realistic: bool = False) -> None:
    """Write about ``megabytes`` MB (10^6, compressed) of WAT to ``path``: dense, or realistic."""
    chance = random.Random(seed)
    sites = [Site(number) for number in range(_SITES_PER_MB * megabytes)] if realistic else []
    with atomic_path(path) as beside, beside.open("wb") as out:
        written = 0
        wat = _open(seed)
        wat.write_warcinfo()
        while written < megabytes * 1_000_000:
            # Cubed: the first of a thousand sites has a tenth of the pages.
            site = sites[int(chance.random() ** 3 * len(sites))] if sites else None
            wat.write_page(site.page(chance) if site else _page(chance))
            data = wat.take()
            written += len(data)
            out.write(data)


def _open(seed: int) -> WatFile:
    stamp = "20240517233122-20240518023122"
    return WatFile("CC-MAIN-2024-22", f"CC-MAIN-{stamp}-{seed:05d}.warc.gz", "2024-05-18T00:00:00Z")


def _page(chance: random.Random) -> Page:
    language = chance.choice(_LANGUAGES)
    words = _WORDS[language].split()
    host = f"www.{chance.choice(_SITES)}{chance.randrange(100_000)}.example"
    section = chance.choice(_SECTIONS)
    url = f"https://{host}/{section}/{_slug(chance, words)}-{chance.randrange(10**6)}.html"
    title = _text(chance, words, 4, 10)
    if chance.random() >= 0.92:
        return Page(url, title, (), html=False)
    n = min(2000, int(chance.lognormvariate(4.3, 1.0)))
    links = [
        _image(chance, words, host) if chance.random() < 0.15 else _anchor(chance, words, host)
        for _ in range(n)
    ]
    if chance.random() < 0.01:
        licence = "https://creativecommons.org/licenses/by-sa/4.0/"
        links.append(Link("A@/href", licence, text="CC BY-SA", rel="license"))
    base = f"https://{host}/" if chance.random() < 0.02 else None
    return Page(url, title, links, base=base)


class Site:
    """A site of the realistic WAT: its language and its frame are the same on all of its pages."""

    def __init__(self, number: int) -> None:
        chance = random.Random(f"site {number}")
        self._words = _WORDS[chance.choice(_LANGUAGES)].split()
        self._host = f"www.{chance.choice(_SITES)}{number}.example"
        self._frame = [self._image(chance) for _ in range(chance.randint(3, 9))]
        self._frame += [_anchor(chance, self._words, self._host) for _ in range(30)]
        self._shown = [self._image(chance) for _ in range(20)]

    def page(self, chance: random.Random) -> Page:
        slug = _slug(chance, self._words)
        url = f"https://{self._host}/{chance.choice(_SECTIONS)}/{slug}-{chance.randrange(10**6)}"
        title = _text(chance, self._words, 4, 10)
        if chance.random() >= 0.92:
            return Page(url, title, (), html=False)
        n = min(2000, int(chance.lognormvariate(4.1, 1.0)))
        links = [_anchor(chance, self._words, self._host) for _ in range(n)]
        if chance.random() < 0.2:
            return Page(url, title, [*links, *self._frame[-30:]])
        pictures = [self._image(chance) for _ in range(int(chance.lognormvariate(0.8, 1.0)))]
        pictures += chance.sample(self._shown, chance.randrange(4))
        return Page(url, title, [*self._frame, *links, *pictures])

    def _image(self, chance: random.Random) -> Link:
        link = _image(chance, self._words, self._host)
        return replace(link, alt=None) if chance.random() < 0.3 else link


def _anchor(chance: random.Random, words: Sequence[str], host: str) -> Link:
    path = f"/{chance.choice(_SECTIONS)}/{_slug(chance, words)}"
    if chance.random() < 0.3:
        path += f"?id={chance.randrange(10**6)}&ref={chance.randrange(10**6):x}"
    url = f"https://{host}{path}" if chance.random() < 0.4 else path
    title = _text(chance, words, 1, 6) if chance.random() < 0.3 else None
    return Link("A@/href", url, title=title, text=_text(chance, words, 1, 7))


def _image(chance: random.Random, words: Sequence[str], host: str) -> Link:
    name = f"{_slug(chance, words)}-{chance.randrange(10**5)}.jpg"
    where = chance.random()
    if where < 0.5:
        url = (
            f"https://cdn{chance.randrange(40)}.example.net/{host}/{chance.randrange(10**4)}/{name}"
        )
    elif where < 0.8:
        url = f"/wp-content/uploads/2023/{chance.randrange(1, 13):02d}/{name}"
    elif where < 0.95:
        url = f"images/{name}" if chance.random() < 0.7 else f"../img/{name}"
    else:
        url = f"//static.{host}/{name}"
    if chance.random() < 0.3:
        return Link("IMG@/src", url)
    if chance.random() < 0.125:
        return Link("IMG@/src", url, chance.choice(["", "img", "logo", "1", "pic"]))
    alt = _text(chance, words, 2, 12)
    if chance.random() < 0.05:
        alt = alt.replace(" ", "  \n ", 1) + " &amp; Co"
    return Link("IMG@/src", url, alt)


def _text(chance: random.Random, words: Sequence[str], fewest: int, most: int) -> str:
    return " ".join(chance.choices(words, k=chance.randint(fewest, most))).capitalize()


def _slug(chance: random.Random, words: Sequence[str]) -> str:
    return "-".join(word.lower() for word in chance.choices(words, k=3) if word.isascii()) or "page"
