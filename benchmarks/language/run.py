"""``python -m benchmarks.language.run``: accuracy and speed of language detectors on captions."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import measure, table
from benchmarks.language.make_labelled import LABELLED
from benchmarks.peer import peer_python

_HERE: Final = Path(__file__).parent
_DETECTORS: Final = {
    "ours": "CLD2, our use of it (pycld2)",
    "best_effort": "CLD2, made to guess",
    "fasttext": "fastText lid.176.ftz",
    "py3langid": "py3langid",
    "lingua": "Lingua, all languages",
}


def main() -> None:
    peer = peer_python("language", _HERE / "requirements.txt")
    true = [line.partition("\t")[0] for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    rows, ours = [], []
    for name, label in _DETECTORS.items():
        command: list[str | Path] = [peer, _HERE / "theirs.py", name, LABELLED]
        if name in ("ours", "best_effort"):
            command = [sys.executable, "-m", "benchmarks.language.ours", name, LABELLED]
        measured = measure.run(command)
        answer = json.loads(measured.stdout.splitlines()[-1])
        codes = [code.split("-")[0] for code in answer["codes"]]
        if name == "ours":
            ours = codes
        rows.append(
            [
                label,
                *_english(true, codes),
                _percent(sum(t == c for t, c in zip(true, codes, strict=True)), len(true)),
                f"{answer['seconds'] / len(true) * 1e6:.1f}",
                f"{measured.peak_bytes / 1e6:.0f}",
            ]
        )
    columns = ["", "English found", "wrongly taken for English", "all correct", "µs a text", "MB"]
    text = table.markdown(columns, rows)
    text += "\n\nCLD2 as we use it, by true language:\n\n"
    table.publish("language", text + _confusion(true, ours))


def _english(true: Sequence[str], codes: Sequence[str]) -> tuple[str, str]:
    """Recall of English, and the share of other languages among texts called English."""
    found = sum(t == c == "en" for t, c in zip(true, codes, strict=True))
    called = sum(code == "en" for code in codes)
    return _percent(found, true.count("en")), _percent(called - found, called)


def _confusion(true: Sequence[str], codes: Sequence[str]) -> str:
    rows = []
    for language in dict.fromkeys(true):
        of = [code for t, code in zip(true, codes, strict=True) if t == language]
        right = of.count(language)
        english = 0 if language == "en" else of.count("en")
        unknown = of.count("unknown")
        rows.append(
            [language, len(of), right, english, len(of) - right - english - unknown, unknown]
        )
    return table.markdown(["", "texts", "correct", "as en", "as another", "unknown"], rows)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


if __name__ == "__main__":
    main()
