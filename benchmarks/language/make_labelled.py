"""Make ``labelled.tsv``: ``python -m benchmarks.language.make_labelled PACKAGE``.

``PACKAGE`` is the unpacked npm package ``cldr-annotations-full`` 48.2.0 (``npm pack`` it). It has
the names of emoji in many languages, written by people for Unicode's CLDR (Unicode License V3).
Like captions, they are noun phrases without a sentence around them. Half of the lines are one
name, half are two names with a comma, so that lengths spread over 5 to 60 characters.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Final

LABELLED: Final = Path(__file__).parent / "labelled.tsv"
LINES: Final = {"en": 400} | dict.fromkeys(
    ["de", "fr", "es", "it", "pt", "nl", "sv", "da", "pl", "cs", "ro", "tr", "id"], 100
) | dict.fromkeys(["ru", "ja", "ko", "ar", "hi", "zh"], 50)  # fmt: skip


def main(package: Path) -> None:
    chance = random.Random(0)
    lines = []
    for language, wanted in LINES.items():
        path = package / "annotations" / language / "annotations.json"
        annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"]
        names = [value["tts"][0] for value in annotations.values() if "tts" in value]
        chance.shuffle(names)
        texts = [
            names.pop() if number % 2 else f"{names.pop()}, {names.pop()}"
            for number in range(wanted * 3 // 2)
        ]
        texts = [text for text in texts if 5 <= len(text) <= 60][:wanted]
        lines += [f"{language}\t{text}\n" for text in texts]
    LABELLED.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
