"""Alt texts of the sample crawl's pictures, in English and in other languages."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pycld2

from .captions import spoken_name
from .corpus import Glyph

ALTS_EACH = 5

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
FLAGGED_ALTS = ("Picture of {a}", "This is {a}", "{Name} illustration", "Drawing of {a}")
MINORS_ALTS = ("Picture of {a} for KIDS", "Drawing of {a} by a child", "The baby’s {name}")
OTHER_TEXTS = ("Here is the same {name} picture again", "Another look at the {name} drawing")
COPY_ALTS = (
    "Found on another site: {a}",
    "{Name}, shared again on our page",
    "Our favourite picture of {a}",
    "The {name} image that everybody shares",
    "Somebody sent us {a} today",
    "This {name} picture is from the web",
    "Look at {a} here",
    "{Name} picture, seen elsewhere",
)
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


def say(frame: str, glyph: Glyph, rng: np.random.Generator) -> str:
    """Put a drawing's name, with an article for ``{a}``, and a random keyword into a frame."""
    name = spoken_name(glyph.name)
    others = [word for word in glyph.keywords if word.lower() not in name.lower() and len(word) > 3]
    keyword = others[int(rng.integers(len(others)))] if others else "clip art"
    plural = re.search(r"[^s]s$|^(people|person|woman|man)s? with", name.split(" with ")[0])
    article = "" if plural else "an " if name[0].lower() in "aeiou" else "a "
    return frame.format(
        name=name, Name=name[0].upper() + name[1:], a=article + name, keyword=keyword
    )


def is_language(text: str, language: str) -> bool:
    """Return whether pycld2 is sure of the language, in its careful and its best-effort mode."""
    reliable, _, guesses = pycld2.detect(text, isPlainText=True)
    careless = pycld2.detect(text, isPlainText=True, bestEffort=True)[2]
    return bool(reliable) and guesses[0][1] == language == careless[0][1]


def english_alts(glyph: Glyph, rng: np.random.Generator) -> list[str]:
    """Up to ``ALTS_EACH`` texts that are surely English, from frames in a random order."""
    texts = (say(ALTS[at], glyph, rng) for at in rng.permutation(len(ALTS)))
    return list(itertools.islice((text for text in texts if is_language(text, "en")), ALTS_EACH))
